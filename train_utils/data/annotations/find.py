"""The annotations of a data set: found, read, matched with their images."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from src.errors import UserError
from src.pictures.images import list_images
from src.words import counted, first_ten

from ..masks import ClassTable, Labels, MaskRule
from .draw import Drawing, Polygons, load_pycocotools
from .files import ImageFiles
from .read import read_annotations
from .record import Parsed, Record

_SPLIT = re.compile(r"(?<![a-z])(train|valid|validation|val|test)(?![a-z])")


@dataclass(frozen=True)
class Picture:
    """An image and its annotation.

    Args:
        name: unique in the set.
        image: its file.
        file: of the annotation.
        drawing: its mask.
        split: from the names of files and folders; None if they name none.
        faults: what is wrong with it.
    """

    name: str
    image: Path
    file: Path
    drawing: Drawing
    split: str | None = None
    faults: tuple[UserError, ...] = ()


@dataclass
class AnnotatedSet:
    """The annotated images of a data set.

    Args:
        root: its folder, where lists are.
        pictures: in the order of their paths.
        faults: of whole files.
        notes: what the user should know.
        names: of the classes, by their index; () for object and background.
        others: the stems of images in the same folders that are not annotated.
    """

    root: Path
    pictures: list[Picture] = field(default_factory=list)
    faults: list[UserError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    names: tuple[str, ...] = ()
    others: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.pictures or self.faults)


def find_annotated(
    root: Path,
    rule: MaskRule,
    given: Path | None = None,
    image_dir: Path | None = None,
    table: ClassTable | None = None,
) -> AnnotatedSet:
    """Find the annotations of a data set, and read them.

    Args:
        root: the data set's folder, in which annotations and images are.
        rule: how masks are read, which decides the values that objects are drawn with.
        given: a file of annotations, or a folder of some, in place of those below ``root``.
        image_dir: where the images are, in place of ``root``.
        table: the classes that the data set names.

    Returns:
        The set; empty if there are no annotations below ``root``, with notes on similar files.

    Raises:
        UserError: ``given`` holds no annotations, or there are annotations of two kinds.
    """
    places = [image_dir] if image_dir else [root]
    if given and not image_dir:
        near = given if given.is_dir() else given.parent
        places += [near] if root not in (near, *near.parents) else []
    files = ImageFiles(places)
    parsed = read_annotations(root, given, files)
    if not (parsed.records or parsed.faults):
        return AnnotatedSet(root, notes=parsed.notes)
    _find_images(parsed, files)
    records = _once_each(parsed)
    if parsed.kind == "YOLO":
        records += _without_labels(records, parsed)
    if others := _others(records):
        text = f"{counted(len(others), 'image')} not annotated, such as {others[0]}: not used"
        parsed.notes.append(text)
    labels, names = _number_classes(parsed, rule, table)
    _check_labels(records, labels)
    if any(isinstance(shape, Polygons) for record in records for shape in record.shapes):
        load_pycocotools()  # or fail at once if it is missing
    parsed.notes += _describe_unused(records, labels, names)
    pictures = _pictures(records, labels, root, parsed.kind)
    sound = sum(not picture.faults for picture in pictures)
    head = f"{counted(sound, 'image')} annotated in {parsed.kind}'s format"
    notes = [head, *parsed.describe()] if pictures else parsed.describe()
    empty = [picture for picture in pictures if not picture.drawing.shapes and not picture.faults]
    if empty:
        notes.append(
            f"{counted(len(empty), 'image')} without objects, such as {empty[0].image}: empty masks"
        )
    stems = frozenset(path.stem for path in others)
    return AnnotatedSet(root, pictures, parsed.faults, notes, names, stems)


def _find_images(parsed: Parsed, files: ImageFiles) -> None:
    renamed = []
    for record in parsed.records:
        place = files.find(record.image, record.file) if record.image else ""
        if place and isinstance(place, str) and parsed.kind == "LabelMe":
            own = files.find(f"{record.file.stem}.*", record.file)
            if isinstance(own, Path):
                renamed.append(f"{record.file} names {record.image}, but {own} is used")
                place = own
        if isinstance(place, Path):
            record.found = place
        elif place:
            record.faults.insert(0, place + record.embedded)
    if renamed:
        what = f"{counted(len(renamed), 'image')} found by the name of the annotation file"
        parsed.notes.append(f"{what}, not by the path in it: {renamed[0]}")
    if parsed.kind == "YOLO":  # an empty text file without an image is not a label file
        parsed.records = [r for r in parsed.records if r.found or r.shapes or len(r.faults) > 1]


def _once_each(parsed: Parsed) -> list[Record]:
    """One record for each image; if it has several, that is its fault."""
    by_image: dict[Path, list[Record]] = defaultdict(list)
    for record in parsed.records:
        if record.found:
            by_image[record.found].append(record)
    kept = []
    for record in parsed.records:
        same = by_image[record.found] if record.found else [record]
        if len(same) > 1 and record is same[0]:
            files = list(dict.fromkeys(one.file for one in same))
            where = f"listed {len(same)} times in {files[0]}"
            if len(files) > 1:
                where = " and ".join(map(str, files[:2]))
            record.faults = [f"two annotations of one image: {where}"]
        if record is same[0]:
            kept.append(record)
    return kept


def _folders(records: Sequence[Record]) -> list[Path]:
    """The folders of the images that were found."""
    return list(dict.fromkeys(record.found.parent for record in records if record.found))


def _others(records: Sequence[Record]) -> list[Path]:
    """The images in the same folders that are not annotated."""
    known = {record.found for record in records}
    beside = (path for folder in _folders(records) for path in list_images(folder))
    return [path for path in beside if path not in known]


def _without_labels(records: Sequence[Record], parsed: Parsed) -> list[Record]:
    """Images without a label file, which is how YOLO marks those without objects."""
    unclear = {record.file.stem for record in records if not record.found}  # two images, say
    others = [path for path in _others(records) if path.stem not in unclear]
    if others:
        text = (
            f"{counted(len(others), 'image')} without a label file, such as {others[0]}: no objects"
        )
        parsed.notes.append(text)
    file = records[0].file if records else Path()
    return [Record(file.with_name(f"{p.stem}.txt"), p.name, found=p) for p in others]


def _number_classes(
    parsed: Parsed, rule: MaskRule, table: ClassTable | None
) -> tuple[Labels, tuple[str, ...]]:
    """The values of all labels, and the names of the classes by these values."""
    names, source = list(parsed.names), f"the {parsed.kind} annotations ({', '.join(parsed.names)})"
    if parsed.kind == "LabelMe":  # whose files define no order
        names.sort()
    if table:
        names, source = list(table.names), str(table.path)
    labels = rule.label_values(names, source)
    return labels, labels.by_value(rule.classes)


def _check_labels(records: Sequence[Record], labels: Labels) -> None:
    known = ", ".join(labels.values or ())
    for record in records:  # the same text for all images, which messages group
        unknown = dict.fromkeys(s.label for s in record.shapes if labels.value(s.label) is None)
        record.faults += [
            f"the category {label!r}, which is unknown ({known})" for label in unknown
        ]


def _describe_unused(records: Sequence[Record], labels: Labels, names: Sequence[str]) -> list[str]:
    """A note on the classes without objects."""
    found = {labels.value(shape.label) for record in records for shape in record.shapes}
    found |= {labels.background, labels.ignored}
    unused = [name for value, name in enumerate(names) if value not in found]
    if not unused:
        return []
    what = counted(len(unused), "class occurs", "classes occur")
    return [f"{what} in no annotation: {first_ten(unused)}"]


def _pictures(records: Sequence[Record], labels: Labels, root: Path, kind: str) -> list[Picture]:
    places = [record.found or record.file.parent / record.image for record in records]
    names = _names(places, root)
    splits = [_split_of(record, root, kind) for record in records]
    if len({split for split in splits if split}) < 2:  # part of a set
        splits = [None] * len(splits)
    pictures = []
    for record, place, name, split in zip(records, places, names, splits, strict=True):
        drawing = Drawing(tuple(record.shapes), labels, record.size, name)
        where, end = str(record.file), ""
        if kind == "COCO" and record.found:
            where, end = str(record.found), f" (in {record.file})"
        faults = tuple(
            UserError(f"{where}: {fault}{end * (str(record.file) not in fault)}")
            for fault in record.faults
        )
        pictures.append(Picture(name, place, record.file, drawing, split, faults))
    return sorted(pictures, key=lambda picture: picture.image)


def _names(images: Sequence[Path], root: Path) -> list[str]:
    """Names of images: their stems, or for shared ones as much of the path as it takes."""
    stems = Counter(image.stem for image in images)
    paths = [_relative(image, root).with_suffix("").as_posix() for image in images]
    counts = Counter(paths)
    return [
        image.stem if stems[image.stem] == 1 else path if counts[path] == 1 else path + image.suffix
        for image, path in zip(images, paths, strict=True)
    ]


def _relative(path: Path, root: Path) -> Path:
    return path.relative_to(root) if root in path.parents else Path(path.name)


def _split_of(record: Record, root: Path, kind: str) -> str | None:
    """The split in the names of the folders and, for COCO, of the file."""
    file = _relative(record.file, root)
    parts = [file.stem] if kind == "COCO" else []
    parts += reversed(file.parts[:-1])
    if record.found:
        parts += reversed(_relative(record.found, root).parts[:-1])
    for part in parts:
        if found := _SPLIT.search(part.lower()):
            return "val" if found[1].startswith("val") else found[1]
    return None
