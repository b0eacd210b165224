"""Open a data set on disk: what it holds, how its masks are read, and what its splits are."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from src.errors import UserError
from src.pictures.images import list_images
from src.words import counted

from ..annotations import AnnotatedSet, find_annotated
from ..masks import VOC_NAMES, ClassTable, MaskReader, MaskRule, decide, find_table, read_mask
from ..pairs import FileId, Inventory, Pair, file_id, match
from .folders import DUTS, Folders, find_folders, find_scenes, holds_masks, list_files
from .lists import LISTED, choose, has_list

_VOC_MASKS = "SegmentationClass"  # of PASCAL VOC's 21 classes, in its own tree
_ANNOTATIONS = ("annotations", "annotation", "labels", "label", "json", "labelme")


@dataclass
class DataSet:
    """A data set on disk, before its splits are found.

    Args:
        where: its folder, for messages.
        root: the folder of its lists.
        folders: of images and masks; none if the masks are drawn.
        annotated: its images, if the masks are drawn.
        read: how the masks are read.
        notes: for the user, about the whole set.
        sound: the images to hold out one of, if all those held out by their names are faulty.
    """

    where: str
    root: Path
    folders: Folders
    annotated: AnnotatedSet | None
    read: MaskReader
    notes: list[str] = field(default_factory=list)
    sound: frozenset[str] = frozenset()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by class index, if the user, the annotations or the set define them."""
        if self.annotated is not None:
            return self.annotated.names
        rule = self.read if isinstance(self.read, MaskRule) else MaskRule()
        if rule.names:
            return rule.table_values().by_value(rule.classes)
        with suppress(UserError):  # a list of other names
            return rule.table_values(rule.table.names).by_value(rule.classes) if rule.table else ()
        return ()

    def has(self, split: str) -> bool:
        """Whether a list, or the names of annotations, define a split."""
        pictures = self.annotated.pictures if self.annotated else ()
        told = any(picture.split == split for picture in pictures)
        return has_list(self.root, split) or told

    @property
    def holds_out_by_name(self) -> bool:
        """Whether only the names of its images separate ``test`` from ``train``."""
        whole = self.annotated is not None or None in self.folders
        return whole and not any(self.has(split) for split in LISTED)

    def find(self, split: str, skip_invalid: bool) -> Inventory:
        """Match the pairs of a split; for ``train``, none that is held out."""
        if self.annotated is not None:
            return _find_annotated_split(self, self.annotated, split, skip_invalid)
        return _find_split(self, split, skip_invalid)


def open_dataset(
    data_path: str | Path | None = None,
    image_dir: str | Path | None = None,
    mask_dir: str | Path | None = None,
    read: MaskReader = read_mask,
    annotations: str | Path | None = None,
) -> DataSet:
    """Find a data set, and decide from all of its masks how they are read.

    Args:
        data_path, image_dir, mask_dir, read, annotations: as for :func:`find_splits`.

    Raises:
        UserError: there is none, or it is not clear which files hold it.
    """
    rule = MaskRule() if read is read_mask else read
    if annotations is None or str(annotations) == "auto":
        return _search(data_path, image_dir, mask_dir, rule)
    given = Path(annotations)
    if mask_dir:
        advice = "give {annotations} or {mask_dir}"
        raise UserError("masks and annotations for the same set", "mask_dir", mask_dir, advice)
    if data_path and image_dir:
        advice = "give {data_path} or {image_dir} with {annotations}"
        raise UserError("two places for the images", "image_dir", image_dir, advice)
    for name, folder in (("data_path", data_path), ("image_dir", image_dir)):
        if folder and not Path(folder).is_dir():
            raise UserError("no such folder", name, folder)
    base = given if given.is_dir() else given.parent
    base = base.parent if base.name.lower() in _ANNOTATIONS else base
    root = Path(data_path or image_dir or base)
    return _open_annotated(root, rule, given, Path(image_dir) if image_dir else None)


def _search(
    data_path: str | Path | None,
    image_dir: str | Path | None,
    mask_dir: str | Path | None,
    rule: MaskReader,
) -> DataSet:
    """A data set of mask files or, if a folder has none, of annotations."""
    root, folders, failure = Path(data_path or ""), Folders(), None
    try:
        root, folders = find_folders(data_path, image_dir, mask_dir)
    except UserError as error:
        failure = error
    has_masks = bool(folders) and (None not in folders or holds_masks(folders))
    searched = data_path and not (image_dir or mask_dir or has_masks) and root.is_dir()
    if searched:
        found = _open_annotated(root, rule)
        if found.annotated:
            return found
        if found.notes:  # on files that look like annotations
            failure = failure or UserError("holds no masks", "data_path", root)
            text = "; ".join([failure.args[0], *found.notes[:10]])
            failure = UserError(text, failure.parameter, failure.value, failure.advice)
    if failure:
        raise failure
    return _open_masks(data_path, image_dir, root, folders, rule)


def _open_masks(
    data_path: str | Path | None,
    image_dir: str | Path | None,
    root: Path,
    folders: Folders,
    rule: MaskReader,
) -> DataSet:
    """A data set of mask files, with notes on how its folders and masks are read."""
    notes = []
    images, masks = folders.get(None, (root, root))
    usual = ("images", "masks"), ("duts-tr-image", "duts-tr-mask")
    scenes = find_scenes(images, masks)
    named = (images.name.lower(), masks.name.lower()) in usual
    each = images == masks and None not in scenes  # scene has folders of its own
    if data_path and None in folders and not (named or each):
        notes.append(f"images of {images}, masks of {masks}")
    if None not in scenes:
        notes.append(f"{counted(len(scenes), 'scene')} in {images}")
    if isinstance(rule, MaskRule):
        own = data_path or images.parent != masks.parent  # else their folder is the set's, too
        rule = _with_table(rule, root, *([] if own else [root.parent]))
        if rule.table is None and rule.classes == len(VOC_NAMES) and masks.name == _VOC_MASKS:
            rule = replace(rule, table=ClassTable(VOC_NAMES))
    data = DataSet(str(data_path or image_dir), root, folders, None, rule, notes)
    if isinstance(rule, MaskRule):
        everything = data.find("all", skip_invalid=True)
        data.read, known = decide(rule, [pair.mask for pair in everything.pairs])
        notes += known
    return data


def _with_table(rule: MaskRule, *folders: Path) -> MaskRule:
    """A rule with the classes that a data set names, if the user has named none."""
    if rule.table:
        return rule
    if rule.classes is not None:
        return replace(rule, table=find_table(*folders))
    with suppress(UserError):  # a list of names is of no use for an object and background
        return replace(rule, table=find_table(*folders))
    return rule


def _open_annotated(
    root: Path, read: MaskReader, given: Path | None = None, image_dir: Path | None = None
) -> DataSet:
    """A data set whose masks are drawn; an empty one if a folder holds no annotations."""
    rule = _with_table(read if isinstance(read, MaskRule) else MaskRule(), root)
    annotated = find_annotated(root, rule, given, image_dir, rule.table)
    return DataSet(str(given or root), root, {}, annotated, rule, annotated.notes)


def _find_annotated_split(
    data: DataSet, annotated: AnnotatedSet, split: str, skip_invalid: bool
) -> Inventory:
    """The annotated images of a split; for ``train``, none that is held out."""
    found = Inventory(split, faults=list(annotated.faults))
    names = {picture.name: picture.name for picture in annotated.pictures}
    if any(picture.split for picture in annotated.pictures) and not _has_lists(data.root):
        chosen: dict[str, set[str]] = {name: set() for name in LISTED}
        chosen["all"] = set(names)
        for picture in annotated.pictures:
            chosen[picture.split or "train"].add(picture.name)
    else:
        unused, sound = annotated.others, data.sound
        chosen = choose(data.root, names, found, skip_invalid, unused, sound)
    held_out = chosen["val"] | chosen["test"] if split == "train" else set()
    for picture in annotated.pictures:
        if picture.name in chosen[split] and picture.faults:
            found.faults += picture.faults
        elif picture.name in chosen[split]:
            label = picture.name if picture.name != picture.image.stem else ""
            pair = Pair(picture.image, picture.file, read=picture.drawing, label=label)
            found.pairs.append(pair)
        elif picture.name in held_out and picture.image.is_file():
            found.held_out[file_id(picture.image)] = picture.image
    found.faults += leave_out(found, found.held_out)
    return found


def _has_lists(root: Path) -> bool:
    return any(has_list(root, split) for split in LISTED)


def _find_split(data: DataSet, split: str, skip_invalid: bool) -> Inventory:
    """Match the pairs of a split; for ``train``, none that is held out."""
    found, folders = Inventory(split), data.folders
    if None not in folders and split not in (*folders, "all"):
        missing = f"holds no {DUTS[split]}" if split in DUTS else "the DUTS layout has no val split"
        raise UserError(missing, "data_path", data.root)
    for part, (image_dir, mask_dir) in folders.items():
        if part in (None, split) or split == "all":
            _match_folders(data, part, image_dir, mask_dir, found, skip_invalid)
        elif split == "train" and image_dir.is_dir():
            found.held_out |= {file_id(path): path for path in list_images(image_dir)}
    if split == "train":
        found.faults += leave_out(found, found.held_out)
    return found


def _match_folders(
    data: DataSet,
    part: str | None,
    image_dir: Path,
    mask_dir: Path,
    found: Inventory,
    skip_invalid: bool,
) -> None:
    """Add the pairs of two folders to a split; ``part``: the one that all of them belong to."""
    files = {
        scene or "": list_files(*folders, found)
        for scene, folders in find_scenes(image_dir, mask_dir).items()
    }
    images = [
        (f"{scene}/{path.stem}" if scene else path.stem, scene, path)
        for scene, (paths, _) in files.items()
        for path in paths
    ]
    wanted = {name for name, _, _ in images}
    if part is None:
        scenes = {name: scene or name for name, scene, _ in images}
        chosen = choose(data.root, scenes, found, skip_invalid, sound=data.sound)
        wanted = chosen[found.split]
        if found.split == "train":
            held_out = chosen["val"] | chosen["test"]
            found.held_out |= {file_id(path): path for name, _, path in images if name in held_out}
    for scene, (paths, masks) in files.items():
        match(paths, masks, wanted, found, scene)


def leave_out(found: Inventory, held_out: Mapping[FileId, Path]) -> list[UserError]:
    """Remove held-out images, under whatever name, from the pairs to train on.

    Args:
        found: the pairs are in it.
        held_out: the images that are held out.

    Returns:
        The faults of the removed pairs.
    """
    faults, kept = [], []
    for pair in found.pairs:
        other = held_out.get(file_id(pair.image))
        if other is None:
            kept.append(pair)
        else:
            text = f"{pair.image}: the same file as {other}, which is held out of training"
            faults.append(UserError(text))
    found.pairs = kept
    return faults
