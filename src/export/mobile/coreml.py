"""Export to Core ML packages (``.mlpackage``, a folder), for iOS 15, macOS 12 and later.

The package takes one float32 image 1×3×H×W of one size, prepared as its metadata say. Core ML runs
only on macOS. There the check uses its own prediction; elsewhere the program is read back from the
package and run by ``mil.py``, which shows that network, order and weights are right, but nothing
about rounding on a phone's processors.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...files import real_path
from ...networks.base import Network
from ..common import (
    HALF_TOLERANCE,
    PHONE_TOLERANCE,
    ExportedNetwork,
    check_export,
    describe_network,
    fixed_shape,
    to_json,
    trace,
)
from .mil import run_package
from .quiet import quiet


def export_coreml(
    model: Network, path: str | Path, sides: bool = False, half: bool = False
) -> float:
    """Write a network to a Core ML package.

    Args:
        model: a network of :func:`build_model`, not fused; it is not changed. The package takes
            only its ``img_size`` or ``input_size``.
        path: the folder to write, ``.mlpackage``; an older package there is replaced, if the check
            succeeds.
        sides: return the side maps too, after the output map.
        half: weights and arithmetic in float16, which Apple's neural engine needs.

    Returns:
        The largest difference of a probability from the network's own that the check found: by Core
        ML itself on macOS, elsewhere by the package's program run in torch.

    Raises:
        UserError: a package is missing, the network cannot be converted, what is at ``path`` is not
            a package, or the package's maps differ from the network's.

    Example:
        >>> from src import load_model
        >>> export_coreml(load_model("lite.pt"), "lite.mlpackage")  # doctest: +SKIP
        1e-06
    """
    path = real_path(Path(path))  # the target of a link is replaced, not the link
    check_package(path)
    network, shape = ExportedNetwork(model, sides), fixed_shape(model)
    package = _convert(network, model, path, half)
    temporary = path.with_name(f".{path.stem}.tmp.mlpackage")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with quiet():
            package.save(str(temporary))
            run = run_package(temporary, on_mac=runs_here())
        limit = HALF_TOLERANCE if half else PHONE_TOLERANCE
        worst = check_export(network, run, path, limit, [shape] * 2)  # two different images
        shutil.rmtree(path, ignore_errors=True)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return worst


def check_package(path: Path) -> None:
    """Check that what is at ``path``, if anything, is an older package.

    Raises:
        UserError: it is something else, which is kept.
    """
    if path.exists() and not (path / "Manifest.json").is_file():
        raise UserError(f"{path}: exists, but is not a Core ML package; choose another name")


def runs_here() -> bool:
    """Whether Core ML runs on this machine, to do the check."""
    return sys.platform == "darwin"


def _convert(network: ExportedNetwork, model: Network, path: Path, half: bool) -> Any:
    with quiet():
        try:
            import coremltools
        except ImportError as error:
            raise UserError(
                f"export to Core ML needs {error.name}: pip install 'coremltools>=9.0'"
            ) from None
        precision = coremltools.precision
        names = model.map_names if network.count is None else model.map_names[:1]
        try:
            package = coremltools.convert(
                trace(network, fixed_shape(model)).run_decompositions({}),
                convert_to="mlprogram",
                compute_precision=precision.FLOAT16 if half else precision.FLOAT32,
                minimum_deployment_target=coremltools.target.iOS15,
                outputs=[
                    coremltools.TensorType(name if i else "saliency")
                    for i, name in enumerate(names)
                ],
                skip_model_load=True,
            )
        except Exception as error:  # of any kind, from the converter's many parts
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"{path}: Core ML's converter cannot convert {model.config.name} ({reason})"
            ) from None
    about = describe_network(model)
    package.short_description = f"{about['network']}: {about['input']}"
    package.user_defined_metadata.update(to_json(about))
    return package
