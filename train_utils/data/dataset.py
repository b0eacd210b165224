"""The data set that training and validation share."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.errors import UserError
from src.inference.preprocess import to_tensor
from src.pictures.images import open_image, to_rgb

from .pairs import Pair

if TYPE_CHECKING:  # torchvision, which they need, takes a second to import
    from .transforms import EvalPreset, Growing, TrainPreset, Varying

Sample = tuple[Tensor, Tensor, int]
"""Image 3×H×W uint8, mask 1×H×W uint8 and the pair's index."""


class SegmentationDataset(Dataset[Sample]):
    """Image, mask and index of each pair.

    Items are indexed by ``index``, by ``(epoch, index)``, or by ``(epoch, index, batch, use)`` as
    in the training sampler: the batch's number in its epoch may decide the size, and if an epoch
    uses an image several times, each use is augmented differently. The augmentation depends only on
    these and the seed, so a run is reproducible with any number of workers.

    Args:
        pairs: from :func:`~train_utils.data.splits.find_pairs`.
        transform: a preset of ``transforms.py``.
        seed: of the augmentation.
        donors: indices of the pairs whose objects a preset may paste into others; None: all.

    Example:
        >>> data = SegmentationDataset(pairs, TrainPreset(320, 288))  # doctest: +SKIP
        >>> data[0][0].shape  # doctest: +SKIP
        torch.Size([3, 288, 288])
    """

    def __init__(
        self,
        pairs: Iterable[Pair],
        transform: "TrainPreset | EvalPreset | Varying | Growing",
        seed: int = 0,
        donors: Sequence[int] | None = None,
    ) -> None:
        self.pairs = list(pairs)
        self.donors = range(len(self.pairs)) if donors is None else donors
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: int | tuple[int, ...]) -> Sample:
        """Load and transform a pair.

        Raises:
            UserError: image or mask cannot be read.
        """
        epoch, index, *more = key if isinstance(key, tuple) else (0, key)
        batch, again = more[:1], [use for use in more[1:] if use]
        image, mask = load_pair(self.pairs[index])
        preset = self.transform.at(epoch, *batch)
        with _random_state_of(self.seed, epoch, index, *again):
            image, mask = preset(image, mask)
            if preset.paste and torch.rand(()) < preset.paste and self.donors:
                from .transforms import paste

                other = self.pairs[self.donors[int(torch.randint(len(self.donors), ()))]]
                with suppress(UserError):  # it is raised when it is that pair's own turn
                    pasted = preset(*load_pair(other))
                    image, mask = paste(*pasted, image, mask, 255 if preset.soft else 1)
        return image, mask, index


def load_pair(pair: Pair) -> tuple[Tensor, Tensor]:
    """Read image and mask.

    Args:
        pair: their files, and how the mask is read.

    Returns:
        The image, 3×H×W uint8, and the mask, 1×h×w uint8, of the image's size or aspect ratio.

    Raises:
        UserError: one of them cannot be read.
    """
    return to_tensor(to_rgb(open_image(pair.image))), torch.from_numpy(pair.load_mask())[None]


@contextmanager
def _random_state_of(*numbers: int) -> Iterator[None]:
    """Seed the CPU's global generator within the block, and restore it afterwards.

    torchvision's random transforms draw from it and accept no ``torch.Generator``.
    """
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which seeds GPUs too, and formats a stack trace to do so later.
        torch.default_generator.manual_seed(int.from_bytes(digest, "little") >> 1)
        yield
