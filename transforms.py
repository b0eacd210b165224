"""Transform presets for training and evaluation, from ``train_utils/data/transforms.py``."""

from train_utils.data.transforms import EvalPreset, Growing, TrainPreset, Varying, paste

__all__ = ["EvalPreset", "Growing", "TrainPreset", "Varying", "paste"]
