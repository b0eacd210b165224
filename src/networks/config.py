"""Stage tables: what a U²-Net is made of, validated, and to and from dict and JSON.

The two published tables (Qin et al. 2020, Table 1) are :data:`FULL` and :data:`LITE`.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

from ..errors import UserError

MAX_CHANNELS = 8192  # of a map: beyond, one convolution alone takes gigabytes
MAX_HEIGHT = 16  # levels of a block; 14 halvings take pictures of 16384 pixels to one


@dataclass(frozen=True)
class StageConfig:
    """One RSU block.

    Args:
        name: what error messages call the stage (``En1`` … ``De1`` in the paper).
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


class Table:
    """What the frozen dataclasses that describe a network share."""

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated again; an unknown one is a UserError."""
        unknown = changes.keys() - {f.name for f in fields(self)}
        if unknown:
            raise UserError(f"unknown network option {sorted(unknown)}")
        return replace(self, **changes)

    @property
    def object_map(self) -> int | None:
        """Which of the maps tells the object: the only one, or the second of two classes; None
        where there are others."""
        if self.out_ch == 2 and self.activation == "softmax":
            return 1
        return 0 if self.out_ch == 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, strings and numbers, ready for JSON or a checkpoint."""
        return json.loads(json.dumps(asdict(self)))


@dataclass(frozen=True)
class U2NetConfig(Table):
    """A whole network: encoder stages from fine to coarse, decoder stages from coarse to fine.

    Args:
        name: the network's name, kept in checkpoints.
        encoder: n ≥ 2 stages; each but the first works on a map of half the size.
        decoder: n − 1 stages; each reads the stage before it, concatenated with the encoder
            stage of its own size.
        out_ch: channels of every map (1 for a saliency map).
        activation: what turns the fused logits into probabilities in eval mode.
        conv_bias: the convolutions before batch norm have a bias too, as in the official weights;
            redundant, so off for new networks.

    Raises:
        UserError: (a ValueError) if the table does not chain; it names the stage and the number
            expected.
    """

    name: str
    encoder: tuple[StageConfig, ...]
    decoder: tuple[StageConfig, ...]
    out_ch: int = 1
    activation: Literal["sigmoid", "softmax"] = "sigmoid"
    conv_bias: bool = False

    def __post_init__(self) -> None:
        _check_stages(self)
        _check_channels(self)

    @property
    def in_ch(self) -> int:
        """Channels of the picture."""
        return self.encoder[0].in_ch

    @property
    def stride(self) -> int:
        """How much smaller than the picture the coarsest map inside the network is, per side."""
        pools = [i + (0 if s.dilated else s.height - 2) for i, s in enumerate(self.encoder)]
        return 2 ** max(pools)

    def replace(self, **changes: Any) -> Self:
        """As :meth:`Table.replace`; ``in_ch`` changes the first stage."""
        if "in_ch" in changes:
            first = replace(self.encoder[0], in_ch=changes.pop("in_ch"))
            changes["encoder"] = (first, *changes.get("encoder", self.encoder)[1:])
        return super().replace(**changes)

    @classmethod
    def from_dict(cls, table: dict[str, Any]) -> "U2NetConfig":
        """The inverse of :meth:`to_dict`; a key missing or unknown is a UserError."""
        if not isinstance(table, dict):
            raise UserError(f"a network table must be a JSON object, not {type(table).__name__}")
        parts = dict(table)
        for part in ("encoder", "decoder"):
            if not isinstance(parts.get(part), list):
                raise UserError(f"the network table needs {part!r}, a list of stages")
            parts[part] = tuple(from_fields(StageConfig, s, f"{part} stage") for s in parts[part])
        return from_fields(cls, parts, "network table")

    def to_json(self, path: str | Path) -> None:
        """Write the table where ``--model my_config.json`` can read it."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def from_json(cls, path: str | Path) -> "U2NetConfig":
        """Read a table written by :meth:`to_json` or by hand."""
        return read_json(path, cls.from_dict)


def read_json(path: str | Path, parse: Callable[[Any], Any]) -> Any:
    """What ``parse`` makes of a JSON file; its UserErrors, and those of the file, name the path."""
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable JSON network table ({error})") from None
    try:
        return parse(table)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def from_fields(cls: type, values: Any, what: str) -> Any:
    """An object of a dataclass; a key missing or unknown is a UserError that says of what."""
    if not isinstance(values, dict):
        raise UserError(f"{what}: expected an object with named fields, got {values!r}")
    unknown = values.keys() - {f.name for f in fields(cls)}
    if unknown:
        raise UserError(f"{what} {values.get('name', '?')}: unknown field {sorted(unknown)}")
    try:
        return cls(**values)
    except TypeError as error:  # a field is missing: the message names it
        raise UserError(f"{what} {values.get('name', '?')}: {error}") from None


def check_integer(
    whose: str, field: str, value: object, least: int = 1, most: int = MAX_CHANNELS
) -> None:
    """Refuse what is no integer, or out of range; told briefly, as a file may say anything."""
    if type(value) is not int or not least <= value <= most:
        raise UserError(
            f"{whose}: {field} must be an integer from {least} to {most}, got {repr(value)[:40]}"
        )


def _check_stages(config: U2NetConfig) -> None:
    n = len(config.encoder)
    if n < 2:
        raise UserError(f"{config.name}: expected at least 2 encoder stages, got {n}")
    if len(config.decoder) != n - 1:
        raise UserError(
            f"{config.name}: {n} encoder stages need {n - 1} decoder stages, "
            f"got {len(config.decoder)}"
        )
    for stage in (*config.encoder, *config.decoder):
        check_integer(f"stage {stage.name}", "height", stage.height, 2, MAX_HEIGHT)
        for field in ("in_ch", "mid_ch", "out_ch"):
            check_integer(f"stage {stage.name}", field, getattr(stage, field))
        for field in ("dilated", "side"):
            if not isinstance(getattr(stage, field), bool):
                raise UserError(f"stage {stage.name}: {field} must be true or false")
    if not isinstance(config.name, str) or not isinstance(config.conv_bias, bool):
        raise UserError(f"{config.name}: name must be a string, conv_bias true or false")
    check_integer(config.name, "out_ch", config.out_ch)
    if config.activation not in ("sigmoid", "softmax"):
        raise UserError(
            f"{config.name}: activation must be sigmoid or softmax, got {config.activation!r}"
        )
    last = config.decoder[-1]
    if not any(stage.side for stage in (*config.encoder, *config.decoder)):
        raise UserError(f"stage {last.name}: expected at least 1 stage with a side output, got 0")


def _check_channels(config: U2NetConfig) -> None:
    def expect(stage: StageConfig, channels: int, source: str) -> None:
        if stage.in_ch != channels:
            raise UserError(
                f"stage {stage.name}: in_ch is {stage.in_ch}, expected {channels} ({source})"
            )

    for before, stage in zip(config.encoder, config.encoder[1:], strict=False):
        expect(stage, before.out_ch, f"the out_ch of {before.name}")
    before = config.encoder[-1]
    for stage, skip in zip(config.decoder, config.encoder[-2::-1], strict=True):
        source = f"{before.out_ch} of {before.name} + {skip.out_ch} of {skip.name}"
        expect(stage, before.out_ch + skip.out_ch, source)
        before = stage


def _stages(rows: Iterable[str]) -> tuple[StageConfig, ...]:
    """Rows as the paper prints them: name, height, in, mid, out, then ``d`` and ``s`` marks."""
    stages = []
    for name, height, in_ch, mid_ch, out_ch, *marks in (row.split() for row in rows):
        sizes = (int(height), int(in_ch), int(mid_ch), int(out_ch))
        stages.append(StageConfig(name, *sizes, dilated="d" in marks, side="s" in marks))
    return tuple(stages)


FULL = U2NetConfig(
    name="u2net_full",
    encoder=_stages(
        (
            "En1 7   3  32  64",
            "En2 6  64  32 128",
            "En3 5 128  64 256",
            "En4 4 256 128 512",
            "En5 4 512 256 512 d",
            "En6 4 512 256 512 d s",
        )
    ),
    decoder=_stages(
        (
            "De5 4 1024 256 512 d s",
            "De4 4 1024 128 256 s",
            "De3 5  512  64 128 s",
            "De2 6  256  32  64 s",
            "De1 7  128  16  64 s",
        )
    ),
)

LITE = U2NetConfig(
    name="u2net_lite",
    encoder=_stages(
        (
            "En1 7  3 16 64",
            "En2 6 64 16 64",
            "En3 5 64 16 64",
            "En4 4 64 16 64",
            "En5 4 64 16 64 d",
            "En6 4 64 16 64 d s",
        )
    ),
    decoder=_stages(
        (
            "De5 4 128 16 64 d s",
            "De4 4 128 16 64 s",
            "De3 5 128 16 64 s",
            "De2 6 128 16 64 s",
            "De1 7 128 16 64 s",
        )
    ),
)
