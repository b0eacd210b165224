"""Quantised ONNX files of ``src/export/int8.py``, run as they are: by OpenVINO where it is
installed, which takes two thirds of the time, else by ONNX Runtime.
"""

import os
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UserError
from ..networks.config import U2NetConfig
from ..networks.registry import parse_config
from ..weights.onnx import read_graph

_preparing = Lock()  # of all files: the runtimes themselves are begun under it
Run = Callable[[np.ndarray], np.ndarray]  # one picture 1×3×H×W to 1×out_ch×H×W


class OnnxRunner(nn.Module):
    """A quantised file with the face of a network in eval mode; threads may share one.

    Each call computes with as many threads as torch would (``torch.get_num_threads``).

    Args:
        path: the file.
        runtime: ``auto``, ``openvino`` or ``onnxruntime``.

    Raises:
        UserError: the file is torn or not of ``export.py --int8``, or the runtime is missing.
    """

    def __init__(self, path: str | Path, runtime: str = "auto") -> None:
        super().__init__()
        _, about = read_graph(path)
        if not isinstance(about.get("config"), dict):
            raise UserError(
                f"{path}: quantised, but not by export.py --int8: does not tell what network it is"
            )
        try:
            self.config = parse_config(about["config"])
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        self.img_size = about.get("img_size", 320)
        if runtime == "auto":
            runtime = "openvino" if find_spec("openvino") else "onnxruntime"
        self.path, self.runtime = path, runtime
        maps = "1 map" if self.config.out_ch == 1 else f"{self.config.out_ch} maps"
        self.origin = f"int8 ONNX file, {self.config.name}, {maps}, run by {runtime}"
        self._runs: dict[tuple[int, ...], Run] = {}

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures N×3×H×W float32, normalised, on the CPU, to probabilities N×out_ch×H×W."""
        size = tuple(pictures.shape[1:])
        if not len(pictures):
            return pictures.new_zeros(0, self.config.out_ch, *size[1:])
        run = self._prepared(size, torch.get_num_threads())
        one_by_one = pictures.contiguous().numpy()[:, None]
        return torch.from_numpy(np.concatenate([run(picture) for picture in one_by_one]))

    def _prepared(self, size: tuple[int, ...], threads: int) -> Run:
        """Compiled for a number of threads, and for one size, which is faster than for any; but
        OpenVINO 2026.4 takes a known size of ``unet`` for wrong constants at its mirrored borders.
        """
        shape = size if isinstance(self.config, U2NetConfig) else (size[0], -1, -1)
        with _preparing:
            if (*size, threads) not in self._runs:
                prepare = _openvino if self.runtime == "openvino" else _onnxruntime
                try:
                    self._runs[*size, threads] = prepare(self.path, shape, threads)
                except ImportError as error:
                    raise UserError(
                        f"{self.path}: int8 needs {error.name}: pip install openvino"
                    ) from None
                except Exception as error:  # ONNX Runtime's own are of no narrower class
                    reason = str(error).strip().splitlines()[-1]
                    raise UserError(
                        f"{self.path}: {self.runtime} cannot run it ({reason})"
                    ) from None
            return self._runs[*size, threads]


def _openvino(path: str | Path, shape: tuple[int, ...], threads: int) -> Run:
    core = _core()
    model = core.read_model(path)
    model.reshape([1, *shape])
    streams = max(1, (os.cpu_count() or 1) // threads)  # calls that may go on side by side
    compiled = core.compile_model(
        model,
        "CPU",
        {
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": streams * threads,
            "INFERENCE_PRECISION_HINT": "f32",  # what was left in float has its reasons
            "ENABLE_CPU_PINNING": False,  # other processes may have their share of the cores
            **({"CACHE_DIR": str(folder)} if (folder := _cache()) else {}),
        },
    )
    # Requests are used again: of new ones, OpenVINO at times queues two behind one another while
    # the other core has nothing to do.
    run = partial(_infer, compiled, SimpleQueue())
    # The bindings set themselves up in their first call, and wait for each other without end where
    # two threads make it: ours is made here, before there are others.
    run(np.zeros([1, *(side if side > 0 else 64 for side in shape)], np.float32))
    return run


@cache
def _core() -> Any:
    """OpenVINO, once a process and to its end.

    It gives the thread that it begins in a stack of its own for signals. Were it to end in another
    thread, the first one would be left with a stack that is no more, and the next signal that
    Python handles, Ctrl-C too, would end the process by SIGSEGV (OpenVINO 2026.4).
    """
    import openvino

    return openvino.Core()


def _cache() -> Path | None:
    """Where OpenVINO keeps what it has compiled, which takes it 2 s anew and 0.3 s from there; it
    knows its own files, versions and processors apart. None where nothing can be written.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "u2net-toolkit"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def _infer(compiled: Any, idle: SimpleQueue, picture: np.ndarray) -> np.ndarray:
    try:
        request = idle.get_nowait()
    except Empty:
        request = compiled.create_infer_request()
    found = request.infer([picture], share_inputs=True)[0]
    idle.put(request)
    return found


def _onnxruntime(path: str | Path, shape: tuple[int, ...], threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    return lambda picture: session.run(None, {entry.name: picture})[0]
