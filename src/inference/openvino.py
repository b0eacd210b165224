"""Floating-point networks run by OpenVINO instead of torch, and the base class that the quantised
files of ``int8.py`` share.
"""

import copy
import ctypes
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, partial
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock
from typing import Any, ClassVar
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..device import after_fork, end_at_once
from ..errors import UserError
from ..files import atomic_path
from ..networks.config import U2NetConfig
from ..weights.named import cache_folder
from .fast import fold
from .sizes import InputSize

ENGINES = ("torch", "openvino")
_PACKAGE = __name__.split(".")[0]
Run = Callable[[np.ndarray], np.ndarray]  # one image 1×3×H×W to 1×out_ch×H×W


class _Process:
    """State that the backends of this process share."""

    preparing = Lock()  # held while any of them compiles, and while runtimes are set up
    backends: ClassVar["WeakSet[CompiledBackend]"] = WeakSet()
    lost_openvino = False  # this process was forked from one that used it
    uses_onnxruntime = False  # this process, or the one that it was forked from


@after_fork
def _reset() -> None:
    """Never free what the parent has compiled: that would wait for its threads.

    ONNX Runtime's own cleanup at exit would wait for them too, or end the process by SIGABRT
    (1.31): such a process exits without it.
    """
    _Process.preparing = Lock()
    kept: list[Any] = []
    if _core.cache_info().currsize:
        _Process.lost_openvino = True
        kept.append(_core())
    for backend in _Process.backends:
        kept.append(backend.runs)
        backend.start()
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
    if _Process.uses_onnxruntime:
        end_at_once()


def has_openvino() -> bool:
    """Whether it is installed and its threads are alive; they do not survive a fork, and it cannot
    be restarted."""
    return find_spec("openvino") is not None and not _Process.lost_openvino


def use_onnxruntime() -> None:
    """Note that this process uses it, as processes forked from it need to know."""
    _Process.uses_onnxruntime = True


class CompiledBackend:
    """A network compiled for each image size and number of threads; threads may share it.

    Each call computes with as many threads as torch would (``torch.get_num_threads``). A copy,
    pickled or not, is compiled again.
    """

    config: Any
    about: str  # the file or network, for messages
    runtime = "openvino"
    instead = "torch"  # the alternative in a forked process
    varying = False  # images of many sizes are expected

    def start(self) -> None:
        """Start with nothing compiled."""
        self.runs: dict[tuple[int, ...], Run] = {}
        _Process.backends.add(self)

    def expect(self, size: InputSize) -> None:
        """Get ready for images of this size."""
        self.varying = size.auto

    def compile(self, shape: tuple[int, ...], threads: int) -> Run:
        """Compile for images of this shape, 3×H×W, with -1 for any size."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "runs"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.start()

    def __call__(self, images: Tensor) -> Tensor:
        """Compute probabilities N×out_ch×H×W float32 of normalised images N×3×H×W, on the CPU."""
        size = tuple(images.shape[1:])
        if not len(images):
            return images.new_zeros((0, self.config.out_ch, *size[1:]), dtype=torch.float32)
        run = self._prepared(size, torch.get_num_threads())
        one_by_one = np.ascontiguousarray(images.float().numpy())[:, None]
        return torch.from_numpy(np.concatenate([run(image) for image in one_by_one]))

    def _prepared(self, size: tuple[int, ...], threads: int) -> Run:
        """Compile for a number of threads and for one size, which is faster than for any size.

        ``unet`` is compiled for any size: with a known one, OpenVINO 2026.4 computes wrong
        constants at its mirrored borders.
        """
        known = isinstance(self.config, U2NetConfig) and not self.varying
        shape = size if known else (size[0], -1, -1)
        with _Process.preparing:
            if self.runtime == "openvino" and _Process.lost_openvino:
                raise UserError(
                    f"{self.about}: OpenVINO cannot run in a process forked from one that uses it; "
                    f"start processes by spawn, or use {self.instead}"
                )
            if (*shape, threads) not in self.runs:
                try:
                    self.runs[*shape, threads] = self.compile(shape, threads)
                except ImportError as error:
                    raise UserError(
                        f"{self.about}: needs {error.name}: pip install openvino"
                    ) from None
                except Exception as error:  # the runtimes raise no narrower class
                    reason = str(error).strip().splitlines()[-1]
                    raise UserError(
                        f"{self.about}: {self.runtime} cannot run it ({reason})"
                    ) from None
            return self.runs[*shape, threads]


def run_openvino(compile_model: Callable[[Any, dict[str, Any]], Any], threads: int) -> Run:
    """A function that computes with the model that ``compile_model`` makes from OpenVINO's ``Core``
    and options, with this many threads per call.
    """
    streams = max(1, (os.cpu_count() or 1) // threads)  # parallel calls
    options = {
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": streams * threads,
        "INFERENCE_PRECISION_HINT": "f32",  # rounded layers have their own types
        "ENABLE_CPU_PINNING": False,  # other processes may use the cores too
    }
    # Requests are reused: OpenVINO sometimes queues two new ones on one core while another is idle.
    return partial(_infer, compile_model(_core(), options), SimpleQueue())


@cache
def _core() -> Any:
    """OpenVINO, once per process and kept until it ends.

    It gives the thread that starts it its own signal stack. If it were destroyed in another thread,
    the first one would keep a pointer to freed memory, and the next signal that Python handles,
    such as Ctrl-C, would crash the process with SIGSEGV (OpenVINO 2026.4).
    """
    import openvino
    from openvino import opset13 as operators

    core, entry = openvino.Core(), operators.parameter([1])
    # The bindings initialise in their first call, and deadlock if two threads make it at once: the
    # first call is made here, under the lock.
    core.compile_model(openvino.Model([operators.relu(entry)], [entry]), "CPU")(np.zeros(1))
    return core


def _infer(compiled: Any, idle: SimpleQueue, image: np.ndarray) -> np.ndarray:
    try:
        request = idle.get_nowait()
    except Empty:
        request = compiled.create_infer_request()
    maps = request.infer([image], share_inputs=True)[0]
    idle.put(request)
    return maps


def kept_folder() -> Path | None:
    """The folder of compiled networks; None if there is none, or it cannot be written."""
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, UserError):
        return None
    return folder if os.access(folder, os.W_OK) else None


def check_engine(engine: str, device: str) -> None:
    """Check that an engine is installed and computes on this device.

    Raises:
        UserError: it is not, or does not.
    """
    if engine not in ENGINES:
        raise UserError(f"expected one of {', '.join(ENGINES)}", "engine", engine)
    if engine == "openvino" and device not in ("auto", "cpu"):
        raise UserError("computes on the CPU", "engine", engine, f"leave {{device}} {device} out")
    if engine == "openvino" and find_spec("openvino") is None:
        raise UserError("is not installed: pip install openvino", "engine", engine)


class OpenVINOBackend(CompiledBackend):
    """A floating-point network, run by OpenVINO.

    Args:
        network: a module with a config, on the CPU; it is not changed.
        dtype: of the convolutions; those that it would ruin stay in float32, as with torch.
    """

    def __init__(self, network: Any, dtype: torch.dtype) -> None:
        self.config = network.config
        self.img_size, self.input_size = network.img_size, getattr(network, "input_size", None)
        self.about = self.config.name
        self.origin = f"{getattr(network, 'origin', self.about)}, computed by OpenVINO"
        self.network, self.dtype = network, dtype
        self.start()

    def compile(self, shape: tuple[int, ...], threads: int) -> Run:
        """Compiled networks are cached on disk, as tracing and converting take seconds."""

        def compile_model(core: Any, options: dict[str, Any]) -> Any:
            place = self._place(core, shape, options)
            if place and place.is_file():
                with suppress(Exception):  # e.g. corrupt: it is compiled again
                    return core.import_model(place.read_bytes(), "CPU", options)
            model = _convert(self.network, self.dtype)
            model.reshape([1, *shape])
            compiled = core.compile_model(model, "CPU", options)
            if place:
                with suppress(OSError, UserError), atomic_path(place) as temporary:
                    temporary.write_bytes(compiled.export_model().getbuffer())
            return compiled

        return run_openvino(compile_model, threads)

    def _place(self, core: Any, shape: tuple[int, ...], options: dict[str, Any]) -> Path | None:
        """The file of the compiled network, named by a hash of all that it depends on. None for
        other people's classes, whose dependencies are unknown."""
        folder = kept_folder()
        classes = {type(module).__module__ for module in self.network.modules()}
        if folder is None or {name.split(".")[0] for name in classes} - {"torch", _PACKAGE}:
            return None
        names = "FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES"
        processor = [core.get_property("CPU", name) for name in names]
        versions = torch.__version__, version("openvino")
        network = self.dtype, self.config, self.network
        digest = sha256(repr((versions, processor, shape, options, network)).encode())
        for name in sorted({*classes, __name__, fold.__module__}):
            digest.update(Path(sys.modules[name].__file__ or "").read_bytes())
        for name, tensor in self.network.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
        return folder / f"openvino-{digest.hexdigest()[:32]}.blob"


def _convert(network: Any, dtype: torch.dtype) -> Any:
    """Convert a network to OpenVINO's model, for any size; bf16 is in the types of its layers."""
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tracing: sizes stay dynamic, as tests check
        folded = fold(copy.deepcopy(network), dtype)
        folded.register_forward_pre_hook(lambda _, images: (images[0].to(dtype),))
        image = torch.zeros(1, network.config.in_ch, 64, 96)
        with _Unpooling():
            traced = torch.jit.trace(folded, image, check_trace=False)
        # Copied, as the model would read weights that torch has freed (OpenVINO 2026.4).
        decoder = TorchScriptPythonDecoder(traced, shared_memory=False)
        frontend = FrontEndManager().load_by_framework("pytorch")
        return frontend.convert(frontend.load(decoder))


class _Unpooling(TorchFunctionMode):
    """Replaces max-unpooling (SegNet's) with a scatter, which OpenVINO has."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.max_unpool2d or not kwargs.get("output_size"):
            return func(*args, **kwargs)
        (x, places, *_), (height, width) = args, kwargs["output_size"]
        empty = x.new_zeros((*x.shape[:2], height * width))
        return empty.scatter(2, places.flatten(2), x.flatten(2)).unflatten(2, (height, width))
