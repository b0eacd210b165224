"""The training loop: what it shows within an epoch, what signals do, steps that are not finite."""

import math
import re
import signal
from contextlib import closing
from types import SimpleNamespace

import pytest
import torch
from helpers.runs import rows, run

from src import UserError, load_model
from train_utils.metrics.evaluate import Evaluation
from train_utils.training import loop
from train_utils.training.losses import DeepSupervision
from train_utils.training.records import progress
from train_utils.training.trainer import Trainer


def test_curves_within_an_epoch(monkeypatch):
    """Means of the last ten steps alone; pictures are counted on all ranks."""
    sums = torch.zeros(3, dtype=torch.float64)
    trainer = SimpleNamespace(
        epoch=0,
        batches_done=0,
        updates=0,
        last_lr=0.1,
        device=torch.device("cpu"),
        sums=sums,
        loss_names=["fused"],
    )
    clock = SimpleNamespace(perf_counter=lambda: trainer.updates / 2)
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(progress, "world_size", lambda: 3)
    told = {}
    board = SimpleNamespace(scalars=lambda curves, step: told.update({step: curves}))
    with closing(progress.Progress(trainer, 20, 1, board)) as bar:
        for loss in [4.0] * 10 + [2.0] * 10:
            trainer.updates += 1
            trainer.sums += torch.tensor([1, loss, loss / 2])
            bar.advance([(torch.zeros(4, 3, 8, 8),)])
    assert {step: curves["step/loss"] for step, curves in told.items()} == {10: 4, 20: 2}
    assert [curves["step/loss_fused"] for curves in told.values()] == [2, 1]
    assert [curves["step/images/s"] for curves in told.values()] == [24, 24]
    assert bar.speed() == 24


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_one_more_interrupt_ends_it_at_once(first):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt), loop._signals_caught() as caught:
        signal.raise_signal(first)
        signal.raise_signal(signal.SIGTERM)
        assert caught == [first, signal.SIGTERM]
        signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def poison(monkeypatch, first, last):
    """The losses of these steps, counted from 0, are nan."""
    calls, original = [], DeepSupervision.forward

    def forward(self, *args):
        calls.append(None)
        factor = torch.nan if first <= len(calls) - 1 <= last else 1.0
        return tuple(value * factor for value in original(self, *args))

    monkeypatch.setattr(DeepSupervision, "forward", forward)


def test_a_poisoned_batch_is_skipped(data, tmp_path, monkeypatch, capsys):
    """One or two bad steps are named and leave no trace but in the schedule."""
    poison(monkeypatch, 4, 5)
    assert run(data, tmp_path / "run") == 0
    output = capsys.readouterr().out
    assert re.search(r"epoch 2, batch 1: loss nan, .*rate of 0.00.*: synthetic.*Skipped", output)
    assert output.count("Skipped") == 2
    state = torch.load(tmp_path / "run/last.pt", weights_only=True)
    for part in ("model", "ema"):
        assert all(torch.isfinite(value).all() for value in state[part].values())
    assert state["bad_steps"] == 0 and state["sums"][0].isfinite().all()
    assert all(math.isfinite(float(row["loss"])) for row in rows(tmp_path / "run"))


def test_bad_steps_in_a_row_end_the_run(data, tmp_path, monkeypatch):
    """The step, the rate and the pictures are named; the checkpoint of before stays as it was."""
    poison(monkeypatch, 4, 99)
    folder, saved = tmp_path / "run", []
    original = loop.save_checkpoint
    monkeypatch.setattr(
        loop, "save_checkpoint", lambda *a: (original(*a), saved.append(a[0] / "last.pt"))
    )
    message = (
        r"epoch 2, batch 3: loss nan, gradient norm nan .*rate of 0.0.*images: "
        r"(synthetic[-\w]+,? ?)+"
    )
    with pytest.raises(UserError, match=message + r"\. 3 such steps.*last\.pt.*--lr"):
        run(data, folder)
    assert len(saved) == 2, "before the first epoch is scored, and after"
    state = torch.load(folder / "last.pt", weights_only=True)
    assert (state["epoch"], state["step"]) == (1, 0)


def test_earlier_epochs_are_kept(data, tmp_path):
    """Not the same epoch twice, though it is saved before it is scored and after."""
    folder = tmp_path / "run"
    assert run(data, folder) == 0
    kept = [torch.load(folder / name, weights_only=True) for name in ("last.pt", "last-1.pt")]
    assert [state["epoch"] for state in kept] == [3, 2]


def test_divergence_ends_the_run(data, tmp_path):
    """A learning rate far too high, and nothing bad becomes best or last."""
    folder = tmp_path / "run"
    with pytest.raises(UserError, match=r"batch \d: loss (nan|inf).*images: synthetic.*--lr"):
        run(data, folder, "--lr", "1e30", "--ema", "0")
    for path in folder.glob("*.pt"):
        state = torch.load(path, weights_only=True)["model"]
        assert all(torch.isfinite(value).all() for value in state.values()), path.name


def test_what_a_diverged_run_leaves_can_be_used(data, tmp_path):
    """At a learning rate where loss and gradient of a step are finite and batch norm's statistics
    are not, no file holds what no script would read."""
    flags = ["--model", "u2net_lite", "--lr", "1e8", "--warmup-epochs", "0", "--epochs", "1"]
    flags += ["--loss", "bce+dice", "--ema", "0", "--save-every", "1", "--keep", "9"]
    with pytest.raises(UserError, match=r"gradient norm nan.*3 such steps.*last\.pt.*--lr"):
        run(data, tmp_path / "run", *flags)
    written = sorted((tmp_path / "run").glob("*.pt"))
    assert written
    for path in written:
        load_model(path)  # refuses what is not finite


def test_scores_that_are_not_finite_end_the_run(data, tmp_path, monkeypatch):
    """No best.pt comes of them, and the checkpoint of before stays."""
    scores = iter([0.5, math.nan])

    def evaluate(*_, **__):
        return Evaluation({"mae": 0.1, "mean_f": 0.1, "max_f": next(scores), "images": 1}, {}, {})

    monkeypatch.setattr("train_utils.metrics.evaluate.evaluate", evaluate)
    with pytest.raises(UserError, match=r"epoch 2: scores that are not finite.*--lr"):
        run(data, tmp_path / "run", "--ema", "0")
    for name in ("last.pt", "best.pt"):
        assert torch.load(tmp_path / "run" / name, weights_only=True)["epoch"] == 1


def test_weights_that_are_not_finite_are_not_saved(data, tmp_path, monkeypatch):
    """As of an optimizer's overflow in the last step before a checkpoint."""
    original = Trainer.step

    def step(self, batches):
        taken = original(self, batches)
        if self.updates == 6:
            self.model.out_conv.weight.data.fill_(torch.inf)
        return taken

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(UserError, match=r"weights that are not finite.*--lr"):
        run(data, tmp_path / "run", "--save-every", "2")
    state = torch.load(tmp_path / "run/last.pt", weights_only=True)
    assert (state["epoch"], state["step"]) == (1, 0)
    assert all(torch.isfinite(value).all() for value in state["model"].values())
