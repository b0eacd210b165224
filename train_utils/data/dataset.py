"""The data set that training, validation and prediction of a set share."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.inference.preprocess import to_tensor
from src.pictures.images import open_image, to_rgb

from .masks import read_mask
from .pairs import MaskReader, Pair
from .transforms import EvalPreset, Growing, TrainPreset, paste


class SegmentationDataset(Dataset):
    """Picture, mask and position of each pair.

    Args:
        pairs: of :func:`find_pairs`.
        transform: a preset of ``transforms.py``.
        seed: of the augmentation.
        read: of a mask file, to {0, 1} or class indices.

    An item is asked for by ``index``, or by ``(epoch, index)`` as the training sampler does: its
    augmentation depends on (seed, epoch, index) alone, so a run repeats whatever the number of
    workers. It gives picture (3×H×W uint8), mask (1×H×W uint8 {0, 1}) and index.
    """

    def __init__(
        self,
        pairs: Iterable[Pair],
        transform: TrainPreset | EvalPreset | Growing,
        seed: int = 0,
        read: MaskReader = read_mask,
    ) -> None:
        self.pairs = list(pairs)
        self.read = read
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Tensor, int]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        picture, mask = load_pair(self.pairs[index], self.read)
        # Not torch.manual_seed: it seeds GPUs too, and formats a stack trace for each one to come.
        before = torch.random.get_rng_state()
        try:
            torch.default_generator.manual_seed(_mix(self.seed, epoch, index))
            preset = self.transform.at(epoch)
            picture, mask = preset(picture, mask)
            if getattr(preset, "paste", 0) and torch.rand(()) < preset.paste:
                other = self.pairs[int(torch.randint(len(self), ()))]
                picture, mask = paste(*preset(*load_pair(other, self.read)), picture, mask)
            return picture, mask, index
        finally:
            torch.random.set_rng_state(before)


def load_pair(pair: Pair, read: MaskReader = read_mask) -> tuple[Tensor, Tensor]:
    """Picture 3×H×W uint8 and mask 1×h×w uint8, of the picture's size or its aspect."""
    return to_tensor(to_rgb(open_image(pair.image))), torch.from_numpy(read(pair.mask))[None]


def _mix(*numbers: int) -> int:
    """One 63-bit seed of several numbers, no two alike by plain arithmetic."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
