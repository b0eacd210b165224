"""A teacher: a trained network whose maps are targets, and images that have no other targets."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src import Network, Predictor, UserError
from src.device import amp_name
from src.inference.preprocess import resize_input, resize_map
from src.pictures.images import list_images, open_image, oriented_size
from src.words import counted, first_ten

from ...data.pairs import FileId, Pair, file_id


class Teacher:
    """A trained network, and the weight of its maps in the targets.

    It sees the same augmented crops as the network that learns, at its own size and by its own mean
    and std, in eval mode and without a gradient.

    Args:
        network: the teacher; copied.
        share: weight of its maps in the targets of images with masks, from 0 to 1.
        device: where to compute.
        dtype: of its convolutions.

    Example:
        >>> from src import build_model
        >>> teacher = Teacher(build_model("u2net_lite"), 0.5, torch.device("cpu"), torch.float32)
        >>> images = torch.zeros(2, 3, 40, 40, dtype=torch.uint8)
        >>> maps, share = teacher(images, torch.tensor([0, 7]))
        >>> maps.shape, share.flatten().tolist()
        (torch.Size([2, 1, 40, 40]), [0.5, 0.5])
    """

    def __init__(
        self, network: Network, share: float, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.predictor = Predictor(network, device=device, amp=amp_name(dtype))
        self.share = share
        self.labelled: int | None = None  # images from this index on have no masks; None: all have

    def __call__(self, images: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's maps of a batch.

        Args:
            images: N×3×S×S uint8, on its device.
            indices: N, of the images in the data set.

        Returns:
            Its maps N×C×S×S, probabilities in float32, and their weight in the targets, N×1×1×1.

        Raises:
            UserError: it returns values that are not finite.
        """
        resized = resize_input(images, self.predictor.size.fit(*images.shape[-2:]))
        maps = resize_map(self.predictor.probabilities(resized), images.shape[-2:])
        share = torch.full((len(images), 1, 1, 1), float(self.share), device=images.device)
        if self.labelled is not None:
            share[indices >= self.labelled] = 1
        return maps, share


def check_maps(network: Network, maps: int, source: str, **parameter: Any) -> None:
    """Check that a network takes RGB and gives the maps of a run's task.

    Args:
        network: to learn, or to teach.
        maps: expected number of maps: 1, or one for each class.
        source: where the network is from, for the error, before its name.
        parameter: ``parameter`` and ``value`` of the error.

    Raises:
        UserError: it is for another task.
    """
    config = network.config
    activation = "sigmoid" if maps == 1 else "softmax"
    if (config.in_ch, config.out_ch, config.activation) != (3, maps, activation):
        takes, gives = counted(config.in_ch, "channel"), counted(config.out_ch, "map")
        raise UserError(
            f"{source} {config.name} takes {takes} and gives {gives} with {config.activation}; "
            f"expected 3 channels and {counted(maps, 'map')} with {activation}",
            advice="see {num_classes}",
            **parameter,
        )


def unlabelled_pairs(
    folders: Sequence[Path],
    known: Collection[FileId],
    skip_invalid: bool,
    masks: Collection[FileId] = (),
) -> tuple[list[Pair], list[str]]:
    """The images of folders, subfolders included, as pairs without a mask.

    Args:
        folders: of the images.
        known: files that the run trains on with their masks, or holds out.
        skip_invalid: decode every file, and leave out those that cannot be read.
        masks: the run's mask files, which do not count as images.

    Returns:
        The pairs, whose masks are read as empty, and notes for the user.

    Raises:
        UserError: a folder is missing, or has no image other than known ones.
    """
    pairs: dict[FileId, Pair] = {}
    notes: list[str] = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError("no such folder", "unlabelled", folder)
        inside = [path for path in sorted(folder.rglob("*")) if path.is_dir()]
        visible = [path for path in inside if "/." not in f"/{path.relative_to(folder).as_posix()}"]
        images = [image for part in (folder, *visible) for image in list_images(part)]
        left = {file_id(path): path for path in images}
        reasons = (known, "trained on with masks, or held out"), (masks, "masks of the run")
        for others, reason in reasons:
            if count := sum(key in others for key in left):
                what = counted(count, "of its images is", "of its images are")
                notes.append(f"{folder}: {what} {reason}: left out here")
            left = {key: path for key, path in left.items() if key not in others}
        faults = _faults(left) if skip_invalid else {}
        if faults:
            named = first_ten([error.args[0] for error in faults.values()])
            notes.append(
                f"{folder}: {counted(len(faults), 'file')} cannot be read, left out: {named}"
            )
        sound = {key: path for key, path in left.items() if key not in faults}
        if not sound:
            raise UserError("no images without masks in it", "unlabelled", folder)
        pairs |= {key: Pair(path, path, read=_no_mask) for key, path in sound.items()}
    return list(pairs.values()), notes


def has_mask(pair: Pair) -> bool:
    """Whether a pair has a mask; those of :func:`unlabelled_pairs` have the image in its place."""
    return pair.mask != pair.image


def _faults(images: dict[FileId, Path]) -> dict[FileId, UserError]:
    faults = {}
    for key, path in images.items():
        try:
            open_image(path)
        except UserError as error:
            faults[key] = error
    return faults


def _no_mask(path: Path) -> np.ndarray:
    """An empty mask of an image's size, to be replaced by a teacher's map."""
    width, height = oriented_size(path)
    return np.zeros((height, width), np.uint8)
