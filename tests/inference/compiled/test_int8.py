"""Networks in 8-bit integers: against the same in floats, by two runtimes."""

import json
import re
import subprocess
import sys
import threading
from importlib.util import find_spec

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers.data import (
    ROOT,
    SMALL,
    make_pairs,
    make_scene,
    make_varied_network,
    save_image,
    truncate_file,
)
from helpers.golden import SHARED, needs_shared

import convert
import export
import predict
import src.export.int8
import src.inference.openvino
import validation
from src import Predictor, UserError, build_model, load_model, save_model
from src.export.int8 import export_int8
from src.inference.int8 import OnnxBackend

RUNTIMES = [
    pytest.param(
        name, marks=pytest.mark.skipif(not find_spec(name), reason=f"{name} is not installed")
    )
    for name in ("openvino", "onnxruntime")
]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Where compiled networks are kept; not the user's own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder := tmp_path_factory.mktemp("cache")))
        yield folder / "u2net-toolkit"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Twelve scenes and their masks."""
    root = tmp_path_factory.mktemp("data")
    make_pairs(root / "images", root / "masks", [f"s{i:02}" for i in range(12)])
    return root


@pytest.fixture(scope="module")
def made(pictures, tmp_path_factory):
    """Weights, the int8 file that export.py made of them, and what it lost by its own words."""
    folder = tmp_path_factory.mktemp("int8")
    save_model(make_varied_network(SMALL), folder / "net.pt")
    loss = export_int8(make_varied_network(SMALL), folder / "net.onnx", pictures / "images", 0.5)
    return folder / "net.pt", folder / "net.onnx", loss


def batch(count, size=96):
    """Prepared pictures."""
    scenes = [make_scene(seed, size, size)[0] for seed in range(50, 50 + count)]
    return torch.from_numpy(np.stack(scenes)).permute(0, 3, 1, 2)


def props(path):
    return {p.key: json.loads(p.value) for p in onnx.load(path).metadata_props}


def test_it_computes_in_integers(made):
    """Every convolution reads quantised values; a quarter of the weights' size; metadata kept."""
    _, path, _ = made
    graph = onnx.load(path).graph
    by = {node.output[0]: node.op_type for node in graph.node}
    convs = [node for node in graph.node if node.op_type == "Conv"]
    there = [m for m in make_varied_network(SMALL).modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convs) == len(there)
    assert all({by[i] for i in c.input[:2]} == {"DequantizeLinear"} for c in convs)
    kernels = [t for t in graph.initializer if len(t.dims) == 4]
    assert {t.data_type for t in kernels} == {onnx.TensorProto.INT8}
    largest = max(abs(onnx.numpy_helper.to_array(t).astype(int)).max() for t in kernels)
    assert largest <= 64, "without VNNI, two products are added up in 16 bits: 2 × 255 × 64 fits"
    assert props(path)["img_size"] == 96 and props(path)["network"] == "small"
    assert b"stack_trace" not in path.read_bytes()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_runtimes_agree(made, runtime):
    """Both give, in integers and at any size, what onnxruntime gives when it computes the same
    rounded values in floats, where no sum can overflow; and that is close to the network."""
    weights, path, loss = made
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    network, runner = load_model(weights), OnnxBackend(path, runtime)
    for size in (96, 65):
        x = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(size))
        with torch.no_grad():
            found, exact = runner(x), network(x)
        (plain,) = session.run(None, {"images": x.numpy()})
        # A level more or less here and there. Levels are as far apart as the calibration's images
        # reach: .0012 with the made scenes among them.
        assert np.abs(found.numpy() - plain).mean() < 2e-3
        assert (found - exact).abs().mean() < max(0.02, 3 * loss.mean)
    assert runner(torch.zeros(0, 3, 96, 96)).shape == (0, 1, 96, 96)


TWO_AT_ONCE = """
import builtins, faulthandler, sys, threading, time, torch
from src.inference.int8 import OnnxBackend

def slow(name, *rest, **named):
    if name.endswith("multiarray"):  # in the middle of the bindings' first call
        time.sleep(0.5)
    return usual(name, *rest, **named)

runners = [OnnxBackend(sys.argv[1], "openvino") for _ in range(int(sys.argv[2]))]
barrier = threading.Barrier(2)
usual = builtins.__import__
builtins.__import__ = slow
faulthandler.dump_traceback_later(120, exit=True)
run = lambda runner: (barrier.wait(), runner(torch.zeros(1, 3, 64, 64)))
threads = [threading.Thread(target=run, args=[runners[i % len(runners)]]) for i in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


@pytest.mark.skipif(not find_spec("openvino"), reason="openvino is not installed")
@pytest.mark.parametrize("files", ["1", "2"])
def test_first_calls_from_two_threads(made, files):
    """OpenVINO's bindings hang where two threads call them for the first time: predict.py did. Of
    one file that both share, or of a file each."""
    command = [sys.executable, "-c", TWO_AT_ONCE, made[1], files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


DROPPED_ELSEWHERE = """
import gc, os, signal, sys, threading, torch
from src.inference.int8 import OnnxBackend
signal.signal(signal.SIGINT, lambda *_: print("noted", flush=True))
runners = [OnnxBackend(sys.argv[1])]
runners[0](torch.zeros(1, 3, 64, 64))
thread = threading.Thread(target=lambda: (runners.clear(), gc.collect()))
thread.start()
thread.join()
os.kill(os.getpid(), signal.SIGINT)
"""


@pytest.mark.skipif(not find_spec("openvino"), reason="openvino is not installed")
def test_a_signal_after_a_network_was_dropped_by_another_thread(made):
    """OpenVINO took the main thread's stack for signals with it: Ctrl-C was a SIGSEGV."""
    command = [sys.executable, "-X", "faulthandler", "-c", DROPPED_ELSEWHERE, made[1]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "noted\n"), done.stderr


@pytest.mark.skipif(not find_spec("openvino"), reason="openvino is not installed")
def test_requests_are_used_again(made, monkeypatch):
    """OpenVINO queues new ones behind one another at times, and leaves a core without work."""
    import openvino

    new, begun = openvino.CompiledModel.create_infer_request, []
    monkeypatch.setattr(
        openvino.CompiledModel,
        "create_infer_request",
        lambda compiled: begun.append(1) or new(compiled),
    )
    network = OnnxBackend(made[1], "openvino")
    network(batch(1))
    begun.clear()
    network(batch(6))
    assert len(begun) <= 1


@pytest.mark.skipif(not find_spec("openvino"), reason="openvino is not installed")
def test_compiled_once(made, pictures, cache, tmp_path, monkeypatch):
    """What was compiled is kept, apart from that of a network with other weights; a torn file costs
    time alone, and so does a folder that nothing can be written to."""
    other = make_varied_network(SMALL)
    other.encoder[0].conv_in.conv.weight.data *= -1
    export_int8(other, tmp_path / "other.onnx", pictures / "images", 0.5)
    x = torch.randn(1, 3, 64, 96)
    kept = set(cache.iterdir())
    maps = [OnnxBackend(path)(x) for path in (made[1], tmp_path / "other.onnx")]
    new = set(cache.iterdir()) - kept
    assert len(new) == 2 and not torch.equal(*maps)
    assert torch.equal(OnnxBackend(made[1])(x), maps[0])
    for path in new:
        path.chmod(0o644)
        truncate_file(path)
    assert torch.equal(OnnxBackend(made[1])(x), maps[0])
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert torch.equal(OnnxBackend(made[1])(x), maps[0])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_file_that_a_runtime_cannot_run(made, runtime, tmp_path):
    """Of a newer exporter, say: one line, whatever the runtime raises."""
    file = onnx.load(made[1])
    next(node for node in file.graph.node if node.op_type == "Conv").op_type = "Convolve"
    onnx.save(file, tmp_path / "net.onnx")
    with pytest.raises(UserError, match=f"{runtime} cannot run it"):
        OnnxBackend(tmp_path / "net.onnx", runtime)(torch.zeros(1, 3, 64, 64))


def test_what_is_told_is_what_is_lost(made, pictures):
    """The loss is that of the pictures kept from calibration, and bounds what scores can change."""
    weights, path, loss = made
    images = sorted((pictures / "images").iterdir())
    assert (loss.calibrated, loss.measured) == (10, 2)
    exact, quick = Predictor(weights, amp="off", device="cpu"), Predictor(path)
    off = []
    for picture in (images[2], images[7]):
        x = exact.prepare(src.pictures.images.open_image(picture))[None]
        off.append(float((exact.maps(x) - quick.maps(x)).abs().mean()))
    assert np.allclose([loss.mean, loss.worst], [np.mean(off), max(off)], atol=1e-4)


def test_predictor(made):
    """As any other: kinds in and out, size, mirrored average; no other device or precision."""
    _, path, _ = made
    predict_int8 = Predictor(path)
    assert (predict_int8.img_size, predict_int8.precision) == (96, "int8")
    assert predict_int8(make_scene(1)[0]).shape == (40, 48)
    x = batch(2)
    mirrored = Predictor(path, tta=True).maps(x)
    both = predict_int8.maps(x), predict_int8.maps(x.flip(-1)).flip(-1)
    assert torch.allclose(mirrored, sum(both) / 2)
    for flag in ({"device": "cuda"}, {"amp": "bf16"}):
        with pytest.raises(UserError, match="int8 file"):
            Predictor(path, **flag)


def test_threads_share_one(made):
    """Calls side by side, of one thread each and of all, give one result."""
    predictor, x = Predictor(made[1]), batch(1)
    alone, found = predictor.maps(x), []

    def run():
        torch.set_num_threads(1)
        found.extend(predictor.maps(x) for _ in range(3))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 9 and all(torch.allclose(one, alone, atol=1e-5) for one in found)


def test_unet(pictures, tmp_path):
    """Its mirrored borders come out right, by whatever runs it."""
    torch.manual_seed(0)
    model = build_model("unet", width=8)
    model.img_size = 96
    export_int8(model, tmp_path / "net.onnx", pictures / "images", 0.5)
    exact, quick = Predictor(model, device="cpu", amp="off"), Predictor(tmp_path / "net.onnx")
    assert (exact.maps(batch(1)) - quick.maps(batch(1))).abs().mean() < 0.05


def test_classes(pictures, tmp_path):
    """A map for each class, by softmax."""
    model = make_varied_network(SMALL, out_ch=3, activation="softmax")
    export_int8(model, tmp_path / "net.onnx", pictures / "images", 0.5)
    quick, exact = Predictor(tmp_path / "net.onnx"), Predictor(model, device="cpu", amp="off")
    assert quick.classes == 3
    maps = quick.maps(batch(2))
    assert maps.shape == (2, 3, 96, 96) and torch.allclose(maps.sum(1), torch.ones(()), atol=1e-3)
    assert (maps - exact.maps(batch(2))).abs().mean() < 0.05


def test_scripts(call, made, pictures, tmp_path):
    """predict.py and validation.py run the file, and say so."""
    _, path, _ = made
    status, said, err = call(
        predict.main, pictures / "images", "--weights", path, "--output", tmp_path / "masks"
    )
    assert status == 0 and "int8" in err and len(list((tmp_path / "masks").iterdir())) == 12
    status, said, err = call(
        validation.main, "--weights", path, "--data-path", pictures, "--workers", 0,
        "--json", tmp_path / "s.json",
    )  # fmt: skip
    assert status == 0 and "in int8" in said, err
    assert json.loads((tmp_path / "s.json").read_text())["precision"] == "int8"


def test_weights_are_not_read_from_it(call, made, tmp_path):
    status, _, err = call(convert.main, made[1], tmp_path / "net.pt")
    assert status == 2 and "quantised" in err and not (tmp_path / "net.pt").exists()


def test_files_of_others(made, tmp_path):
    """Without our metadata nobody knows how to show it a picture."""
    file = onnx.load(made[1])
    del file.metadata_props[:]
    onnx.save(file, tmp_path / "theirs.onnx")
    with pytest.raises(UserError, match="not by export"):
        Predictor(tmp_path / "theirs.onnx")


def test_without_openvino(made, monkeypatch):
    monkeypatch.setattr(src.inference.openvino, "find_spec", lambda name: None)
    assert "onnxruntime" in Predictor(made[1]).origin


def test_refused_where_too_much_is_lost(call, made, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(src.export.int8, "export_onnx", lambda model, path, **_: None)
    monkeypatch.setattr(
        src.export.int8, "_quantise", lambda _, path, inputs: path.write_bytes(made[1].read_bytes())
    )
    out = tmp_path / "net.onnx"
    argv = ["--weights", made[0], "--int8", "--calibrate", pictures / "images", "--output", out]
    status, _, err = call(export.main, *argv, "--allow-loss", 1e-9)
    assert status == 2 and "--allow-loss" in err and not list(tmp_path.iterdir())
    status, said, err = call(export.main, *argv, "--allow-loss", 0.5)
    assert status == 0 and "10 images; maps of 2 others" in said and out.exists(), err


@needs_shared
def test_published_weights(call, tmp_path):
    """Layers whose constants drown all else stay in floats, so that the limit is kept."""
    images = sorted((SHARED / "data" / "ECSSD" / "images").iterdir())[::100]
    for picture in images:
        save_image(tmp_path / "in" / picture.name, make_scene()[0]).write_bytes(
            picture.read_bytes()
        )
    status, said, err = call(
        export.main, "--weights", SHARED / "weights" / "u2netp.pth", "--int8",
        "--calibrate", tmp_path / "in", "--img-size", 160, "--output", tmp_path / "net.onnx",
    )  # fmt: skip
    assert status == 0 and "calibrated with 8 images" in said, err
    steps = re.findall(r"^ +\d+ s  (\w+)", err, re.M)
    assert steps == ["computing", "writing", "calibrating", "measuring"]
    assert (tmp_path / "net.onnx").stat().st_size < 2_000_000
