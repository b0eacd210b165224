"""What is given for weights and holds none: each kind has its own message; nothing of it is run."""

import argparse
import gzip
import io
import os
import pickle
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.data import SMALL, make_varied_network, same_state, save_image, truncate_file

import predict
from src import Predictor, UserError, build_model, load_model, official, save_model
from src.export.onnx import export_onnx
from src.export.torch_export import export_pt2


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """One network in every kind of file."""
    folder = tmp_path_factory.mktemp("sound")
    model = make_varied_network(SMALL)
    save_model(model, folder / "a.pt")
    save_model(model, folder / "a.safetensors")
    export_pt2(model, folder / "a.pt2")
    return folder


def archive(kind):
    """A tar, or a zip that is not torch's, with a text in it."""
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as packed:
            packed.writestr("weights/readme.txt", "hello")
    else:
        with tarfile.open(fileobj=file, mode="w") as packed:
            info = tarfile.TarInfo("u2net.pth")
            info.size = 5
            packed.addfile(info, io.BytesIO(b"hello"))
    return file.getvalue()


OTHERS = {
    "is empty": b"",
    "is a web page": b"\n<!DOCTYPE html><html><head><title>Google Drive</title></head></html>",
    "is a web page, saved": b"<HTML>404</HTML>",
    "is a Git LFS pointer, .*git lfs pull": b"version https://git-lfs.github.com/spec/v1\noid sha",
    "is compressed by gzip; unpack it": gzip.compress(b"hello" * 99),
    "is a tar archive; unpack it": archive("tar"),
    "is a zip archive, not written by torch": archive("zip"),
    "is JSON": b'{"config": {"name": "u2net_lite"}}',
    "is an image": b"\x89PNG\r\n\x1a\n" + bytes(40),
    "is an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(40),
    "is a 7z archive": b"7z\xbc\xaf\x27\x1c" + bytes(40),
    "is text": b"hello, these are no weights\n" * 40,
}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors", ".onnx", ".pt2", ".ckpt", ""])
@pytest.mark.parametrize("message", list(OTHERS))
def test_files_of_other_kinds(tmp_path, message, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(OTHERS[message])
    with pytest.raises(UserError, match=message) as error:
        Predictor(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ") and "\n" not in text and len(text) < 260 + len(str(path))


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9, 0.9999])
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_half_a_download(sound, tmp_path, name, share):
    path = tmp_path / name
    path.write_bytes((sound / name).read_bytes())
    truncate_file(path, share)
    with pytest.raises(UserError, match="truncated") as error:
        load_model(path)
    if share > 0.1:
        assert "bytes; download" in str(error.value)


def test_zeros_after_the_start(sound, tmp_path):
    """As some file systems leave them after a power cut."""
    for name in ("a.pt", "a.safetensors"):
        content = (sound / name).read_bytes()
        (tmp_path / name).write_bytes(content[:500] + bytes(len(content) - 500))
        with pytest.raises(UserError, match=f"{name}: (truncated|damaged)"):
            load_model(tmp_path / name)


def test_programs(sound, tmp_path):
    """They compute, and hold no weights by name."""
    for name in ("a.pt2", "b.pt"):
        (tmp_path / name).write_bytes((sound / "a.pt2").read_bytes())
        with pytest.raises(UserError, match=r"program of torch\.export"):
            load_model(tmp_path / name)


def test_files_under_another_suffix(sound, tmp_path):
    """What a file holds tells, not its name."""
    for name, other in (("a.pt", "b.safetensors"), ("a.safetensors", "b.pth")):
        (tmp_path / other).write_bytes((sound / name).read_bytes())
        assert load_model(tmp_path / other).config.name == "small"


class Attack:
    """Calls a function where it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("way", ["torch", "old torch", "pickle", "pickle 0"])
@pytest.mark.parametrize("inside", [False, True])
def test_attacks(tmp_path, way, inside):
    """Refused by name, whatever else the file holds, and not run."""
    mark, path = tmp_path / "mark", tmp_path / "w.pt"
    attacks = {
        f"{os.system.__module__}.system": Attack(os.system, f"touch {mark}"),
        r"\w+.eval": Attack(eval, f"open({str(mark)!r}, 'w')"),
        r"\w+.exec": Attack(exec, f"open({str(mark)!r}, 'w')"),
    }
    for name, attack in attacks.items():
        state = build_model(SMALL).state_dict()
        content = {"state_dict": state, "hyper_parameters": attack} if inside else attack
        if way.endswith("torch"):
            torch.save(content, path, _use_new_zipfile_serialization=way == "torch")
        else:
            path.write_bytes(pickle.dumps(attack, 0 if way == "pickle 0" else None))
        with pytest.raises(UserError, match=f"refused, as reading it would call {name}"):
            load_model(path)
        assert not mark.exists()


def test_whole_networks(tmp_path):
    """torch.save(model): says what to save instead."""
    torch.save(official.U2NETP(), tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"whole pickled network \(src\..*state_dict\(\)"):
        load_model(tmp_path / "w.pt")


class AttributeDict(dict):
    """As Lightning's, in which it keeps what its module was made with."""


class Settings:
    """As scripts keep what they were called with."""

    def __init__(self):
        self.lr, self.path = 1e-3, Path("data")


def test_lightning(tmp_path, monkeypatch):
    """Settings of any class are passed over, said, and their code is not even imported; what the
    module holds beside the network, too."""
    model = build_model("u2net_lite")
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    state["criterion.pos_weight"] = torch.ones(1)
    content = {
        "epoch": 3, "pytorch-lightning_version": "2.5.0", "state_dict": state,
        "hyper_parameters": AttributeDict(lr=1e-3, namespace=argparse.Namespace(a=1)),
        "callbacks": {"ModelCheckpoint": {"best": np.float64(0.9), "path": Path("x")}},
        "settings": Settings(), "optimizer_states": [{"state": {}, "param_groups": []}],
    }  # fmt: skip
    torch.save(content, tmp_path / "last.ckpt")
    monkeypatch.delattr(sys.modules[__name__], "Settings")
    loaded = load_model(tmp_path / "last.ckpt")
    assert same_state(loaded.state_dict(), model.state_dict())
    for part in ("Lightning checkpoint", "names without model.", "1 other tensors: criterion.pos_"):
        assert part in loaded.origin
    assert "argparse.Namespace" in loaded.origin and "other objects" in loaded.origin


@pytest.mark.parametrize(
    "prefix", ["model.", "net.", "network.", "self.model.net.", "model.module.", "module.model."]
)
@pytest.mark.parametrize("names", ["ours", "official"])
def test_prefixes(tmp_path, prefix, names):
    """Of whatever held the network, nested or not."""
    torch.manual_seed(0)
    model = build_model("u2net_lite") if names == "ours" else official.U2NETP()
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    loaded = load_model(tmp_path / "w.pth")
    plain = model.state_dict() if names == "ours" else model.plain_state()
    assert same_state(loaded.state_dict(), dict(plain))
    assert f"names without {prefix.replace('module.', '')}" in loaded.origin


def test_wrapped_parts(tmp_path):
    """torch.compile of a part, averages of torch, and FSDP add names inside, or beside."""
    model = build_model("u2net_lite")
    state = {
        f"module.{n}".replace("encoder.1.", "encoder.1._orig_mod."): t
        for n, t in model.state_dict().items()
    }
    torch.save({**state, "n_averaged": torch.tensor(3)}, tmp_path / "w.pt")
    assert same_state(load_model(tmp_path / "w.pt").state_dict(), model.state_dict())


def test_two_networks(tmp_path):
    """Of a teacher and its pupil, nobody knows which is meant."""
    state = build_model("u2net_lite").state_dict()
    both = {
        f"{who}.{name}": tensor for who in ("student", "teacher") for name, tensor in state.items()
    }
    torch.save({"state_dict": both}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"holds 2 networks, under the prefixes student\., teacher"):
        load_model(tmp_path / "w.pt")


def test_run_folder(sound, call, tmp_path):
    """Its best weights, and which file that is; an empty folder is no such thing."""
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(UserError, match=r"run: .*config\.json is missing.*nor .* best\.pt"):
        load_model(run)
    (run / "best.pt").write_bytes((sound / "a.pt").read_bytes())
    (run / "args.json").write_text("{}")
    image = save_image(tmp_path / "a.png", np.zeros((40, 40, 3), np.uint8))
    argv = (image, "--weights", run, "--output", tmp_path / "m.png", "--device", "cpu")
    status, _, err = call(predict.main, *argv)
    assert status == 0 and "best.pt of the run" in err, err


def test_onnx_whose_map_says_nothing(tmp_path):
    """0 everywhere in every image: any other network gives the same."""
    model = make_varied_network(SMALL)
    model.out_conv.bias.data.fill_(-1000)
    export_onnx(model, tmp_path / "a.onnx")
    with pytest.raises(UserError, match="same everywhere in every test image"):
        load_model(tmp_path / "a.onnx")
