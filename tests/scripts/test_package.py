"""The library in other people's environments: built, installed elsewhere, imported as u2net."""

import os
import subprocess
import sys
import zipfile

import pytest
from helpers.data import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that nothing is left in the clone."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE", "src"):
        subprocess.run(["cp", "-r", ROOT / name, source], check=True)
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", target, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(target.glob("*.whl"))


def test_what_is_in_it(wheel):
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    modules = {f"u2net/{path.relative_to(ROOT / 'src')}" for path in (ROOT / "src").rglob("*.py")}
    assert names == modules | {"u2net/py.typed"}, "a subpackage is missing in pyproject.toml"
    assert len({name.split("/")[1] for name in modules if name.count("/") > 1}) >= 5


def test_it_works_alone(wheel, tmp_path):
    """Where neither the clone nor its tools are to be found."""
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*install, tmp_path / "site", wheel], check=True, capture_output=True)
    script = """
import sys
import torch, u2net
from PIL import Image
from u2net import Predictor, load_model, save_model, u2net_full, u2net_lite
from u2net.export.onnx import export_onnx
from u2net.official import U2NETP
from u2net.weights.hub import from_pretrained
assert "site" in u2net.__file__, u2net.__file__
assert "src" not in sys.modules and "train_utils" not in sys.modules
save_model(u2net_lite(), "w.safetensors")
saliency = Predictor("w.safetensors", img_size=64)(Image.new("RGB", (50, 40)))
assert saliency.size == (50, 40) and saliency.mode == "L"
print(sum(p.numel() for p in u2net_full().parameters()))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "43995469"
