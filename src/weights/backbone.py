"""Backbones trained on ImageNet, by torchvision's own loader or from a file."""

from pathlib import Path

from ..errors import UserError
from ..networks.base import Network
from .storage import is_state, read_file


def load_backbone(model: Network, backbone: str | Path) -> None:
    """Start a network's encoder from weights of torchvision's VGG-16.

    Args:
        model: ``fcn8s`` (from ``vgg16``) or ``segnet`` (from ``vgg16_bn``).
        backbone: ``imagenet``, which torchvision downloads once (0.5 GB) and keeps, or the path of
            a state_dict with torchvision's names.

    Raises:
        UserError: the network has no such backbone, the download fails, or the file does not fit.

    Example:
        >>> from src import build_model
        >>> load_backbone(build_model("segnet"), "imagenet")  # doctest: +SKIP
    """
    kind = model.backbone
    if kind is None:
        raise UserError(f"{model.config.name} has none; fcn8s and segnet do", "backbone", backbone)
    if str(backbone) == "imagenet":
        try:
            from torchvision.models import get_model_weights  # here, as it is slow to import
        except ImportError:
            raise UserError(
                "needs torchvision: pip install torchvision", "backbone", backbone
            ) from None

        weights = get_model_weights(kind).DEFAULT
        try:
            state = weights.get_state_dict(progress=True, check_hash=True)
        except OSError as error:  # URLError is one
            raise UserError(
                f"cannot be downloaded ({error}); download {weights.url} elsewhere and give the "
                "file's path",
                "backbone",
                backbone,
            ) from None
    else:
        state = read_file(backbone)
    if not is_state(state):
        raise UserError(f"not a state_dict of torchvision's {kind}", "backbone", backbone)
    try:
        model.load_backbone(state)
    except UserError as error:
        raise UserError(str(error), "backbone", backbone) from None
