"""OpenVINO as the engine of networks in floats: against torch."""

import json
import pickle
import subprocess
import sys
import threading
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from helpers.data import ROOT, SMALL, make_pairs, make_scene, make_varied_network, truncate_file
from helpers.golden import SHARED, needs_shared
from PIL import Image
from torch import nn

import predict
import validation
from src import Predictor, UserError, build_model, save_model
from src.inference import openvino
from src.inference.int8 import check_int8
from src.inference.openvino import OpenVINOBackend
from src.networks.tables import ISNET

pytestmark = pytest.mark.skipif(not find_spec("openvino"), reason="openvino is not installed")

WITH_STEM = {  # IS-Net's way, in small
    **SMALL,
    **{name: ISNET.to_dict()[name] for name in ("stem", "fuse_sides", "mean", "std")},
    "stem": {"in_ch": 3, "out_ch": 3},
    "encoder": [SMALL["encoder"][0], {**SMALL["encoder"][1], "side": True}],
}
NETWORKS = {
    "U²-Net": SMALL,
    "IS-Net": WITH_STEM,
    "classes": {**SMALL, "out_ch": 3, "activation": "softmax"},
    **{name: {"name": name, "width": 8} for name in ("unet", "unet_bn", "fcn8s", "segnet")},
}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Where compiled networks are kept; not the user's own folder."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("U2NET_TOOLKIT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def net():
    return make_varied_network(SMALL)


@pytest.fixture(scope="module")
def file(net, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "net.pt"
    save_model(net, path)
    return path


def both(model, **options):
    """The same by torch and by OpenVINO."""
    return [Predictor(model, device="cpu", engine=name, **options) for name in openvino.ENGINES]


def batch(count, height=64, width=96):
    scenes = [make_scene(seed, height, width)[0] for seed in range(count)]
    return torch.from_numpy(np.stack(scenes)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network(name):
    """Every network of the registry gives torch's maps, at any size and in batches."""
    table, varied = NETWORKS[name], "encoder" in NETWORKS[name]
    torch.manual_seed(0)
    model = make_varied_network(table) if varied else build_model(table).eval()
    exact, quick = both(model, img_size="auto", amp="off")
    for shape in ((64, 128), (96, 64)):
        expected = exact.probabilities(batch(2, *shape))
        assert np.ptp(expected.numpy()) > 0.05
        found = quick.probabilities(batch(2, *shape))
        assert found.shape == expected.shape
        off = (found - expected).abs()
        # SegNet's places of maxima may differ where two are equal but for rounding.
        limit = off.quantile(0.99) if model.jumps else off.max()
        assert limit < 1e-5
    assert quick.precision == "float32" and "OpenVINO" in quick.origin


def test_odd_sizes(net):
    """Of which pooling rounds the halves up, unlike those of the size that is traced."""
    x = torch.randn(2, 3, 61, 93)
    for varying in (False, True):
        backend = OpenVINOBackend(net, torch.float32)
        backend.varying = varying
        with torch.no_grad():
            assert torch.allclose(backend(x), net(x), atol=1e-5)
    assert backend(torch.zeros(0, 3, 64, 64)).shape == (0, 1, 64, 64)


def test_parameters(net):
    """Those of any predictor."""
    image = make_scene(2, 90, 70)[0]
    for options in ({"tta": True}, {"preset": "rembg"}, {"detail": 2}, {"img_size": (96, 64)}):
        options = {"img_size": 64, **options}
        exact, quick = (one(image) for one in both(net, amp="off", **options))
        step = 1.01 / 255 if "preset" in options else 1e-4  # rembg's masks have 256 levels
        assert np.abs(exact - quick).max() < step, options


def test_bf16(net):
    """As far from float32 as torch's bf16 is, and not float32."""
    exact = Predictor(net, device="cpu", amp="off")
    half, quick = both(net, amp="bf16")
    x = batch(3, 96, 96)
    truth = exact.probabilities(x)
    usual, off = ((one.probabilities(x) - truth).abs().mean() for one in (half, quick))
    assert quick.precision == "bfloat16" and 1e-6 < off < 2 * usual


@needs_shared
def test_published_weights(cache):
    """OpenVINO's own bf16 loses two layers of them, and is .015 off."""
    path = SHARED / "weights" / "u2netp.pth"
    exact, quick = Predictor(path, 320, "cpu", "off"), both(path, img_size=320, amp="bf16")[1]
    files = sorted((SHARED / "data" / "ECSSD" / "images").iterdir())[::250]
    off = [np.abs(quick(file) - exact(file)).mean() for file in files]
    assert len(off) >= 4 and 1e-5 < np.mean(off) < 2e-3


def test_kept(net, cache, monkeypatch, tmp_path):
    """What was compiled is kept, apart from other weights, sizes and precisions; a torn file costs
    time alone, and so does a folder that nothing can be written to."""
    converted, convert = [], openvino._convert
    monkeypatch.setattr(openvino, "_convert", lambda *args: converted.append(1) or convert(*args))
    other = make_varied_network(SMALL)
    other.encoder[0].conv_in.conv.weight.data *= -1
    x, first = batch(1, 32, 32), cache / "first"
    monkeypatch.setenv("U2NET_TOOLKIT_CACHE", str(first))

    def maps(model=net, **options):
        return both(model, **{"img_size": 32, "amp": "off", **options})[1].maps(x)

    expected = maps()
    assert not torch.equal(maps(other), expected) and not torch.equal(maps(amp="bf16"), expected)
    assert len(converted) == len(list(first.iterdir())) == 3
    assert torch.equal(maps(), expected) and len(converted) == 3
    for path in first.iterdir():
        truncate_file(path)
    assert torch.equal(maps(), expected) and len(converted) == 4
    (tmp_path / "file").touch()
    monkeypatch.setenv("U2NET_TOOLKIT_CACHE", str(tmp_path / "file"))
    assert torch.equal(maps(), expected)


def test_classes_of_others(net, cache):
    """Nobody knows what their maps depend on beside weights, so that nothing is kept."""

    class Theirs(nn.Module):
        config, img_size = net.config, 64

        def forward(self, x):
            return torch.sigmoid(x[:, :1])

    kept = set(cache.iterdir())
    exact, quick = both(Theirs(), amp="off")
    assert torch.allclose(exact.maps(batch(1)), quick.maps(batch(1)), atol=1e-6)
    assert set(cache.iterdir()) == kept


@pytest.mark.parametrize("engine", openvino.ENGINES)
def test_who_has_the_threads(net, engine, monkeypatch):
    """torch's threads would spin, after what it does before the network, on OpenVINO's cores."""
    used = {}

    def note(name, function):
        def noting(*args, **kwargs):
            used[name] = torch.get_num_threads()
            return function(*args, **kwargs)

        return noting

    predict = Predictor(net, device="cpu", engine=engine)
    for name in ("prepare", "normalize", "finish", "resize"):
        monkeypatch.setattr(predict.preset, name, note(name, getattr(predict.preset, name)))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        predict.map(Image.fromarray(make_scene(0, 50, 70)[0]))
        after = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    beside = 3 if engine == "torch" else 1
    assert used == dict.fromkeys(("prepare", "normalize", "finish", "resize"), beside)
    assert after == 3
    if engine == "openvino":
        assert [threads for *_, threads in predict.model.runs] == [3]


def test_copies_and_threads(net):
    """Pickled, and used by several threads at once."""
    quick = both(net, amp="off")[1]
    twin, x, found = pickle.loads(pickle.dumps(quick)), batch(1), []
    expected = quick.maps(x)
    assert twin.origin == quick.origin
    threads = [threading.Thread(target=lambda: found.append(twin.maps(x))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and all(torch.allclose(one, expected, atol=1e-6) for one in found)


def test_after_a_fork(net, monkeypatch):
    """It hangs there, once its parent has used it."""
    quick = both(net, amp="off")[1]
    monkeypatch.setattr("src.inference.openvino._Process.lost_openvino", True)
    with pytest.raises(UserError, match=r"small: OpenVINO cannot run in a process forked.*torch"):
        quick.maps(batch(1))


def test_errors(call, file, monkeypatch):
    with pytest.raises(UserError, match="engine tvm: expected one of torch, openvino"):
        Predictor(file, engine="tvm")
    with pytest.raises(UserError, match="computes on the CPU; leave device cuda out"):
        Predictor(file, device="cuda", engine="openvino")
    with pytest.raises(UserError, match="amp fp16: needs a GPU"):
        Predictor(file, amp="fp16", engine="openvino")
    monkeypatch.setattr(openvino, "find_spec", lambda name: None)
    status, _, err = call(predict.main, file, "--weights", file, "--engine", "openvino")
    assert status == 2 and "--engine openvino: is not installed: pip install openvino" in err


def test_int8():
    """It has a runtime of its own."""
    with pytest.raises(UserError, match="engine openvino: an int8 file is run by OpenVINO"):
        check_int8("auto", "auto", "openvino")


def test_not_taken(net):
    """A network that OpenVINO has no operator for: one line."""

    class Odd(nn.Module):
        config, img_size = net.config, 64

        def forward(self, x):
            return torch.special.bessel_j0(x[:, :1])

    with pytest.raises(UserError, match="small: openvino cannot run it"):
        both(Odd(), amp="off")[1].maps(batch(1))


def test_scripts(call, file, tmp_path):
    """predict.py and validation.py compute by it, and say so."""
    make_pairs(tmp_path / "images", tmp_path / "masks", ["a", "b", "c"])
    scores = {}
    for engine in openvino.ENGINES:
        argv = ["--weights", file, "--amp", "off", "--device", "cpu", "--engine", engine]
        masks, scored = tmp_path / engine, tmp_path / f"{engine}.json"
        status, _, err = call(predict.main, tmp_path / "images", *argv, "--output", masks)
        assert status == 0 and ("OpenVINO" in err) == (engine == "openvino")
        assert len(list(masks.iterdir())) == 3
        data = "--data-path", tmp_path, "--workers", 0, "--json", scored
        status, said, err = call(validation.main, *argv, *data)
        assert status == 0 and ("OpenVINO" in said) == (engine == "openvino"), err
        scores[engine] = json.loads(scored.read_text())
    assert [scores[engine]["engine"] for engine in openvino.ENGINES] == list(openvino.ENGINES)
    assert abs(scores["torch"]["mae"] - scores["openvino"]["mae"]) < 1e-5
    status, _, err = call(validation.main, "--pred-dir", tmp_path / "torch", *argv[-2:], *data[:2])
    assert status == 2 and "--engine" in err


def test_nothing_else_on_stderr(file, tmp_path):
    """No warning of tracing, and a quiet end of the process."""
    make_pairs(tmp_path / "images", tmp_path / "masks", ["a"])
    command = [sys.executable, "predict.py", tmp_path / "images/a.jpg", "--engine", "openvino"]
    command += ["--weights", file, "--output", tmp_path / "a.png", "--img-size", "64"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and (tmp_path / "a.png").exists()
    assert not [s for s in done.stderr.splitlines() if "arn" in s or "recat" in s], done.stderr
