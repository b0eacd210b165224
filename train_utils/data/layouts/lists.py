"""The lists of a data set, which define the images to train on and those that are held out."""

import hashlib
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from src.errors import UserError
from src.pictures.formats import IMAGE_SUFFIXES
from src.words import counted, first_ten

from ..pairs import Inventory

LISTED = ("train", "val", "test")  # NAME.txt; an image in two lists belongs to the later split


def has_list(data_path: str | Path | None, split: str) -> bool:
    """Whether a data set has a list ``SPLIT.txt``, in its folder or in ``ImageSets``.

    Args:
        data_path: its folder; None has no list.
        split: ``train``, ``val`` or ``test``.
    """
    if data_path is None:
        return False
    folder = Path(data_path)
    if (folder / f"{split}.txt").is_file():
        return True
    return (folder / "ImageSets").is_dir() and any(folder.glob(f"ImageSets/**/{split}.txt"))


def find_lists(folder: Path, known: Iterable[str] = ()) -> dict[str, Path]:
    """The lists of a data set by split: in its folder, or as PASCAL VOC and DAVIS have them.

    Args:
        folder: of the data set.
        known: names of images and scenes. Of several folders in ``ImageSets``, the one whose lists
            name the most of them is chosen; ``Segmentation`` before others.
    """
    own = _in(folder)
    if own or not (folder / "ImageSets").is_dir():
        return own
    names = set(known)

    def rank(place: Path) -> tuple[bool, int, str]:
        listed = {name for path in _in(place).values() for name in read_list(path, names)}
        return place.name == "Segmentation", len(listed & names), place.name

    places = {path.parent for name in LISTED for path in folder.glob(f"ImageSets/**/{name}.txt")}
    return _in(max(places, key=rank)) if places else {}


def _in(place: Path) -> dict[str, Path]:
    paths = {name: place / f"{name}.txt" for name in LISTED}
    return {name: path for name, path in paths.items() if path.is_file()}


def choose(
    folder: Path,
    scenes: Mapping[str, str],
    found: Inventory,
    skip_invalid: bool,
    unused: Collection[str] = (),
    sound: Collection[str] = (),
) -> dict[str, set[str]]:
    """The images of every split, by lists or, without any, by their names.

    No image is in two of ``train``, ``val`` and ``test``. Faults of the lists are added to
    ``found`` if they concern its split.

    Args:
        folder: of the lists.
        scenes: the scene of each image, by the image's name; scenes are held out as a whole. The
            image's own name if there are none.
        found: what faults and notes are added to.
        skip_invalid: an image in two lists is left out of the earlier split, and is no fault.
        unused: names of images that are not annotated, where others are.
        sound: if all images held out by their names are faulty: the others, of which the next one
            takes their place.
    """
    split, names, units = found.split, set(scenes), set(scenes.values())
    paths = find_lists(folder, names | units)
    elsewhere = any(path.parent != folder for path in paths.values())
    if elsewhere:
        found.notes.append(f"using the lists in {next(iter(paths.values())).parent}")
    named = {name: read_list(path, names | units) for name, path in paths.items()}
    # For train, in all lists: an image to hold out would be trained on if its name were wrong.
    looked_at = named if split == "train" else {split} & named.keys()
    unknown = {paths[part]: sorted(named[part] - names - units) for part in looked_at}
    _report_unknown(unknown, elsewhere, unused, found)
    named = {
        part: {name for name, scene in scenes.items() if name in listed or scene in listed}
        for part, listed in named.items()
    }
    _separate(named, folder, skip_invalid, found)
    if split == "val" and "val" not in named:
        raise UserError(f"{folder}: no val.txt in it, so there is no val split")
    if not named:
        named["test"] = _one_in_ten(scenes, sound)
        if split != "all":
            what = "scene" if units != names else "image"
            text = f"no train.txt or test.txt: one {what} in ten is held out for testing"
            found.notes.append(text)
    # Unlisted images go to the first split without a list; ImageSets' lists are complete.
    rest = names.difference(*named.values())
    free = None if elsewhere else next((p for p in ("train", "test") if p not in named), None)
    if rest and free is None and (elsewhere or split != "all"):
        text = f"{counted(len(rest), 'image is', 'images are')} in none of the lists"
        found.notes.append(f"{text}, such as {min(rest)}: not used")
    everything = names - rest if elsewhere else names
    chosen = {"train": set(), "val": set(), "test": set(), "all": everything}
    if free is not None:
        chosen[free] = rest
    return chosen | named


def _report_unknown(
    unknown: Mapping[Path, Sequence[str]],
    elsewhere: bool,
    unused: Collection[str],
    found: Inventory,
) -> None:
    """Add names in lists that no image has: faults, or in ``ImageSets`` a note."""
    for path, missing in unknown.items():
        if not elsewhere:
            for name in missing:
                why = "is not annotated" if name in unused else "has no image"
                found.faults.append(UserError(f"{path}: lists {name}, which {why}"))
        elif missing and path.stem == found.split:  # as PASCAL VOC lists images without masks
            text = f"{path}: {counted(len(missing), 'name')} without an image that has a mask"
            found.notes.append(f"{text}, such as {missing[0]}: not used")


def _separate(
    named: dict[str, set[str]], folder: Path, skip_invalid: bool, found: Inventory
) -> None:
    """Leave images that are in two lists in the later one alone."""
    for one, other in combinations(named, 2):
        if both := sorted(named[one] & named[other]):
            verb = "are" if len(both) > 1 else "is"
            text = f"{folder}: {first_ten(both)} {verb} in {one}.txt and in {other}.txt"
            if skip_invalid:
                found.notes.append(f"{text}: left out of {one}")
            else:
                found.faults.append(UserError(text))
        named[one] -= named[other]


def _one_in_ten(scenes: Mapping[str, str], sound: Collection[str]) -> set[str]:
    units = set(scenes.values())
    held_out = {unit for unit in units if _hash(unit) % 10 == 0}
    if sound or not held_out:
        left = {scenes[name] for name in sound if name in scenes} or units
        held_out |= set(sorted(left, key=_hash)[:1])
    return {name for name, scene in scenes.items() if scene in held_out}


def _hash(name: str) -> int:
    """The same on every machine, so that the same images stay held out as others are added."""
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8], "big")


def read_list(path: Path, known: set[str]) -> set[str]:
    """The names in a list: each line as it is or, if nothing has that name, without leading
    folders, an image's suffix, and spaces around it.

    Args:
        path: of the list.
        known: names of images and scenes.

    Raises:
        UserError: it is not a text file, so that it is unknown what it holds out.
    """
    try:
        text = path.read_text("utf-8-sig", errors="surrogateescape")  # like file names
    except OSError as error:
        raise UserError(f"{path}: not a readable list of names ({error})") from None
    if "\0" in text:
        raise UserError(f"{path}: not a readable list of names; save it as UTF-8")
    lines = text.split("\n")  # names may hold all other characters
    return {_resolve(line, known) for line in lines if line.strip()}


def _resolve(line: str, known: set[str]) -> str:
    readings = [line]
    first = line.split()[0]  # if a line names an image and its mask
    for text in (line, line.strip(), first):
        path = Path(text)
        is_file = Path(text.rstrip()).suffix.lower() in IMAGE_SUFFIXES
        stems = [path.with_name(path.stem)] if is_file and path.name else []
        for one in (path, *stems):
            # With as many of its folders as it takes to name an image, as in scenes.
            readings += ["/".join(one.parts[start:]) for start in range(len(one.parts))]
    return next((name for name in readings if name in known), _plain(line))


def _plain(line: str) -> str:
    """A name without an image, as messages show it."""
    name = Path(line.strip()).name
    return Path(name).stem if Path(name).suffix.lower() in IMAGE_SUFFIXES else name or line
