"""The settings of a training run, each declared once: default, kind, group, help, and whether a
resumed run may change it.

The flags of ``train.py``, recipe files, ``args.json`` and a checkpoint's record of its run are all
made from :class:`Settings`.
"""

import os
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from src import NETWORKS, UserError
from src.device import AMP_CHOICES
from src.networks.base import MIN_SIZE

from .kinds import (
    FRACTION,
    NATURAL,
    NOT_NEGATIVE,
    PATH,
    POSITIVE,
    SWITCH,
    TEXT,
    Kind,
    declarations,
    setting,
)
from .training.losses import PARTS

GROUPS = ("data", "network", "recipe", "device", "run")
_data, _network, _recipe, _device, _run = (partial(setting, group) for group in GROUPS)


def default_workers() -> int:
    """Eight beside a GPU; a processor that trains has little time left for loading."""
    return min(8, os.cpu_count() or 1) if torch.cuda.is_available() else 1


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of a run. Those whose default follows from others are filled in.

    A resumed run must agree with its checkpoint in every setting that is not marked
    ``may_change``; ``compared_as`` names what stands for a setting in that comparison.

    Raises:
        UserError: a value is of another kind, or settings contradict each other.

    Example:
        >>> settings = Settings(img_size=(160, 320), epochs=40)
        >>> settings.crop_size, settings.first_epochs
        ((144, 288), [0, 20])
    """

    data_path: tuple[Path, ...] | None = _data(
        None,
        PATH,
        "DUTS layout (DUTS-TR/DUTS-TR-Image, DUTS-TR/DUTS-TR-Mask, DUTS-TE/...), or images/ and "
        "masks/ with optional train.txt, val.txt and test.txt (names without suffix, one a line)",
        several=True,
        compared_as="pictures",
    )
    image_dir: Path | None = _data(  # noqa: RUF009 a dataclass field
        None, PATH, "the images, in place of --data-path", compared_as="pictures"
    )
    mask_dir: Path | None = _data(  # noqa: RUF009 a dataclass field
        None, PATH, "the masks that belong to --image-dir", compared_as="pictures"
    )
    skip_invalid: bool = _data(
        False,
        SWITCH,
        "leave invalid pairs out instead of stopping; decodes every file once to find them",
        compared_as="pictures",
    )
    data_shares: tuple[float, ...] | None = _data(
        None,
        NOT_NEGATIVE,
        "how often an epoch uses each image of each --data-path: 2 twice, 0.5 every other one, "
        "chosen anew each time (default: 1 for each). The first set selects the best weights, by "
        "its val.txt if there is one, else by its test images",
        several=True,
    )
    num_classes: int | None = _data(
        None,
        Kind(int, 2, 256),
        "masks hold class indices below K, grey or palette, and the network gives a map for each "
        "(default: masks of object and background, one map)",
        metavar="K",
    )
    ignore_index: int | None = _data(
        None,
        Kind(int, 0, 256),
        "with --num-classes: pixels whose mask holds this value count nowhere",
        metavar="I",
    )

    model: str | None = _network(
        None,
        TEXT,
        f"{', '.join(NETWORKS)}, or a .json table (default: u2net_full)",
        metavar="NAME",
        compared_as="network",
    )
    pretrained: Path | None = _network(  # noqa: RUF009 a dataclass field
        None,
        PATH,
        "start from these weights, of any kind that is read",
        metavar="W",
        excludes="backbone",
        compared_as="start",
    )
    backbone: str | None = _network(
        None,
        TEXT,
        "fcn8s, segnet: start from torchvision's VGG-16, which it downloads, or from that file",
        metavar="imagenet|W",
        excludes="pretrained",
        compared_as="start",
    )
    img_size: tuple[int, ...] = _network(
        (320,),
        POSITIVE,
        "images are resized to this square, in pixels; several: one after another (default: 320)",
        several=True,
    )
    crop_size: tuple[int, ...] = _network(
        (), POSITIVE, "of the random crop (default: 9/10 of --img-size)", several=True
    )
    grow_at: tuple[float, ...] = _network(
        (),
        FRACTION,
        "the shares of the run after which the next --img-size holds (default: evenly spaced)",
        several=True,
    )

    epochs: int = _recipe(360, POSITIVE, "passes over the training split")
    batch_size: int = _recipe(16, POSITIVE, "images per step and process")
    accum: int = _recipe(1, POSITIVE, "batches per optimizer step")
    lr: float = _recipe(1e-3, NOT_NEGATIVE, "peak learning rate")
    warmup_epochs: int = _recipe(
        2,
        NATURAL,
        "in which the learning rate rises, half the run at most; then a cosine to the end",
    )
    weight_decay: float = _recipe(1e-4, NOT_NEGATIVE, "of weights, not of norms and biases")
    clip_grad: float = _recipe(0.0, NOT_NEGATIVE, "largest gradient norm; 0 for none")
    loss_weights: tuple[float, ...] | None = _recipe(
        None,
        NOT_NEGATIVE,
        "a weight per map, fused first, then side maps from fine to coarse (default: 1 for each)",
        several=True,
        metavar="W",
    )
    loss: str = _recipe(
        "",
        TEXT,
        f"of each map: {', '.join(PARTS)}, or a sum such as bce+iou+ssim (default: bce, the "
        "published one; ce with --num-classes)",
        metavar="NAME",
    )
    class_weights: tuple[float | str, ...] | None = _recipe(
        None,
        Kind(float, 0, words=("balanced",)),
        "in bce and ce: one for each class (without --num-classes: background, object), or "
        "balanced, the median frequency balancing of the training masks (default: none)",
        several=True,
        metavar="W",
    )
    augment: str = _recipe(
        "basic",
        Kind(str, words=("basic", "strong")),
        "basic: crop and flip, as published; strong: scale, aspect, colour, blur, noise, JPEG "
        "artefacts and pasted objects too",
    )
    ema: float = _recipe(
        0.0,
        FRACTION,
        "keep a moving average of the weights, evaluate and ship that; 0.999 if no number is "
        "given, 0 for none",
        alone=0.999,
        metavar="DECAY",
    )
    seed: int = _recipe(0, NATURAL, "of weights, order and crops")
    sync_bn: bool = _recipe(
        False,
        SWITCH,
        "batch norm over the batches of all GPUs together; for small ones, under torchrun",
    )
    freeze_bn: bool | None = _recipe(
        None,
        SWITCH,
        "batch norm keeps its statistics and uses them in training too (default: with"
        " --pretrained)",
    )

    device: str = _device("auto", TEXT, "auto, cpu, cuda, cuda:1, mps", compared_as="device")
    amp: str = _device(
        "auto",
        Kind(str, words=AMP_CHOICES),
        "precision; auto is bf16 where the hardware computes in it, else float32",
        compared_as="precision",
    )
    workers: int = _device(
        default_workers,
        NATURAL,
        "processes that load images; 0 loads them in the main one",
        may_change=True,
    )
    compile: bool = _device(False, SWITCH, "build the step with torch.compile", may_change=True)
    checkpoint_activations: bool = _device(
        False,
        SWITCH,
        "compute what lies inside a stage again for the gradient: less memory, more time",
        may_change=True,
    )

    output_dir: Path | None = _run(  # noqa: RUF009 a dataclass field
        None, PATH, "the run's folder (default: runs/MODEL-1, -2, ...)", may_change=True
    )
    resume: str | None = _run(
        None,
        TEXT,
        "continue from a last.pt; auto: from the newest intact checkpoint in --output-dir (by "
        "default of the newest run of this --model), or start a new run if there is none",
        metavar="PATH",
        may_change=True,
    )
    eval_interval: int = _run(10, POSITIVE, "epochs between evaluations", may_change=True)
    save_every: int = _run(
        0,
        NATURAL,
        "optimizer steps between checkpoints; 0: only after each epoch",
        may_change=True,
    )
    keep: int = _run(
        2, POSITIVE, "checkpoints to keep: last.pt, last-1.pt before it, ...", may_change=True
    )

    def __post_init__(self) -> None:
        for name, declared in DECLARATIONS.items():
            value = getattr(self, name)
            if value not in (None, ()):  # which stand for a default that follows from others
                try:
                    self._set(name, declared.check(value))
                except ValueError as error:
                    raise UserError(str(error), name) from None
        self._complete()
        self._check()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _complete(self) -> None:
        """Fill in the defaults that follow from other settings."""
        count = len(self.img_size)
        if not self.crop_size:
            self._set("crop_size", tuple(size * 9 // 10 for size in self.img_size))
        if not self.grow_at:
            self._set("grow_at", tuple(i / count for i in range(1, count)))
        if self.data_shares is None:
            self._set("data_shares", (1.0,) * len(self.data_path or (None,)))
        if not self.loss:
            self._set("loss", "ce" if self.num_classes else "bce")

    def _check(self) -> None:
        """Refuse settings that contradict each other."""
        if min(self.crop_size) < MIN_SIZE:
            advice = "it is 9/10 of {img_size} by default"
            raise UserError(
                f"expected at least {MIN_SIZE}", "crop_size", min(self.crop_size), advice
            )
        sizes, sets = len(self.img_size), len(self.data_path or (None,))
        _check_count("crop_size", self.crop_size, sizes, "one for each {img_size}")
        _check_count("grow_at", self.grow_at, sizes - 1, "one for each {img_size} after the first")
        _check_count("data_shares", self.data_shares or (), sets, "one for each {data_path}")
        starts = self.first_epochs
        if any(a >= b for a, b in pairwise([*starts, self.epochs])):
            raise UserError(
                f"each size needs an epoch of its own, but they begin after {_listed(starts)}",
                "epochs",
                self.epochs,
                advice="pass more epochs, fewer values of {img_size}, or a rising {grow_at}",
            )
        if not all(self.data_shares or ()):
            advice = "leave that set out of {data_path}"
            raise UserError("a share of 0", "data_shares", advice=advice)
        if self.ignore_index is not None and self.num_classes is None:
            advice = "pass {num_classes} too"
            raise UserError("only masks of classes have one", "ignore_index", advice=advice)
        if self.pretrained and self.backbone:
            advice = "pass either that or {pretrained}"
            raise UserError("excludes other weights", "backbone", self.backbone, advice)
        weights, classes = self.class_weights, self.num_classes or 2
        if weights and not {"bce", "ce"} & set(self.loss.split("+")):
            raise UserError(f"only bce and ce use them, the loss is {self.loss}", "class_weights")
        balanced = weights == ("balanced",)
        if weights and not balanced and (len(weights) != classes or "balanced" in weights):
            raise UserError(f"expected balanced, or {classes} numbers", "class_weights")

    @property
    def first_epochs(self) -> list[int]:
        """The epoch, counted from 0, from which each ``img_size`` holds."""
        return [round(share * self.epochs) for share in (0.0, *self.grow_at)]

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values by name, for ``args.json``."""
        return {name: _plain(getattr(self, name)) for name in DECLARATIONS}

    def record(self) -> dict[str, Any]:
        """The settings that a resumed run must share, for its checkpoints."""
        return {
            name: _plain(getattr(self, name))
            for name, declared in DECLARATIONS.items()
            if not (declared.may_change or declared.compared_as)
        }

    def default(self, name: str) -> Any:
        """What a setting would be, had it not been given; as :meth:`record` has it."""
        if name == "freeze_bn":  # None only until it is known what the run starts from
            return False
        return _plain(getattr(replace(self, **{name: declared_default(name)}), name))


def declared_default(name: str) -> Any:
    """The default of a setting; empty or None where it follows from others."""
    field = next(field for field in fields(Settings) if field.name == name)
    return field.default_factory() if callable(field.default_factory) else field.default


def _check_count(name: str, values: tuple[float, ...], count: int, what: str) -> None:
    if len(values) != count:
        raise UserError(f"expected {count} values, got {len(values)}", name, advice=what)


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


DECLARATIONS = declarations(Settings)
