"""The names that other code gives to the same tensors, and our names for them.

- official: github.com/xuebinqin/U-2-Net and weights trained with it (full, lite, human
  segmentation, portrait, cloth), and xuebinqin/DIS (IS-Net and its GT encoder):
  ``stage1.rebnconvin.conv_s1.weight``.
- tutorial: the config-driven rewrite that many courses use:
  ``encode_modules.0.conv_in.conv.weight``.
- ours: ``encoder.0.conv_in.conv.weight``.

Each may be nested in a checkpoint's dict (Lightning's, for example), among other tensors, and have
any prefix, such as that of DDP, of torch.compile or of the attribute that holds a network
(``model.``).
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import UserError
from ..networks.base import Network
from ..networks.config import U2NetConfig
from ..networks.tables import FULL, GT_ENCODER, ISNET, ISNET_LITE, LITE
from .storage import is_state

StateDict = dict[str, Tensor]
_CONTAINERS = ("model", "state_dict", "model_state_dict", "net", "network", "module", "weights")
# Parts of names that wrappers add: DDP (and torch's AveragedModel), FSDP, torch.compile, activation
# checkpointing.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_HEIGHTS = {  # of full and lite alike
    **{f"encoder.{i}": stage.height for i, stage in enumerate(FULL.encoder)},
    **{f"decoder.{i}": stage.height for i, stage in enumerate(FULL.decoder)},
}
_OFFICIAL_STAGES = {
    **{f"stage{i}": f"encoder.{i - 1}" for i in range(1, 7)},
    **{f"stage{i}d": f"decoder.{5 - i}" for i in range(5, 0, -1)},
}


def recognise(content: Mapping[str, Any], path: str | Path) -> tuple[str, U2NetConfig, StateDict]:
    """Find the layout of weights that come without a table.

    The tensors show whether the network is full or lite, its channels in and out, and whether its
    convolutions have a bias. Several maps are assumed to be classes, as in the official cloth
    network.

    Args:
        content: a state_dict, or a checkpoint's dict that holds one.
        path: of the file, for messages.

    Returns:
        The name of the layout, the table of the network, and the tensors under our names.

    Raises:
        UserError: not the weights of a U²-Net in any known layout.
    """
    state, source = _find_state(content)
    names: list[str] = []
    for kind, (first, rename) in _LAYOUTS.items():
        prefixes = sorted(name.removesuffix(first) for name in state if _ends_with(name, first))
        if len(prefixes) > 1:
            found = ", ".join(prefix or "no prefix" for prefix in prefixes)
            raise UserError(
                f"{path}: holds {len(prefixes)} networks, under the prefixes {found}; save one"
            )
        if prefixes:
            ours, names = {}, prefixes
            for name, tensor in state.items():
                if name.startswith(prefixes[0]):
                    ours[rename(name.removeprefix(prefixes[0]))] = tensor
                else:
                    names.append(name)
            try:
                table = _table(ours)
            except UserError as error:
                raise UserError(f"{path}: {error}") from None
            return f"{kind}{_describe(content, source, *names)}", table, ours
    raise _unrecognised(state, path)


def _find_state(content: Mapping[str, Any]) -> tuple[StateDict, str]:
    """The tensors by name, without what wrappers add to it, and the kind of dict that held them."""
    is_lightning = any(str(key).startswith("pytorch-lightning") for key in content)
    state: Mapping[str, Any] = content
    for _ in range(2):  # checkpoints may be nested in other dicts
        found = (state[key] for key in _CONTAINERS if isinstance(state.get(key), Mapping))
        state = next((s for s in found if s), state)
    if not is_state(state):
        return {}, ""
    plain = {}
    for name, tensor in state.items():
        if name == "n_averaged":  # a counter of torch's AveragedModel
            continue
        plain[".".join(part for part in name.split(".") if part not in _WRAPPERS)] = tensor
    return plain, "Lightning checkpoint" if is_lightning else ""


def _ends_with(name: str, first: str) -> bool:
    return name == first or name.endswith(f".{first}")


def _describe(content: Mapping[str, Any], source: str, prefix: str, *unused: str) -> str:
    """What a user may not expect in the file, in brackets; empty for ordinary files."""
    notes = [source] if source else []
    if prefix:
        notes.append(f"names without {prefix}")
    for kind, names in (("tensors", unused), ("objects", getattr(content, "left_out", ()))):
        if names:
            more = ", …" if len(names) > 3 else ""
            notes.append(f"without {len(names)} other {kind}: {', '.join(names[:3])}{more}")
    return f" ({'; '.join(notes)})" if notes else ""


def _table(ours: StateDict) -> U2NetConfig:
    def find(*names: str) -> Tensor | None:
        """The first of these that is a convolution's weight."""
        found = (ours.get(f"{name}.weight") for name in names)
        return next((tensor for tensor in found if tensor is not None and tensor.ndim == 4), None)

    inside = find("encoder.0.encoder.0.conv")
    lite = inside is not None and len(inside) <= LITE.encoder[0].mid_ch
    if find("stem.conv") is not None:
        table = GT_ENCODER
    elif find("stem") is not None:
        table = ISNET_LITE if lite else ISNET
    else:
        table = LITE if lite else FULL
    first = find("stem", "stem.conv", "encoder.0.conv_in.conv")
    last = find("out_conv" if table.fuse_sides else "sides.0")
    in_ch = first.shape[1] if first is not None else table.in_ch
    out_ch = last.shape[0] if last is not None else 1
    return table.replace(
        in_ch=in_ch,
        out_ch=out_ch,
        activation="softmax" if out_ch > 1 else "sigmoid",
        conv_bias="encoder.0.conv_in.conv.bias" in ours,
    )


def _unrecognised(content: Mapping[str, Any], path: str | Path) -> UserError:
    names = ", ".join(list(map(str, content))[:3])
    return UserError(
        f"{path}: not weights of a U²-Net that can be recognised (first names: {names}); expected "
        "a checkpoint of train.py, a .safetensors of it, or the official U-2-Net layout"
    )


def _official_modules() -> Iterator[tuple[str, str]]:
    """The official names of all modules that hold tensors, each with ours."""
    yield "outconv", "out_conv"
    yield from ((f"side{i + 1}", f"sides.{i}") for i in range(6))
    yield from ((f"conv_in{part}", f"stem{part}") for part in ("", ".conv", ".bn"))
    for theirs, ours in _OFFICIAL_STAGES.items():
        height = _HEIGHTS[ours]
        blocks = {"in": "conv_in", f"{height}": "bottom"}
        for n in range(1, height):
            blocks[f"{n}"] = f"encoder.{n - 1}"
            blocks[f"{n}d"] = f"decoder.{height - 1 - n}"
        for level, block in blocks.items():
            for layer in ("conv", "bn"):
                yield f"{theirs}.rebnconv{level}.{layer}_s1", f"{ours}.{block}.{layer}"


_OURS = dict(_official_modules())
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}


def _rename(name: str, modules: Mapping[str, str]) -> str:
    module, dot, field = name.rpartition(".")
    return f"{modules.get(module, module)}{dot}{field}"


def from_official(name: str) -> str:
    """Our name for an official one; other names are returned unchanged.

    Example:
        >>> from_official("stage5d.rebnconv3d.bn_s1.weight")
        'decoder.0.decoder.0.bn.weight'
    """
    return _rename(name, _OURS)


def to_official(name: str) -> str:
    """The inverse of :func:`from_official`.

    Example:
        >>> to_official("decoder.0.decoder.0.bn.weight")
        'stage5d.rebnconv3d.bn_s1.weight'
    """
    return _rename(name, _THEIRS)


def official_state(model: Network) -> StateDict:
    """The tensors of a network under the official names, for code of that repository.

    Convolutions without a bias get one of zeros, as the official networks have biases.

    Raises:
        UserError: the official repository has no such network.
    """
    known, config = _table(model.state_dict()), model.config
    if not isinstance(config, U2NetConfig) or config.structure != known.structure:
        raise UserError(
            f"{config.name}: the official layout exists only for full and lite, of U²-Net and "
            "IS-Net, and for IS-Net's GT encoder"
        )
    state: StateDict = {}
    for name, tensor in model.state_dict().items():
        state[to_official(name)] = tensor
        if name.endswith(".conv.weight") and not known.conv_bias:
            state[to_official(name.replace("weight", "bias"))] = tensor.new_zeros(len(tensor))
    return state


def lost_in_official(model: Network) -> dict[str, Any]:
    """The fields of a network's table, with their values, that the official layout cannot hold and
    that a reader would set to others; for a network that :func:`official_state` takes.
    """
    known, own = _table(model.state_dict()), model.config.replace(img_size=model.img_size)
    fields = ("img_size", "mean", "std", "activation")
    return {f: getattr(own, f) for f in fields if getattr(own, f) != getattr(known, f)}


def _from_tutorial(name: str) -> str:
    """``encode_modules.0.decode_modules.1.bn.weight`` → ``encoder.0.decoder.1.bn.weight``."""
    if side := re.fullmatch(r"side_modules\.(\d)\.(\w+)", name):
        return f"sides.{5 - int(side[1])}.{side[2]}"  # theirs go from the deepest to the finest
    name = name.replace("encode_modules.", "encoder.").replace("decode_modules.", "decoder.")
    match = re.fullmatch(r"((?:en|de)coder\.\d)\.encoder\.(\d)\.(.+)", name)
    if match and int(match[2]) == _HEIGHTS.get(match[1], 0) - 1:  # the last encoder is the bottom
        return f"{match[1]}.bottom.{match[3]}"
    return name


_Renaming = Callable[[str], str]
_LAYOUTS: dict[str, tuple[str, _Renaming]] = {  # each with a name that only it has
    "official U-2-Net layout": ("stage1.rebnconvin.conv_s1.weight", from_official),
    "tutorial layout": ("encode_modules.0.conv_in.conv.weight", _from_tutorial),
    "state_dict of this toolkit": ("encoder.0.conv_in.conv.weight", str),
}
