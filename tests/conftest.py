"""Fixtures that all tests share."""

import sys

import pytest
from helpers.data import SMALL, make_duts, make_varied_network

import predict
from src import save_model
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
    """Untrained weights of a small network, whose maps differ from place to place and from image to
    image; not to be changed."""
    path = tmp_path_factory.mktemp("weights") / "lite.pt"
    save_model(make_varied_network(SMALL), path)
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
