"""The training loop's parts: what it tells within an epoch, and what signals do."""

import signal
from contextlib import closing
from types import SimpleNamespace

import pytest
import torch

from train_utils.training import loop, records


def test_curves_within_an_epoch(monkeypatch):
    """Means of the last ten steps alone; pictures are counted on all ranks."""
    sums = torch.zeros(3, dtype=torch.float64)
    trainer = SimpleNamespace(
        epoch=0, batches_done=0, updates=0, last_lr=0.1, device=torch.device("cpu"), sums=sums
    )
    clock = SimpleNamespace(perf_counter=lambda: trainer.updates / 2)
    monkeypatch.setattr(records, "time", clock)
    monkeypatch.setattr(records, "world_size", lambda: 3)
    told = {}
    board = SimpleNamespace(scalars=lambda curves, step: told.update({step: curves}))
    with closing(records.Progress(trainer, 20, 1, board)) as progress:
        for loss in [4.0] * 10 + [2.0] * 10:
            trainer.updates += 1
            trainer.sums += torch.tensor([1, loss, loss / 2])
            progress.advance([(torch.zeros(4, 3, 8, 8),)])
    assert {step: curves["step/loss"] for step, curves in told.items()} == {10: 4, 20: 2}
    assert [curves["step/loss_fused"] for curves in told.values()] == [2, 1]
    assert [curves["step/pictures per s"] for curves in told.values()] == [24, 24]
    assert progress.speed() == 24


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_one_more_interrupt_ends_it_at_once(first):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt), loop._signals_caught() as caught:
        signal.raise_signal(first)
        signal.raise_signal(signal.SIGTERM)
        assert caught == [first, signal.SIGTERM]
        signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
