"""Decide which kind the masks of a set are, from all of them together."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np

from src.errors import UserError
from src.pictures.images import open_image
from src.words import counted, first_ten

from .names import Labels
from .rule import MaskRule
from .values import MAX_CLASS_INDEX, grey_values, look_like_indices, white_of

_AT_ONCE = 64  # masks to read before checking again what is missing
_SAMPLE = 256  # masks to inspect first: values are odd in many masks of a set or in none


class _Levels(NamedTuple):
    """What one mask says about its set."""

    path: Path
    highest: float
    dark: bool  # some values, none above the threshold
    indices: bool  # only small numbers and 255
    soft: bool  # levels between 0 and white
    bright: bool  # some of these near white, where no class index is


def decide(rule: MaskRule, masks: Sequence[Path]) -> tuple[MaskRule, list[str]]:
    """Decide from all masks of a data set together how each of them is read.

    If one in ten or more has levels near white, the set is one of grey levels: small numbers in one
    of its masks are not class indices, and a dark mask is an empty one. If fewer than one in ten
    look like class indices, the others decide too.

    Args:
        rule: from :func:`mask_reader`.
        masks: all mask files of the set.

    Returns:
        The rule for this set, and notes for the user about its masks.
    """
    if rule.of_classes:
        return rule, list(_describe_unused(rule, masks))
    some = masks[:: max(1, len(masks) // _SAMPLE)]
    rule = replace(rule, by_alpha=_are_cutouts(some))
    levels = _inspect(some, rule)
    if any(one.dark or one.indices or one.soft for one in levels):
        levels = _inspect(masks, rule)
    rule = replace(rule, deep=any(one.highest > 255 for one in levels))
    filled = [one for one in levels if one.highest]
    grey = 10 * sum(one.bright for one in filled) >= max(1, len(filled))
    others = not grey and 10 * sum(one.indices for one in filled) < len(filled)
    if grey:
        rule = replace(rule, refused=())
    elif others and rule.refused:
        rule = replace(rule, refused=("dark",))
    cut = grey or rule.kind == "soft" or not rule.ones
    rule = replace(rule, ones=not cut or all(one.highest <= 1 for one in filled))
    return rule, list(_describe(rule, levels))


def _describe_unused(rule: MaskRule, masks: Sequence[Path]) -> Iterator[str]:
    """A note on classes without a pixel in any mask. Masks are read until each class has been seen:
    in most sets, that takes few of them.
    """
    labels = Labels({}, background=-1)  # numbers as names
    if names := rule.names or (rule.table.names if rule.table else ()):
        with suppress(UserError):  # a list of names for other masks
            labels = rule.table_values(names)
    listed = labels.by_value(rule.classes)
    missing = {*range(rule.classes or 0)} - {labels.background, rule.ignore_index}
    some = Random(0).sample(list(masks), len(masks))  # neighbours are alike

    def present(path: Path) -> set[int]:
        with suppress(UserError):  # reported elsewhere
            return set(np.unique(rule(path)).tolist())
        return set()

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(some), _AT_ONCE):
            missing.difference_update(*pool.map(present, some[start : start + _AT_ONCE]))
            if not missing:
                return
    what = counted(len(missing), "class occurs", "classes occur")
    yield f"{what} in no mask: {first_ten([listed[value] for value in sorted(missing)])}"


def _describe(rule: MaskRule, levels: Sequence[_Levels]) -> Iterator[str]:
    cut = f"{rule.threshold} of 255"
    filled = [one for one in levels if one.highest]
    if empty := len(levels) - len(filled):
        what = f"{empty} of the {counted(len(levels), 'mask')} inspected"
        verb, whose = ("is", "its") if empty == 1 else ("are", "their")
        yield f"{what} {verb} empty: all {whose} values are 0"
    dark = [one for one in filled if one.dark or (one.highest == 1 and not rule.ones)]
    if dark and "dark" not in rule.refused:
        verbs = "has no value", "have no value"
        if rule.kind != "soft":
            verbs = "comes out empty, without a value", "come out empty, without a value"
        what = counted(len(dark), f"mask {verbs[0]}", f"masks {verbs[1]}")
        yield f"{what} above {cut}, such as {dark[0].path}"
    odd = [one for one in filled if one.indices]
    if odd and "indices" not in rule.refused:
        what = f"{counted(len(odd), 'mask')} of small numbers and 255"
        yield f"{what} {'is' if len(odd) == 1 else 'are'} read as grey, such as {odd[0].path}"
    soft = sum(one.soft for one in filled)
    if soft:
        done = "kept" if rule.kind == "soft" else f"object where > {cut}"
        what = f"{soft} of {counted(len(filled), 'mask')} {'is' if soft == 1 else 'are'} soft"
        yield f"{what} (levels between 0 and 255): {done}"
    ones = sum(one.highest == 1 for one in filled)
    if rule.ones and 0 < ones < len(filled):
        what = counted(ones, "mask holds", "masks hold")
        yield f"{what} 0 and 1, others go up to 255: in the former, 1 is object"


def _are_cutouts(masks: Sequence[Path]) -> bool:
    """Whether most masks that have an alpha channel are transparent somewhere."""

    def lowest_alpha(path: Path) -> int | None:
        with suppress(UserError):  # reported elsewhere
            with open_image(path, decode=False) as image:
                if not image.has_transparency_data:
                    return None
            return int(np.asarray(open_image(path).convert("RGBA").getchannel("A")).min())
        return None

    with ThreadPoolExecutor() as pool:
        lowest = [value for value in pool.map(lowest_alpha, masks) if value is not None]
    return 2 * sum(value < 255 for value in lowest) > len(lowest)


def _inspect(masks: Sequence[Path], rule: MaskRule) -> list[_Levels]:
    """The levels of masks; unreadable masks are reported elsewhere."""

    def inspect(path: Path) -> _Levels | None:
        with suppress(UserError):
            image = open_image(path)
            if rule.reads_colours(image):
                white = 255.0 * rule.read(image, path).max()
                return _Levels(path, white, dark=False, indices=False, soft=False, bright=False)
            values, may_be_indices = grey_values(image, path, rule.by_alpha)
            white, highest = white_of(values), float(values.max(initial=0))
            of_255 = values.astype(np.float32) / white * 255 if white != 255 else values
            between = of_255[(of_255 >= 8) & (of_255 <= 254)]  # JPEG puts smaller values next to 0
            return _Levels(
                path,
                highest,
                dark=0 < highest <= rule.cut(white),
                indices=may_be_indices and look_like_indices(values),
                soft=bool((between <= 247).any()) and highest > MAX_CLASS_INDEX,
                bright=bool((between > 190).any()),
            )
        return None

    with ThreadPoolExecutor() as pool:
        return [found for found in pool.map(inspect, masks) if found]
