"""Annotations of masks, in the formats that tools write."""

import base64
import io
import json
import shutil

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coder

FORMATS = ("rle", "runs", "polygons", "labelme", "embedded", "yolo")


def outlines(mask):
    """The outlines of a mask without holes, through the middles of its pixels."""
    found, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [line[:, 0] for line in found]


def runs(mask):
    """The lengths of runs, column by column, the first of them outside."""
    flat = np.concatenate(([0], mask.T.ravel() != 0)).astype(int)
    ends = np.flatnonzero(np.diff(flat)).tolist()
    return np.diff([0, *ends, mask.size]).tolist()


def coco_segmentation(mask, form):
    """``rle`` and ``runs``: by pycocotools, and without compression; ``polygons``: the corners of
    a rectangle.
    """
    if form == "runs":
        return {"size": list(mask.shape), "counts": runs(mask)}
    if form == "rle":
        found = coder.encode(np.asfortranarray(mask.astype(np.uint8)))
        return {"size": found["size"], "counts": found["counts"].decode()}
    rows, columns = mask.nonzero()
    left, top, right, below = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return [[float(n) for n in (left, top, right, top, right, below, left, below)]]


def coco(masks, form="rle", names=("thing",)):
    """A COCO json of masks by file name, all of the first category."""
    images, annotations = [], []
    for number, (name, mask) in enumerate(masks.items(), 1):
        height, width = mask.shape
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        found = {"id": number, "image_id": number, "category_id": 1, "iscrowd": int(form == "runs")}
        annotations.append(found | {"segmentation": coco_segmentation(mask, form)})
    categories = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def labelme(name, mask, form="labelme"):
    """A LabelMe json of a mask: polygons, or the mask itself embedded."""
    height, width = mask.shape
    kind, shapes = "polygon", [line.tolist() for line in outlines(mask)]
    more = {}
    if form == "embedded":
        rows, columns = mask.nonzero()
        corners = [[int(columns.min()), int(rows.min())], [int(columns.max()), int(rows.max())]]
        (left, top), (right, below) = corners
        saved = io.BytesIO()
        Image.fromarray(mask[top : below + 1, left : right + 1]).save(saved, "PNG")
        kind, shapes = "mask", [corners]
        more = {"mask": base64.b64encode(saved.getvalue()).decode()}
    listed = [{"label": "thing", "shape_type": kind, "points": shape, **more} for shape in shapes]
    size = {"imageWidth": width, "imageHeight": height}
    return {"version": "6.3.1", "imagePath": name, "imageData": None, "shapes": listed, **size}


def yolo(mask):
    """A YOLO text of a mask, with six decimals as Ultralytics writes it."""
    size = np.array(mask.shape[::-1])
    lines = [(line / size).round(6).ravel().tolist() for line in outlines(mask)]
    return "".join(f"0 {' '.join(f'{n:g}' for n in line)}\n" for line in lines)


def write(data, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def annotate(source, target, form):
    """A copy of ``source`` (images/, masks/) with annotations in place of the masks."""
    shutil.copytree(source / "images", target / "images")
    masks = {
        path.with_suffix(".jpg").name: np.asarray(Image.open(path))
        for path in sorted((source / "masks").iterdir())
    }
    if form in ("rle", "runs", "polygons"):
        write(coco(masks, form), target / "annotations/instances_default.json")
    for name, mask in masks.items() if form in ("labelme", "embedded") else ():
        data = labelme(f"..\\images\\{name}", mask, form)
        write(data, (target / "labels" / name).with_suffix(".json"))
    for name, mask in masks.items() if form == "yolo" else ():
        write(yolo(mask), (target / "labels" / name).with_suffix(".txt"))
    return target
