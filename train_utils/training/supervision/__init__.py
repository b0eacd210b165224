"""What a network learns from besides masks: a teacher's maps, and the features of masks."""

from .encoder import (
    MaskEncoder,
    WithFeatures,
    check_features,
    make_mask_encoder,
    mask_encoder_table,
)
from .teacher import Teacher, check_maps, has_mask, unlabelled_pairs

__all__ = [
    "MaskEncoder",
    "Teacher",
    "WithFeatures",
    "check_features",
    "check_maps",
    "has_mask",
    "make_mask_encoder",
    "mask_encoder_table",
    "unlabelled_pairs",
]
