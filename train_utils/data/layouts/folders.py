"""Find the folders of images and masks of a data set, and list their files."""

from pathlib import Path

from src.errors import UserError
from src.files import real_path
from src.pictures.images import list_images
from src.pictures.search import LeftOut, walk_folder
from src.words import counted, first_ten

from ..pairs import Inventory, most_frequent_naming

DUTS = {"train": "DUTS-TR", "test": "DUTS-TE"}
_IMAGES = ("images", "image", "imgs", "img", "im", "jpegimages", "dut-omron-image")
_MASKS = (
    *("masks", "mask", "gt", "gts", "ground_truth_mask", "ground_truth", "groundtruth"),
    *("annotations", "annotation", "labels", "label", "pixelwisegt-new-png", "segmentationclass"),
    "masks_machine",  # Supervisely's, next to img
    "gt_object_level",  # DAVSOD's, in each scene
)
_OF_SCENES = "gt_object_level"  # in a scene's folder, rather than in that of a data set
_VOC = "jpegimages", "segmentationclass"  # next to which Annotations holds boxes

Folders = dict[str | None, tuple[Path, Path]]
"""Folders of images and masks, by the split that all of them belong to, or by the scene; by None if
lists define the splits, and if there are no scenes."""


def find_folders(
    data_path: str | Path | None, image_dir: str | Path | None, mask_dir: str | Path | None
) -> tuple[Path, Folders]:
    """Find a data set: the folder of its lists, and those of images and masks.

    Args:
        data_path: in the DUTS layout, or a folder with a folder of images and one of masks, under
            names that are usual in the field (``images`` + ``masks``, ``imgs`` + ``gt`` …), in it
            directly or in its only subfolder that has both.
        image_dir, mask_dir: any two folders, instead of it.

    Raises:
        UserError: there is none, or it is not clear which folders hold it.
    """
    if image_dir or mask_dir:
        if not (image_dir and mask_dir) or data_path:
            raise UserError(
                "the image and mask folders must be given together, and not with a data set",
                advice="give {image_dir} and {mask_dir} together (the same folder twice, if it "
                "holds both), without {data_path}",
            )
        return Path(image_dir), {None: (Path(image_dir), Path(mask_dir))}
    if not data_path:
        advice = "give {data_path} DIR, or {image_dir} DIR {mask_dir} DIR, or {annotations} FILE"
        raise UserError("no data", advice=advice)
    root = Path(data_path)
    if not root.is_dir():
        raise UserError("no such folder", "data_path", root)
    duts: Folders = {
        split: _parts(root / name) or (root / name / f"{name}-Image", root / name / f"{name}-Mask")
        for split, name in DUTS.items()
        if (root / name).is_dir()
    }
    if list(duts) == ["train"]:  # with DUTS-TR alone, part of it is held out
        return root, {None: duts["train"]}
    return root, duts or {None: _find_parts(root)}


def _find_parts(root: Path) -> tuple[Path, Path]:
    """The folders of images and masks in a folder, or in one of its subfolders."""
    if found := _parts(root):
        return found
    inside = [parts for folder in _subfolders(root) if (parts := _parts(folder))]
    if inside and all(masks.name.lower() == _OF_SCENES for _, masks in inside):
        return root, root
    if len(inside) == 1:
        return inside[0]
    problem = (
        "found neither DUTS-TR/DUTS-TR-Image + DUTS-TR/DUTS-TR-Mask nor images/ + masks/ in it"
    )
    if inside:
        several = first_ten([str(images.parent) for images, _ in inside])
        problem = f"holds several data sets: {several}"
    advice = "name your folders with {image_dir} and {mask_dir} (the same twice, if one holds both)"
    raise UserError(f"{problem}; {_content(root)}", "data_path", root, advice)


def _parts(folder: Path) -> tuple[Path, Path] | None:
    """The folders of images and masks in a folder, if it is clear which they are."""
    names = {path.name.lower(): path for path in _subfolders(folder)}
    duts = f"{folder.name}-image".lower(), f"{folder.name}-mask".lower()
    for images, masks in (duts, ("images", "masks"), _VOC):
        if images in names and masks in names:
            return names[images], names[masks]
    of_images = [names[name] for name in _IMAGES if name in names]
    of_masks = [names[name] for name in _MASKS if name in names]
    if len(of_images) == 1 and not of_masks and _holds_pairs(of_images[0]):
        return of_images[0], of_images[0]  # as in MSRA10K
    if len(of_images) != 1 or len(of_masks) != 1:
        return None
    return _innermost(of_images[0], of_masks[0])


def _innermost(images: Path, masks: Path) -> tuple[Path, Path]:
    """The two folders, or if they only hold one subfolder of the same name each, these (PASCAL-S).

    Raises:
        UserError: they hold several of these, which are not scenes (DAVIS in two resolutions).
    """
    inside = [{path.name: path for path in _subfolders(folder)} for folder in (images, masks)]
    same = sorted(inside[0].keys() & inside[1].keys())
    if list_images(images) or list_images(masks) or not same:
        return images, masks
    if len(same) == 1:
        return inside[0][same[0]], inside[1][same[0]]
    if not any(list_images(inside[0][name]) for name in same):
        raise UserError(
            f"{images}: holds one set several times, as {first_ten(same)}",
            advice=f"name one by {{image_dir}} {inside[0][same[0]]} {{mask_dir}} "
            f"{inside[1][same[0]]}",
        )
    return images, masks


def find_scenes(images: Path, masks: Path) -> Folders:
    """The scenes of a set that has a folder of images for each, and a folder of masks of the same
    name; or one with both, as in DAVSOD (``select_0043/Imgs``, ``select_0043/GT_object_level``).

    Args:
        images, masks: the folders that hold them (``JPEGImages/480p``, ``Annotations/480p``).

    Returns:
        The folders of images and masks by the scene's name; for a set without scenes, the given
        ones by None.
    """
    alone: Folders = {None: (images, masks)}
    if not images.is_dir() or not masks.is_dir() or list_images(images):
        return alone
    inside = _subfolders(images)
    if images == masks:
        both = {path: parts for path in inside if (parts := _parts(path))}
        if not both or any(own.name.lower() != _OF_SCENES for _, own in both.values()):
            return alone
        first, own = (path.name for path in next(iter(both.values())))
        others = {path: (path / first, path / own) for path in inside if (path / first).is_dir()}
        return {path.name: parts for path, parts in sorted((others | both).items())}
    scenes: Folders = {path.name: (path, masks / path.name) for path in inside if list_images(path)}
    paired = len(scenes) > 1 and any(own.is_dir() for _, own in scenes.values())
    return scenes if paired else alone


def holds_masks(folders: Folders) -> bool:
    """Whether the folders of masks hold images, rather than annotations."""
    return any(
        own.is_dir() and bool(list_images(own))
        for images, masks in folders.values()
        for _, own in find_scenes(images, masks).values()
    )


def _holds_pairs(folder: Path) -> bool:
    suffixes = {path.suffix.lower() for path in list_images(folder)}
    return ".png" in suffixes and len(suffixes) > 1


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")


def _content(folder: Path) -> str:
    """What a folder holds, for a message."""
    if not folder.is_dir():
        return f"{folder} is not a folder either"
    names = [f"{path.name}/" for path in _subfolders(folder)]
    if count := len(list_images(folder)):
        names.append(counted(count, "image"))
    return f"{folder} holds {first_ten(names) or 'neither folders nor images'}"


def list_files(images: Path, masks: Path, found: Inventory) -> tuple[list[Path], list[Path]]:
    """List the images of one folder and the masks of another.

    In one folder for both, masks are the files called ``NAME_mask`` or the like next to a NAME, if
    half of the other files have such a mask; else the PNG files. A missing or empty folder is added
    to the faults.

    Args:
        images: the folder of the images.
        masks: the folder of the masks.
        found: what faults are added to.

    Returns:
        Image files and mask files, sorted.
    """
    files = _list(images, found)
    if real_path(images) != real_path(masks):
        return files, _list(masks, found)
    is_mask = {path for path in files if path.suffix.lower() == ".png"}
    stems = {path.stem for path in files}
    naming, count = most_frequent_naming(stems, stems)
    if 2 * count >= len(stems) - count:
        names = {naming.mask_of(stem) for stem in stems}
        is_mask = {path for path in files if path.stem in names}
    image_files = [path for path in files if path not in is_mask]
    mask_files = [path for path in files if path in is_mask]
    if files and not (image_files and mask_files):
        found.faults.append(
            UserError(
                f"{images}: if one folder holds both, masks must be called NAME_mask or the like, "
                "or be the only PNG files; put them into a folder of their own"
            )
        )
    return image_files, mask_files


def _list(folder: Path, found: Inventory) -> list[Path]:
    if not folder.is_dir():
        advice = "name the two folders with {image_dir} and {mask_dir}"
        text = f"{folder}: no such folder; {_content(folder.parent)}"
        found.faults.append(UserError(text, advice=advice))
        return []
    left_out = LeftOut()
    files = [at / name for at, names in walk_folder(folder, left_out) for name in names]
    found.faults += left_out.errors
    if files and left_out.kinds:
        found.notes.append(f"{folder}: {left_out.describe()}")
    if not files and not left_out.errors:
        inside = sorted(path.name for path in folder.iterdir() if path.is_dir())
        more = f"; the folders in it, such as {inside[0]}, are not searched" if inside else ""
        but = f", but {left_out.count()}" if left_out.kinds else ""
        named = "name the two folders with {image_dir} and {mask_dir}" if inside else None
        found.faults.append(UserError(f"{folder}: holds no images{but}{more}", advice=named))
    return files
