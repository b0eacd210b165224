"""What train.py makes of its flags, without training."""

import re
import shutil
import sys

import pytest
import torch
from helpers.data import SMALL_TABLE, make_scene, save_image

import predict
import train
import validation
from src import UserError
from train_utils import cli
from train_utils.training import loop
from train_utils.training.checkpoint import load_checkpoint
from train_utils.training.losses import DeepSupervision

FLAGS = ["--model", SMALL_TABLE, "--img-size", 48, "--crop-size", 40, "--batch-size", 2]
FLAGS += ["--epochs", 2, "--workers", 0, "--device", "cpu", "--amp", "off"]


def run(duts, folder, *flags):
    argv = ["--data-path", duts, "--output-dir", folder, *FLAGS, *flags]
    return train.main([str(a) for a in argv])


@pytest.fixture(scope="module")
def begun(duts, tmp_path_factory):
    """A run of two epochs, two steps each."""
    folder = tmp_path_factory.mktemp("flags") / "run"
    assert run(duts, folder) == 0
    return folder


@pytest.fixture
def prepared(monkeypatch):
    """What train.py gives to its loop, in place of training."""
    given = []
    monkeypatch.setattr(train, "fit", lambda *args, **plan: given.extend([*args, plan]))
    return given


def test_every_flag_reaches_the_run(duts, tmp_path, prepared):
    flags = ["--epochs", 6, "--batch-size", 1, "--accum", 2, "--lr", 0.01, "--warmup-epochs", 2]
    flags += ["--weight-decay", 0.03, "--clip-grad", 0.7, "--ema", 0.8, "--loss-weights", 3, 2, 1]
    flags += ["--class-weights", 1, 4, "--eval-interval", 3, "--save-every", 7, "--keep", 4]
    flags += ["--compile", "--checkpoint-activations"]
    run(duts, tmp_path / "run", *flags)
    trainer, loader, _, _, plan = prepared
    numbers = {"epochs": 6, "accum": 2, "eval_interval": 3, "save_every": 7, "keep": 4}
    assert plan == {**numbers, "task": loop.Task(), "patience": None, "trackers": ("tensorboard",)}
    assert trainer.clip_grad == 0.7 and trainer.compile and trainer.model.recompute
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [0.03, 0]
    logits = [torch.randn(1, 1, 8, 8) for _ in range(3)]
    mask = torch.randint(0, 2, (1, 1, 8, 8))
    expected = DeepSupervision([3, 2, 1], "bce", 1, None, [1, 4])(logits, mask)[0]
    assert trainer.loss(logits, mask)[0] == expected
    assert expected != DeepSupervision()(logits, mask)[0]
    trainer.ema.n_averaged.fill_(10**6)
    weight, averaged = trainer.model.out_conv.weight, trainer.ema.module.out_conv.weight
    averaged.zero_()
    trainer.ema.update_parameters(trainer.model)
    torch.testing.assert_close(averaged, 0.2 * weight)
    assert len(loader) == 4  # so there are 2 steps in an epoch, and 4 of warm-up
    rates = [trainer.lr]
    for _ in range(12):
        trainer.optimizer.step()
        trainer.scheduler.step()
        rates.append(trainer.lr)
    assert rates.index(max(rates)) == 4 and max(rates) == pytest.approx(0.01)
    assert rates[0] == pytest.approx(1e-5) and rates[-1] == pytest.approx(1e-5)


def test_defaults(duts, tmp_path, prepared):
    run(duts, tmp_path / "run")
    trainer, *_, plan = prepared
    assert not (trainer.compile or trainer.model.recompute or trainer.clip_grad or trainer.ema)
    numbers = {"epochs": 2, "accum": 1, "eval_interval": 10, "save_every": 0, "keep": 2}
    assert plan == {**numbers, "task": loop.Task(), "patience": None, "trackers": ("tensorboard",)}


def test_pretrained_weights_keep_their_statistics(duts, begun, tmp_path, prepared):
    """Of batch norm, as the published ones are far from those of their batches; unless told."""
    run(duts, tmp_path / "run", "--pretrained", begun / "last.pt")
    run(duts, tmp_path / "run", "--pretrained", begun / "last.pt", "--no-freeze-bn")
    (first, loader, *_), (second, *_) = prepared[:5], prepared[5:]
    batch = next(iter(loader))
    for trainer, frozen in ((first, True), (second, False)):
        before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
        trainer.train_mode()
        assert trainer.step([batch]).taken and trainer.model.training
        after = trainer.model.state_dict()
        same = {k for k in after if torch.equal(before[k], after[k])}
        statistics = {k for k in after if "running" in k or "num_batches" in k}
        assert same == (statistics if frozen else set())


@pytest.mark.parametrize(
    ("main", "argv", "said"),
    [
        (train.main, ["--data-path", "no"], "--data-path no: no such folder"),
        (train.main, ["--data-path", ".", "--unlabelled", "no"], "--unlabelled no: no such folder"),
        (train.main, ["--annotations", "no.json"], "--annotations no.json: no such file or folder"),
        (train.main, ["--data-path", ".", "--tracker", "wandb"], "--tracker wandb: needs the pack"),
        (predict.main, ["a.png", "--device", "gpu"], "--device gpu: not usable here"),
        (predict.main, ["a.png", "--amp", "fp16", "--device", "cpu"], "--amp fp16: needs a GPU"),
        (
            predict.main,
            ["a.png", "--preset", "rembg", "--img-size", "auto"],
            "--img-size auto: rembg",
        ),
        (predict.main, ["a.png", "--preset", "rembg", "--detail", "2"], "--detail 2: is for one"),
    ],
)
def test_wrong_flags_are_told_before_weights_are_fetched(
    main, argv, said, call, tmp_path, monkeypatch
):
    def load(weights):
        pytest.fail(f"{weights} was loaded")

    for place in ("src.inference.predictor", "train_utils.training.build.trainer"):
        monkeypatch.setattr(f"{place}.load_model", load)
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.chdir(tmp_path)
    save_image(tmp_path / "a.png", make_scene()[0])
    more = ["--model", "u2net_lite", "--teacher", "u2net"] if main is train.main else []
    if "--tracker" in argv:
        monkeypatch.setattr("train_utils.training.build.network.build_model", load)
    status, _, err = call(main, *argv, *more)
    assert status == 2 and said in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("main", "package", "argv"),
    [
        (train.main, "matplotlib", ["--data-path", "."]),
        (train.main, "torchvision", ["--data-path", "."]),
        (validation.main, "torchvision", ["--data-path", "."]),
        (validation.main, "matplotlib", ["--data-path", ".", "--plot", "curves.png"]),
    ],
)
def test_packages_that_are_missing_are_told_at_once(main, package, argv, call, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    status, _, err = call(main, *argv)
    assert status == 2 and f" needs {package}: pip install '.[train]'" in err


def test_statistics_that_are_kept_are_not_shared(duts, begun, tmp_path):
    with pytest.raises(UserError, match="--no-freeze-bn"):
        run(duts, tmp_path / "run", "--pretrained", begun / "last.pt", "--sync-bn")


def test_batches_of_a_step(duts, tmp_path, monkeypatch):
    """As many as --accum says; what is left over of an epoch is a smaller step."""
    sizes = []
    original = loop.Trainer.step
    monkeypatch.setattr(
        loop.Trainer, "step", lambda *args: (sizes.append(len(args[1])), original(*args))[1]
    )
    run(duts, tmp_path / "run", "--batch-size", 1, "--accum", 3)
    assert sizes == [3, 1, 3, 1]


@pytest.mark.parametrize(
    "flags",
    [
        ["--clip-grad", 1],
        ["--batch-size", 1],
        ["--augment", "strong"],
        ["--loss", "bce+iou"],
        ["--accum", 2],
        ["--lr", 1],
        ["--weight-decay", 0.5],
        ["--seed", 1],
        ["--ema", 0.5],
        ["--warmup-epochs", 1],
        ["--loss-weights", 1, 1, 2],
        ["--class-weights", 1, 2],
        ["--crop-size", 32],
    ],
    ids=lambda flags: flags[0][2:],
)
def test_a_resumed_run_keeps_what_its_result_depends_on(duts, begun, flags):
    with pytest.raises(UserError) as refused:
        run(duts, begun, "--resume", "auto", *flags)
    assert re.search(f"{flags[0]} was .*, now ", refused.value.describe(cli.flag))


def test_a_run_that_passes_over_a_torn_checkpoint_writes_it_anew(duts, begun, tmp_path, prepared):
    """At once: were it killed before its next one, the older state would be all there is."""
    folder = shutil.copytree(begun, tmp_path / "run")
    (folder / "last.pt").write_bytes(b"torn")
    run(duts, folder, "--resume", "auto")
    assert load_checkpoint(folder / "last.pt")["epoch"] == 1
