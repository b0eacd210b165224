"""Maps that exist already as files: found for each picture, read, brought to their mask's size."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from src import UserError
from src.inference.preprocess import resize_map
from src.pictures.images import list_images, open_image, oriented_size, to_rgb

from ..data.masks import is_coloured, read_classes, read_mask
from ..data.pairs import Pair, naming
from .evaluate import Scored


@dataclass
class Maps:
    """What :func:`find_maps` found in a folder."""

    folder: Path
    paths: list[Path | None]  # of each picture's map, in the order of the pictures
    missing: list[str] = field(default_factory=list)  # names of pictures that have none
    extra: list[str] = field(default_factory=list)  # file names of maps that have no picture
    resized: int = 0  # maps of another size than their mask


def find_maps(folder: str | Path, pairs: Sequence[Pair]) -> Maps:
    """The maps of some pictures, by the pictures' stems, or longer names as masks may have
    (:func:`~.pairs.match`).

    Raises:
        UserError: no such folder, two maps of one name, or none of them is there.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"--pred-dir {folder}: no such folder")
    files = list_images(folder)
    doubled = [stem for stem, n in Counter(path.stem for path in files).items() if n > 1]
    if doubled:
        raise UserError(f"--pred-dir {folder}: holds two maps called {doubled[0]}")
    by_stem = {path.stem: path for path in files}
    names = [pair.name for pair in pairs]
    before, after = naming(set(names), by_stem.keys())
    found = Maps(folder, [by_stem.get(before + name + after) for name in names])
    found.missing = [n for n, path in zip(names, found.paths, strict=True) if path is None]
    # Those of another split are not strangers.
    folders = {pair.image.parent for pair in pairs}
    known = {before + path.stem + after for where in folders for path in list_images(where)}
    found.extra = [path.name for path in files if path.stem not in known]
    if not any(found.paths):
        raise UserError(
            f"--pred-dir {folder}: holds no map of any of the {len(names)} pictures; looked for by "
            f"name, such as {names[0]}.png, in that folder itself or in one named like the set"
        )
    found.resized = sum(
        path is not None and _differ(path, pair.mask)
        for path, pair in zip(found.paths, pairs, strict=True)
    )
    return found


def _differ(path: Path, mask: Path) -> bool:
    """In size; a file that cannot be read is named when its turn comes."""
    try:
        return oriented_size(path) != oriented_size(mask)
    except UserError:
        return False


def read_map(path: str | Path) -> np.ndarray:
    """A map as H×W uint8: the alpha where there is one that varies, as in a cut-out; else grey, 16
    bits and floats scaled, but for integers up to 255, which are levels in too wide a file.

    Raises:
        UserError: unreadable, or a coloured picture.
    """
    image = open_image(path)
    if image.mode.startswith("I") and (values := np.asarray(image)).max(initial=0) <= 255:
        return values.clip(0).astype(np.uint8)
    alpha = None
    if image.has_transparency_data:
        alpha = np.array(image.convert("RGBA").getchannel("A"))
        if alpha.min() < 255:
            return alpha
    if is_coloured(image):
        if alpha is not None:  # of a cut-out that is all object
            return alpha
        raise UserError(f"{path}: a coloured picture, not a map; expected grey, or a cut-out")
    return np.array(to_rgb(image).convert("L"))


class MapDataset(Dataset):
    """Map (H×W uint8, of its mask's size), mask (1×H×W uint8 {0, 1}) and the picture's index.

    Args:
        maps: as found.
        masks: the mask of each picture.
        read: of a mask file.
        classes: above 2, maps are of class indices, and are resized without mixing them.
    """

    def __init__(
        self,
        maps: Maps,
        masks: Sequence[Path],
        read: Callable[[Path], np.ndarray] = read_mask,
        classes: int = 2,
    ) -> None:
        self.masks, self.read, self.classes = masks, read, classes
        self.items = [(i, path) for i, path in enumerate(maps.paths) if path is not None]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Tensor, int]:
        index, path = self.items[key[1] if isinstance(key, tuple) else key]
        mask = torch.from_numpy(self.read(self.masks[index]))[None]
        if self.classes > 2:
            levels = torch.from_numpy(read_classes(path, self.classes))[None, None]
            return F.interpolate(levels, mask.shape[-2:], mode="nearest-exact")[0, 0], mask, index
        levels = torch.from_numpy(read_map(path))
        if levels.shape != mask.shape[-2:]:
            resized = resize_map(levels / 255, mask.shape[-2:])
            levels = resized.mul(255).round().to(torch.uint8)
        return levels, mask, index


def collate_maps(samples: Iterable[tuple[Tensor, Tensor, int]]) -> Scored:
    """A batch of :class:`MapDataset`: each of its own size."""
    levels, masks, indices = zip(*samples, strict=True)
    return Scored(list(levels), [mask[0] for mask in masks], list(indices))


def stored(loader: DataLoader, device: torch.device, binary: bool = False) -> Iterator[Scored]:
    """Batches of a loader of maps, on the device that scores them; ``binary``: as 0 and 1, which
    they may be already.
    """
    for levels, masks, indices in loader:
        if binary:
            levels = [(s > (127 if s.max() > 1 else 0)).to(torch.uint8) for s in levels]
        yield Scored([s.to(device) for s in levels], [m.to(device) for m in masks], indices)
