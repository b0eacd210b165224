"""The presets of training and evaluation; ``train_utils/data/transforms.py`` holds them."""

from train_utils.data.transforms import EvalPreset, Growing, TrainPreset, Varying, paste

__all__ = ["EvalPreset", "Growing", "TrainPreset", "Varying", "paste"]
