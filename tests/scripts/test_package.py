"""Wheel and sdist in other people's environments: built, installed, used without a clone."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser

import pytest
from helpers.data import ROOT, make_duts, make_scene, save_image

import src
import src.__main__ as commands

PARTS = (
    "pyproject.toml",
    "setup.py",
    "README.md",
    "LICENSE",
    "src",
    "train_utils",
    "web",
    "weights",
)
SCRIPTS = (*(script for script, _ in commands.COMMANDS.values()), "my_dataset", "transforms")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A copy of the clone, its sdist, and the wheel made of that; nothing is left in the clone."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in (*PARTS, *(f"{script}.py" for script in SCRIPTS)):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    (source / "scratch.py").write_text("print('of a user')\n")
    command = [sys.executable, "-m", "build", "--outdir", target, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return source, next(target.glob("*.tar.gz")), next(target.glob("*.whl"))


@pytest.fixture(scope="module")
def u2net(built, tmp_path_factory):
    """``u2net(*words, cwd=…)`` runs the command where the wheel, but not the clone, is found."""
    site = tmp_path_factory.mktemp("site")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*install, site, built[2]], check=True, capture_output=True)
    program = [sys.executable, site / "bin/u2net"]

    def u2net(*words, cwd, program=program):
        environment = {
            **os.environ,
            "PYTHONPATH": str(site),
            "U2NET_TOOLKIT_CACHE": str(site / "cache"),
            "OMP_NUM_THREADS": "1",
        }
        command = [*program, *map(str, words)]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment)

    return u2net


def test_what_is_in_them(built):
    source, sdist, wheel = built
    expected = {
        f"u2net/{path.relative_to(source)}".replace("u2net/src/", "u2net/")
        for folder in ("src", "train_utils", "web")
        for path in (source / folder).rglob("*.py")
        if path != source / "web/browser/build.py"  # builds from the clone's files
    }
    expected |= {f"u2net/scripts/{script}.py" for script in SCRIPTS} | {"u2net/py.typed"}
    expected.add("u2net/train_utils/training/kernels/kernels.cpp")
    expected |= {f"u2net/shipped/{name}" for name in ("README.md", "u2net_lite.safetensors")}
    assert {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n} == expected
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.py", "predict.py", "weights/u2net_lite.safetensors", "LICENSE"} <= inside
    assert "scratch.py" not in inside


def test_one_version(built):
    wheel = zipfile.ZipFile(built[2])
    (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    assert Parser().parsestr(wheel.read(name).decode())["Version"] == src.__version__


def test_nothing_imports_a_name_of_the_clone(built):
    """Nor tells people to run one of its files."""
    wheel, ours = zipfile.ZipFile(built[2]), {"src", "train_utils", "web", *SCRIPTS}
    for name in wheel.namelist():
        if not name.endswith(".py"):
            continue
        text = wheel.read(name).decode()
        assert "'.[" not in text, f"{name} names an extra of the clone"
        tree = ast.parse(text)
        imported = [
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        ] + [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and not n.level]
        assert not {module.partition(".")[0] for module in imported} & ours, name
        for script, _ in commands.COMMANDS.values():
            assert f"python {script}.py" not in text and f"{script}.py: " not in text, name


def test_an_image(u2net, tmp_path):
    """``u2net photo.jpg`` is short for predict, as is a flag in the first place."""
    save_image(tmp_path / "photo.png", make_scene()[0])
    done = u2net("photo.png", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0 and "--weights u2net" in done.stderr, done.stderr
    assert "1 of 1 images written to predictions" in done.stdout
    same = [sys.executable, "-m", "u2net"]
    for words in (["--device", "cpu", "photo.png"], ["predict", "photo.png", "--device", "cpu"]):
        done = u2net(*words, "--output", "again.png", cwd=tmp_path, program=same)
        assert done.returncode == 0, done.stderr
        result = (tmp_path / "again.png").read_bytes()
        assert result == (tmp_path / "predictions/photo.png").read_bytes()


def test_from_training_to_scores(u2net, tmp_path):
    make_duts(tmp_path / "D")
    size = ["--img-size", 32, "--device", "cpu"]
    train = ["--data-path", "D", "--model", "u2net_lite", "--epochs", 1, "--crop-size", 32]
    train += ["--warmup-epochs", 0, "--batch-size", 2, "--workers", 0, "--output-dir", "run"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=1"]
    launched = [*torchrun, "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m", "u2net"]
    done = u2net("train", *train, *size, cwd=tmp_path, program=launched)
    assert done.returncode == 0, done.stderr
    score = ["--weights", "run/best.pt", "--data-path", "D", "--json", "s.json", "--workers", 0]
    done = u2net("validate", *score, *size, cwd=tmp_path)
    assert done.returncode == 0 and "run/best.pt" in done.stdout, done.stderr
    done = u2net("convert", "run/best.pt", "lite.safetensors", cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "lite.safetensors").exists(), done.stderr


def test_commands_and_weights(u2net, tmp_path):
    done = u2net("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert all(f"\n  {command} " in done.stdout for command in commands.COMMANDS)
    assert u2net("--version", cwd=tmp_path).stdout == f"u2net-toolkit {src.__version__}\n"
    assert u2net(cwd=tmp_path).returncode == 2
    for command in commands.COMMANDS:
        done = u2net(command, "--help", cwd=tmp_path)
        assert done.returncode == 0 and f"usage: u2net {command}" in done.stdout, done.stderr
    done = u2net("weights", cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert lines[1].split()[0] == "lite" and "included" in lines[1]
    assert any(line.startswith("u2net_cloth_seg") and "to be fetched" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian", "--data-path", "D"], "did you mean u2net train?"),
        (["draw-mask"], "did you mean u2net draw-masks?"),
        (["help", "nope"], "nope: no such command"),
        (["nowhere.jpg"], "nowhere.jpg"),
        (["weights", "--fetch", "u2nett"], "invalid choice: 'u2nett'"),
    ],
)
def test_what_is_misspelt(monkeypatch, capsys, tmp_path, words, message):
    """In one line, as everywhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["u2net"])
    with pytest.raises(SystemExit) as left:
        commands.main(words)
    err = capsys.readouterr().err
    assert left.value.code == 2 and message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["--weights", "lite", "a.png"],
        ["train/*.png"],
        ["predict", "train/*.png"],
        ["trai?/a.png"],
        ["train.png"],
        ["predict", "trian"],
    ],
)
def test_what_is_no_misspelt_command(monkeypatch, capsys, tmp_path, words):
    """Flags, patterns, file names, and whatever follows a command: these go to predict.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["u2net"])
    given = []
    monkeypatch.setattr("predict.main", given.append)
    with pytest.raises(SystemExit):
        commands.main(words)
    assert "did you mean" not in capsys.readouterr().err
    assert given == [words[words[0] == "predict" :]]


def test_a_reader_that_has_seen_enough(tmp_path):
    """As ``u2net weights | true``: nothing is said, and the status is that of a broken pipe."""
    for words in (["weights"], ["weights", "--fetch", "lite"], ["--help"], ["--version"]):
        read, write = os.pipe()
        os.close(read)
        with os.fdopen(write) as closed:
            done = subprocess.run(
                [sys.executable, "-c", "from src.__main__ import main; main()", *words],
                cwd=ROOT, stdout=closed, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
        assert (done.returncode, done.stderr) == (141, ""), words


def test_help_is_a_command_too(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["u2net"])
    for words, text in ((["help"], "commands:"), (["help", "convert"], "usage: u2net convert")):
        with pytest.raises(SystemExit) as left:
            commands.main(words)
        assert left.value.code == 0 and text in capsys.readouterr().out


def test_a_missing_package_is_named_with_its_extra(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["u2net"])
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.delitem(sys.modules, "train", raising=False)

    def main(argv):
        import cv2  # noqa: F401

    monkeypatch.setattr("train.main", main)
    with pytest.raises(SystemExit) as left:
        commands.main(["train", "--data-path", "D"])
    err = capsys.readouterr().err
    assert left.value.code == 2 and "pip install '.[train]'" in err


def test_the_library_alone(u2net, tmp_path):
    """What other people's code imports."""
    script = """
import sys
import torch, u2net
from PIL import Image
from u2net import Predictor, load_model, save_model, u2net_full, u2net_lite
from u2net.export.onnx import export_onnx
from u2net.official import U2NETP
from u2net.scripts.my_dataset import find_pairs
from u2net.train_utils.data.transforms import TrainPreset
from u2net.weights.hub import from_pretrained
assert "site" in u2net.__file__, u2net.__file__
assert not {"src", "train_utils", "web", "my_dataset"} & set(sys.modules)
save_model(u2net_lite(), "w.safetensors")
saliency = Predictor("w.safetensors", img_size=64)(Image.new("RGB", (50, 40)))
assert saliency.size == (50, 40) and saliency.mode == "L"
assert load_model("lite").origin.startswith("checkpoint")
print(sum(p.numel() for p in u2net_full().parameters()))
"""
    done = u2net("-c", script, cwd=tmp_path, program=[sys.executable])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "43995469"


def test_an_environment_keeps_what_it_has():
    """``pip install .`` beside a torch for CPUs, or an older cv2: no upper bounds, and nothing that
    would bring another torch (each torchvision asks for one of its own)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = project["dependencies"]
    assert all(re.fullmatch(r"[a-z_]+>=[\d.]+", line) for line in needed), needed
    names = {line.partition(">=")[0] for line in needed}
    assert not names & {"torchvision", "torchaudio", "opencv-python-headless"}
    least = dict(line.split(">=") for line in needed)
    assert least["numpy"].startswith("1."), "cv2 built for NumPy 1 breaks where NumPy 2 replaces it"
