"""Two processes: a teacher, features of masks and an encoder that thaws; the run stays one run."""

import pytest
import torch
from helpers.data import SMALL_TABLE, make_varied_network, same_state
from helpers.processes import ranks

import train
from src import save_model
from train_utils.data import synthetic
from train_utils.training.trainer import Trainer

FLAGS = ["--model", str(SMALL_TABLE), "--img-size", "32", "--crop-size", "32", "--batch-size", "2"]
FLAGS += ["--device", "cpu", "--amp", "off", "--workers", "0", "--epochs", "2", "--tracker", "none"]
FLAGS += ["--eval-interval", "2", "--freeze-encoder", "1", "--feature-supervision"]


def run(argv, stop=None):
    """The weights of this rank at its end; ``stop``: a step of any trainer that is not taken."""
    torch.set_num_threads(1)
    trainers, steps, original = [], [], Trainer.step

    def step(self, batches):
        steps.append(None)
        if len(steps) == stop:
            raise SystemExit(9)
        trainers.append(self)
        return original(self, batches)

    Trainer.step = step
    train.train(train.parse_args(argv))
    last = trainers[-1]
    return last.model.state_dict(), last.mask_encoder.model.state_dict()


@pytest.fixture(scope="module")
def argv(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    synthetic.write_dataset(folder, train=9, test=2, size=48, seed=0)
    save_model(make_varied_network(str(SMALL_TABLE)), folder / "teacher.pt")
    return ["--data-path", str(folder), "--teacher", str(folder / "teacher.pt"), *FLAGS]


def test_ranks_agree_and_a_resume_is_bit_exact(argv, tmp_path):
    """Killed while the GT encoder is trained, and after it."""
    whole = ranks(2, run, [*argv, "--output-dir", str(tmp_path / "whole")])
    (first, *_), (second, *_) = whole
    assert [status for _, status, _ in whole] == [0, 0], whole[0][2]
    parameters = {k for k in first[0] if "running" not in k and "num_batches" not in k}
    assert all(torch.equal(first[0][k], second[0][k]) for k in parameters)
    assert same_state(first[1], second[1]), "the frozen encoder is one"
    folder = ["--output-dir", str(tmp_path / "killed"), "--save-every", "1"]
    for stop in (3, 4):
        ranks(2, run, [*argv, *folder, "--resume", "auto"], stop)
    again = ranks(2, run, [*argv, *folder, "--resume", "auto"])
    assert [status for _, status, _ in again] == [0, 0], again[0][2]
    state, expected = (
        torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("killed", "whole")
    )
    assert same_state(state["model"], expected["model"])
    assert same_state(state["mask_encoder"]["model"], expected["mask_encoder"]["model"])
