"""Find the annotation files of a data set, and read them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from src.errors import UserError

from .coco import has_keypoints, is_coco, other_use, read_coco
from .files import ImageFiles, foreign_kind, load_json, walk
from .labelme import is_labelme, read_labelme
from .record import Parsed
from .yolo import find_label_files, read_names, read_yolo

_HINTS = {
    ".xml": "XML is not read; export the annotations as COCO (in CVAT: COCO 1.0)",
    ".zip": "an archive; unpack it and name the folder",
    ".csv": "CSV is not read; export the annotations as COCO",
}


def read_annotations(root: Path, given: Path | None, images: ImageFiles) -> Parsed:
    """Read the annotation files of a data set.

    Args:
        root: its folder.
        given: a file, or a folder of files, in place of what is below ``root``.
        images: of the data set.

    Returns:
        Their content; only notes if there are none.

    Raises:
        UserError: ``given`` holds no annotations, or there are two kinds.
    """
    files = _list(root, given)
    coco, labelme = Parsed("COCO"), Parsed("LabelMe")
    jsons = [path for path in files if path.suffix.lower() == ".json"]
    faults, notes = _read_jsons(jsons, coco, labelme, strict=given is not None)
    kinds = [parsed for parsed in (coco, labelme) if parsed.records or parsed.faults]
    texts = [path for path in files if path.suffix.lower() == ".txt"]
    labels = find_label_files(texts, images, alone=not kinds)
    if len(kinds) + bool(labels) > 1:
        first = [str(parsed.records[0].file) for parsed in kinds if parsed.records]
        listed = " and ".join([*first, *map(str, labels[:1])])
        text = f"{given or root}: holds annotations of two kinds, {listed}"
        raise UserError(text, advice="name the one to use with {annotations}")
    if labels:
        coco = Parsed("YOLO")
        folders = list(dict.fromkeys(path.parent for path in labels))
        near = [given if given.is_dir() else given.parent] if given else []
        read_yolo(labels, read_names(root, [*near, *folders]), coco)
    parsed = kinds[0] if kinds else coco
    parsed.faults = [*faults, *parsed.faults]
    parsed.notes = [*notes, *parsed.notes]
    if given and not (parsed.records or parsed.faults):
        text = "holds no annotations: neither COCO nor LabelMe json, nor YOLO txt"
        raise UserError("; ".join([text, *parsed.notes[:10]]), "annotations", given)
    return parsed


def _list(root: Path, given: Path | None) -> list[Path]:
    if given is None:
        return list(walk(root))
    if given.is_dir():
        return list(walk(given))
    if not given.exists():
        raise UserError("no such file or folder", "annotations", given)
    suffix = given.suffix.lower()
    if suffix in (".yaml", ".yml"):
        return list(walk(given.parent))
    if suffix not in (".json", ".txt"):
        hint = _HINTS.get(suffix, "expected COCO or LabelMe json, YOLO txt, or a folder of these")
        raise UserError(hint, "annotations", given)
    return [given]


def _read_jsons(
    files: Sequence[Path], coco: Parsed, labelme: Parsed, strict: bool
) -> tuple[list[UserError], list[str]]:
    """Read each as the kind that it is; returns the faults of unreadable ones, and notes.

    ``strict``: other kinds of json are faults too.
    """
    faults, notes = [], []
    of_coco: dict[Path, dict[str, Any]] = {}
    for file in files:
        try:
            data = load_json(file)
        except UserError as error:
            faults.append(error)
            continue
        if is_labelme(data):
            read_labelme(data, file, labelme)
        elif is_coco(data) and (use := other_use(data)):
            notes.append(f"{file}: not used ({use})")
        elif is_coco(data):
            of_coco[file] = data
        elif strict:
            faults.append(UserError(f"{file}: {foreign_kind(data)}"))
        else:
            notes.append(f"{file}: not used ({foreign_kind(data)})")
    poses = [file for file, data in of_coco.items() if has_keypoints(data)]
    for file in poses if len(poses) < len(of_coco) else ():
        notes.append(f"{file}: not used (poses of objects that other files hold)")
        del of_coco[file]
    for file, data in of_coco.items():
        read_coco(data, file, coco)
    return faults, notes
