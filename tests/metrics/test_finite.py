"""No value that is not finite becomes a score: the image is named, and the others are scored."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.data import make_pairs
from PIL import Image

import validation
from my_dataset import SegmentationDataset, find_pairs
from src import UserError, build_model, save_model
from train_utils.data.loaders import eval_loader
from train_utils.metrics.evaluate import evaluate, predicted, predicted_classes
from train_utils.metrics.maps import read_map
from transforms import EvalPreset

PLAIN = ["--device", "cpu", "--amp", "off", "--workers", "0"]


@pytest.fixture
def data(tmp_path):
    make_pairs(tmp_path / "images", tmp_path / "masks", "abcd")
    return tmp_path


@pytest.mark.parametrize("metrics", ["basic", "all", "semantic"])
def test_a_network_that_overflows(call, data, metrics):
    """All of its weights are finite, its maps are not."""
    torch.manual_seed(0)
    model = build_model("u2net_lite")
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data *= 1e8
    save_model(model, data / "net.pt")
    argv = ["--weights", data / "net.pt", "--img-size", 32, "--data-path", data, *PLAIN]
    status, said, err = call(
        validation.main, *argv, "--metrics", metrics, "--json", data / "s.json"
    )
    assert status == 2 and "nothing to score" in err and "not finite" in err
    assert str(data / "images/a.jpg") in err
    assert "|" not in said and not (data / "s.json").exists()


class OneImageOverflows:
    """Stands for a predictor whose network overflows for the second of four images."""

    device, origin, channel, detail = torch.device("cpu"), "stub", 0, 0
    model = SimpleNamespace(config=SimpleNamespace(out_ch=1))

    def __init__(self, images):
        self.overflows = images[1]

    def probabilities(self, images):
        if any(torch.equal(image, self.overflows) for image in images):
            raise UserError("the network gives values that are not finite")
        return images[:, :1].float() / 255

    def resize(self, maps, size):
        return torch.nn.functional.interpolate(maps[None], tuple(size))[0]


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_one_image_costs_itself_alone(data, batch_size):
    pairs = find_pairs(data).pairs
    dataset = SegmentationDataset(pairs, EvalPreset(32))
    stub = OneImageOverflows([sample[0] for sample in dataset])
    loader = eval_loader(dataset, batch_size, 0, tolerant=True)
    rows = evaluate(predicted(stub, loader, True)).rows
    assert list(rows) == [0, 2, 3]
    assert all(math.isfinite(value) for row in rows.values() for value in row.values())
    ((index, error),) = loader.errors.items()
    assert index == 1
    assert str(error) == f"{pairs[1].image}: the network gives values that are not finite"
    with pytest.raises(UserError, match=r"b\.jpg: the network gives values that are not finite"):
        list(predicted_classes(stub, eval_loader(dataset, batch_size, 0), 2))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_stored_maps(call, data, value):
    """Float maps, of which one holds a single such value."""
    (data / "maps").mkdir()
    for name in "abcd":
        saliency = np.asarray(Image.open(data / f"masks/{name}.png"), np.float32) / 255
        saliency[0, 0] = value if name == "c" else 0
        Image.fromarray(saliency).save(data / f"maps/{name}.tif")
    with pytest.raises(UserError, match=r"c\.tif: holds values that are not finite"):
        read_map(data / "maps/c.tif")
    argv = ["--pred-dir", data / "maps", "--data-path", data, "--json", data / "s.json", *PLAIN]
    status, _, err = call(validation.main, *argv)
    scores = json.loads((data / "s.json").read_text())
    assert status == 2 and "c.tif: holds values that are not finite" in err
    assert scores["unreadable"] == ["c"] and scores["images"] == 3 and scores["mae"] == 0
