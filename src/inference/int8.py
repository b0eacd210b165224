"""Quantised ONNX files of ``src/export/int8.py``, run by OpenVINO or ONNX Runtime.

OpenVINO takes two thirds of the time, so it is used where it is installed.
"""

import ctypes
import os
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock
from typing import Any, ClassVar
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from ..device import after_fork
from ..errors import UserError
from ..networks.config import U2NetConfig
from ..networks.registry import parse_config
from ..weights.named import cache_folder
from ..weights.onnx import read_graph
from ..words import counted
from .sizes import InputSize

Run = Callable[[np.ndarray], np.ndarray]  # one image 1×3×H×W to 1×out_ch×H×W


class _Process:
    """What the backends of this process share."""

    preparing = Lock()  # held while a file is compiled, whichever: runtimes are set up under it
    backends: ClassVar["WeakSet[OnnxBackend]"] = WeakSet()
    lost_openvino = False  # this process was forked from one that uses it


@after_fork
def _reset() -> None:
    """Leave what the parent has compiled as it is, for ever: to free it waits for its threads."""
    _Process.preparing = Lock()
    kept: list[Any] = []
    if _core.cache_info().currsize:
        _Process.lost_openvino = True
        kept.append(_core())
    for backend in _Process.backends:
        kept.append(backend._runs)
        backend._start()
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))


class OnnxBackend:
    """A quantised file in place of a network; threads may share one.

    Each call computes with as many threads as torch would (``torch.get_num_threads``). A copy,
    pickled or not, holds the file, and is compiled anew.

    Args:
        path: the file.
        runtime: ``auto``, ``openvino`` or ``onnxruntime``.

    Raises:
        UserError: the file is torn or not made by ``export.py --int8``, or the runtime is missing.
    """

    def __init__(self, path: str | Path, runtime: str = "auto") -> None:
        graph, metadata = read_graph(path)
        if not isinstance(metadata.get("config"), dict):
            raise UserError(
                f"{path}: quantised, but not by export.py: its metadata names no network"
            )
        try:
            self.config = parse_config(metadata["config"])
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        self.img_size: int = metadata.get("img_size", 320)
        self.input_size = metadata.get("input_size")
        sides = [axis.dim_value for axis in graph.input[0].type.tensor_type.shape.dim[2:]]
        self.fixed = (sides[0], sides[1]) if all(sides) else None  # height, width
        if self.fixed and not self.input_size:
            self.input_size = f"{sides[1]}x{sides[0]}"
        self.varying = False  # images of many sizes are to come
        self.path, self.asked, self.content = path, runtime, Path(path).read_bytes()
        self._start()

    def _start(self) -> None:
        # OpenVINO's threads do not survive a fork, and it cannot be started again.
        usable = find_spec("openvino") and not _Process.lost_openvino
        auto = "openvino" if usable else "onnxruntime"
        self.runtime = auto if self.asked == "auto" else self.asked
        maps = counted(self.config.out_ch, "map")
        self.origin = f"int8 ONNX file, {self.config.name}, {maps}, run by {self.runtime}"
        self._runs: dict[tuple[int, ...], Run] = {}
        _Process.backends.add(self)

    def expect(self, size: InputSize) -> None:
        """Get ready for images of this size.

        Raises:
            UserError: the file takes another one alone.
        """
        self.varying = size.auto
        if self.fixed and (size.auto or self.fixed != size.fit(1, 1)):
            height, width = self.fixed
            taken = InputSize(width, height)
            raise UserError(f"{self.path} takes {taken} alone", "img_size", size.value)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_runs"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    def __call__(self, images: Tensor) -> Tensor:
        """Normalised images N×3×H×W float32, on the CPU, to probabilities N×out_ch×H×W."""
        size = tuple(images.shape[1:])
        if not len(images):
            return images.new_zeros(0, self.config.out_ch, *size[1:])
        run = self._prepared(size, torch.get_num_threads())
        one_by_one = images.contiguous().numpy()[:, None]
        return torch.from_numpy(np.concatenate([run(image) for image in one_by_one]))

    def _prepared(self, size: tuple[int, ...], threads: int) -> Run:
        """Compiled for a number of threads and for one size, which is faster than for any size.

        ``unet`` is compiled for any: with a known size, OpenVINO 2026.4 computes wrong constants at
        its mirrored borders.
        """
        known = isinstance(self.config, U2NetConfig) and not self.varying
        shape = size if known else (size[0], -1, -1)
        size = size if known else shape
        with _Process.preparing:
            if self.runtime == "openvino" and _Process.lost_openvino:
                raise UserError(
                    f"{self.path}: OpenVINO cannot run in a process forked from one that uses it; "
                    "start processes by spawn, or use onnxruntime"
                )
            if (*size, threads) not in self._runs:
                prepare = _openvino if self.runtime == "openvino" else _onnxruntime
                try:
                    self._runs[*size, threads] = prepare(self.content, shape, threads)
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


def _openvino(content: bytes, shape: tuple[int, ...], threads: int) -> Run:
    core = _core()
    model = core.read_model(content)
    model.reshape([1, *shape])
    streams = max(1, (os.cpu_count() or 1) // threads)  # calls side by side
    compiled = core.compile_model(
        model,
        "CPU",
        {
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": streams * threads,
            "INFERENCE_PRECISION_HINT": "f32",  # layers left in float need it
            "ENABLE_CPU_PINNING": False,  # other processes may use the cores too
            **({"CACHE_DIR": str(folder)} if (folder := _cache()) else {}),
        },
    )
    # Requests are reused: OpenVINO sometimes queues two new ones behind one another while the other
    # core is idle.
    run = partial(_infer, compiled, SimpleQueue())
    # The bindings set themselves up in their first call, and deadlock where two threads make it at
    # once: the first call is made here, under the lock.
    run(np.zeros([1, *(side if side > 0 else 64 for side in shape)], np.float32))
    return run


@cache
def _core() -> Any:
    """OpenVINO, once per process and kept until it ends.

    It gives the thread that starts it a stack of its own for signals. If it were destroyed in
    another thread, the first one would keep a pointer to freed memory, and the next signal that
    Python handles, Ctrl-C too, would end the process by SIGSEGV (OpenVINO 2026.4).
    """
    import openvino

    return openvino.Core()


def _cache() -> Path | None:
    """Where OpenVINO keeps compiled networks: loading takes 0.3 s, compiling 2 s. It keeps files,
    versions and processors apart by itself. None where nothing can be written.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def _infer(compiled: Any, idle: SimpleQueue, image: np.ndarray) -> np.ndarray:
    try:
        request = idle.get_nowait()
    except Empty:
        request = compiled.create_infer_request()
    maps = request.infer([image], share_inputs=True)[0]
    idle.put(request)
    return maps


def _onnxruntime(content: bytes, shape: tuple[int, ...], threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    return lambda image: session.run(None, {entry.name: image})[0]
