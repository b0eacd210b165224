"""Predictors in other processes: pickled, copied, after a fork."""

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from helpers.data import ROOT, SMALL, make_pairs, make_scene, make_varied_network

from src import Predictor, UserError, save_model
from src.export.int8 import export_int8
from src.inference import openvino
from src.inference.int8 import OnnxBackend
from src.weights import named

IMAGE = make_scene(3, 90, 70)[0]
MINUTES = 300  # seconds after which a process that should take one is taken to hang
_predictor = None  # of a pool's process


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Where compiled networks are kept; not the user's own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Weights, and an int8 file of them."""
    folder = tmp_path_factory.mktemp("weights")
    model = make_varied_network(SMALL)
    save_model(model, folder / "net.pt")
    make_pairs(folder / "images", folder / "masks", [f"s{i}" for i in range(6)])
    export_int8(model, folder / "net.onnx", folder / "images", 0.5)
    return {"float": folder / "net.pt", "int8": folder / "net.onnx"}


@pytest.fixture(params=["float", "bf16", "int8", "network", "class"])
def predictor(request, files):
    """Of a file and of a network."""
    if request.param == "network":
        return Predictor(make_varied_network(SMALL), 64, "cpu", "off", tta=True)
    if request.param == "class":
        network = make_varied_network(SMALL, out_ch=3, activation="softmax")
        return Predictor(network, 64, "cpu", "off")
    if request.param == "int8":
        return Predictor(files["int8"])
    return Predictor(files["float"], 64, "cpu", "off" if request.param == "float" else "bf16")


def settings(predictor):
    names = ("img_size", "device", "dtype", "precision", "tta", "origin", "channel", "classes")
    return [getattr(predictor, name) for name in names]


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("kind", ["pickle", "deepcopy", "copy"])
def test_copies(predictor, kind, used):
    """Whether the first has predicted or not: the same maps, and the first stays as it was."""
    expected = predictor(IMAGE) if used else None
    twin = {
        "pickle": lambda p: pickle.loads(pickle.dumps(p)), "deepcopy": copy.deepcopy,
        "copy": copy.copy,
    }[kind](predictor)  # fmt: skip
    assert settings(twin) == settings(predictor)
    expected = predictor(IMAGE) if expected is None else expected
    assert np.ptp(expected) > 0.05
    assert np.array_equal(twin(IMAGE), expected) and np.array_equal(predictor(IMAGE), expected)


def test_what_is_pickled_needs_no_file(files, tmp_path):
    """It holds the weights, not the name of their file; and those that were loaded, though the
    caller trains on."""
    for kind, path in files.items():
        (tmp_path / path.name).write_bytes(path.read_bytes())
        predictor = Predictor(tmp_path / path.name)
        (tmp_path / path.name).unlink()
        expected = predictor(IMAGE)
        assert np.array_equal(pickle.loads(pickle.dumps(predictor))(IMAGE), expected), kind
    network = make_varied_network(SMALL)
    predictor = Predictor(network, 64, "cpu", "off")
    network.out_conv.weight.data.zero_()
    assert np.array_equal(copy.deepcopy(predictor)(IMAGE), predictor(IMAGE))


FORK = """
import os, signal, sys, time
import numpy as np, torch
from src import Predictor
path, runtime, begin = sys.argv[1:4]
if runtime == "onnxruntime":
    import src.inference.openvino
    src.inference.openvino.find_spec = lambda name: None
torch.set_num_threads(2)
image = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
predict = Predictor(path, 320, "cpu")
if begin == "predicted":
    expected = predict(image)
    predict.predict_batch(torch.zeros(3, 3, 300, 400, dtype=torch.uint8))
reader, writer = os.pipe()
child = os.fork()
if not child:
    found = predict(image)
    again = Predictor(path, 320, "cpu")(image)
    batch = predict.predict_batch(torch.from_numpy(image).permute(2, 0, 1)[None].repeat(3, 1, 1, 1))
    one, two = np.abs(found - again).max(), np.abs(batch[2].numpy() - found).max()
    os.write(writer, f"{one:.9f} {two:.9f} ".encode())
    os.write(writer, b" ".join(str(v).encode() for v in (found.mean(), torch.get_num_threads())))
    os.close(writer)
    sys.exit()  # which frees what there is
os.close(writer)
end = time.monotonic() + 240
while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
    if time.monotonic() > end:
        os.kill(child, signal.SIGKILL)
        sys.exit("the forked process hangs")
    time.sleep(0.05)
assert ended == (child, 0), ended  # and not by a signal, after its work
one, batch, mean, threads = map(float, os.read(reader, 1000).split())
assert one < 1e-6 and batch < 1e-5 and threads == 1, (one, batch, threads)
expected = predict(image)
assert abs(expected.mean() - mean) < 1e-3, (expected.mean(), mean)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("begin", ["loaded", "predicted"])
@pytest.mark.parametrize("kind", ["float", "int8 onnxruntime", "int8 openvino"])
def test_fork(files, kind, begin):
    """Threads do not survive it: a child that waited for them would hang for ever."""
    kind, _, runtime = kind.partition(" ")
    if runtime == "openvino" and not find_spec("openvino"):
        pytest.skip("openvino is not installed")
    command = [sys.executable, "-c", FORK, files[kind], runtime, begin]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=MINUTES)
    assert done.returncode == 0, done.stderr
    assert "terminate" not in done.stderr


def keep(predictor):
    """Of a process of a pool, at its start."""
    global _predictor
    _predictor = predictor


def predict(image):
    return _predictor(image)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_pools(files, method):
    """A predictor handed to the processes of a pool when they start, and one used by a task."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"there is no {method} here")
    predictor = Predictor(files["float"], 64, "cpu", "off")
    images = [make_scene(seed, 60, 50)[0] for seed in range(4)]
    expected = [predictor(image) for image in images]
    context = multiprocessing.get_context(method)
    with context.Pool(2, initializer=keep, initargs=[predictor]) as pool:
        found = pool.map_async(predict, images).get(MINUTES)
        tasks = pool.map_async(predictor, images).get(MINUTES)
    for maps in (found, tasks):
        assert all(np.allclose(m, e, atol=1e-5) for m, e in zip(maps, expected, strict=True))


def test_a_gpu_after_a_fork(files, monkeypatch):
    """It cannot be used there; said before torch does."""
    predictor = Predictor(files["float"], 64, "cpu", "off")
    predictor.device = torch.device("cuda:0")
    monkeypatch.setattr("src.inference.predictor.fork_count", lambda: 1)
    with pytest.raises(UserError, match=r"forked .*cuda:0.* by spawn"):
        predictor(IMAGE)


@pytest.mark.skipif(not find_spec("openvino"), reason="openvino is not installed")
def test_openvino_after_a_fork(files, monkeypatch):
    """It hangs there, once its parent has used it: the other runtime, or an error that says so."""
    monkeypatch.setattr("src.inference.openvino._Process.lost_openvino", True)
    assert "onnxruntime" in Predictor(files["int8"]).origin
    with pytest.raises(UserError, match="OpenVINO cannot run in a process forked"):
        OnnxBackend(files["int8"], "openvino")(torch.zeros(1, 3, 64, 64))


def test_one_cache_folder(monkeypatch, tmp_path):
    """Compiled networks lie where published weights do, wherever the environment wants them."""
    monkeypatch.setenv(named.CACHE, str(tmp_path / "kept"))
    assert openvino.kept_folder() == named.cache_folder() == tmp_path / "kept"
