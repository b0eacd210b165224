"""Settings of the network: which one, what it starts from, and the sizes that it sees."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from src import NETWORKS, UserError
from src.networks.base import MIN_SIZE

from ..kinds import FRACTION, TEXT, WEIGHTS, Kind, SizeKind, setting
from .group import Group, check_count

_network = partial(setting, "network")
_SHARE = "9/10"  # the default crop, of each image size
_SIDE = SizeKind(int, "N|A-B", 1, 2**31)
_CROP = SizeKind(int, "N|A-B", 1, 2**31, words=(_SHARE,))


@dataclass(frozen=True, kw_only=True)
class NetworkSettings(Group):
    """What to train, and at which sizes."""

    model: str | None = _network(
        TEXT, f"{', '.join(NETWORKS)}, or a .json table (default: u2net_full)", fact="network"
    )
    pretrained: Path | None = _network(
        WEIGHTS,
        "start from these weights, by name or in any supported format",
        fact="start",
    )
    backbone: str | None = _network(
        Kind(str, "imagenet|W"), "fcn8s, segnet: VGG-16 of torchvision, or a file", fact="start"
    )
    img_size: tuple[int | str, ...] = _network(
        _SIDE,
        "side of the square input; 192-352: for each batch a random multiple of 32 in that range, "
        "and the middle one (288) for evaluation and in the weights; several: one after another "
        "(default: 320)",
        (320,),
        several=True,
    )
    crop_size: tuple[int | str, ...] = _network(
        _CROP,
        "size of the random crop; for a range, a range of as many sizes (160-320), or one size for "
        f"all (default: {_SHARE} of --img-size)",
        (),
        several=True,
    )
    grow_at: tuple[float, ...] = _network(
        FRACTION,
        "fractions of the run at which the next --img-size takes over (default: evenly spaced)",
        (),
        several=True,
    )

    def _complete(self) -> None:
        count = len(self.img_size)
        crops = self.crop_size or (_SHARE,) * count
        check_count("crop_size", crops, count, "one for each {img_size}")
        pairs = zip(self.img_size, crops, strict=True)
        fixed = (_share(a) if b == _SHARE and isinstance(a, int) else b for a, b in pairs)
        self._set("crop_size", tuple(fixed))
        if not self.grow_at:
            self._set("grow_at", tuple(i / count for i in range(1, count)))

    def _check(self) -> None:
        if self.smallest_crop < MIN_SIZE:
            name, problem = self.crop_setting, f"expected at least {MIN_SIZE}"
            advice = f"it is {_SHARE} of {{img_size}} by default" if name == "crop_size" else None
            raise UserError(problem, name, self.smallest_crop, advice)
        for size, crop in (pair for stage in self.stages for pair in stage):
            if crop > size:
                advice = f"at most {{img_size}}, which is {size}"
                raise UserError("larger than the image", "crop_size", crop, advice)
        sizes = len(self.img_size)
        check_count("grow_at", self.grow_at, sizes - 1, "one for each {img_size} after the first")
        if self.pretrained and self.backbone:
            advice = "pass either that or {pretrained}"
            raise UserError(
                "cannot be combined with other start weights", "backbone", self.backbone, advice
            )

    @property
    def stages(self) -> list[list[tuple[int, int]]]:
        """For each ``img_size``, in order, the pairs of image and crop sizes to draw from."""
        return [_sizes(*pair) for pair in zip(self.img_size, self.crop_size, strict=True)]

    @property
    def smallest_crop(self) -> int:
        """The smallest crop of the run, in pixels."""
        return min(crop for stage in self.stages for _, crop in stage)

    @property
    def crop_setting(self) -> str:
        """Which setting to raise if crops are too small."""
        return "img_size" if self.crop_size == self.img_size else "crop_size"

    @property
    def eval_sizes(self) -> list[int]:
        """For each ``img_size``, the size to evaluate at: the middle of a range, the upper one of
        two.
        """
        return [stage[len(stage) // 2][0] for stage in self.stages]


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
