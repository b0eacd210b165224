"""The private parts of torch in use, each with its reason and what happens without it.

They are looked up by name, so that a version of torch without one still works, only slower or
without that feature.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Geometry = tuple[Any, Any, Any, int]  # padding, stride, dilation, groups of a convolution


def has_packed_convolutions() -> bool:
    """Whether torch has oneDNN's operators for convolutions with prepacked weights.

    ``torch.compile`` generates code with them for CPUs, but nothing public calls them. Without
    them, inference runs through ``nn.Conv2d``, at about half the speed.
    """
    return hasattr(torch.ops.mkldnn, "_convolution_pointwise")


def pack_weight(weight: Tensor, geometry: Geometry, input_size: Sequence[int]) -> Tensor:
    """Reorder weights to oneDNN's layout for inputs of this size."""
    return torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, list(input_size))


def packed_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: str
) -> Tensor:
    """A convolution with packed weights; ``activation`` is ``none`` or ``relu``."""
    return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *geometry, activation, [], "")


def onednn_has_bf16() -> bool:
    """Whether oneDNN computes in bfloat16 on this processor; False if torch cannot tell."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return bool(supported and supported())


def cpu_has_bf16() -> bool:
    """Whether the processor has instructions for bfloat16 (AVX512-BF16 or AMX).

    torch has no public function for this; without the private ones, float32 is used.
    """
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


def copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy many small tensors of one type in one call, if torch has it."""
    if hasattr(torch, "_foreach_copy_"):
        torch._foreach_copy_(list(targets), list(sources))
        return
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def allow_variants(count: int) -> None:
    """Let ``torch.compile`` compile a function for this many kinds of input.

    By default it gives up silently after eight. Without the private setting, the limit stays.
    """
    import torch._dynamo  # only here, as it takes seconds

    limit = getattr(torch._dynamo.config, "recompile_limit", count)
    if limit < count:
        torch._dynamo.config.recompile_limit = count


def has_hooks(module: nn.Module) -> bool:
    """Whether this module has forward or backward hooks.

    torch has no public test for it; without the private attributes, the answer is no.
    """
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name, None) for name in names)


def allow_even_sizes(program: torch.export.ExportedProgram) -> None:
    """Drop the guards with which torch 2.11 rejects even sizes.

    It requires odd sizes, like the example's, where it computes the output size of ceil mode; the
    result is right for all sizes. Newer versions have no such guards.
    """
    guards = getattr(program, "_guards_code", None)
    if guards:
        program._guards_code = [code for code in guards if "% 2" not in code]


class NoCompilerError(Exception):
    """There is no working C++ compiler."""


def compile_package(
    program: torch.export.ExportedProgram, path: Path, options: dict[str, Any]
) -> Callable[[Tensor], Sequence[Tensor]]:
    """Write an AOTInductor package to ``path``; returns its function.

    torch documents both calls, though they live in a private module.

    Raises:
        NoCompilerError: there is no working C++ compiler.
    """
    from torch._inductor import aoti_compile_and_package, aoti_load_package
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        package = aoti_compile_and_package(
            program, package_path=str(path), inductor_configs=options
        )
    except InvalidCxxCompiler as error:
        raise NoCompilerError(str(error)) from error
    return aoti_load_package(package)


def is_compile_error(error: Exception) -> bool:
    """Whether ``torch.compile`` failed; its errors have no public class."""
    return type(error).__module__.startswith(("torch._inductor", "torch._dynamo"))
