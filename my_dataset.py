"""Data sets of images and masks; ``train_utils/data`` finds, checks and reads them."""

from train_utils.data.dataset import SegmentationDataset, load_pair
from train_utils.data.masks import read_mask
from train_utils.data.pairs import Pair
from train_utils.data.splits import SPLITS, find_pairs, find_splits, has_list

__all__ = [
    "SPLITS",
    "Pair",
    "SegmentationDataset",
    "find_pairs",
    "find_splits",
    "has_list",
    "load_pair",
    "read_mask",
]
