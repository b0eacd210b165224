"""Train a GT encoder (from IS-Net: a network that reproduces masks) before the network that learns
from it.
"""

from collections.abc import Callable
from contextlib import closing
from itertools import islice

import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import ConstantLR
from tqdm import tqdm

from src.words import counted

from ...data.dataset import SegmentationDataset
from ...data.loaders import Loader
from ...distributed import is_main, no_bar, sum_over_ranks
from ..losses import DeepSupervision
from ..optim import make_scaler
from ..scoring import Diverged
from ..trainer import Batch, Trainer
from .encoder import MaskEncoder

GOOD_F = 0.99  # F of its maps in two tests in a row, as in the official code
_EVERY = 20  # optimizer steps between tests
_LR = 1e-3  # of AdamW without decay or schedule, as in the official code


def fit_mask_encoder(
    trainer: Trainer,
    encoder: MaskEncoder,
    train: Loader[SegmentationDataset],
    *,
    accum: int,
    limit: int,
    bad_steps: int,
    check: Callable[[Trainer, bool], None],
) -> None:
    """Train a GT encoder until it reproduces masks, and freeze it.

    It is tested in eval mode on every 20th batch, before its step: the mean F (β² = 0.3) of its
    finest map, thresholded at 0.5, against the masks of the batch.

    Args:
        trainer: of the network that will learn from it.
        encoder: continues where it was interrupted.
        train: batches of an :class:`~train_utils.data.loaders.EpochSampler`, whose masks are used.
        accum: batches per optimizer step.
        limit: the most optimizer steps.
        bad_steps: this many in a row that are not finite end the run.
        check: called before each step, and with True at the end of each epoch; saves, or raises if
            the run should stop.

    Raises:
        Diverged: too many bad steps in a row.
    """
    own = _make_trainer(trainer, encoder)
    if encoder.training:
        own.load_state_dict(encoder.training)
    while own.updates < limit and not _is_ready(own):
        _fit_epoch(own, encoder, train, accum, limit, bad_steps, check)
        if own.batches_done >= len(train.sampler):
            own.epoch, own.batches_done = own.epoch + 1, 0
            check(own, True)
    encoder.freeze()
    if is_main():
        _report(own)


def _is_ready(own: Trainer) -> bool:
    return own.best.get("passes", 0) >= 2


def _fit_epoch(
    own: Trainer,
    encoder: MaskEncoder,
    train: Loader[SegmentationDataset],
    accum: int,
    limit: int,
    bad_steps: int,
    check: Callable[[Trainer, bool], None],
) -> None:
    """Take an epoch's steps, from where it was left, until the encoder is ready or the limit."""
    own.train_mode()
    sampler = train.sampler
    sampler.epoch, sampler.start = own.epoch, own.batches_done
    batches = iter(train)
    every = min(_EVERY, -(-len(sampler) // accum))
    text = f"GT encoder, epoch {own.epoch + 1}"
    with closing(tqdm(desc=text, total=len(sampler), disable=no_bar(), leave=False)) as bar:
        while own.batches_done < len(sampler) and own.updates < limit:
            encoder.training = None  # the last step's, which would be saved instead
            check(own, False)
            group: list[Batch] = [(b[1], b[1], b[2]) for b in islice(batches, accum)]
            if own.updates and own.updates % every == 0:
                f_measure = _score(own, encoder, group)
                passes = own.best.get("passes", 0) + 1 if f_measure >= GOOD_F else 0
                own.best = {"f": f_measure, "passes": passes}
                bar.set_postfix_str(f"F {f_measure:.3f}")
                if _is_ready(own):
                    return
            own.step(group)
            bar.update(len(group))
            if own.updates == limit and "f" not in own.best:  # fewer steps than tests
                own.best = {"f": _score(own, encoder, group), "passes": 0}
            if own.bad_steps >= bad_steps:
                raise Diverged(
                    f"the GT encoder: {bad_steps} steps in a row that are not finite; "
                    "checkpoints stay as they were"
                )


def _make_trainer(trainer: Trainer, encoder: MaskEncoder) -> Trainer:
    optimizer = AdamW(encoder.model.parameters(), lr=_LR, weight_decay=0)
    taught = encoder.loss
    loss = DeepSupervision(
        classes=taught.classes, ignore_index=taught.ignore_index, soft=taught.soft
    )
    return Trainer(
        model=encoder.model,
        optimizer=optimizer,
        scheduler=ConstantLR(optimizer, 1.0),
        scaler=make_scaler(trainer.device, trainer.dtype),
        loss=loss,
        dtype=trainer.dtype,
        clip_grad=trainer.clip_grad,
        compile=trainer.compile,
        read=encoder.read,
    )


@torch.no_grad()
def _score(own: Trainer, encoder: MaskEncoder, group: list[Batch]) -> float:
    """The mean F of the encoder's maps in eval mode, over the batches' masks that contain an
    object, on all ranks; 0 if none does.
    """
    own.model.eval()
    sums = torch.zeros(2, dtype=torch.float64)
    for masks, *_ in group:
        values = encoder.read(masks.to(own.device))
        with torch.autocast(own.device.type, own.dtype, own.dtype != torch.float32):
            maps = own.model(values)
        scores = _f_measure(maps > 0.5, values > 0.5)
        sums += torch.stack((scores.nansum(), scores.isfinite().sum())).cpu().double()
    own.train_mode()
    total, count = sum_over_ranks(sums, own.device).tolist()
    return total / count if count else 0.0


def _f_measure(found: Tensor, wanted: Tensor) -> Tensor:
    """F of each image, β² = 0.3; nan where it has no object."""
    both, found_all, wanted_all = (
        part.flatten(1).sum(1) for part in (found & wanted, found, wanted)
    )
    return (1.3 * both / (0.3 * wanted_all + found_all)).where(wanted_all > 0, torch.nan)


def _report(own: Trainer) -> None:
    score, steps = own.best.get("f", 0.0), counted(own.updates, "step")
    text = f"reproduces masks with an F of {score:.3f} after {steps}; frozen"
    if own.best.get("passes", 0) < 2:
        text += f", short of {GOOD_F}: it has as many steps as the run itself, at most"
    tqdm.write(f"GT encoder: {text}")
