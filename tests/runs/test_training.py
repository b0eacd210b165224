"""The run as a whole, on a small generated set: what it writes, how it stops and goes on."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.data import SMALL_TABLE, make_scene, same_state, save_image
from helpers.runs import SIZES, rows, run
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import predict
import train
import validation
from src import Predictor, U2Net, UserError, load_model, save_model
from src.pictures.images import oriented_size
from train_utils import cli
from train_utils.metrics.evaluate import Evaluation
from train_utils.training import build, loop
from train_utils.training.records import git_commit
from train_utils.training.trainer import Trainer


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "whole"
    assert run(data, folder) == 0
    return folder


def test_the_folder(finished):
    log = rows(finished)
    assert [row["epoch"] for row in log] == ["1", "2", "3"]
    for row in log:
        terms = [float(row[k]) for k in row if k.startswith("loss_")]
        assert len(terms) == 3  # of the fused map and two side maps
        assert float(row["loss"]) == pytest.approx(sum(terms), rel=1e-4)
        assert 0 < float(row["ema_mae"]) < 1
    args = json.loads((finished / "args.json").read_text())
    assert args["img_size"] == [48] and args["versions"]["torch"] == torch.__version__
    assert args["versions"]["commit"] == git_commit()
    board = EventAccumulator(str(finished / "tensorboard")).Reload()
    tags = board.Tags()
    for name in ("loss", "loss_fused", "loss_side2", "lr", "mae", "max_f", "ema_max_f"):
        assert f"epoch/{name}" in tags["scalars"]
    for name in ("loss", "loss_side2", "lr", "images/s", "peak MiB"):
        assert f"step/{name}" in tags["scalars"]
    assert len(board.Images(tags["images"][0])) == 3
    for name in ("curves.png", "samples/epoch_0001.png", "samples/epoch_0003.png"):
        with Image.open(finished / name) as image:
            assert min(image.size) > 48, name


def test_training_lowers_the_loss(finished):
    losses = [float(row["loss"]) for row in rows(finished)]
    assert losses[-1] < losses[0]


def test_best_is_the_best_epoch(finished):
    """best.pt is written when a score improves, and only then."""
    scores = [float(row["ema_max_f"]) for row in rows(finished)]
    kept = torch.load(finished / "best.pt", weights_only=True)
    assert kept["epoch"] == scores.index(max(scores)) + 1
    assert kept["scores"]["max_f"] == pytest.approx(max(scores), abs=1e-5)
    last = torch.load(finished / "last.pt", weights_only=True)
    assert last["best"]["epoch"] == kept["epoch"]


def test_several_sets_and_sizes(data, tmp_path, monkeypatch, capsys):
    """The second set is drawn from by its share, but for what it holds out; sizes grow, and each is
    scored and shipped as it was trained."""
    shown, probabilities = set(), Predictor.probabilities

    def noted(self, pictures):
        shown.add((self.img_size, pictures.shape[-1]))
        return probabilities(self, pictures)

    monkeypatch.setattr(Predictor, "probabilities", noted)
    second = tmp_path / "second"
    for i in range(6):
        picture, mask = make_scene(i)
        save_image(second / f"images/{i}.png", picture)
        save_image(second / f"masks/{i}.png", mask)
    folder = tmp_path / "run"
    flags = ["--data-path", str(data), str(second), "--data-shares", "1", "0.5"]
    flags += ["--img-size", "48", "64", "--grow-at", "0.5", "--augment", "strong"]
    flags += ["--loss", "bce+iou", "--batch-size", "3", "--epochs", "4", "--eval-interval", "2"]
    flags += ["--model", str(SMALL_TABLE), "--workers", "1", "--device", "cpu", "--amp", "off"]
    assert train.main([*flags, "--output-dir", str(folder)]) == 0
    assert "an epoch takes 18 images\n" in capsys.readouterr().out
    state = torch.load(folder / "last.pt", weights_only=True)
    assert state["flags"]["images"][0].startswith("23 images to train")
    assert state["scheduler"]["last_epoch"] == 4 * ((18 + 2) // 3)
    small, large = (oriented_size(folder / f"samples/epoch_{n:04d}.png") for n in (2, 4))
    assert small < large and shown == {(48, 48), (64, 64)}
    best = torch.load(folder / "best.pt", weights_only=True)
    assert best["img_size"] == {2: 48, 4: 64}[best["epoch"]]
    assert [row["epoch"] for row in rows(folder)] == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--img-size", "48", "64", "--grow-at", "0.5", "0.7"], "--grow-at"),
        (["--img-size", "48", "64", "--crop-size", "40"], "--crop-size"),
        (["--data-shares", "1", "2"], "--data-shares"),
        (["--data-shares", "0"], "--data-shares"),
        (["--img-size", "48", "64", "--grow-at", "0.9", "--epochs", "4"], "--grow-at"),
        (["--img-size", "48", "64", "96", "--epochs", "2"], "--epochs"),
        (["--class-weights", "balanced", "--loss", "iou"], "--class-weights"),
        (["--resume", "."], "last.pt"),
    ],
)
def test_flags_that_do_not_agree(data, tmp_path, capsys, flags, named):
    folder = [] if "--resume" in flags else ["--output-dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as left:
        cli.run(lambda: train.main(["--data-path", str(data), *folder, *flags]))
    assert left.value.code == 2 and named in capsys.readouterr().err


def test_lists_beside_two_folders(tmp_path):
    """val.txt chooses the best weights there too, and test.txt is left alone."""
    for i in range(6):
        picture, mask = make_scene(i)
        save_image(tmp_path / f"images/{i}.png", picture)
        save_image(tmp_path / f"masks/{i}.png", mask)
    (tmp_path / "images/val.txt").write_text("1\n")
    (tmp_path / "images/test.txt").write_text("2\n3\n")
    folders = ["--image-dir", tmp_path / "images", "--mask-dir", tmp_path / "masks"]
    to_train, to_choose, _ = build.make_datasets(train.parse_args([str(part) for part in folders]))
    assert [pair.name for pair in to_train.pairs] == ["0", "4", "5"]
    assert [pair.name for pair in to_choose.pairs] == ["1"]


def test_a_log_that_is_open_elsewhere(data, tmp_path, monkeypatch, capsys):
    """As Windows has it: the epoch is not lost for it, and the next one writes the whole log."""
    original, refused = Path.replace, []

    def replace(self, target):
        if Path(target).name == "log.csv" and not refused:
            refused.append(target)
            raise PermissionError(13, "in use", str(target))
        return original(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    assert run(data, tmp_path / "run") == 0
    assert refused and "log.csv: not written (in use)" in "".join(capsys.readouterr())
    assert [row["epoch"] for row in rows(tmp_path / "run")] == ["1", "2", "3"]


def test_only_a_better_score_becomes_best(data, tmp_path, monkeypatch):
    """Neither an equal one nor a worse, as where the best value is never updated."""
    scores = iter([0.5, 0.9, 0.9, 0.7])

    def evaluate(*_, **__):
        return Evaluation({"mae": 0.1, "mean_f": 0.1, "max_f": next(scores), "images": 1}, {}, {})

    monkeypatch.setattr("train_utils.metrics.evaluate.evaluate", evaluate)
    run(data, tmp_path / "run", "--ema", "0", "--epochs", "4")
    assert torch.load(tmp_path / "run/best.pt", weights_only=True)["epoch"] == 2
    assert [float(row["max_f"]) for row in rows(tmp_path / "run")] == [0.5, 0.9, 0.9, 0.7]


def test_validation_repeats_the_logged_scores(finished, data, tmp_path, capsys):
    """The weights alone give the score that training logged: same preparation, same measures."""
    flags = ["--weights", str(finished / "best.pt"), "--data-path", str(data), "--workers", "0"]
    flags += ["--amp", "off", "--device", "cpu", "--json", str(tmp_path / "s.json")]
    assert validation.main(flags) == 0
    scores = json.loads((tmp_path / "s.json").read_text())
    best = max(rows(finished), key=lambda row: float(row["ema_max_f"]))
    assert scores["images"] == 5 and scores["split"] == "test" and scores["img_size"] == 48
    for name in ("mae", "max_f", "mean_f"):
        assert scores[name] == pytest.approx(float(best["ema_" + name]), abs=1e-5)
    assert f"{scores['max_f']:.3f}" in capsys.readouterr().out


def test_scores_do_not_depend_on_the_batch(finished, data, tmp_path):
    results = []
    for batch in ("1", "3"):
        path = tmp_path / f"{batch}.json"
        flags = ["--weights", str(finished / "best.pt"), "--data-path", str(data), "--json"]
        validation.main([*flags, str(path), "--batch-size", batch, "--workers", "0"])
        results.append(json.loads(path.read_text()))
    for name in ("mae", "max_f", "max_f_per_image", "mean_f", "adaptive_f"):
        assert results[0][name] == pytest.approx(results[1][name], abs=2e-4), name


@pytest.mark.parametrize("mode", ["mask", "cutout"])
def test_predict(finished, data, tmp_path, mode):
    source = sorted((data / "DUTS-TE/DUTS-TE-Image").iterdir())[0]
    target = tmp_path / "out.png"
    flags = [str(source), "--weights", str(finished / "best.pt"), "--output", str(target)]
    assert predict.main([*flags, "--mode", mode]) == 0
    expected = Predictor(finished / "best.pt")(source)
    with Image.open(source) as picture, Image.open(target) as result:
        assert result.size == picture.size
        assert result.mode == {"mask": "L", "cutout": "RGBA"}[mode]
        grey = np.asarray(result.getchannel("L" if mode == "mask" else "A")) / 255
        if mode == "cutout":
            sure = grey == 1  # elsewhere, the object's own colours are estimated
            assert np.array_equal(np.array(result)[sure, :3], np.array(picture)[sure])
    assert np.abs(grey - expected).max() <= 0.51 / 255


@pytest.mark.parametrize(
    ("number", "at", "behind"), [(signal.SIGINT, 6, (1, 2)), (signal.SIGTERM, 4, (0, 4))]
)
def test_interrupted_and_resumed_equals_unbroken(
    data, finished, tmp_path, monkeypatch, number, at, behind
):
    """A signal in the middle of an epoch or in its last step."""
    steps = []
    original = Trainer.step

    def interrupted_step(self, batches):
        steps.append(None)
        if len(steps) == at:
            os.kill(os.getpid(), number)
        return original(self, batches)

    monkeypatch.setattr(Trainer, "step", interrupted_step)
    assert run(data, tmp_path / "run") == 128 + number
    assert len(steps) == at, "the step is finished, and no other begun"
    state = torch.load(tmp_path / "run/last.pt", weights_only=True)
    assert (state["epoch"], state["step"]) == behind
    check_resume(data, tmp_path / "run", finished)


def check_resume(data, folder, whole):
    """The resumed run ends bit for bit as the unbroken one."""
    assert run(data, folder, "--resume", "auto") == 0
    resumed, expected = (
        torch.load(place / "last.pt", weights_only=True) for place in (folder, whole)
    )
    for part in ("model", "ema"):
        for name, value in expected[part].items():
            assert torch.equal(resumed[part][name], value), name
    assert resumed["best"] == expected["best"]
    assert rows(folder) == rows(whole)


def test_killed_while_it_scores(data, finished, tmp_path, monkeypatch):
    """The epoch before is not trained once more."""
    scored = loop.evaluate_networks

    def killed(trainer, *args):
        if trainer.epoch == 2:
            raise KeyboardInterrupt
        return scored(trainer, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "evaluate_networks", killed)
        run(data, tmp_path / "run")
    steps, original = [], Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda *args: steps.append(0) or original(*args))
    check_resume(data, tmp_path / "run", finished)
    assert len(steps) == 4, "those of the third epoch"


def test_sizes_of_batches_are_those_of_the_unbroken_run(data, tmp_path, monkeypatch):
    """Also where the run stops in mid-epoch and goes on with other workers. Evaluated, and kept
    with the weights, is the middle one."""
    flags, seen = ["--img-size", "64-128", "--crop-size", "32-96", "--epochs", "2"], {}
    original = Trainer.step

    def noted_step(self, batches):
        seen[self.updates] = batches[0][0].shape[-1]
        if len(seen) == stop:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, batches)

    monkeypatch.setattr(Trainer, "step", noted_step)
    stop = 0
    assert run(data, tmp_path / "whole", *flags) == 0
    whole, stop = dict(seen), 3
    assert set(whole.values()) == {32, 64, 96}
    seen.clear()
    assert run(data, tmp_path / "run", *flags) == 128 + signal.SIGINT and len(seen) == 3
    with pytest.raises(UserError, match=r"img_size.* was \['64-128'\], now \['64-96'\]"):
        run(data, tmp_path / "run", "--img-size", "64-96", *flags[2:3], "32-64", "--resume", "auto")
    stop = 0
    assert run(data, tmp_path / "run", *flags, "--resume", "auto", "--workers", "2") == 0
    assert seen == whole
    ours, theirs = (
        torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("run", "whole")
    )
    assert same_state(ours["model"], theirs["model"]) and ours["img_size"] == 96
    assert torch.load(tmp_path / "run/best.pt", weights_only=True)["img_size"] == 96
    assert json.loads((tmp_path / "run/args.json").read_text())["img_size"] == ["64-128"]


def test_resume_rebuilds_its_network(data, tmp_path, finished, capsys):
    """Neither --model nor the pretrained file is needed again; another --model is refused."""
    start = load_model(finished / "best.pt")
    start = U2Net(start.config.replace(conv_bias=True))
    save_model(start, tmp_path / "start.pt")
    flags = ["--data-path", str(data), *SIZES, "--epochs", "1", "--workers", "0", "--amp", "off"]
    folder = tmp_path / "run"
    argv = [*flags, "--pretrained", str(tmp_path / "start.pt"), "--output-dir", str(folder)]
    assert train.main(argv) == 0
    started = f"starting from {tmp_path / 'start.pt'}: checkpoint of this toolkit, small, 1 map\n"
    assert started in capsys.readouterr().out
    assert (folder / "best.pt").exists(), "the last epoch is scored, whatever the interval"
    (tmp_path / "start.pt").unlink()
    assert train.main([*flags, "--resume", str(folder / "last.pt")]) == 0
    assert "starting from" not in capsys.readouterr().out
    with pytest.raises(UserError, match="holds small"):
        train.main([*flags, "--resume", str(folder / "last.pt"), "--model", "u2net_full"])


def test_changed_flags_are_named(data, finished):
    with pytest.raises(UserError, match="with different settings") as refused:
        run(data, finished, "--resume", "auto", "--lr", "0.01", "--seed", "3")
    assert "--lr was 0.001, now 0.01; --seed was 0, now 3" in refused.value.describe(cli.flag)


def test_weights_of_a_run_are_its_average(finished):
    """last.pt holds the raw weights and their average; loading it gives what was scored."""
    state = torch.load(finished / "last.pt", weights_only=True)
    loaded = load_model(finished / "last.pt").state_dict()
    assert torch.equal(loaded["out_conv.weight"], state["ema"]["out_conv.weight"])
    assert not torch.equal(loaded["out_conv.weight"], state["model"]["out_conv.weight"])
