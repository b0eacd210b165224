"""The network that a run trains, with the weights it starts from."""

from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn

from src import Network, U2NetConfig, UserError, build_model, load_model
from src.weights.backbone import load_backbone
from src.words import counted

from ...config import Settings
from ..supervision import check_features, check_maps

NetworkT = TypeVar("NetworkT", bound=Network)

_ENCODERS = "stem", "encoder", "down", "stages"  # attributes that form a network's encoder


def make_network(settings: Settings, state: dict[str, Any] | None, device: torch.device) -> Network:
    """The network of a checkpoint, of pretrained weights, or a new one, ready to train.

    Args:
        settings: of the run.
        state: the checkpoint to continue from, if there is one.
        device: where to put it.

    Raises:
        UserError: weights and settings conflict, or the network does not support a setting.
    """
    model = _start_network(settings, state)
    _check_fit(settings, model)
    encoder_of(settings, model)
    if settings.feature_supervision:
        check_features(model)
    # The size it was last scored at, or will be first; each evaluation updates it.
    model.img_size = state["img_size"] if state else settings.eval_sizes[0]
    return place_network(settings, device, model)


def place_network(settings: Settings, device: torch.device, model: NetworkT) -> NetworkT:
    """A network ready to train.

    Raises:
        UserError: SyncBatchNorm is requested without a GPU.
    """
    model.recompute = settings.checkpoint_activations
    model = model.to(device).to(memory_format=torch.channels_last)
    if settings.sync_bn:
        if device.type != "cuda":
            raise UserError("torch's SyncBatchNorm runs only on GPUs", "sync_bn")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model


def _start_network(settings: Settings, state: dict[str, Any] | None) -> Network:
    """Build the network with the weights it starts from."""
    maps = settings.num_classes or 1
    activation = "softmax" if settings.num_classes else "sigmoid"
    source = "the checkpoint" if state else str(settings.pretrained)
    if state:
        model = build_model(state["config"])
    elif settings.pretrained:
        model = load_model(settings.pretrained)
    else:
        model = build_model(settings.model or "u2net_full", out_ch=maps, activation=activation)
        if settings.backbone:
            load_backbone(model, settings.backbone)
    if settings.model:
        with torch.device("meta"):  # only its table is needed, not its weights
            named = build_model(settings.model)
        if _structure(named) != _structure(model):
            held = f"{source} holds {model.config.name}{_differences(model, named)}"
            raise UserError(held, "model", settings.model)
    check_maps(model, maps, f"{source}:")
    return model


def encoder_of(settings: Settings, model: Network) -> list[nn.Module]:
    """The parts of a network that ``freeze_encoder`` freezes; empty if it freezes nothing.

    Raises:
        UserError: the network has no encoder.
    """
    if not settings.freeze_encoder:
        return []
    parts = [getattr(model, name, None) for name in _ENCODERS]
    found = [part for part in parts if isinstance(part, nn.Module)]
    if not found:
        raise UserError(
            f"{model.config.name} has no encoder", "freeze_encoder", settings.freeze_encoder
        )
    return found


def resolve_freeze_bn(settings: Settings, state: dict[str, Any] | None) -> Settings:
    """Settings with ``freeze_bn`` resolved: a new run freezes the statistics of pretrained weights,
    a resumed one does as before.
    """
    if settings.freeze_bn is not None:
        return settings
    frozen = state["flags"].get("freeze_bn", False) if state else settings.pretrained is not None
    return replace(settings, freeze_bn=bool(frozen))


def _check_fit(settings: Settings, model: Network) -> None:
    """Check that the network supports the settings."""
    name, smallest = model.config.name, settings.smallest_crop
    if settings.loss_weights and len(settings.loss_weights) != model.num_maps:
        maps = counted(model.num_maps, "map")
        raise UserError(f"expected one for each of {name}'s {maps}", "loss_weights")
    if settings.loss_weights and not any(settings.loss_weights):
        raise UserError("all are 0, so nothing would be learned", "loss_weights")
    larger = settings.crop_setting
    if settings.batch_size == 1 and smallest <= model.stride:
        count = "overfit" if settings.overfit else "batch_size"
        problem = (
            f"batch norm needs more than one pixel, but crops of {smallest} leave one in the "
            "coarsest maps"
        )
        raise UserError(problem, count, 1, advice=f"raise {{{count}}} or {{{larger}}}")
    if smallest <= 2 * model.margin:
        problem = f"the unpadded convolutions of {name} need more than {2 * model.margin} pixels"
        advice = "pass a larger one, or {model} unet_bn"
        raise UserError(problem, larger, smallest, advice)


def _structure(model: Network) -> tuple[Any, ...]:
    config = model.config
    if isinstance(config, U2NetConfig):
        return config.encoder, config.decoder, config.stem, config.fuse_sides
    return config.name, config.width


def _differences(model: Network, named: Network) -> str:
    """Describe how two networks of one name differ; empty if their names differ already."""
    if model.config.name != named.config.name:
        return ""
    table, other = model.config.to_dict(), named.config.to_dict()
    changed = [name for name in table if table[name] != other.get(name)]
    changed = [name for name in changed if name not in ("out_ch", "activation", "conv_bias")]
    short = "; ".join(
        f"{name} {table[name]}, not {other.get(name)}"
        if isinstance(table[name], int | None)
        else f"other values of {name}"
        for name in changed
    )
    return f" with {short}" if short else ""
