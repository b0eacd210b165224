"""A step of several ranks, and errors on one or all of them."""

import copy
import re

import pytest
import torch
from helpers.processes import ranks
from test_survival import same
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from src import build_model
from train_utils.distributed import rank
from train_utils.training import loop, optim
from train_utils.training.losses import DeepSupervision
from train_utils.training.trainer import Trainer


def batches(count):
    """As many as asked for, of this rank's own."""
    generator = torch.Generator().manual_seed(rank())
    for _ in range(count):
        pictures = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=generator)
        masks = torch.randint(0, 2, (2, 1, 32, 32), dtype=torch.uint8, generator=generator)
        yield pictures, masks, torch.arange(2)


def new_trainer(network="u2net_lite"):
    torch.manual_seed(0)
    model = build_model(network).train()
    optimizer = optim.make_optimizer(model, 1e-3, 0)
    return Trainer(
        model=model,
        optimizer=optimizer,
        scheduler=optim.make_scheduler(optimizer, 0, 10),
        scaler=optim.make_scaler(torch.device("cpu"), torch.float32),
        loss=DeepSupervision(),
        dtype=torch.float32,
        ema=optim.MovingAverage(model, 0.9),
    )


def reductions(accum):
    """How often gradients travel in a step."""
    trainer, calls = new_trainer(), []

    def counted(state, bucket):
        calls.append(bucket.is_last())
        return allreduce_hook(state, bucket)

    trainer.net.register_comm_hook(None, counted)
    trainer.step(list(batches(accum)))
    return sum(calls)


def test_accumulation_reduces_once():
    assert [told[0] for told in ranks(2, reductions, 3)] == [1, 1]


def poisoned(on):
    """A step with a loss of nan on one rank; what changed of the state."""
    trainer = new_trainer()
    trainer.step(list(batches(1)))
    before = snapshot(trainer)
    loss = trainer.loss
    if rank() == on:
        trainer.loss = lambda *args: tuple(value * torch.nan for value in loss(*args))
    step = trainer.step(list(batches(1)))
    after = snapshot(trainer)
    return step.taken, [k for k in after if not same(before[k], after[k])], after


def snapshot(trainer):
    """A copy of the trainer's state, that later steps do not reach into."""
    state = copy.deepcopy(trainer.state_dict())
    return {**state, "optimizer": state["optimizer"]["state"]}  # its groups hold the learning rate


@pytest.mark.parametrize("on", [0, 1])
def test_a_poisoned_batch_of_one_rank_is_skipped_by_all(on):
    told = ranks(2, poisoned, on)
    for (taken, changed, state), status, errors in told:
        assert status == 0, errors
        assert not taken
        assert changed == ["scheduler", "step", "bad_steps", "lr_taken"]
        assert state["bad_steps"] == 1
        assert same(state["optimizer"], told[0][0][2]["optimizer"])


def fail(error, on):
    if rank() == on:
        raise error
    torch.distributed.barrier()


@pytest.mark.parametrize("on", [0, 1])
def test_an_error_on_one_rank_ends_all(on):
    """With that rank's message; the others neither hang nor print a traceback."""
    told = ranks(2, fail, loop.UserError("--flag: wrong"), on)
    assert told[on][1:] == (2, f"error: rank {on}: --flag: wrong\n")
    assert told[1 - on][1] == 1
    message = rf"rank {1 - on}: stopping, another process has ended \(.*\)\n"
    assert re.fullmatch(message, told[1 - on][2])


def test_a_common_error_is_told_once():
    told = ranks(3, fail_everywhere)
    assert [status for _, status, _ in told] == [2, 2, 2]
    assert "".join(errors for *_, errors in told).count("--flag: wrong") == 1


def fail_everywhere():
    torch.distributed.barrier()
    raise loop.UserError("--flag: wrong")
