"""Fixtures that all tests share."""

import sys

import pytest
import torch
from helpers.data import make_duts

import predict
from src import build_model, save_model
from train_utils import cli


@pytest.fixture
def folders(tmp_path):
    """Two empty folders for images and masks, in the second layout."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    return tmp_path / "images", tmp_path / "masks"


@pytest.fixture(scope="session")
def duts(tmp_path_factory):
    """A sound data set of 4 and 3 pairs, not to be changed."""
    return make_duts(tmp_path_factory.mktemp("duts"))


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Untrained lite weights whose maps differ from image to image; not to be changed."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("weights") / "lite.pt"
    save_model(build_model("u2net_lite"), path)
    return path


@pytest.fixture
def call(capsys):
    """``call(main, *argv)`` → exit status, stdout, stderr; what is no clean exit is raised."""

    def call(main, *argv):
        with pytest.raises(SystemExit) as left:
            cli.run(lambda: main([str(a) for a in argv]))
        sys.stdout.flush()
        return left.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def run(weights, call):
    """``run(*argv)`` → exit status, stdout, stderr of predict.py; on small inputs, in float32."""
    return lambda *argv: call(
        predict.main, *argv, "--weights", weights, "--img-size", 32, "--amp", "off"
    )
