"""The settings of a training run, each declared once: default, kind, group, help, and whether a
resumed run may change it.

The flags of ``train.py``, recipe files, ``args.json`` and a checkpoint's record of its run are all
made from :class:`Settings`.
"""

import os
from argparse import ArgumentTypeError
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from src import NETWORKS, UserError
from src.device import AMP_CHOICES
from src.networks.base import MIN_SIZE

from .data.masks import MASK_KINDS, mask_reader
from .kinds import (
    FRACTION,
    NATURAL,
    NUMBER,
    PATH,
    POSITIVE,
    SWITCH,
    TEXT,
    Kind,
    SizeKind,
    one_of,
    setting,
)
from .training.losses import PARTS, find_parts

_data, _network, _recipe, _device = (
    partial(setting, group) for group in ("data", "network", "recipe", "device")
)
_run = partial(setting, "run", may_change=True)
_SHARE = "9/10"  # of a crop, of each size that is drawn
_SIDE = SizeKind(int, "N|A-B", 1, 2**31)
_CROP = SizeKind(int, "N|A-B", 1, 2**31, words=(_SHARE,))


def default_workers() -> int:
    """Eight beside a GPU; a processor that trains has little time left for loading."""
    return min(8, os.cpu_count() or 1) if torch.cuda.is_available() else 1


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of a run. Those whose default follows from others are filled in.

    A resumed run must agree with its checkpoint in every setting that is not marked
    ``may_change``; ``fact`` names what stands for a setting in that comparison.

    Raises:
        UserError: a value is of another kind, or settings contradict each other.

    Example:
        >>> settings = Settings(img_size=(160, 320), epochs=40)
        >>> settings.crop_size, settings.first_epochs
        ((144, 288), [0, 20])
    """

    data_path: tuple[Path, ...] | None = _data(
        PATH,
        "DUTS layout (DUTS-TR/DUTS-TR-Image, DUTS-TR/DUTS-TR-Mask, DUTS-TE/...), or images/ and "
        "masks/ with optional train.txt, val.txt and test.txt (names without suffix, one a line)",
        several=True,
        fact="pictures",
    )
    image_dir: Path | None = _data(PATH, "images, in place of --data-path", fact="pictures")
    mask_dir: Path | None = _data(PATH, "their masks", fact="pictures")
    skip_invalid: bool = _data(
        SWITCH, "leave invalid pairs out; decodes every file once", False, fact="pictures"
    )
    masks: str = _data(
        one_of(*MASK_KINDS),
        "what the masks are, whatever they look like: binary: object and background, cut at "
        "--mask-threshold; soft: levels from 0 to 1, kept (mattes); classes: indices, with "
        "--num-classes (default: decided by all masks of a set together)",
        "auto",
    )
    mask_threshold: int | None = _data(
        Kind(int, "T", 0, 255),
        "a mask is object where it is above this level of 255 (default: 127)",
    )
    data_shares: tuple[float, ...] | None = _data(
        NUMBER,
        "uses of each image of each --data-path an epoch: 2 twice, 0.5 every other one (default: "
        "1). The first set selects the best weights, by its val.txt or else its test images",
        several=True,
    )
    num_classes: int | None = _data(
        Kind(int, "K", 2, 256),
        "masks hold class indices below K, grey or palette, and the network gives a map for each "
        "(default: masks of object and background, one map)",
    )
    ignore_index: int | None = _data(
        Kind(int, "I", 0, 256), "with --num-classes: the mask value to ignore"
    )

    model: str | None = _network(
        TEXT, f"{', '.join(NETWORKS)}, or a .json table (default: u2net_full)", fact="network"
    )
    pretrained: Path | None = _network(
        Kind(Path, "W"),
        "start from these weights, by name or in any supported format",
        fact="start",
    )
    backbone: str | None = _network(
        Kind(str, "imagenet|W"), "fcn8s, segnet: VGG-16 of torchvision, or a file", fact="start"
    )
    img_size: tuple[int | str, ...] = _network(
        _SIDE,
        "side of the square input; 192-352: for each batch another multiple of 32 from there, at "
        "random, and the middle one (288) to evaluate and in the weights; several: in turn "
        "(default: 320)",
        (320,),
        several=True,
    )
    crop_size: tuple[int | str, ...] = _network(
        _CROP,
        "size of the random crop; of a range, a range of as many sizes (160-320), or one size for "
        f"all (default: {_SHARE} of --img-size)",
        (),
        several=True,
    )
    grow_at: tuple[float, ...] = _network(
        FRACTION,
        "shares of the run after which the next size holds (default: even)",
        (),
        several=True,
    )

    epochs: int = _recipe(POSITIVE, "passes over the training split", 360)
    batch_size: int = _recipe(POSITIVE, "images per step and process", 16)
    accum: int = _recipe(POSITIVE, "batches per optimizer step", 1)
    lr: float = _recipe(NUMBER, "peak learning rate", 1e-3)
    warmup_epochs: int = _recipe(
        NATURAL, "of rising learning rate, half the run at most; then a cosine to the end", 2
    )
    weight_decay: float = _recipe(NUMBER, "weight decay, of all but norms and biases", 1e-4)
    clip_grad: float = _recipe(NUMBER, "largest gradient norm; 0 for none", 0.0)
    loss_weights: tuple[float, ...] | None = _recipe(
        NUMBER, "of each map: fused, then sides from fine to coarse (default: 1)", several=True
    )
    loss: str = _recipe(
        TEXT,
        f"of each map: {', '.join(PARTS)}, or a sum such as bce+iou+ssim (default: bce, the "
        "published one; ce with --num-classes)",
        "",
    )
    class_weights: tuple[float | str, ...] | None = _recipe(
        Kind(float, "X", 0, words=("balanced",)),
        "in bce and ce: of each class (without --num-classes: background, object), or balanced, "
        "the median frequency balancing of the training masks (default: none)",
        several=True,
    )
    augment: str = _recipe(
        one_of("basic", "strong"),
        "basic: crop and flip, as published; strong: scale, aspect, colour, blur, noise, JPEG "
        "artefacts and pasted objects too",
        "basic",
    )
    ema: float = _recipe(
        FRACTION, "decay of averaged weights, 0.999 if left out; 0 for none", 0.0, alone=0.999
    )
    seed: int = _recipe(NATURAL, "random seed of weights, order and crops", 0)
    sync_bn: bool = _recipe(SWITCH, "batch norm over the batches of all GPUs together", False)
    freeze_bn: bool | None = _recipe(
        SWITCH, "batch norm keeps and uses its statistics (default: with --pretrained)"
    )

    device: str = _device(TEXT, "auto, cpu, cuda, cuda:1, mps", "auto", fact="device")
    amp: str = _device(
        one_of(*AMP_CHOICES), "precision; auto: bf16 where it is fast", "auto", fact="precision"
    )
    workers: int = _device(
        NATURAL, "processes that load images; 0: the main one", default_workers, may_change=True
    )
    compile: bool = _device(SWITCH, "build the step with torch.compile", False, may_change=True)
    checkpoint_activations: bool = _device(
        SWITCH, "recompute stages for the gradient: less memory, more time", False, may_change=True
    )

    output_dir: Path | None = _run(PATH, "the run's folder (default: runs/MODEL-1, -2, ...)")
    resume: str | None = _run(
        Kind(str, "PATH"),
        "continue from a last.pt; auto: from the newest intact checkpoint in --output-dir (by "
        "default of the newest run of this --model), or start a new run if there is none",
    )
    eval_interval: int = _run(POSITIVE, "epochs between evaluations", 10)
    save_every: int = _run(
        NATURAL, "optimizer steps between checkpoints; 0: only after each epoch", 0
    )
    keep: int = _run(POSITIVE, "checkpoints to keep: last.pt, last-1.pt before it, ...", 2)

    def __post_init__(self) -> None:
        for name, declared in DECLARATIONS.items():
            value = getattr(self, name)
            if value not in (None, ()):  # which stand for a default that follows from others
                try:
                    self._set(name, declared.read(value))
                except ArgumentTypeError as error:
                    raise UserError(str(error), name) from None
        self._complete()
        self._check()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _complete(self) -> None:
        """Fill in the defaults that follow from other settings."""
        count = len(self.img_size)
        crops = self.crop_size or (_SHARE,) * count
        _check_count("crop_size", crops, count, "one for each {img_size}")
        pairs = zip(self.img_size, crops, strict=True)
        fixed = (_share(a) if b == _SHARE and isinstance(a, int) else b for a, b in pairs)
        self._set("crop_size", tuple(fixed))
        if not self.grow_at:
            self._set("grow_at", tuple(i / count for i in range(1, count)))
        if self.data_shares is None:
            self._set("data_shares", (1.0,) * len(self.data_path or (None,)))
        if not self.loss:
            self._set("loss", "ce" if self.num_classes else "bce")

    def _check(self) -> None:
        """Refuse settings that contradict each other."""
        mask_reader(self.num_classes, self.ignore_index, self.masks, self.mask_threshold)
        find_parts(self.loss, self.num_classes or 1)
        if self.smallest_crop < MIN_SIZE:
            advice = f"it is {_SHARE} of {{img_size}} by default"
            raise UserError(
                f"expected at least {MIN_SIZE}", "crop_size", self.smallest_crop, advice
            )
        for size, crop in (pair for stage in self.stages for pair in stage):
            if crop > size:
                advice = f"at most {{img_size}}, which is {size}"
                raise UserError("larger than the image", "crop_size", crop, advice)
        sizes, sets = len(self.img_size), len(self.data_path or (None,))
        _check_count("grow_at", self.grow_at, sizes - 1, "one for each {img_size} after the first")
        _check_count("data_shares", self.data_shares or (), sets, "one for each {data_path}")
        starts = self.first_epochs
        if any(a >= b for a, b in pairwise([*starts, self.epochs])):
            raise UserError(
                f"each size needs an epoch of its own, but they begin after {str(starts)[1:-1]}",
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
            raise UserError(
                "cannot be combined with other start weights", "backbone", self.backbone, advice
            )
        weights, classes = self.class_weights, self.num_classes or 2
        if weights and not {"bce", "ce"} & set(self.loss.split("+")):
            raise UserError(f"only bce and ce use them, the loss is {self.loss}", "class_weights")
        balanced = weights == ("balanced",)
        if weights and not balanced and (len(weights) != classes or "balanced" in weights):
            raise UserError(f"expected balanced, or {classes} numbers", "class_weights")

    @property
    def soft_cut(self) -> int | None:
        """The level of 255 above which a soft mask is object; None of other masks."""
        threshold = 127 if self.mask_threshold is None else self.mask_threshold
        return threshold if self.masks == "soft" else None

    @property
    def stages(self) -> list[list[tuple[int, int]]]:
        """For each ``img_size``, in order, the sizes of image and crop that batches draw from."""
        return [_sizes(*pair) for pair in zip(self.img_size, self.crop_size, strict=True)]

    @property
    def smallest_crop(self) -> int:
        """Of all crops of the run, in pixels."""
        return min(crop for stage in self.stages for _, crop in stage)

    @property
    def eval_sizes(self) -> list[int]:
        """For each ``img_size``, the size to evaluate at: the middle of a range, the upper one of
        two.
        """
        return [stage[len(stage) // 2][0] for stage in self.stages]

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
            if not (declared.may_change or declared.fact)
        }

    def default(self, name: str) -> Any:
        """What a setting would be, had it not been given; as :meth:`record` has it."""
        if name == "freeze_bn":  # None only until it is known what the run starts from
            return False
        return _plain(getattr(replace(self, **{name: DECLARATIONS[name].default()}), name))


def _check_count(name: str, values: tuple[Any, ...], count: int, what: str) -> None:
    if len(values) != count:
        raise UserError(f"expected {count} values, got {len(values)}", name, advice=what)


def _share(size: int) -> int:
    return size * 9 // 10


def _sizes(size: int | str, crop: int | str) -> list[tuple[int, int]]:
    """Sizes of image and crop, one pair for each size that ``size`` stands for."""
    sizes = _SIDE.spread(size)
    if crop == _SHARE:
        return [(side, _share(side)) for side in sizes]
    crops = [crop] * len(sizes) if isinstance(crop, int) else _CROP.spread(crop)
    if len(crops) != len(sizes):
        advice = f"as many as {{img_size}}, where {size} is {len(sizes)}, or one for all"
        raise UserError(f"a range of {len(crops)} sizes", "crop_size", crop, advice)
    return list(zip(sizes, crops, strict=True))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


DECLARATIONS = {field.name: field.metadata["declaration"] for field in fields(Settings)}
GROUPS = tuple(dict.fromkeys(declared.group for declared in DECLARATIONS.values()))
