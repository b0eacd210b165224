"""The data set of the runs in this folder."""

import pytest

from train_utils.data import synthetic


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    synthetic.write_dataset(folder, train=18, test=5, size=64, seed=0)
    return folder
