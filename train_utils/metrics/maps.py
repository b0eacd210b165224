"""Existing map files: found for each image, read, resized to their masks."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from src.errors import UserError
from src.inference.preprocess import resize_map
from src.pictures.images import list_images, open_image, oriented_size, to_rgb
from src.words import counted

from ..data.dataset import Sample
from ..data.masks import is_colour, read_classes
from ..data.pairs import Pair, find_naming, repeated_stems
from .evaluate import Scored
from .measures.saliency import to_levels


@dataclass(frozen=True)
class Maps:
    """The maps of a data set that :func:`find_maps` found in a folder.

    Args:
        folder: the one that holds them.
        paths: each image's map, in the order of the images; None where it has none.
        missing: names of the images that have none.
        extra: file names of maps that have no image.
        resized: how many differ in size from their mask.
    """

    folder: Path
    paths: list[Path | None]
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    resized: int = 0


def find_maps(folder: str | Path, pairs: Sequence[Pair]) -> Maps:
    """Find the maps of some images, named like masks (:func:`~.pairs.find_naming`).

    Args:
        folder: the one that holds the maps.
        pairs: of the images.

    Returns:
        Each image's map, and what does not match.

    Raises:
        UserError: no such folder, two maps of one name, or no map of any image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError("no such folder", "pred_dir", folder)
    names = [pair.name for pair in pairs]
    # Images of scenes, SCENE/STEM, have their maps in folders of these names.
    scenes = {name: folder / name for name in sorted({_scene(name) for name in names})}
    by_stem: dict[str, Path] = {}
    for scene, place in scenes.items():
        files = list_images(place) if place.is_dir() else []
        if doubled := repeated_stems(files):
            raise UserError(f"holds two maps called {doubled[0]}", "pred_dir", place)
        by_stem |= {_join(scene, path): path for path in files}
    naming = find_naming(set(names), by_stem.keys())
    paths = [by_stem.get(naming.mask_of(name)) for name in names]
    if not any(paths):
        raise UserError(
            f"holds no map for the {counted(len(names), 'image')}; maps are found by name, such as "
            f"{names[0]}.png, in this folder itself or in one named after the data set",
            "pred_dir",
            folder,
        )
    # The maps of another split's images are not extra.
    image_folders = {(_scene(pair.name), pair.image.parent) for pair in pairs}
    stems = {_join(scene, path) for scene, place in image_folders for path in list_images(place)}
    known = {naming.mask_of(stem) for stem in stems}
    matched = list(zip(paths, pairs, strict=True))
    return Maps(
        folder,
        paths,
        missing=[pair.name for path, pair in matched if path is None],
        extra=[path.name for name, path in by_stem.items() if name not in known],
        resized=sum(path is not None and _sizes_differ(path, pair) for path, pair in matched),
    )


def _scene(name: str) -> str:
    return name.rpartition("/")[0]


def _join(scene: str, path: Path) -> str:
    return f"{scene}/{path.stem}" if scene else path.stem


def _sizes_differ(path: Path, pair: Pair) -> bool:
    try:
        return oriented_size(path) != pair.mask_size()
    except UserError:  # reported when the file is read
        return False


def read_map(path: str | Path) -> np.ndarray:
    """Read a map: the alpha channel if it is not all opaque, as in a cut-out, else grey.

    16 bits and floats are scaled to 8 bits, except for integers up to 255, which are 8-bit levels
    in a wider file.

    Args:
        path: the map's file.

    Returns:
        H×W uint8.

    Raises:
        UserError: the file cannot be read, is a colour image, or holds values that are not finite.
    """
    image = open_image(path)
    if image.mode == "F" and not np.isfinite(np.asarray(image)).all():
        raise UserError(f"{path}: holds values that are not finite")
    if image.mode.startswith("I") and (values := np.asarray(image)).max(initial=0) <= 255:
        return values.clip(0).astype(np.uint8)
    alpha = None
    if image.has_transparency_data:
        alpha = np.array(image.convert("RGBA").getchannel("A"))
        if alpha.min() < 255:
            return alpha
    if is_colour(image):
        if alpha is not None:  # a cut-out that is all object
            return alpha
        raise UserError(f"{path}: a colour image, not a map; expected grey, or a cut-out")
    return np.array(to_rgb(image).convert("L"))


class MapDataset(Dataset[Sample]):
    """Map (H×W uint8, of its mask's size), mask (1×H×W uint8) and index of an image.

    Args:
        maps: from :func:`find_maps`; images that have none cannot be indexed.
        pairs: the images, whose masks are read as each pair says.
        classes: above 2, maps hold class indices, and are resized to the nearest pixel.
    """

    def __init__(
        self,
        maps: Maps,
        pairs: Sequence[Pair],
        classes: int = 2,
    ) -> None:
        self.paths, self.pairs, self.classes = maps.paths, pairs, classes

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """Load map and mask, by the image's index or (epoch, index).

        Raises:
            UserError: one of them cannot be read.
        """
        index = key[1] if isinstance(key, tuple) else key
        path = self.paths[index]
        assert path
        mask = torch.from_numpy(self.pairs[index].load_mask())[None]
        if self.classes > 2:
            levels = torch.from_numpy(read_classes(path, self.classes, is_map=True))[None, None]
            return F.interpolate(levels, mask.shape[-2:], mode="nearest-exact")[0, 0], mask, index
        levels = torch.from_numpy(read_map(path))
        if levels.shape != mask.shape[-2:]:
            levels = to_levels(resize_map(levels / 255, mask.shape[-2:]), stretch=False)
        return levels, mask, index


def collate_maps(samples: Iterable[Sample]) -> Scored:
    """Make a batch of :class:`MapDataset`; maps and masks keep their sizes."""
    levels, masks, indices = zip(*samples, strict=True)
    return Scored(list(levels), [mask[0] for mask in masks], list(indices))


def stored_maps(
    batches: Iterable[Scored], device: torch.device, binary: bool = False
) -> Iterator[Scored]:
    """Move batches of :func:`collate_maps` to the device that scores them.

    Args:
        batches: from a loader.
        device: where to move them.
        binary: make the maps 0 and 1, by a threshold of 127 of 255 unless they already are.
    """
    for levels, masks, indices in batches:
        if binary:
            levels = [(s > (127 if s.max() > 1 else 0)).to(torch.uint8) for s in levels]
        yield Scored([s.to(device) for s in levels], [m.to(device) for m in masks], indices)
