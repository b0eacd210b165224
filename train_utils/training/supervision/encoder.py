"""Features of masks that supervise those of a network (Qin et al. 2022, "Highly accurate
dichotomous image segmentation", section 4.2).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src import GT_ENCODER, Network, U2NetConfig, UserError, build_model
from src.networks.config import StageConfig, StemConfig
from src.networks.u2net import U2Net
from src.weights.storage import load_state

from ...distributed import share_buffers
from ..losses import DeepSupervision

_INNER = [stage.mid_ch for stage in GT_ENCODER.encoder]  # channels inside the published stages


class WithFeatures(nn.Module):
    """A network that returns its maps and the features behind them in training mode."""

    def __init__(self, network: U2Net) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return self.network.maps_and_features(x)


class MaskEncoder:
    """An encoder that learns to reproduce masks and is then frozen.

    Args:
        model: the encoder, on its device; trained by :func:`fit_mask_encoder`.
        loss: of the network that learns from it, which knows the masks' form.
        places: for each feature of that network, the index of the encoder's to compare it with.

    Attributes:
        ready: whether it is trained.
        training: the state of an interrupted training.
    """

    def __init__(self, model: U2Net, loss: DeepSupervision, places: Sequence[int]) -> None:
        self.model = model
        self.loss = loss
        self.places = places
        self.ready = False
        self.training: dict[str, Any] | None = None

    @property
    def names(self) -> list[str]:
        """The names of the terms of :meth:`compare` in logs."""
        return [f"feature{number}" for number, _ in enumerate(self.places, 1)]

    def read(self, masks: Tensor) -> Tensor:
        """Masks N×1×H×W uint8 as the encoder reads them: N×C×H×W float32 in [0, 1], channels last;
        for classes, one map each.
        """
        return self.loss.target(masks).values.contiguous(memory_format=torch.channels_last)

    def compare(self, features: Sequence[Tensor], masks: Tensor) -> Tensor:
        """The mean squared error of each feature to that of the masks, float32.

        Args:
            features: N×C×h×w each, from the finest to the coarsest.
            masks: N×1×H×W uint8.
        """
        with torch.no_grad():
            wanted = self.model.maps_and_features(self.read(masks))[1]
        pairs = zip(features, self.places, strict=True)
        return torch.stack([F.mse_loss(one.float(), wanted[i].float()) for one, i in pairs])

    def freeze(self) -> None:
        """Freeze weights and statistics, with rank 0's on every rank."""
        share_buffers(self.model)
        self.model.eval().requires_grad_(False)
        self.ready, self.training = True, None

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: the weights, or the state of its training if that isn't done."""
        return {"training": self.training, "model": self.model.state_dict() if self.ready else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self.training = state["training"]
        if state["model"] is not None:
            load_state(self.model, state["model"], "the checkpoint's GT encoder")
            self.freeze()


def make_mask_encoder(
    network: Network, loss: DeepSupervision, seed: int, place: Callable[[U2Net], U2Net]
) -> MaskEncoder:
    """An untrained GT encoder whose features match the sizes of a network's.

    Args:
        network: the one that will learn from it.
        loss: its loss.
        seed: of the encoder's initial weights.
        place: puts the encoder on its device.

    Raises:
        UserError: the network has no features to compare.
    """
    network = check_features(network)
    table = mask_encoder_table(network.config)
    levels = [level for level, stage in enumerate(table.encoder) if stage.side]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        encoder = build_model(table)
    assert isinstance(encoder, U2Net)
    places = [levels.index(level) for level, _ in network.config.side_stages]
    return MaskEncoder(place(encoder), loss, places)


def check_features(network: Network) -> U2Net:
    """The network itself, if a GT encoder can match the sizes of its features.

    Raises:
        UserError: it has no features to compare, or two of one level with different channels.
    """
    if not isinstance(network, U2Net):
        problem = f"{network.config.name} has no features behind side maps"
        raise UserError(problem, "feature_supervision", advice="pass a U²-Net or IS-Net as {model}")
    mask_encoder_table(network.config)
    return network


def mask_encoder_table(config: U2NetConfig) -> U2NetConfig:
    """The stage table of the encoder whose features match the sizes of a network's.

    For IS-Net's table it is the published one. For others, each stage has the height of the
    network's own encoder stage, and the channels of its feature at that level.

    Args:
        config: of the network.

    Raises:
        UserError: two of its features at one level differ in their channels.

    Example:
        >>> from src import GT_ENCODER, ISNET, LITE
        >>> mask_encoder_table(ISNET) == GT_ENCODER
        True
        >>> [stage.out_ch for stage in mask_encoder_table(LITE).encoder]
        [64, 64, 64, 64, 64, 64]
    """
    count = len(config.encoder)
    stages = [*enumerate(config.encoder), *zip(range(count - 2, -1, -1), config.decoder)]  # noqa: B905
    channels: dict[int, int] = {}
    for level, stage in stages:
        if stage.side and channels.setdefault(level, stage.out_ch) != stage.out_ch:
            raise UserError(
                f"{config.name}: the features of stage {stage.name} and its encoder stage differ "
                f"in their channels, {stage.out_ch} and {channels[level]}",
                "feature_supervision",
            )
    first = GT_ENCODER.encoder[0].in_ch if config.stem else config.out_ch
    table = []
    for level, stage in enumerate(config.encoder[: max(2, max(channels) + 1)]):
        out = channels.get(level, stage.out_ch)
        inner = max(1, min(_INNER[min(level, len(_INNER) - 1)], out // 4))
        side = level in channels
        table.append(StageConfig(stage.name, stage.height, first, inner, out, stage.dilated, side))
        first = out
    return GT_ENCODER.replace(
        encoder=tuple(table),
        stem=StemConfig(config.out_ch, GT_ENCODER.encoder[0].in_ch, norm=True)
        if config.stem
        else None,
        out_ch=config.out_ch,
        activation=config.activation,
    )
