"""What every network of the family shares: its few options, and the contract of its outputs."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import UserError
from ..weights.hub import HubNetwork
from .config import Table, check_integer, from_fields


@dataclass(frozen=True)
class NetworkConfig(Table):
    """The options of a network that needs no stage table.

    Args:
        name: which network, a name of ``NETWORKS``.
        in_ch: channels of the picture.
        out_ch: channels of the map: 1 for saliency, else one per class.
        activation: what turns logits into probabilities in eval mode.
        width: channels of the finest level, 64 as published; the others follow in proportion.

    Raises:
        UserError: a value of another type or range; it names the field.
    """

    name: str
    in_ch: int = 3
    out_ch: int = 1
    activation: Literal["sigmoid", "softmax"] = "sigmoid"
    width: int = 64

    def __post_init__(self) -> None:
        for field in ("in_ch", "out_ch", "width"):
            check_integer(self.name, field, getattr(self, field))
        if self.activation not in ("sigmoid", "softmax"):
            raise UserError(
                f"{self.name}: activation must be sigmoid or softmax, got {self.activation!r}"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "NetworkConfig":
        """The inverse of :meth:`to_dict`; an unknown key is a UserError."""
        return from_fields(cls, values, "network table")


BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
MIN_SIZE = 32  # pixels a side that every network takes


class Network(nn.Module, HubNetwork):
    """A network from picture to maps.

    Args:
        config: with at least ``name``, ``in_ch``, ``out_ch`` and ``activation``.

    Shape: input N×in_ch×H×W float, normalised, any H, W ≥ 32.

    Returns (forward): in training mode a list of logits, the map that counts first, each
    N×out_ch×H×W (``unet`` alone: of their centre, as its convolutions are unpadded). In eval mode
    the first map as float32 probabilities, N×out_ch×H×W in [0, 1].
    """

    config_class: ClassVar[type] = NetworkConfig
    img_size = 320  # the side that pictures are resized to; kept with the weights
    fused = False
    recompute = False  # training keeps what leaves a stage alone, see run
    num_maps = 1  # how many training mode returns
    stride: ClassVar[int] = 1  # how much smaller than the picture the coarsest batch norm's map is
    margin: ClassVar[int] = 0  # pixels that training mode's maps lack on each side
    jumps: ClassVar[bool] = False  # rounding may decide between maps that differ much (SegNet's)
    backbone: ClassVar[str | None] = None  # torchvision's name for weights that it can start from

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def plain(self) -> "Network":
        """A copy, without what a subclass changes in names and outputs for other people's code."""
        return copy.deepcopy(self)

    def plain_state(self) -> dict[str, Tensor]:
        """The tensors of :meth:`plain` by name, not copied."""
        return self.state_dict()

    def logits(self, x: Tensor) -> list[Tensor]:
        """The list that training mode returns, in either mode."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> list[Tensor] | Tensor:
        maps = self.logits(x)
        return maps if self.training else self.probabilities(maps[0])

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits N×out_ch×H×W to float32 probabilities by the config's activation."""
        logits = logits.float()
        return logits.softmax(1) if self.config.activation == "softmax" else logits.sigmoid()

    def run(self, stage: nn.Module, *inputs: Tensor) -> Tensor:
        """What a stage makes of its inputs. Where ``recompute`` is set, training forgets what lies
        inside of the stage, and computes it once more when the gradient asks for it (Chen et al.
        2016, "Training deep nets with sublinear memory cost"): less memory for more time, and the
        same step.
        """
        if not (self.recompute and self.training and torch.is_grad_enabled()):
            return stage(*inputs)
        again = (nullcontext(), _no_statistics(stage))
        return checkpoint(stage, *inputs, use_reentrant=False, context_fn=lambda: again)

    def fuse(self) -> "Network":
        """Fold every batch norm into its convolution, in place; sets eval mode. Returns self."""
        self.eval()
        self.fused = True
        for module in self.modules():
            if module is not self and hasattr(module, "fuse"):
                module.fuse()
        return self


@contextmanager
def _no_statistics(stage: nn.Module) -> Iterator[None]:
    """Batch norm's running mean and variance have seen the batch already: copies see it again."""
    norms = [m for m in stage.modules() if isinstance(m, BATCH_NORMS)]
    kept = [dict(norm.named_buffers(recurse=False)) for norm in norms]
    for norm, buffers in zip(norms, kept, strict=True):
        for name, buffer in buffers.items():
            setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)


def init_he(network: nn.Module) -> None:
    """Normal weights of variance 2 / fan-in (He et al. 2015) for all convolutions, biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
