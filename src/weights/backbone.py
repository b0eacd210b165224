"""Backbones trained on ImageNet, by torchvision's own loader or from a file."""

from pathlib import Path

from torch import nn

from ..errors import UserError
from .storage import is_state, read_file


def load_backbone(model: nn.Module, source: str | Path) -> None:
    """Start a network's encoder from weights of torchvision's VGG-16.

    Args:
        model: ``fcn8s`` (of ``vgg16``) or ``segnet`` (of ``vgg16_bn``).
        source: ``imagenet``, which torchvision downloads once (0.5 GB) and keeps, or the path of a
            state_dict with its names.

    Raises:
        UserError: the network has no such backbone, the download fails, or the file does not fit.
    """
    kind = getattr(model, "backbone", None)
    if kind is None:
        raise UserError(f"--backbone: {model.config.name} has none; fcn8s and segnet do")
    if str(source) == "imagenet":
        from torchvision.models import get_model_weights  # here, as it takes longer than torch

        weights = get_model_weights(kind).DEFAULT
        try:
            state = weights.get_state_dict(progress=True, check_hash=True)
        except OSError as error:  # URLError is one
            raise UserError(
                f"--backbone imagenet: cannot be downloaded ({error}); fetch {weights.url} "
                "elsewhere and give the file"
            ) from None
    else:
        state = read_file(source)
    if not is_state(state):
        raise UserError(f"--backbone {source}: not a state_dict of torchvision's {kind}")
    try:
        model.load_backbone(state)
    except UserError as error:
        raise UserError(f"--backbone {source}: {error}") from None
