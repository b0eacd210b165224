"""Published weights by name: from a server of our own, from rembg's folder, from the cache."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.data import ROOT, SMALL, make_varied_network, same_state
from helpers.golden import SHARED, needs_shared
from helpers.servers.release import as_published, publish, serve

import convert
import export
import fetch_weights
import predict
from src import FULL, ISNET, LITE, Predictor, UserError, build_model, load_model, save_model
from src.export.onnx import export_onnx
from src.inference.openvino import kept_folder
from src.weights import load, named
from src.weights.load import SHIPPED, find_weights


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """The bytes of an ONNX file."""
    path = tmp_path_factory.mktemp("release") / "small.onnx"
    export_onnx(make_varied_network(SMALL), path)
    return path.read_bytes()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user without any weights, and without a network except for this machine."""
    for name in ("U2NET_HOME", "REMBG_HOME", "XDG_DATA_HOME", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv(named.CACHE, str(tmp_path / "cache"))
    monkeypatch.setenv(named.MIRROR, "http://127.0.0.1:9")  # nobody listens
    monkeypatch.setattr(named, "TIMEOUT", 1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def release(home, content, monkeypatch):
    """``u2netp`` on a server."""
    publish(monkeypatch, "u2netp", content)
    with serve(content) as (served, address):
        monkeypatch.setenv(named.MIRROR, address + "/")
        yield served


@pytest.mark.skipif(sys.platform == "win32", reason="there is always a home folder")
def test_without_a_home_folder(home, monkeypatch):
    """As a user id without a name has none, in a container."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)
    assert named.find_onnx(named.PUBLISHED["u2netp"]) is None  # rembg's folders are passed over
    monkeypatch.delenv(named.CACHE)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(UserError, match=r"no home folder .*; set U2NET_TOOLKIT_CACHE to a folder"):
        load_model("u2netp")
    assert kept_folder() is None


def test_fetched_once_and_kept_as_safetensors(release, home, capsys, monkeypatch):
    first = load_model("u2netp")
    assert release.requests == ["/u2netp.onnx"]
    err = capsys.readouterr().err
    assert "Fetching u2netp (4.6 MB) from http://127.0.0.1" in err
    kept = {path.name for path in (home / "cache").iterdir()} - {"u2netp.lock"}
    assert kept == {"u2netp.onnx", "u2netp.safetensors"}
    for name in ("read_onnx", "check_onnx"):
        monkeypatch.setattr(load, name, None)  # a later start parses no ONNX
    again = load_model("u2netp")
    assert same_state(first.state_dict(), again.state_dict()) and len(release.requests) == 1
    assert again.origin.startswith("published weights, ") and again.img_size == 320
    assert not capsys.readouterr().err
    picture = np.full((40, 50, 3), 90, np.uint8)
    assert np.array_equal(Predictor("u2netp")(picture), Predictor(first)(picture))


WAYS = {
    "404": "404 Not Found",
    "torn": "the md5 sum of the download is wrong",
    "wrong": "the md5 sum of the download is wrong",
    "vanishing": "the connection was lost",
    "hanging": "no answer within 1 seconds",
    "no length": "its answer is not valid HTTP",
}


@pytest.mark.parametrize(("way", "reason"), WAYS.items())
def test_what_is_not_the_file_is_never_kept(release, home, way, reason):
    release.way = way
    with pytest.raises(UserError) as error:
        load_model("u2netp")
    text = str(error.value)
    assert reason in text and "\n" not in text and text.startswith("u2netp: cannot be fetched from")
    assert f"put it at {home / 'cache/u2netp.onnx'}" in text and "called lite" in text
    assert [path.name for path in (home / "cache").iterdir()] in ([], ["u2netp.lock"])
    release.way = "right"
    assert load_model("u2netp").config.name == "small"


def test_prepared_for_a_machine_without_a_network(release, home, call):
    """By a slow server too, which is waited for."""
    release.way = "slow"
    assert "to be fetched" in call(fetch_weights.main)[1]
    status, out, _ = call(fetch_weights.main, "--fetch", "u2netp")
    assert status == 0 and out == f"u2netp: {home / 'cache/u2netp.safetensors'}\n"
    (listed,) = (x for x in call(fetch_weights.main)[1].splitlines() if x.startswith("u2netp "))
    assert "in the cache" in listed and len(release.requests) == 1


def test_without_a_network(home, call):
    (home / "a.png").write_bytes((ROOT / "docs/pictures/first.png").read_bytes())
    status, out, err = call(predict.main, "a.png", "--weights", "u2net", "--device", "cpu")
    errors = [line for line in err.splitlines() if not line.startswith("Fetching")]
    assert status == 2 and not out and len(errors) == 1
    assert "http://127.0.0.1:9/u2net.onnx (no connection)" in errors[0]
    assert not (home / "predictions").exists()


def test_a_proxy_is_asked(home, content, monkeypatch):
    publish(monkeypatch, "u2netp", content)
    with serve(content) as (proxy, address):
        monkeypatch.setenv("http_proxy", address)
        monkeypatch.setenv("no_proxy", "")
        monkeypatch.setenv(named.MIRROR, "http://release.invalid")
        assert load_model("u2netp").config.name == "small"
        assert proxy.requests == ["http://release.invalid/u2netp.onnx"]


def test_a_file_put_there_by_hand(home, content, monkeypatch, capsys):
    entry = publish(monkeypatch, "u2netp", content)
    entry.path.parent.mkdir()
    entry.path.write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"u2netp\.onnx is not the published file; cannot be fet"):
        load_model("u2netp")
    assert entry.path.read_bytes() == content[:-1]  # a user's own is not removed
    capsys.readouterr()
    with serve(content) as (_, address):
        monkeypatch.setenv(named.MIRROR, address)
        assert load_model("u2netp").config.name == "small"
    assert f"{entry.path}: is not the published file, which will repl" in capsys.readouterr().err
    entry.converted.unlink()
    monkeypatch.setenv(named.MIRROR, "http://127.0.0.1:9")
    assert load_model("u2netp").config.name == "small"


@pytest.mark.parametrize(
    ("variable", "place"),
    [
        (None, "home/.u2net"),
        (None, "home/.rembg/models/u2netp"),
        ("U2NET_HOME", "elsewhere"),
        ("REMBG_HOME", "elsewhere/models/u2netp"),
    ],
)
def test_what_rembg_has_is_read_only(home, content, monkeypatch, call, variable, place):
    publish(monkeypatch, "u2netp", content)
    if variable:
        monkeypatch.setenv(variable, str(home / "elsewhere"))
    file = home / place / "u2netp.onnx"
    file.parent.mkdir(parents=True)
    file.write_bytes(content + b"another")
    with pytest.raises(UserError, match="cannot be fetched"):  # another file of that name
        load_model("u2netp")
    file.write_bytes(content)
    assert load_model("u2netp").config.name == "small"
    converted = home / "cache/u2netp.safetensors"
    for main, *argv in (
        (export.main, "--weights", "u2netp", "--output", file),
        (convert.main, "u2netp", converted),
    ):
        status, _, err = call(main, *argv)
        assert status == 2 and "would overwrite an input of this run" in err, err
    assert file.read_bytes() == content and [*file.parent.iterdir()] == [file]
    assert not (home / "cache/u2netp.onnx").exists()


def test_a_converted_file_that_is_torn_or_of_others_is_made_anew(release, home):
    first = load_model("u2netp")
    converted = home / "cache/u2netp.safetensors"
    whole = converted.read_bytes()
    for broken in (whole[:-5], b"", whole.replace(b"md5", b"md4")):
        converted.write_bytes(broken)
        assert same_state(load_model("u2netp").state_dict(), first.state_dict())
        assert len(converted.read_bytes()) == len(whole)
    save_model(make_varied_network(SMALL, out_ch=2), converted)
    assert load_model("u2netp").config.out_ch == 1 and len(release.requests) == 1


def test_a_file_of_that_name_takes_precedence(home, content, monkeypatch):
    publish(monkeypatch, "u2netp", content)
    save_model(make_varied_network(SMALL, out_ch=2), home / "u2netp")
    model = load_model("u2netp")
    assert model.config.out_ch == 2
    assert "of that name, not the published weights" in model.origin
    (home / "u2netp").unlink()
    (home / "u2netp").mkdir()  # of other things, say
    with pytest.raises(UserError, match="cannot be fetched"):
        load_model("u2netp")
    make_varied_network(SMALL, out_ch=2).save_pretrained(home / "u2netp")
    assert load_model("u2netp").config.out_ch == 2


def test_unknown_names_and_paths(home, call):
    with pytest.raises(UserError, match=r"^u2nett: no such weights file, nor a name .*u2netp, "):
        load_model("u2nett")
    with pytest.raises(UserError, match=r"^nowhere\.pt: no such weights file$"):
        load_model("nowhere.pt")
    for path in ("u2netp.pth", "runs/u2net"):
        with pytest.raises(
            UserError, match=f"^{path}: no such weights file; .*ones are called u2net"
        ):
            load_model(path)
    for name in ("./u2net", "lite/"):
        status, _, err = call(convert.main, name, "a.pt")
        assert status == 2 and f"{home / name.strip('./')}: no such weights file" in err
    assert not (home / "cache").exists()


def test_lite_needs_nothing(home):
    assert find_weights("lite") == SHIPPED and load_model("lite").origin.startswith("checkpoint")
    assert not (home / "cache").exists()


def test_a_cache_that_cannot_be_written(home, content, monkeypatch):
    publish(monkeypatch, "u2netp", content)
    (home / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"cache: .*cannot be written .*set U2NET_TOOLKIT_CACHE"):
        load_model("u2netp")


SCRIPT = """
import sys
from dataclasses import replace
from helpers.servers.release import publish
from pytest import MonkeyPatch
publish(MonkeyPatch(), "u2netp", open(sys.argv[1], "rb").read())
from src import load_model
print(load_model("u2netp").origin)
"""


def test_processes_at_once_fetch_once(release, home, content):
    """As torchrun's and a server's do."""
    release.way = "slow"
    (home / "content").write_bytes(content)
    command = [sys.executable, "-c", SCRIPT, home / "content"]
    env = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "U2NET_TOOLKIT_CACHE": str(home / "cache")}
    env |= {key: os.environ[key] for key in ("U2NET_TOOLKIT_URL", "PATH", "HOME")}
    started = [
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    for process in started:
        assert process.communicate()[0].startswith("published weights, small")
    assert release.requests == ["/u2netp.onnx"]


@needs_shared
def test_the_published_lite_weights(home, monkeypatch):
    """From the release's form to the map that the official code gave."""
    original = load_model(SHARED / "weights/u2netp.pth")
    content = as_published(original, home / "release.onnx", 320)
    publish(monkeypatch, "u2netp", content)
    golden = np.load(SHARED / "golden/u2netp_horse.npz")
    with serve(content) as (_, address):
        monkeypatch.setenv(named.MIRROR, address)
        model = load_model("u2netp")
    assert model.origin == "published weights, u2net_lite, 1 map"
    with torch.no_grad():
        found = model(torch.from_numpy(golden["input"]))
    assert np.abs(found.numpy() - golden["outputs"][:1]).max() < 2e-3
    argv = [str(ROOT / "docs/pictures/first.png"), "--weights", "u2netp", "--device", "cpu"]
    assert predict.main(argv) == 0 and (home / "predictions/first.png").exists()


def test_clothes(home, monkeypatch):
    """Four maps, as the official code exports them."""
    model = make_varied_network("u2net_lite", out_ch=4, activation="softmax")
    content = as_published(model, home / "release.onnx", 96)
    entry = publish(monkeypatch, "u2net_cloth_seg", content)
    entry.path.parent.mkdir()
    entry.path.write_bytes(content)
    found = load_model("u2net_cloth_seg")
    assert found.img_size == 768 and found.config.activation == "softmax"
    assert (found.config.mean, found.config.std) == ((0.5,) * 3, (0.5,) * 3)
    classes = "background, upper body, lower body, full body"
    assert found.origin == f"published weights, u2net_lite, 4 maps: {classes}"
    (home / "clothes.onnx").write_bytes(content)  # the same by its path
    by_path = load_model(home / "clothes.onnx")
    assert by_path.config == found.config and by_path.img_size == 768
    assert by_path.origin == "ONNX file published as u2net_cloth_seg, u2net_lite, 4 maps"
    wrong = replace(entry, preprocessing={"img_size": 96, "mean": (0.1,) * 3})
    monkeypatch.setitem(named.PUBLISHED, entry.name, wrong)
    later = load_model(entry.name)  # from the same cache
    kept = {"img_size": 96, "mean": (0.1,) * 3, "std": FULL.std}
    assert later.img_size == 96 and later.config == found.config.replace(**kept)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(found(x), model(x), atol=1e-5)


def test_isnet_of_one_output(home, monkeypatch):
    """As ``isnet-anime`` is: the side maps that the answer is not made of are not in the file."""
    torch.manual_seed(0)
    model = build_model("isnet_lite").eval()
    export_onnx(model, home / "release.onnx")
    entry = publish(monkeypatch, "isnet-anime", (home / "release.onnx").read_bytes())
    entry.path.parent.mkdir()
    (home / "release.onnx").rename(entry.path)
    found = load_model("isnet-anime")
    assert found.config.mean == (0, 0, 0) and found.config.std == (1, 1, 1)
    assert found.img_size == 1024
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(found(x), model(x), atol=1e-5)


@pytest.mark.parametrize("name", named.PUBLISHED)
def test_the_table(name):
    entry = named.PUBLISHED[name]
    assert entry.url == f"{named.RELEASE}/{name}.onnx" and len(entry.md5) == 32
    tables = {"u2net_full": FULL, "u2net_lite": LITE, "isnet": ISNET}
    megabytes = sum(p.numel() for p in build_model(entry.network).parameters()) * 4 / 1e6
    assert abs(megabytes / entry.megabytes - 1) < 0.03
    tables[entry.network].replace(**entry.preprocessing)  # raises where a field is wrong
