"""Longer and shorter runs: more epochs on a resume, early stop, a frozen encoder, a few pairs."""

import json

import pytest
import torch
from helpers.data import same_state
from helpers.runs import rows, run

from src import UserError, load_model
from train_utils import cli
from train_utils.metrics.evaluate import Evaluation
from train_utils.training.losses import DeepSupervision
from train_utils.training.trainer import Trainer

PLAIN = ["--ema", "0", "--warmup-epochs", "1"]


def last(folder):
    return torch.load(folder / "last.pt", weights_only=True)


@pytest.fixture
def rates(monkeypatch):
    """The learning rate of each step, by how many came before it."""
    seen, original = {}, Trainer.step

    def step(self, batches):
        seen[self.updates] = self.lr
        return original(self, batches)

    monkeypatch.setattr(Trainer, "step", step)
    return seen


def test_more_epochs(data, tmp_path, rates, capsys, monkeypatch):
    """The schedule is rebuilt for what is left, and resumed as it was."""
    folder = tmp_path / "run"
    assert run(data, folder, *PLAIN, "--epochs", "2") == 0  # of 4 steps
    assert run(data, folder, *PLAIN, "--epochs", "4", "--resume", "auto") == 0
    printed = capsys.readouterr().out
    assert (
        "4 epochs in place of 2: the schedule is rebuilt for the remaining 8 steps, 4 of "
        "warm-up, then a cosine from a learning rate of 0.001"
    ) in printed
    assert [*rates] == list(range(16))
    assert max(rates, key=lambda step: rates[step] * (step > 7)) == 12
    assert rates[12] == pytest.approx(1e-3) and rates[8] == pytest.approx(1e-6)
    after = [rates[step] for step in range(12, 16)]
    assert after == sorted(after, reverse=True) and after[-1] < 3e-4
    assert [row["epoch"] for row in rows(folder)] == ["1", "2", "3", "4"]
    assert json.loads((folder / "args.json").read_text())["resumed"][0]["epochs"] == 4

    # The same, interrupted in the part that was laid anew.
    other = tmp_path / "other"
    assert run(data, other, *PLAIN, "--epochs", "2") == 0
    step = Trainer.step

    def killed(self, batches):
        if self.updates == 10:
            raise KeyboardInterrupt
        return step(self, batches)

    more = [*PLAIN, "--epochs", "4", "--resume", "auto", "--save-every", "1"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "step", killed)
        run(data, other, *more)
    assert run(data, other, *more) == 0
    assert same_state(last(other)["model"], last(folder)["model"])
    assert rows(other) == rows(folder)


def test_fewer_epochs(data, tmp_path, rates):
    """As many as are done, or more; sizes that were reached stay."""
    sizes = ["--img-size", "32", "48", "--crop-size", "32", "40"]
    flags = [*PLAIN, *sizes, "--eval-interval", "9"]
    assert run(data, tmp_path, *flags, "--epochs", "4", "--grow-at", "0.5") == 0
    with pytest.raises(UserError) as refused:
        run(data, tmp_path, *flags, "--epochs", "3", "--grow-at", "0.5", "--resume", "auto")
    assert refused.value.describe(cli.flag) == (
        "--epochs 3: the checkpoint has done 4; pass at least that many"
    )
    assert run(data, tmp_path, *flags, "--epochs", "6", "--resume", "auto") == 0
    assert last(tmp_path)["schedule"]["starts"] == [0, 2]
    assert last(tmp_path)["epoch"] == 6 and len(rates) == 24


@pytest.fixture
def scores(monkeypatch):
    """maxF of one evaluation after the other."""
    given = []

    def evaluate(*_, **__):
        return Evaluation({"max_f": given.pop(0), "mae": 0.5, "mean_f": 0.5}, {}, {})

    monkeypatch.setattr("train_utils.metrics.evaluate.evaluate", evaluate)
    return given


@pytest.mark.parametrize("epochs", ["3", "4"])
@pytest.mark.parametrize(("sizes", "shares"), [("48", ""), ("48 48 64", "0.4 0.7")])
def test_another_number_of_sizes(data, tmp_path, epochs, sizes, shares):
    """They belong to the run, with the same number of epochs as with another."""

    def begin(sizes, shares, *flags):
        sizes, shares = sizes.split(), shares.split()
        grow = ["--grow-at", *shares] if shares else []
        crops = ["--crop-size", *["32"] * len(sizes)]
        return run(data, tmp_path, *PLAIN, "--img-size", *sizes, *crops, *grow, *flags)

    assert begin("32 48", "0.5", "--epochs", "3") == 0
    with pytest.raises(UserError) as refused:
        begin(sizes, shares, "--epochs", epochs, "--resume", "auto")
    now = ", ".join(sizes.split())
    assert f"; --img-size was [32, 48], now [{now}]; " in refused.value.describe(cli.flag)


def test_early_stop(data, tmp_path, scores, capsys):
    """After evaluations without a better score, counted over a resume too."""
    flags = [*PLAIN, "--epochs", "8", "--patience", "2"]
    scores += [0.3, 0.5, 0.5, 0.6, 0.6, 0.1]
    assert run(data, tmp_path, *flags) == 0
    assert not scores and last(tmp_path)["epoch"] == 6
    assert load_model(tmp_path / "best.pt") and last(tmp_path)["best"]["epoch"] == 4
    told = "Stopped early: no better score than max_f 0.6000 of epoch 4 in 2 evaluations"
    assert told in capsys.readouterr().out
    assert run(data, tmp_path, *flags, "--resume", "auto") == 0
    assert "stopped early after epoch 6" in capsys.readouterr().out
    scores += [0.2]
    assert run(data, tmp_path, *flags[:-1], "3", "--resume", "auto") == 0
    assert not scores and last(tmp_path)["epoch"] == 7
    scores += [0.1, 0.7, 0.2, 0.3]  # an end further off counts anew
    assert run(data, tmp_path, *PLAIN, "--epochs", "12", "--patience", "2", "--resume", "auto") == 0
    assert not scores and last(tmp_path)["epoch"] == 11


@pytest.fixture
def losses(monkeypatch):
    """The loss of each step, in turn."""
    seen, forward = [], DeepSupervision.forward

    def named(self, *args):
        seen.append(self.loss)
        return forward(self, *args)

    monkeypatch.setattr(DeepSupervision, "forward", named)
    return seen


def test_another_loss_at_the_end(data, tmp_path, losses, capsys, monkeypatch):
    """From the step on that its epochs, counted from the end, begin with; a resumed run and one
    that is made longer do so too.
    """
    flags = [*PLAIN, "--loss", "iou", "--final-loss", "bce+ssim", "--final-epochs", "1.5"]
    assert run(data, tmp_path / "whole", *flags) == 0  # 3 epochs of 4 steps
    assert losses == ["iou"] * 6 + ["bce+ssim"] * 6
    assert "epoch 2, batch 3: the loss is bce+ssim from here on\n" in capsys.readouterr().out

    step = Trainer.step

    def killed(self, batches):
        if self.updates == 9:
            raise KeyboardInterrupt
        return step(self, batches)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "step", killed)
        run(data, tmp_path / "run", *flags, "--save-every", "1")
    assert run(data, tmp_path / "run", *flags, "--resume", "auto") == 0
    assert same_state(last(tmp_path / "run")["model"], last(tmp_path / "whole")["model"])
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")

    losses.clear()
    assert run(data, tmp_path / "run", *flags, "--resume", "auto", "--epochs", "5") == 0
    assert losses == ["iou"] * 2 + ["bce+ssim"] * 6
    told = capsys.readouterr().out
    assert "epoch 4, batch 1: the loss is iou from here on\n" in told, "as it was bce+ssim before"
    assert "epoch 4, batch 3: the loss is bce+ssim from here on\n" in told
    with pytest.raises(UserError, match=r"final_loss.*was 'bce.ssim', now 'bce'"):
        run(
            data,
            tmp_path / "run",
            *flags,
            "--final-loss",
            "bce",
            "--epochs",
            "5",
            "--resume",
            "auto",
        )


def encoder_and_rest(state):
    frozen = {k: v for k, v in state.items() if k.startswith(("stem.", "encoder."))}
    return frozen, {k: v for k, v in state.items() if k not in frozen}


def test_a_frozen_encoder(data, tmp_path, capsys):
    """Its weights and statistics stay, for a time or for all of it."""
    assert run(data, tmp_path / "begun", *PLAIN, "--epochs", "1") == 0
    flags = ["--pretrained", str(tmp_path / "begun/last.pt"), "--no-freeze-bn", *PLAIN]
    before = encoder_and_rest(last(tmp_path / "begun")["model"])
    for name, more in (("all", []), ("one", ["1"]), ("none", ["0"])):
        assert run(data, tmp_path / name, *flags, "--epochs", "2", "--freeze-encoder", *more) == 0
        assert "random" not in capsys.readouterr().out
        after = encoder_and_rest(last(tmp_path / name)["model"])
        assert same_state(before[0], after[0]) == (name == "all")
        assert not any(torch.equal(before[1][k], after[1][k]) for k in before[1] if "weight" in k)
    states = [last(tmp_path / name)["model"] for name in ("one", "none")]
    assert not same_state(*states)


def test_a_frozen_encoder_thaws_alike_after_a_resume(data, tmp_path):
    flags = [*PLAIN, "--epochs", "2", "--eval-interval", "2", "--freeze-encoder", "1"]
    assert run(data, tmp_path / "whole", *flags) == 0
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        original = Trainer.step

        def killed(self, batches):
            if self.updates == 5:
                raise KeyboardInterrupt
            return original(self, batches)

        patch.setattr(Trainer, "step", killed)
        run(data, tmp_path / "again", *flags, "--save-every", "1")
    assert run(data, tmp_path / "again", *flags, "--resume", "auto") == 0
    assert same_state(last(tmp_path / "again")["model"], last(tmp_path / "whole")["model"])


def test_the_first_pairs_alone(data, tmp_path, capsys, monkeypatch):
    """Trained on as they are scored, and learned."""
    seen, original = [], Trainer.step

    def step(self, batches):
        seen.extend(batches)
        return original(self, batches)

    monkeypatch.setattr(Trainer, "step", step)
    flags = ["--overfit", "2", "--epochs", "30", "--eval-interval", "30", "--augment", "strong"]
    assert run(data, tmp_path, *PLAIN, *flags, "--optimizer", "muon", "--lr", "0.02") == 0
    assert "the first 2 pairs of the training split, neither cropped" in capsys.readouterr().out
    names = sorted(path.stem for path in (data / "DUTS-TR/DUTS-TR-Image").iterdir())[:2]
    described = last(tmp_path)["flags"]["images"]
    assert len(set(text.partition("(")[2] for text in described)) == 1 and len(names) == 2
    images = {batch[0][i].numpy().tobytes() for batch in seen for i in range(len(batch[0]))}
    assert len(images) == 2 and seen[0][0].shape == (2, 3, 48, 48)
    losses = [float(row["loss"]) for row in rows(tmp_path)]
    assert losses[-1] < 0.6 * losses[0]
    assert last(tmp_path)["flags"]["batch_size"] == 2


def test_the_first_pairs_of_two_sets(data, tmp_path):
    """Are those of the first."""
    flags = ["--data-path", str(data), str(data), "--overfit", "2", "--epochs", "1"]
    assert run(data, tmp_path, *PLAIN, *flags) == 0
    assert last(tmp_path)["flags"]["images"][0].startswith("2 images to train")


def test_the_size_in_checkpoints_is_that_of_the_unbroken_run(data, tmp_path, monkeypatch):
    sizes = ["--img-size", "32", "48", "--crop-size", "32", "40", "--grow-at", "0.5"]
    flags = [*PLAIN, *sizes, "--epochs", "4", "--save-every", "1"]
    step = Trainer.step

    def killed(self, batches):
        if self.updates in stops:
            stops.remove(self.updates)
            raise KeyboardInterrupt
        return step(self, batches)

    monkeypatch.setattr(Trainer, "step", killed)
    for name, stops in (("once", [6]), ("twice", [3, 6])):
        for resume in ([], ["--resume", "auto"])[: len(stops)]:
            with pytest.raises(KeyboardInterrupt):
                run(data, tmp_path / name, *flags, *resume)
    once, twice = (last(tmp_path / name) for name in ("once", "twice"))
    assert once["img_size"] == twice["img_size"] == 32
    assert (once["epoch"], once["step"]) == (twice["epoch"], twice["step"]) == (1, 2)


def test_a_single_pair(folders, tmp_path):
    """A set that has no pair to hold out."""
    from helpers.data import make_pairs

    make_pairs(*folders, ["only"])
    data = folders[0].parent
    assert run(data, tmp_path / "run", *PLAIN, "--overfit", "1", "--epochs", "2") == 0
    with pytest.raises(UserError, match="there are 1"):
        run(data, tmp_path / "more", *PLAIN, "--overfit", "2")


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ("--epochs 3 --patience 2 --eval-interval 3", "--patience 2: only one evaluation in 3"),
        ("--overfit 2 --data-shares 3", "--overfit 2: trains only on the first pairs"),
        ("--overfit 0", "--overfit: '0' is not an integer from 1"),
        ("--overfit 2 --teacher W", "--overfit 2: shows whether the masks can be learned"),
        ("--teacher-weight 0.3", "--teacher-weight: there is no teacher"),
        ("--teacher W --teacher-weight 1.01", "--teacher-weight 1.01: expected a number from 0"),
        ("--teacher W --teacher-weight 0", "--teacher-weight 0: the teacher's maps would count"),
        ("--unlabelled D", "--unlabelled: images without masks have nothing to learn from"),
        ("--unlabelled D --teacher W --feature-supervision", "have no mask features"),
        ("--unlabelled D --teacher W --data-shares 1 0", "--data-shares: a share of 0"),
        ("--unlabelled D --teacher W --data-shares 1 1 1", "expected 2 values, got 3"),
        ("--data-shares 0", "--data-shares: a share of 0"),
        ("--final-loss iou", "--final-loss iou: the number of its epochs is missing; pass"),
        (
            "--final-epochs 1",
            "--final-epochs 1: the loss for them is missing; pass --final-loss too",
        ),
        ("--final-loss x --final-epochs 1", "--final-loss x: 'x' is not a loss of one map"),
        ("--final-loss iou --final-epochs 0", "--final-epochs 0: expected more than 0 and at most"),
        ("--final-loss iou --final-epochs 361", "at most the run's 360"),
        ("--loss iou --final-loss dice --final-epochs 1 --class-weights 1 2", "is iou+dice"),
        ("--freeze-encoder 1.5", "--freeze-encoder: '1.5' is not an integer"),
        ("--tracker none wandb", "--tracker none wandb: none cannot be combined with others"),
        ("--tracker comet", "--tracker: 'comet' is not one of tensorboard, wandb, mlflow, none"),
    ],
)
def test_what_contradicts_itself_is_refused(call, flags, error):
    import train

    status, _, told = call(train.main, *flags.split())
    assert status == 2 and error in told and len(told.splitlines()) == 1


def test_networks_without_what_is_asked_for(data, tmp_path):
    wide = ["--img-size", "224", "--crop-size", "192", "--model", "unet"]
    with pytest.raises(UserError, match="unet has no features behind side maps"):
        run(data, tmp_path, *wide, "--feature-supervision")
    with (
        pytest.raises(UserError, match="needs the package wandb"),
        pytest.MonkeyPatch.context() as p,
    ):
        p.setattr("train_utils.training.records.trackers.find_spec", lambda name: None)
        run(data, tmp_path, "--tracker", "wandb")
