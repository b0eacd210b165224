"""The thirteen convolutions of VGG-16 (Simonyan & Zisserman 2015, table 1, column D)."""

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor, nn

from ..errors import UserError
from .base import BATCH_NORMS

_STAGES = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))


def vgg16_channels(in_ch: int, width: int) -> list[list[tuple[int, int]]]:
    """Channels in and out of each convolution, by stage; a 2×2 max-pooling ends each stage."""
    stages: list[list[tuple[int, int]]] = []
    for multiples in _STAGES:
        stages.append([])
        for multiple in multiples:
            stages[-1].append((in_ch, multiple * width))
            in_ch = multiple * width
    return stages


def layers(module: nn.Module) -> Iterator[nn.Module]:
    """Its convolutions and batch norms, from the first to the last."""
    return (m for m in module.modules() if isinstance(m, (nn.Conv2d, *BATCH_NORMS)))


def load_layers(
    into: Iterable[nn.Module], state: Mapping[str, Tensor], part: str, name: str
) -> None:
    """Copy torchvision's numbered layers (``features.0.weight`` …) to ours, in order.

    Args:
        into: our convolutions and batch norms.
        state: of torchvision's VGG.
        part: ``features`` or ``classifier``. Its fully connected layers fit convolutions of as many
            weights (Long et al. 2015, section 3.1).
        name: of the network, for messages.

    Raises:
        UserError: other layers, or layers of other shapes.
    """
    names = [key.split(".") for key in state if key.startswith(f"{part}.")]
    numbers = sorted({int(key[1]) for key in names if len(key) == 3 and key[1].isdigit()})
    for module in into:
        prefix = f"{part}.{numbers.pop(0)}." if numbers else f"{part}, whose layers are too few, "
        own = module.state_dict()
        given = {key: state.get(prefix + key) for key in own if key != "num_batches_tracked"}
        for key, value in given.items():
            if value is None or value.numel() != own[key].numel():
                found = "missing" if value is None else f"of shape {list(value.shape)}"
                raise UserError(
                    f"{prefix}{key} is {found}; a backbone for {name} has {list(own[key].shape)}"
                )
        own |= {key: value.view_as(own[key]) for key, value in given.items()}
        module.load_state_dict(own)
