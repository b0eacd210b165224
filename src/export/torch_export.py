"""Export to ``torch.export`` programs and AOTInductor packages, checked before they are kept.

Both take a float32 input N×3×H×W, prepared as their metadata say, and return the output map as
probabilities N×out_ch×H×W first: a program for any batch and size from 32², a package for one
image of one size.
"""

import io
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..compat import NoCompilerError, compile_package
from ..errors import UserError
from ..files import atomic_path
from ..networks.base import Network
from .common import ExportedNetwork, check_export, describe_network, fixed_shape, to_json, trace


def export_pt2(model: Network, path: str | Path, sides: bool = False) -> float:
    """Write a ``torch.export`` program, which ``torch.export.load`` reads without this toolkit.

    Args:
        model: a network of :func:`build_model`, not fused; it is not changed.
        path: the output file; not written if the check fails.
        sides: return the side maps too, after the output map.

    Returns:
        The largest difference of a probability from the network's own that the check found.

    Raises:
        UserError: the program's maps differ from the network's.

    Example:
        >>> from src import load_model
        >>> export_pt2(load_model("lite.pt"), "lite.pt2")  # doctest: +SKIP
        1e-06
    """
    network = ExportedNetwork(model, sides)
    program = trace(network)
    about = json.dumps(describe_network(model))
    with _pt2_path(path) as temporary:
        packed = io.BytesIO()  # torch's own writer aborts the process if the disk is full
        torch.export.save(program, packed, extra_files={"about.json": about})
        temporary.write_bytes(packed.getbuffer())
        with warnings.catch_warnings():  # torch 2.11 warns of its own buffer
            warnings.filterwarnings("ignore", "The given buffer is not writable")
            loaded = torch.export.load(temporary).module()
        return check_export(network, lambda x: [m.numpy() for m in loaded(x)], path)


def export_aoti(model: Network, path: str | Path, sides: bool = False) -> float:
    """Write an AOTInductor package: compiled for this machine's processor, loaded by torch from
    Python or by LibTorch from C++ (``cpp/``). Needs minutes and a C++ compiler.

    It takes 1×3×H×W, a square of ``model.img_size`` or the size in ``model.input_size``. With a
    dynamic batch or size, torch would take six times as long to compile, and could not put the
    weights in oneDNN's layout.

    Args:
        model: a network of :func:`build_model`, not fused; it is not changed.
        path: the output file; not written if the check fails.
        sides: return the side maps too, after the output map.

    Returns:
        The largest difference of a probability from the network's own that the check found.

    Raises:
        UserError: there is no compiler, or the package's maps differ from the network's.

    Example:
        >>> from src import load_model
        >>> export_aoti(load_model("lite.pt"), "lite.pt2")  # doctest: +SKIP
        1e-06
    """
    network = ExportedNetwork(model, sides)
    shape = fixed_shape(model)
    program = trace(network, shape)
    options = {"aot_inductor.metadata": to_json(describe_network(model)), "freezing": True}
    with _pt2_path(path) as temporary, torch.no_grad():  # freezing is for inference only
        try:
            run = compile_package(program, temporary, options)
        except NoCompilerError as error:
            raise UserError(
                f"an AOTInductor package needs a C++ compiler, such as g++ ({error})"
            ) from None
        return check_export(network, lambda x: [m.numpy() for m in run(x)], path, shapes=[shape])


@contextmanager
def _pt2_path(path: str | Path) -> Iterator[Path]:
    """As :func:`~.files.atomic_path`, with the suffix that torch requires."""
    with atomic_path(path) as temporary:
        suffixed = temporary.with_suffix(".pt2")
        try:
            yield suffixed
            suffixed.replace(temporary)
        finally:
            suffixed.unlink(missing_ok=True)
