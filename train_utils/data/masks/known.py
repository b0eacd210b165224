"""Class names and colours of well-known data sets."""

from collections.abc import Mapping
from pathlib import Path

from src.pictures.classes import COLOURS

from .names import ClassTable, Colour

VOC_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
)
_VOC_VOID = ((224, 224, 192),)
_CITYSCAPES: dict[str, Colour] = {  # the 19 classes used for training, in their order
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}
_CITYSCAPES_VOID = (
    *((0, 0, 0), (111, 74, 0), (81, 0, 81), (250, 170, 160), (230, 150, 140), (180, 165, 180)),
    *((150, 100, 100), (150, 120, 90), (0, 0, 90), (0, 0, 110)),
)


def _table(name: str, colours: Mapping[str, Colour], void: tuple[Colour, ...]) -> ClassTable:
    listed = (*colours.items(), *(("void", colour) for colour in void))
    return ClassTable((*colours, "void"), listed, Path(name))


_voc: list[Colour] = [(red, green, blue) for red, green, blue in COLOURS.tolist()]
KNOWN_TABLES = {
    "voc": _table("voc", dict(zip(VOC_NAMES, _voc, strict=False)), _VOC_VOID),
    "cityscapes": _table("cityscapes", _CITYSCAPES, _CITYSCAPES_VOID),
}
"""What ``class_colours`` accepts by name; each has a class ``void`` for pixels to ignore."""
