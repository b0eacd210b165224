"""The tables that describe networks, validated, to and from dict and JSON; ``tables.py`` has the
published ones.
"""

import json
import math
from collections.abc import Callable
from dataclasses import Field, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

from ..errors import UserError

MAX_CHANNELS = 8192  # of a map: above this, a single convolution takes gigabytes
MAX_HEIGHT = 16  # levels of a block; 14 halvings reduce 16384 pixels to one
MAX_SIZE = 8192  # largest side in pixels that images are resized to
MEAN = (0.485, 0.456, 0.406)  # of ImageNet: the official U²-Net and all its weights use it
STD = (0.229, 0.224, 0.225)

_ADDED = {"img_size", "mean", "std", "stem", "fuse_sides"}  # fields, see Table.to_dict
Activation = Literal["sigmoid", "softmax"]
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Preprocessing of an RGB image for a network; part of every table.

    Args:
        img_size: the side in pixels that images are resized to, unless weights give another.
        mean: of red, green and blue in [0, 1], subtracted.
        std: of the same, by which they are then divided.
    """

    img_size: int = 320
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD


class Table(Preprocessing):
    """Base class of the frozen dataclasses that describe a network."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    name: str
    out_ch: int
    activation: Activation

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, checked like a new one.

        Raises:
            UserError: an unknown field, or a value that is not valid.
        """
        unknown = changes.keys() - {f.name for f in fields(self)}
        if unknown:
            raise UserError(f"unknown network option {sorted(unknown)}")
        return replace(self, **changes)

    @property
    def object_map(self) -> int | None:
        """Index of the map that shows the object: the only one, or the second of two classes; None
        if there are more classes."""
        if self.out_ch == 2 and self.activation == "softmax":
            return 1
        return 0 if self.out_ch == 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, strings and numbers, ready for JSON or a checkpoint.

        Fields that were added for IS-Net are left out if they have their defaults, so that older
        versions can read the tables of all networks that they can build.
        """
        values = asdict(self)
        for field in fields(self):
            if field.name in _ADDED and getattr(self, field.name) == field.default:
                del values[field.name]
        return json.loads(json.dumps(values))

    def _check(self, *positive: str) -> None:
        """Check the named fields, which are channels, and those that all tables have."""
        if not isinstance(self.name, str):
            raise UserError(f"{self.name}: name must be a string")
        for field in (*positive, "out_ch"):
            _check_integer(self.name, field, getattr(self, field))
        if self.activation not in ("sigmoid", "softmax"):
            raise UserError(
                f"{self.name}: activation must be sigmoid or softmax, got {self.activation!r}"
            )
        _check_integer(self.name, "img_size", self.img_size, maximum=MAX_SIZE)
        for field in ("mean", "std"):
            values = _three_numbers(self.name, field, getattr(self, field))
            object.__setattr__(self, field, values)  # JSON has only lists
        if min(self.std) <= 0:
            raise UserError(f"{self.name}: std must be above 0, got {list(self.std)}")


@dataclass(frozen=True)
class NetworkConfig(Table):
    """The options of a network that has no stage table.

    Args:
        name: which network, a name of ``NETWORKS``.
        in_ch: channels of the image.
        out_ch: channels of the map: 1 for saliency, else one per class.
        activation: what turns logits into probabilities in eval mode.
        width: channels of the finest level, 64 as published; the others follow in proportion.

    Raises:
        UserError: a value of another type or out of range; the message names the field.

    Example:
        >>> NetworkConfig("unet", out_ch=2).replace(width=16).width
        16
    """

    name: str
    in_ch: int = 3
    out_ch: int = 1
    activation: Activation = "sigmoid"
    width: int = 64

    def __post_init__(self) -> None:
        self._check("in_ch", "width")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "NetworkConfig":
        """The inverse of :meth:`to_dict`.

        Raises:
            UserError: a key is missing or unknown, or a value is not valid.
        """
        return _from_fields(cls, values, "network table")


@dataclass(frozen=True)
class StageConfig:
    """One RSU block.

    Args:
        name: the stage's name in error messages (``En1`` … ``De1`` in the paper).
        height: L, the number of levels inside the block, 2 to 16.
        in_ch: channels coming in.
        mid_ch: channels inside the block.
        out_ch: channels going out.
        dilated: dilation instead of pooling (RSU4F in the paper).
        side: the stage has a side output.
    """

    name: str
    height: int
    in_ch: int
    mid_ch: int
    out_ch: int
    dilated: bool = False
    side: bool = False


@dataclass(frozen=True)
class StemConfig:
    """A 3×3 convolution of stride 2 before the first stage, as IS-Net has it.

    Args:
        in_ch: channels of the image.
        out_ch: channels going out.
        norm: batch norm and ReLU follow (IS-Net's GT encoder; not in IS-Net itself).
    """

    in_ch: int
    out_ch: int
    norm: bool = False


@dataclass(frozen=True)
class U2NetConfig(Table):
    """A whole network: encoder stages from fine to coarse, decoder stages from coarse to fine.

    Args:
        name: the network's name, kept in checkpoints.
        encoder: n ≥ 2 stages; each but the first works on a map of half the size.
        decoder: n − 1 stages; each reads the stage before it, concatenated with the encoder
            stage of its own size. An empty tuple makes an encoder with side outputs.
        out_ch: channels of every map (1 for a saliency map).
        activation: what turns the first map's logits into probabilities in eval mode.
        conv_bias: the convolutions before batch norm have a bias too, as in the official weights;
            redundant, so off for new networks.
        stem: a convolution that halves the image before the first stage; None for none.
        fuse_sides: the output is a 1×1 convolution of all side maps; False: the finest side map.
        img_size, mean, std: see :class:`Preprocessing`.

    Raises:
        UserError: the channels of two stages do not match, or a value is not valid; the message
            names the stage and what was expected.

    Example:
        >>> from src import LITE
        >>> LITE.replace(in_ch=4).encoder[0].in_ch
        4
    """

    name: str
    encoder: tuple[StageConfig, ...]
    decoder: tuple[StageConfig, ...]
    out_ch: int = 1
    activation: Activation = "sigmoid"
    conv_bias: bool = False
    stem: StemConfig | None = None
    fuse_sides: bool = True

    def __post_init__(self) -> None:
        _check_stages(self)
        self._check()
        for field in ("conv_bias", "fuse_sides"):
            _check_truth(self.name, field, getattr(self, field))
        _check_channels(self)

    @property
    def in_ch(self) -> int:
        """Channels of the image."""
        return (self.stem or self.encoder[0]).in_ch

    @property
    def structure(self) -> tuple[Any, ...]:
        """The fields that are equal if the networks of two tables take the same weights."""
        return self.encoder, self.decoder, self.out_ch, self.conv_bias, self.stem, self.fuse_sides

    @property
    def side_stages(self) -> list[tuple[int, int]]:
        """Level and place in the order of forward of stages with side outputs, finest first."""
        n, stages = len(self.encoder), (*self.encoder, *self.decoder)
        levels = (*range(n), *range(n - 2, -1, -1))
        sides = [(levels[i], i) for i, stage in enumerate(stages) if stage.side]
        return sorted(sides, key=lambda side: (side[0], -side[1]))

    @property
    def stride(self) -> int:
        """Downsampling factor of the coarsest map inside the network, per side."""
        pools = [i + (0 if s.dilated else s.height - 2) for i, s in enumerate(self.encoder)]
        return 2 ** (max(pools) + (self.stem is not None))

    def replace(self, **changes: Any) -> Self:
        """As :meth:`Table.replace`; ``in_ch`` changes the stem or the first stage."""
        if "in_ch" in changes and (stem := changes.get("stem", self.stem)):
            changes["stem"] = replace(stem, in_ch=changes.pop("in_ch"))
        elif "in_ch" in changes:
            first = replace(self.encoder[0], in_ch=changes.pop("in_ch"))
            changes["encoder"] = (first, *changes.get("encoder", self.encoder)[1:])
        return super().replace(**changes)

    @classmethod
    def from_dict(cls, table: dict[str, Any]) -> "U2NetConfig":
        """The inverse of :meth:`to_dict`.

        Raises:
            UserError: a key is missing or unknown, or a value is not valid.
        """
        if not isinstance(table, dict):
            raise UserError(f"a network table must be a JSON object, not {type(table).__name__}")
        parts = dict(table)
        for part in ("encoder", "decoder"):
            if not isinstance(parts.get(part), list):
                raise UserError(f"the network table needs {part!r}, a list of stages")
            parts[part] = tuple(_from_fields(StageConfig, s, f"{part} stage") for s in parts[part])
        if parts.get("stem") is not None:
            parts["stem"] = _from_fields(StemConfig, parts["stem"], "stem")
        return _from_fields(cls, parts, "network table")

    def to_json(self, path: str | Path) -> None:
        """Write the table to a file that :func:`build_model` reads."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")


def _from_fields(cls: Callable[..., _T], values: Any, kind: str) -> _T:
    """Build a dataclass; a missing or unknown key is a UserError that names the kind."""
    if not isinstance(values, dict):
        raise UserError(f"{kind}: expected an object with named fields, got {values!r}")
    unknown = values.keys() - {f.name for f in fields(cls)}  # type: ignore[arg-type]  # its class
    if unknown:
        raise UserError(f"{kind} {values.get('name', '?')}: unknown field {sorted(unknown)}")
    try:
        return cls(**values)
    except TypeError as error:  # a field is missing: the message names it
        raise UserError(f"{kind} {values.get('name', '?')}: {error}") from None


def _check_integer(
    owner: str, field: str, value: object, minimum: int = 1, maximum: int = MAX_CHANNELS
) -> None:
    if type(value) is not int or not minimum <= value <= maximum:
        shown = repr(value)[:40]  # a file may hold anything here
        raise UserError(
            f"{owner}: {field} must be an integer from {minimum} to {maximum}, got {shown}"
        )


def _check_truth(owner: str, field: str, value: object) -> None:
    if not isinstance(value, bool):
        raise UserError(f"{owner}: {field} must be true or false")


def _three_numbers(owner: str, field: str, values: Any) -> tuple[float, ...]:
    numbers = tuple(values) if isinstance(values, list | tuple) else ()
    if len(numbers) != 3 or not all(type(n) in (int, float) and math.isfinite(n) for n in numbers):
        raise UserError(f"{owner}: {field} must be three numbers, got {repr(values)[:40]}")
    return tuple(map(float, numbers))


def _check_stages(config: U2NetConfig) -> None:
    n = len(config.encoder)
    if n < 2:
        raise UserError(f"{config.name}: expected at least 2 encoder stages, got {n}")
    if len(config.decoder) not in (0, n - 1):
        raise UserError(
            f"{config.name}: {n} encoder stages need {n - 1} decoder stages (or none at all), "
            f"got {len(config.decoder)}"
        )
    stages = (*config.encoder, *config.decoder)
    for stage in stages:
        owner = f"stage {stage.name}"
        _check_integer(owner, "height", stage.height, 2, MAX_HEIGHT)
        for field in ("in_ch", "mid_ch", "out_ch"):
            _check_integer(owner, field, getattr(stage, field))
        for field in ("dilated", "side"):
            _check_truth(owner, field, getattr(stage, field))
    if (stem := config.stem) is not None:
        _check_integer("stem", "in_ch", stem.in_ch)
        _check_integer("stem", "out_ch", stem.out_ch)
        _check_truth("stem", "norm", stem.norm)
    if not any(stage.side for stage in stages):
        raise UserError(
            f"stage {stages[-1].name}: expected at least 1 stage with a side output, got 0"
        )


def _check_channels(config: U2NetConfig) -> None:
    def expect(stage: StageConfig, channels: int, source: str) -> None:
        if stage.in_ch != channels:
            raise UserError(
                f"stage {stage.name}: in_ch is {stage.in_ch}, expected {channels} ({source})"
            )

    if config.stem:
        expect(config.encoder[0], config.stem.out_ch, "the out_ch of the stem")
    for before, stage in zip(config.encoder, config.encoder[1:], strict=False):
        expect(stage, before.out_ch, f"the out_ch of {before.name}")
    before = config.encoder[-1]
    for stage, skip in zip(config.decoder, config.encoder[-2::-1], strict=False):
        source = f"{before.out_ch} of {before.name} + {skip.out_ch} of {skip.name}"
        expect(stage, before.out_ch + skip.out_ch, source)
        before = stage
