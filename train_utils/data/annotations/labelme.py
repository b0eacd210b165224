"""LabelMe json: a file for each image, with polygons, rectangles, circles and embedded masks."""

import base64
import binascii
import io
import math
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from PIL import Image

from .draw import Bitmap, Figure, Shape, ShapeError, Size
from .record import Parsed, Record, check_inside, numbers, polygon, read_size

_WITHOUT_AREA = ("point", "points", "line", "linestrip")
_EMBEDDED = (
    " (the json holds the image itself, as imageData, which is not read: write it beside the json, "
    "for instance with LabelMe's labelme_export_json)"
)


def is_labelme(data: Any) -> bool:
    """Whether a json holds the shapes of one image."""
    return isinstance(data, dict) and isinstance(data.get("shapes"), list)


def read_labelme(data: dict[str, Any], file: Path, parsed: Parsed) -> None:
    """Add the image of a file.

    Args:
        data: its content.
        file: its path.
        parsed: what it is added to.
    """
    name = data.get("imagePath")
    # As LabelMe reads it, on Windows and elsewhere.
    path = PureWindowsPath(name).as_posix() if isinstance(name, str) and name else f"{file.stem}.*"
    record = Record(file, path, embedded=_EMBEDDED if data.get("imageData") else "")
    parsed.records.append(record)
    try:
        record.size = read_size(data.get("imageWidth"), data.get("imageHeight"))
    except ShapeError as error:
        record.faults.append(str(error))
        return
    for number, one in enumerate(data["shapes"], 1):
        try:
            if not isinstance(one, dict):
                raise ShapeError("not a shape")
            if shape := _read_shape(one, record.size, parsed):
                parsed.names.setdefault(shape.label)
                record.shapes.append(shape)
        except ShapeError as error:
            record.faults.append(f"shape {number}: {error}")


def _read_shape(shape: dict[str, Any], size: Size | None, parsed: Parsed) -> Shape | None:
    kind, label = shape.get("shape_type") or "polygon", str(shape.get("label", ""))
    if kind in _WITHOUT_AREA:
        parsed.left_out[f"{kind} shape", ""] += 1
        return None
    if not label:
        raise ShapeError("a shape without a label")
    points = shape.get("points")
    if kind in ("polygon", "oriented_rectangle"):
        corners = polygon(points).reshape(-1, 2)
        check_inside(corners, size)
        return Figure(label, "polygon", corners)
    if kind not in ("rectangle", "circle", "mask"):
        raise ShapeError(f"an unknown shape type, {kind}")
    first, second = numbers(points, 4).reshape(2, 2)
    if kind == "circle":  # its centre and a point on it
        radius = math.dist(first, second)
        box = np.array([first - radius, first + radius])
        check_inside(box, size)
        return Figure(label, "ellipse", box)
    low, high = np.minimum(first, second), np.maximum(first, second)
    check_inside(np.array([low, high]), size)
    if kind == "rectangle":
        return Figure(label, "rectangle", np.array([low, high]))
    return _read_mask(shape.get("mask"), label, low.astype(int), high.astype(int))


def _read_mask(text: Any, label: str, low: np.ndarray, high: np.ndarray) -> Bitmap:
    try:
        png = base64.b64decode(text)
        with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
            size = image.size
            image.verify()
    except (TypeError, binascii.Error):
        raise ShapeError("an embedded mask that is not base64") from None
    except Exception:  # Pillow raises nearly anything on corrupt data
        raise ShapeError("an embedded mask that is not a valid PNG") from None
    width, height = (high - low + 1).tolist()
    if size != (width, height):
        raise ShapeError(f"an embedded mask of {size[0]}×{size[1]} in a box of {width}×{height}")
    return Bitmap(label, (int(low[0]), int(low[1])), png)
