"""Data sets of image and mask; ``train_utils/data`` holds what finds, checks and reads them."""

from train_utils.data.dataset import SegmentationDataset, load_pair
from train_utils.data.splits import SPLITS, find_pairs, find_splits, has_list

__all__ = ["SPLITS", "SegmentationDataset", "find_pairs", "find_splits", "has_list", "load_pair"]
