"""Quantised ONNX files of ``src/export/int8.py``, run by OpenVINO or ONNX Runtime.

OpenVINO takes two thirds of the time, so it is used where it is installed.
"""

from pathlib import Path
from typing import Any, TypeGuard

from torch import nn

from ..errors import UserError
from ..networks.registry import parse_config
from ..weights.onnx import is_quantized, read_graph
from ..words import counted
from .openvino import CompiledBackend, Run, has_openvino, kept_folder, run_openvino, use_onnxruntime
from .sizes import InputSize


class OnnxBackend(CompiledBackend):
    """A quantised file in place of a network. A copy, pickled or not, holds the file's content.

    Args:
        path: the file.
        runtime: ``auto``, ``openvino`` or ``onnxruntime``.

    Raises:
        UserError: the file is corrupt or not made by ``export.py --int8``, or the runtime is
            missing.
    """

    instead = "onnxruntime"

    def __init__(self, path: str | Path, runtime: str = "auto") -> None:
        graph, metadata = read_graph(path)
        if not isinstance(metadata.get("config"), dict):
            raise UserError(
                f"{path}: quantised, but not by export.py: its metadata does not name a network"
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
        self.about, self.asked, self.content = str(path), runtime, Path(path).read_bytes()
        self.start()

    def start(self) -> None:
        """Start with nothing compiled, and pick the runtime that can run it in this process."""
        auto = "openvino" if has_openvino() else "onnxruntime"
        self.runtime = auto if self.asked == "auto" else self.asked
        maps = counted(self.config.out_ch, "map")
        self.origin = f"int8 ONNX file, {self.config.name}, {maps}, run by {self.runtime}"
        super().start()

    def expect(self, size: InputSize) -> None:
        """Get ready for images of this size.

        Raises:
            UserError: the file takes only another size.
        """
        super().expect(size)
        if self.fixed and (size.auto or self.fixed != size.fit(1, 1)):
            height, width = self.fixed
            taken = InputSize(width, height)
            raise UserError(f"{self.about} takes only {taken}", "img_size", size.value)

    def compile(self, shape: tuple[int, ...], threads: int) -> Run:
        """OpenVINO caches what it compiles: loading takes 0.3 s, compiling 2 s. Its cache tells
        files, versions and processors apart."""
        if self.runtime == "onnxruntime":
            return _run_onnxruntime(self.content, threads)

        def compile_model(core: Any, options: dict[str, Any]) -> Any:
            model = core.read_model(self.content)
            model.reshape([1, *shape])
            folder = kept_folder()
            kept = {"CACHE_DIR": str(folder)} if folder else {}
            return core.compile_model(model, "CPU", options | kept)

        return run_openvino(compile_model, threads)


def _run_onnxruntime(content: bytes, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    use_onnxruntime()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    return lambda image: session.run(None, {entry.name: image})[0]


def is_int8(model: nn.Module | str | Path) -> TypeGuard[str | Path]:
    """Whether this is the path of a quantised file."""
    if not isinstance(model, str | Path) or Path(model).suffix.lower() != ".onnx":
        return False
    return is_quantized(read_graph(model)[0])


def check_int8(device: str, amp: str, engine: str) -> None:
    """Check the options given for a quantised file.

    Raises:
        UserError: an option conflicts with the file's own device, precision or runtime.
    """
    if device not in ("auto", "cpu"):
        raise UserError("an int8 file runs on the CPU; leave this at auto", "device", device)
    if amp != "auto":
        raise UserError("an int8 file has its own precision; leave this at auto", "amp", amp)
    if engine != "torch":
        reason = "an int8 file is run by OpenVINO wherever it is installed, without this"
        raise UserError(reason, "engine", engine)
