"""torch.hub: from a clone, beside the caller's own modules, in threads."""

import shutil
import subprocess
import sys

import pytest
import torch
from helpers.data import ROOT, make_varied_network

from src import save_model


@pytest.fixture(scope="module")
def model():
    return make_varied_network()


def test_torch_hub(model, tmp_path):
    """From a program with a src and a u2net of its own, without the packages that are for special
    features.
    """
    (tmp_path / "src").mkdir()
    (tmp_path / "src/__init__.py").write_text("MINE = True\n")
    (tmp_path / "u2net.py").write_text("MINE = True\n")
    save_model(model, tmp_path / "a.pt")
    script = f"""
import sys
sys.modules["torchvision"] = sys.modules["huggingface_hub"] = None  # as if not installed
import torch, src, u2net
load = lambda name, *args, **kw: torch.hub.load({str(ROOT)!r}, name, *args, source="local", **kw)
net = load("u2net_lite", out_ch=2)
assert net.config.out_ch == 2 and src.MINE and u2net.MINE
assert sum(p.numel() for p in load("u2net_full").parameters()) == 43995469
assert load("build_model", "unet_bn", width=8).config.name == "unet_bn"
assert load("load_model", "a.pt").img_size == 96
assert load("u2net_lite", pretrained=True).origin.startswith("checkpoint")
assert load("predictor", "a.pt", img_size=64)(torch.zeros(3, 9, 9)).shape == (9, 9)
for name, args, error in (
    ("u2net_lite", ["no"], "pretrained is 'no': expected True or False"),
    ("load_model", [""], "a folder of weights holds"),
):
    try:
        load(name, *args)
    except ValueError as refused:
        assert error in str(refused), refused
    else:
        raise AssertionError(name)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_torch_hub_lists_only_its_entry_points(monkeypatch):
    monkeypatch.setattr("torch.hub._get_cache_or_reload", lambda *_, **__: str(ROOT))
    networks = ["isnet", "isnet_lite", "u2net_full", "u2net_lite"]
    listed = torch.hub.list("owner/name", trust_repo=True)
    assert sorted(listed) == sorted([*networks, "build_model", "load_model", "predictor"])


def test_torch_hub_in_threads_and_from_two_clones(tmp_path):
    for name in ("one", "two"):
        clone = tmp_path / name
        shutil.copytree(ROOT / "src", clone / "src", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "hubconf.py", clone)
    script = """
import sys, torch
from concurrent.futures import ThreadPoolExecutor
def load(clone):
    return torch.hub.load(clone, "u2net_lite", source="local")
with ThreadPoolExecutor(4) as pool:
    clones = [sys.modules[type(net).__module__].__file__ for net in pool.map(load, ["one"] * 4)]
clones.append(sys.modules[type(load("two")).__module__].__file__)
print(*(path.split("/")[-4] for path in clones))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.split() == ["one"] * 4 + ["two"], done.stderr
