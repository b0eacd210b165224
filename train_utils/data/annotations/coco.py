"""COCO json: polygons, runs of pixels (RLE), crowds and boxes, with names of categories."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from src.errors import UserError
from src.words import counted, first_ten

from .draw import Polygons, Runs, Shape, ShapeError, Size, decode_counts
from .record import Parsed, Record, check_inside, numbers, polygon, read_size


def is_coco(data: Any) -> bool:
    """Whether a json has a list of images, as COCO's do."""
    return isinstance(data, dict) and isinstance(data.get("images"), list)


def other_use(data: dict[str, Any]) -> str | None:
    """What a COCO json is for, if not for masks of objects."""
    annotations = data.get("annotations")
    if not isinstance(annotations, list):
        return "its annotations are not a list" if annotations is not None else "lists of images"
    first = next((one for one in annotations if isinstance(one, dict)), {})
    if "caption" in first:
        return "captions"
    return "panoptic images" if "segments_info" in first else None


def has_keypoints(data: dict[str, Any]) -> bool:
    """Whether its objects are people's poses, which COCO repeats from another file."""
    categories = data.get("categories")
    return isinstance(categories, list) and any(
        isinstance(one, dict) and "keypoints" in one for one in categories
    )


def read_coco(data: dict[str, Any], file: Path, parsed: Parsed) -> None:
    """Add the images of a file.

    Args:
        data: its content.
        file: its path.
        parsed: what they are added to.
    """
    images = [one for one in data["images"] if isinstance(one, dict)]
    if not images:
        parsed.faults.append(UserError(f"{file}: empty: it lists no images"))
        return
    listed = data.get("categories")
    categories = {
        _key(one.get("id")): str(one.get("name", one.get("id")))
        for one in (listed if isinstance(listed, list) else ())
        if isinstance(one, dict)
    }
    parsed.names |= dict.fromkeys(categories[key] for key in sorted(categories, key=_order))
    of_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for one in data["annotations"]:
        if isinstance(one, dict):
            of_image[_image_key(one.get("image_id"))].append(one)
    for entry in images:
        own = of_image.pop(_image_key(entry.get("id")), [])
        parsed.records.append(_read_image(entry, own, categories, file, parsed))
    if of_image:
        count = counted(sum(map(len, of_image.values())), "annotation refers", "annotations refer")
        keys = ", ".join(map(str, list(of_image)[:6]))
        text = f"{file}: {count} to images that it does not list: id {keys}"
        parsed.faults.append(UserError(text))


def _key(value: Any) -> Any:
    return value if isinstance(value, (int, str)) else repr(value)


def _image_key(value: Any) -> str:
    """The same for 7, 7.0 and "7", as some tools convert one into another."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _order(key: Any) -> tuple[bool, Any]:
    return (True, str(key)) if not isinstance(key, int) else (False, key)


def _read_image(
    entry: dict[str, Any],
    annotations: list[dict[str, Any]],
    categories: dict[Any, str],
    file: Path,
    parsed: Parsed,
) -> Record:
    record = Record(file, str(entry.get("file_name") or ""))
    if not record.image:
        record.faults.append(f"image {entry.get('id')} has no file_name")
        return record
    try:
        record.size = read_size(entry.get("width"), entry.get("height")) or _rle_size(annotations)
    except ShapeError as error:
        record.faults.append(str(error))
        return record
    for one in annotations:
        try:
            label = categories.get(_key(one.get("category_id")))
            if label is None:
                raise ShapeError(_unknown_category(one, categories))
            if shape := _read_shape(one, label, record.size, parsed):
                record.shapes.append(shape)
        except ShapeError as error:
            record.faults.append(f"annotation {one.get('id')}: {error}")
    return record


def _unknown_category(annotation: dict[str, Any], categories: dict[Any, str]) -> str:
    listed = [f"{key} {categories[key]}" for key in sorted(categories, key=_order)]
    known = f"known: {first_ten(listed)}" if listed else "the file lists none"
    return f"the category {annotation.get('category_id')}, which is unknown ({known})"


def _rle_size(annotations: list[dict[str, Any]]) -> Size | None:
    """The size in the first RLE, for an image whose entry has none."""
    for one in annotations:
        if isinstance(found := one.get("segmentation"), dict):
            height, width = numbers(found.get("size"), 2).tolist()
            return read_size(width, height)
    return None


def _read_shape(
    annotation: dict[str, Any], label: str, size: Size | None, parsed: Parsed
) -> Shape | None:
    found = annotation.get("segmentation")
    if isinstance(found, dict):
        return Runs(label, _read_runs(found, size))
    if isinstance(found, list) and found:
        # A single polygon without the list around it, as some tools write it.
        parts = [found] if isinstance(found[0], (int, float)) else found
        corners = tuple(polygon(part) for part in parts)
        for part in corners:
            check_inside(part, size)
        return Polygons(label, corners)
    if found:
        raise ShapeError("a segmentation that is neither polygons nor RLE")
    box = annotation.get("bbox")
    if not box:
        parsed.left_out["annotation", " without a shape"] += 1
        return None
    x, y, width, height = numbers(box, 4).tolist()
    if width <= 0 or height <= 0:
        raise ShapeError(f"an invalid box size, {width:g}×{height:g}")
    right, below = x + width, y + height
    corner = np.array([x, y, right, y, right, below, x, below])
    check_inside(corner, size)
    parsed.boxes += 1
    return Polygons(label, (corner,))


def _read_runs(rle: dict[str, Any], size: Size | None) -> np.ndarray:
    """The lengths of runs, which must fill the image."""
    height, width = numbers(rle.get("size"), 2).tolist()
    if size is not None and (width, height) != size:
        wrong = f"{width:g}×{height:g}, its image is {size[0]}×{size[1]}"
        raise ShapeError(f"an RLE of the wrong size: {wrong}")
    counts = rle.get("counts")
    if isinstance(counts, (str, bytes)):
        lengths = decode_counts(counts.encode() if isinstance(counts, str) else counts)
    else:
        lengths = numbers(counts)
    if (lengths < 0).any() or (lengths % 1).any():
        raise ShapeError("an RLE with runs of negative or fractional length")
    if lengths.sum() != width * height:
        raise ShapeError(f"an RLE of {lengths.sum():g} pixels, expected {width * height:g}")
    return lengths.astype(np.int64)
