"""Export to LiteRT files (``.tflite``), checked with LiteRT itself before they are kept.

The file takes one float32 image 1×3×H×W of one size, prepared as its metadata say, and returns the
output map first, as probabilities. The metadata are the entry ``about.json`` of a ZIP archive
appended to the network, like the files of TensorFlow Lite's own metadata: ``unzip -p net.tflite
about.json``; runtimes ignore it.
"""

import json
import tempfile
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError
from ...files import atomic_path
from ...inference.preprocess import normalize
from ...networks.base import Network
from ..common import (
    HALF_TOLERANCE,
    PHONE_TOLERANCE,
    ExportedNetwork,
    check_export,
    describe_network,
    fixed_shape,
)
from ..int8 import LIMIT, CalibrationInputs, Loss, Report, choose_images, measure_int8, silent
from .quiet import quiet

_ABOUT = "about.json"
_INSTALL = (
    "pip install 'litert-torch>=0.10'; where its versions of other packages clash with yours, "
    "install this toolkit with it in an environment of its own (pip install '.[litert]')"
)


def export_litert(
    model: Network, path: str | Path, sides: bool = False, half_weights: bool = False
) -> float:
    """Write a network to one ``.tflite`` file, in float32. Takes minutes.

    Args:
        model: a network of :func:`build_model`, not fused; it is not changed. The file takes only
            its ``img_size`` or ``input_size``.
        path: the output file; not written if the check fails.
        sides: return the side maps too, after the output map.
        half_weights: weights in float16, for a file of half the size.

    Returns:
        The largest difference of a probability from the network's own that the check found.

    Raises:
        UserError: a package is missing, the network cannot be converted, or the file's maps differ
            from the network's.

    Example:
        >>> from src import load_model
        >>> export_litert(load_model("lite.pt"), "lite.tflite")  # doctest: +SKIP
        1e-06
    """
    network = ExportedNetwork(model, sides)
    shape = fixed_shape(model)
    content = _convert(network, model, path)
    if half_weights:
        content = _quantise(content, _half_recipe())
    content = _describe(content, model)
    run = _load(content)
    with atomic_path(path) as temporary:
        worst = check_export(
            network,
            lambda x: run(x.numpy()),
            path,
            HALF_TOLERANCE if half_weights else PHONE_TOLERANCE,
            [shape] * 2,  # two different images
        )
        temporary.write_bytes(content)
    return worst


def export_litert_int8(
    model: Network,
    path: str | Path,
    calibrate: str | Path,
    allow_loss: float = LIMIT,
    report: Report = silent,
) -> Loss:
    """Write a network to one ``.tflite`` file with 8-bit weights, which computes in integers:
    LiteRT finds the range of each layer's values at run time, so nothing is calibrated. Input and
    output stay float32.

    Args:
        model: a network of :func:`build_model`, not fused; it is not changed.
        path: the output file; not written if the loss is larger than allowed.
        calibrate: a folder of images like those that the network will see; every fifth is used to
            measure the loss, see :func:`~..int8.export_int8`.
        allow_loss: the largest mean absolute difference of the maps allowed, in 0 … 1.
        report: gets a line as each step begins.

    Returns:
        The loss of the file, measured on these images.

    Raises:
        UserError: as :func:`export_litert`, and as :func:`~..int8.export_int8`.

    Example:
        >>> from src import load_model
        >>> export_litert_int8(load_model("lite.pt"), "l8.tflite", "photos").mean  # doctest: +SKIP
        0.001
    """
    fixed_shape(model)
    images = choose_images(calibrate)
    import_converter()  # fail before anything takes time

    def quantise(quantised: Path, _inputs: CalibrationInputs) -> _Maps:
        report("converting")
        content = _convert(ExportedNetwork(model, sides=False), model, path)
        content = _describe(_quantise(content, _int8_recipe()), model)
        quantised.write_bytes(content)
        return _Maps(content, model)

    return measure_int8(model, path, images, allow_loss, quantise, report)._replace(calibrated=0)


class _Maps:
    """A quantised file as :class:`~..int8.Maps`."""

    precision = "int8"

    def __init__(self, content: bytes, model: Network) -> None:
        self.run, self.config = _load(content), model.config

    def probabilities(self, images: Tensor) -> Tensor:
        x = normalize(images, torch.float32, self.config.mean, self.config.std)
        (maps,) = self.run(x.contiguous().numpy())
        if not np.isfinite(maps).all():
            raise UserError("the network gives values that are not finite")
        return torch.from_numpy(maps)


def import_converter() -> Any:
    """LiteRT's converter.

    Raises:
        UserError: it is not installed.
    """
    try:
        with quiet():
            import litert_torch
    except ImportError as error:
        raise UserError(f"export to LiteRT needs {error.name}: {_INSTALL}") from None
    return litert_torch


def _convert(network: ExportedNetwork, model: Network, path: str | Path) -> bytes:
    """The file's content in float32, without metadata."""
    shape, converter = fixed_shape(model), import_converter()
    example = torch.zeros(shape[0], model.config.in_ch, *shape[1:])
    with quiet():
        try:
            converted = converter.convert(network.eval(), (example,))
        except Exception as error:  # of any kind, from the converter's many parts
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"{path}: LiteRT's converter cannot convert {model.config.name} ({reason})"
            ) from None
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "net.tflite"
            converted.export(str(file))
            return file.read_bytes()


def _describe(content: bytes, model: Network) -> bytes:
    """The content with its metadata appended, in a form that ``zipfile`` and ``unzip`` read."""
    file = BytesIO(content)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(_ABOUT, json.dumps(describe_network(model)))
    return file.getvalue()


def _load(content: bytes) -> Any:
    """A function from an image to its maps."""
    with quiet():
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_content=content)
        interpreter.allocate_tensors()
    (entry,) = interpreter.get_input_details()
    # By number in the signature: outputs are listed there in alphabetical order.
    names = sorted(interpreter.get_signature_list()["serving_default"]["outputs"], key=_number)
    signature = interpreter.get_signature_runner("serving_default")
    (argument,) = interpreter.get_signature_list()["serving_default"]["inputs"]

    def run(image: np.ndarray) -> list[np.ndarray]:
        maps = signature(**{argument: image.astype(entry["dtype"])})
        return [maps[name] for name in names]

    return run


def _number(name: str) -> int:
    """``output_12`` comes after ``output_2``."""
    return int(name.rpartition("_")[2])


def _quantise(content: bytes, recipe: Any) -> bytes:
    with quiet():
        from ai_edge_quantizer.quantizer import Quantizer

        quantizer = Quantizer(bytearray(content))
        quantizer.load_quantization_recipe(recipe)
        return bytes(quantizer.quantize(enable_progress_report=False).quantized_model)


def _half_recipe() -> Any:
    """Weights in float16, widened when the file is loaded."""
    from ai_edge_quantizer import algorithm_manager, qtyping, recipe_manager

    manager = recipe_manager.RecipeManager()
    manager.add_quantization_config(
        regex=".*",
        operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
        op_config=qtyping.OpQuantizationConfig(
            weight_tensor_config=qtyping.TensorQuantizationConfig(
                num_bits=16, dtype=qtyping.TensorDataType.FLOAT
            ),
            compute_precision=qtyping.ComputePrecision.FLOAT,
            explicit_dequantize=True,
        ),
        algorithm_key=algorithm_manager.AlgorithmName.FLOAT_CASTING,
    )
    return manager.get_quantization_recipe()


def _int8_recipe() -> Any:
    """Weights int8 per output channel; activations become int8 at run time."""
    from ai_edge_quantizer import recipe

    return recipe.dynamic_wi8_afp32()
