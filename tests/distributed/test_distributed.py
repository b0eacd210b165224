"""Several processes over gloo: the run stays one run."""

import csv
import json
import signal
import subprocess
import sys

import pytest
import torch
from helpers.data import ROOT, SMALL, SMALL_TABLE, truncate_file
from helpers.processes import ranks, signal_child
from test_ranks import new_trainer
from test_survival import same

import predict
import train
import train_multi_GPU
import validation
from my_dataset import SegmentationDataset, find_pairs
from src import Predictor
from train_utils.data import synthetic
from train_utils.data.loaders import eval_loader
from train_utils.distributed import rank
from train_utils.metrics.evaluate import evaluate, predicted
from train_utils.training import scoring
from train_utils.training.trainer import Trainer
from transforms import EvalPreset

SIZES = ["--img-size", "48", "--crop-size", "40", "--batch-size", "2", "--device", "cpu"]
RECIPE = ["--model", str(SMALL_TABLE), "--epochs", "2", "--eval-interval", "1", "--ema", "0.9"]
FLAGS = [*SIZES, *RECIPE, "--workers", "0", "--amp", "off"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    synthetic.write_dataset(folder, train=13, test=5, size=64, seed=0)
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The run of two processes that nothing befell, and what each rank told."""
    folder = tmp_path_factory.mktemp("run") / "ddp"
    return folder, ranks(2, run, flags(data, folder))


def flags(data, folder, *more):
    return ["--data-path", str(data), "--output-dir", str(folder), *FLAGS, *more]


def run(argv):
    """train_multi_GPU.py within a group that stands; the sums of the last epoch's losses."""
    torch.set_num_threads(1)
    kept = []
    original = Trainer.step
    Trainer.step = lambda self, batches: (original(self, batches), kept.append(self.sums.clone()))[
        0
    ]
    save = scoring.save_model
    scoring.save_model = lambda *args, **more: (save(*args, **more), written.append(rank()))
    written.clear()
    train.train(train.parse_args(argv))
    assert not rank() or not written, "one file, one writer"
    return kept[-1]


written = []  # ranks, one for each best.pt


def sizes_seen(argv):
    torch.set_num_threads(1)
    seen, original = [], Trainer.step
    Trainer.step = lambda self, batches: (
        seen.append([batch[0].shape[-1] for batch in batches]),
        original(self, batches),
    )[1]
    train.train(train.parse_args(argv))
    return seen


def test_the_ranks_of_a_step_see_one_size(data, tmp_path):
    """Of each of the batches whose gradients it adds up."""
    more = ["--img-size", "64-128", "--crop-size", "32-96", "--epochs", "4", "--accum", "2"]
    told = ranks(2, sizes_seen, flags(data, tmp_path / "run", *more, "--eval-interval", "4"))
    first, second = (result for result, *_ in told)
    assert first == second and {side for step in first for side in step} == {32, 64, 96}


def test_the_loss_shown_is_the_mean_over_ranks(trained):
    folder, told = trained
    sums = [result for result, *_ in told]
    assert not torch.equal(*sums), "each rank sees other pictures"
    with (folder / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    expected = sum(s[1] for s in sums) / sum(s[0] for s in sums)
    assert float(rows[-1]["loss"]) == pytest.approx(expected.item(), rel=1e-5)


def test_each_rank_has_random_numbers_of_its_own(trained):
    """For dropout, which would else leave out the same of all pictures of a step."""
    first, second = torch.load(trained[0] / "last.pt", weights_only=True)["rng"]
    assert not torch.equal(first["cpu"], second["cpu"])


def draw_and_go_on():
    """Random numbers after a state was taken, and again from there."""
    torch.manual_seed(rank())
    trainer = new_trainer(SMALL)
    torch.manual_seed(rank())
    state = trainer.state_dict()
    drawn = torch.rand(3)
    trainer.load_state_dict(state)
    return drawn, torch.rand(3)


def test_each_rank_goes_on_with_its_random_numbers():
    first, second = (result for result, *_ in ranks(2, draw_and_go_on))
    assert torch.equal(*first) and torch.equal(*second) and not torch.equal(first[0], second[0])


def go_on(argv):
    torch.set_num_threads(1)
    train.train(train.parse_args([*argv, "--resume", "auto"]))


def stop_after(argv, steps):
    torch.set_num_threads(1)
    original, done = Trainer.step, []

    def step(self, batches):
        if len(done) == steps:
            raise SystemExit(0)  # nothing is saved on the way out
        done.append(None)
        return original(self, batches)

    Trainer.step = step
    train.train(train.parse_args(argv))


def test_three_ranks_go_on_alike(data, tmp_path):
    """Sums of three depend on their order, which must not change with a resume."""
    folders = tmp_path / "whole", tmp_path / "resumed"
    more = ["--save-every", "1", "--model", "u2net_lite"]  # large enough for several messages
    ranks(3, run, flags(data, folders[0], *more))
    argv = flags(data, folders[1], *more)
    ranks(3, stop_after, argv, 3)
    assert torch.load(folders[1] / "last.pt", weights_only=True)["step"] == 1
    ranks(3, go_on, argv)
    ours, theirs = (torch.load(f / "last.pt", weights_only=True) for f in folders)
    for part, value in theirs.items():
        assert same(ours[part], value), part


def scores(data, weights, count):
    pairs = find_pairs(data, "test").pairs[:count]
    predictor = Predictor(weights, 48, "cpu", "off")
    loader = eval_loader(SegmentationDataset(pairs, EvalPreset(48)), 2, 0)
    return evaluate(predicted(predictor, loader, True)).results


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_processes_scores_alike(trained, data, world):
    """Each picture once, whatever the size of the set, less than one a rank too."""
    best = trained[0] / "best.pt"
    for count in (1, 2, 5):
        alone = ranks(1, scores, data, best, count)[0][0]
        assert alone["images"] == count
        for together, status, errors in ranks(world, scores, data, best, count):
            assert status == 0, errors
            assert together == pytest.approx(alone, abs=1e-6)


def test_the_logged_score_is_that_of_the_weights(trained, data):
    """Each rank gathers batch norm statistics of its own batches; all must score rank 0's."""
    best = torch.load(trained[0] / "best.pt", weights_only=True)
    alone = ranks(1, scores, data, trained[0] / "best.pt", 5)[0][0]
    assert best["scores"] == pytest.approx(alone, abs=1e-6)


@pytest.mark.parametrize("count", [1, 5])
def test_torn_pictures(tmp_path, count):
    """Met by any rank's loader in the middle of the epoch: one is named once and passed over, too
    many end the run."""
    synthetic.write_dataset(tmp_path, train=8, test=2, size=64, seed=0)
    images = sorted((tmp_path / "DUTS-TR/DUTS-TR-Image").iterdir())
    torn = [truncate_file(path) for path in images[:count]]
    told = ranks(2, run, flags(tmp_path, tmp_path / "run"))
    assert not any("Traceback" in errors for *_, errors in told)
    errors = "".join(errors for *_, errors in told)
    if count == 1:
        assert [status for _, status, _ in told] == [0, 0]
        assert errors.count(torn[0].name) == 1 and "another image takes its place" in errors
    else:
        assert 2 in [status for _, status, _ in told] and "of 8 images cannot be read" in errors


def test_sync_bn_needs_gpus(data, tmp_path):
    with pytest.raises(scoring.UserError, match=r"sync_bn: .* on GPUs"):
        train.main(flags(data, tmp_path / "run", "--sync-bn"))


def test_predict_shards(tmp_path, weights, data):
    """Each picture once, those of a broken file named, and the same status on all ranks."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i, path in enumerate(sorted((data / "DUTS-TE/DUTS-TE-Image").iterdir())):
        (pictures / f"{i}.jpg").write_bytes(path.read_bytes())
    truncate_file(pictures / "1.jpg")
    argv = [str(pictures), "--weights", str(weights), "--device", "cpu", "--img-size", "32"]
    told = ranks(2, predict.main, [*argv, "--output", str(tmp_path / "out")], group=False)
    assert [result for result, *_ in told] == [2, 2]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        f"{i}.png" for i in (0, 2, 3, 4)
    ]


def test_validation_shards(trained, data, tmp_path):
    """The same file from three processes as from one."""
    argv = ["--weights", str(trained[0] / "best.pt"), "--data-path", str(data), "--amp", "off"]
    argv += ["--device", "cpu", "--workers", "0", "--metrics", "all", "--json"]
    results = []
    for world in (1, 2, 3):
        path = tmp_path / f"{world}.json"
        told = ranks(world, validation.main, [*argv, str(path)], group=False)
        assert [status for _, status, _ in told] == [0] * world
        found = json.loads(path.read_text())
        assert found.pop("unreadable") == []
        results.append(found)
    assert "relaxed_boundary_f" in results[0]
    for result in results[1:]:
        assert result == pytest.approx(results[0], abs=1e-6)


def launch(*argv):
    """torchrun itself, in the way of the README."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*command, *argv], cwd=ROOT, text=True, stdout=pipe, stderr=subprocess.STDOUT
    )


def test_an_elastic_restart_ends_like_the_unbroken_run(trained, data, tmp_path):
    """A rank killed in the middle of an epoch: torchrun starts both anew, they go on from the
    newest checkpoint by themselves."""
    folder = tmp_path / "run"
    script = ["--max-restarts=2", train_multi_GPU.__file__]
    process = launch(*script, *flags(data, folder, "--save-every", "1"))
    output = signal_child(process, folder / "last.pt", signal.SIGKILL, 1)[0]
    assert process.returncode == 0, output
    assert output.count(f"Resuming from {folder}/last") == 1, output
    assert output.count("epoch 2/2:") == 1 and output.count("best max_f") == 1
    ours, theirs = (torch.load(f / "last.pt", weights_only=True) for f in (folder, trained[0]))
    for part, value in theirs.items():
        assert same(ours[part], value), part
    assert (folder / "log.csv").read_bytes() == (trained[0] / "log.csv").read_bytes()


def test_a_signal_to_one_rank_stops_all(data, tmp_path):
    """SIGTERM reaches one process only: both leave after the same step, and last.pt is whole."""
    folder = tmp_path / "run"
    process = launch(train_multi_GPU.__file__, *flags(data, folder, "--epochs", "200"))
    output = signal_child(process, folder / "last.pt", signal.SIGTERM, 1)[0]
    assert output.count("Stopped; continue with the same flags and --resume") == 1, output
    assert "Connection closed" not in output
    state = torch.load(folder / "last.pt", weights_only=True)
    assert 1 <= state["epoch"] < 200
