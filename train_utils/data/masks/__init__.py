"""Mask files: their kinds, how each is read, and deciding which kind the masks of a set are."""

from .classes import read_classes
from .decide import decide
from .known import KNOWN_TABLES, VOC_NAMES
from .names import ClassTable, Labels, count_classes, find_table, read_table
from .rule import MASK_KINDS, MaskReader, MaskRule, mask_reader, read_mask
from .values import grey_values, is_colour, look_like_indices, white_of

__all__ = [
    "KNOWN_TABLES",
    "MASK_KINDS",
    "VOC_NAMES",
    "ClassTable",
    "Labels",
    "MaskReader",
    "MaskRule",
    "count_classes",
    "decide",
    "find_table",
    "grey_values",
    "is_colour",
    "look_like_indices",
    "mask_reader",
    "read_classes",
    "read_mask",
    "read_table",
    "white_of",
]
