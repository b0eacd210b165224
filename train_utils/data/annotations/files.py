"""Annotation and image files below a folder, and finding the image that an annotation names."""

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from src.errors import UserError
from src.files import real_path
from src.pictures.formats import IMAGE_SUFFIXES

_IMAGES = ("images", "image", "imgs", "img", "jpegimages")
_DEPTH = 5  # levels of subfolders to search in a data set


def walk(root: Path) -> Iterator[Path]:
    """All files below a folder, sorted, except hidden ones and those behind links to folders."""
    for place, folders, files in os.walk(root):
        here = Path(place)
        folders[:] = sorted(name for name in folders if name[0] != ".")
        if len(here.relative_to(root).parts) >= _DEPTH:
            folders.clear()
        yield from (here / name for name in sorted(files) if name[0] != ".")


def load_json(path: Path) -> Any:
    """The content of a json file.

    Raises:
        UserError: it cannot be read, is empty, or is not json.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise UserError(f"{path}: cannot be read ({reason})") from None
    if not text.strip():
        raise UserError(f"{path}: empty: it holds no annotations")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as json ({error})") from None
    if not data:
        raise UserError(f"{path}: empty: it holds no annotations")
    return data


def foreign_kind(data: Any) -> str:
    """What an unsupported json is, for a message."""
    if isinstance(data, dict) and {"objects", "size"} <= data.keys():
        return "Supervisely's own json; export the project as COCO, or as masks"
    if isinstance(data, list) and isinstance(data[0], dict) and "segmentation" in data[0]:
        return "a COCO list of results, without images"
    if isinstance(data, dict) and {"_via_img_metadata", "regions"} & data.keys():
        return "VIA's own json; export it as COCO"
    if isinstance(data, dict) and {"shapes", "imagePath"} <= data.keys():
        return "a LabelMe json whose shapes are not a list"
    keys = f"its keys are {', '.join(map(str, list(data)[:6]))}" if isinstance(data, dict) else ""
    return f"neither COCO nor LabelMe json{keys and f': {keys}'}"


class ImageFiles:
    """The images below some folders, by their names.

    Args:
        roots: the folders. An image found in the first one is not searched for in the others.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = roots
        self._by_stem: dict[Path, dict[str, list[Path]]] = {}
        self._bases: dict[tuple[Path, Path], tuple[Path, ...]] = {}

    def by_stem(self, root: Path) -> dict[str, list[Path]]:
        """All images below one of the folders, by the name without its suffix; read once."""
        if root not in self._by_stem:
            images = self._by_stem[root] = defaultdict(list)
            for path in walk(root):
                if path.suffix.lower() in IMAGE_SUFFIXES:
                    images[path.stem].append(path)
        return self._by_stem[root]

    def has(self, stem: str) -> bool:
        """Whether an image has this name, whatever its suffix."""
        return any(stem in self.by_stem(root) for root in self.roots)

    def bases(self, root: Path, folder: Path) -> tuple[Path, ...]:
        """What a path in an annotation in ``folder`` may be relative to, for images in ``root``."""
        if (root, folder) not in self._bases:
            above = real_path(folder)
            inside = real_path(root) in (above, *above.parents)
            self._bases[root, folder] = (folder, root) if inside else (root,)
        return self._bases[root, folder]

    def find(self, name: str, file: Path) -> Path | str:
        """The image that an annotation file names.

        Args:
            name: a path, of which as many parts are matched as possible; ``STEM.*`` for any suffix.
            file: the annotation file, which the image may be near.

        Returns:
            The path, or what is wrong.
        """
        parts = [part for part in PureWindowsPath(name).parts if part not in ("/", "\\", ".")]
        relative = Path(*parts[1:] if parts and parts[0].endswith(":\\") else parts)
        if Path(name).is_absolute() and (place := _image_at(Path(name))):
            return place
        found: list[Path] = []
        for root in self.roots:
            for base in self.bases(root, file.parent):
                if place := _image_at(base / relative):
                    return place
            images = self.by_stem(root)
            if name.endswith(".*"):
                found = images.get(name.removesuffix(".*"), [])
            else:
                found = [p for p in images.get(relative.stem, []) if p.name == relative.name]
            if found:
                break
        else:
            if place := _image_at(file.parent / relative) or _image_at(Path(name)):
                return place
        if len(found) > 1:
            scores = [_closeness(path, relative, file) for path in found]
            found = [p for p, s in zip(found, scores, strict=True) if s == max(scores)]
        if len(found) == 1:
            return found[0]
        if not found:
            return f"names {name.removesuffix('.*')}, which does not exist"
        return f"names {name.removesuffix('.*')}, which may be {found[0]} or {found[1]}"


def _image_at(path: Path) -> Path | None:
    is_image = path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    return Path(os.path.normpath(path)) if is_image else None


def _closeness(path: Path, named: Path, file: Path) -> tuple[int, ...]:
    """How well an image matches a name: by its last folders, and by those of the annotation."""
    same = 0
    for one, other in zip(reversed(path.parts[:-1]), reversed(named.parts[:-1]), strict=False):
        if one != other:
            break
        same += 1
    folder = path.parent.name  # train2017, as in instances_train2017.json
    in_name = folder in file.stem if file.stem != path.stem else folder in file.parent.parts
    shared = len(set(path.parent.parts) & set(file.parts))
    of_images = any(part.lower() in _IMAGES for part in path.parent.parts)
    return same, int(in_name), shared, int(of_images)
