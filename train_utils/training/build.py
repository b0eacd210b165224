"""The network that a run starts with, whether it fits the run's flags, and its loss."""

import argparse
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from src import U2NetConfig, UserError, build_model, load_model
from src.weights.backbone import load_backbone

from ..data.masks import balanced_weights
from ..distributed import is_main
from .losses import DeepSupervision


def start_network(args: argparse.Namespace, state: dict[str, Any] | None) -> nn.Module:
    """The network of the checkpoint, of the pretrained weights, or a new one.

    Args:
        args: of ``train.py``.
        state: of the run to go on with, if there is one.

    Raises:
        UserError: weights and flags don't agree, or the network can't take what is asked for.
    """
    maps = args.num_classes or 1
    activation = "softmax" if args.num_classes else "sigmoid"
    if state:
        model = build_model(state["config"])
    elif args.pretrained:
        model = load_model(args.pretrained)
    else:
        model = build_model(args.model or "u2net_full", out_ch=maps, activation=activation)
        if args.backbone:
            load_backbone(model, args.backbone)
    with torch.device("meta"):  # its table is wanted, not its weights
        named = build_model(args.model) if args.model else model
    if _structure(named) != _structure(model):
        source = f"--resume {args.resume}" if state else f"--pretrained {args.pretrained}"
        raise UserError(f"{source} holds a {model.config.name}, not --model {args.model}")
    config = model.config
    if (config.in_ch, config.out_ch, config.activation) != (3, maps, activation):
        source = f"--pretrained {args.pretrained}: " if args.pretrained and not state else ""
        raise UserError(
            f"{source}{config.name} takes {config.in_ch} channels and gives {config.out_ch} maps "
            f"by {config.activation}; expected 3, {maps} and {activation} (see --num-classes)"
        )
    _check_sizes(args, model)
    model.img_size = args.img_size[-1]
    return model


def make_loss(args: argparse.Namespace, train_set: Dataset) -> DeepSupervision:
    """Of the flags of ``train.py``; balanced class weights are counted in the masks of the set."""
    weights = args.class_weights
    if weights == ["balanced"]:
        masks, classes = [pair.mask for pair in train_set.pairs], args.num_classes or 2
        weights = balanced_weights(masks, train_set.read, classes, args.ignore_index)
        if is_main():
            print("class weights:", *(f"{weight:.3g}" for weight in weights), flush=True)
    classes = args.num_classes or 1
    return DeepSupervision(args.loss_weights, args.loss, classes, args.ignore_index, weights)


def _check_sizes(args: argparse.Namespace, model: nn.Module) -> None:
    """What the flags ask for against what the network can take."""
    name, smallest = model.config.name, min(args.crop_size)
    if args.loss_weights and len(args.loss_weights) != model.num_maps:
        raise UserError(f"--loss-weights: {name} has {model.num_maps} maps; one for each")
    if args.batch_size == 1 and smallest <= model.stride:
        raise UserError(
            f"--batch-size 1 with --crop-size {smallest}: the coarsest maps have one pixel, and "
            "batch norm needs more; raise either"
        )
    if smallest <= 2 * model.margin:
        raise UserError(
            f"--crop-size {smallest}: {name} learns a crop without {model.margin} pixels on each "
            f"side, as its convolutions are unpadded; give more than {2 * model.margin}, or unet_bn"
        )


def _structure(model: nn.Module) -> tuple:
    config = model.config
    if isinstance(config, U2NetConfig):
        return config.encoder, config.decoder
    return config.name, config.width
