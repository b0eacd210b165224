"""What lies in examples/: its masks are predict.py's."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from helpers.data import ROOT, make_scene, save_image

import predict

PARTS = ("", ".files", ".pictures.formats", ".pictures.images", ".pictures.render")


@pytest.fixture
def album(tmp_path):
    for seed, name in enumerate(("a.jpg", "a.png", "deep/b.png")):
        save_image(tmp_path / "album" / name, make_scene(seed)[0])
    (tmp_path / "album/torn.png").write_bytes(b"torn")
    return tmp_path / "album"


@pytest.fixture
def expected(album, tmp_path, weights, call):
    """The bytes of predict.py's masks, by the place of their image."""
    out = tmp_path / "expected"
    assert call(predict.main, album, "--recursive", "--weights", weights, "--output", out)[0] == 2
    names = {"a.jpg": "a.jpg.png", "a.png": "a.png.png", "deep/b.png": "deep/b.png"}
    return {source: (out / name).read_bytes() for source, name in names.items()}


def test_a_worker_of_ray(album, expected, tmp_path, weights, monkeypatch):
    """Without Ray: what it does with a batch."""
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    for part in PARTS:  # as the package is called where it is installed
        monkeypatch.setitem(sys.modules, f"u2net{part}", importlib.import_module(f"src{part}"))
    monkeypatch.syspath_prepend(ROOT / "examples")
    worker = importlib.import_module("ray_masks").Masks
    paths = [str(album / name) for name in (*expected, "torn.png")]
    with_bytes = {"path": np.array(paths), "bytes": [Path(path).read_bytes() for path in paths]}
    out = tmp_path / "out"
    told = worker(str(album), out, str(weights), "cpu", False)(with_bytes)
    assert list(told["path"]) == paths
    assert list(told["problem"]) == ["", "", "", "not an image in a known format"]
    found = {name: (out / f"{name}.png").read_bytes() for name in expected}
    assert found == expected and len([p for p in out.rglob("*") if p.is_file()]) == 3
    (out / "a.jpg.png").write_bytes(b"kept")
    worker(str(album), out, str(weights), "cpu", True)(with_bytes)
    assert (out / "a.jpg.png").read_bytes() == b"kept"


def test_ray(album, expected, tmp_path, weights):
    """With two workers; needs ray[data] and the toolkit as a package."""
    pytest.importorskip("ray.data", reason="pip install 'ray[data]'")
    pytest.importorskip("u2net", reason="pip install .")
    script = [sys.executable, ROOT / "examples/ray_masks.py", album, tmp_path / "out"]
    done = subprocess.run(
        [*map(str, script), "--weights", str(weights)], capture_output=True, text=True
    )
    assert done.returncode == 2 and "3 of 4 masks" in done.stdout, done.stderr
    assert "torn.png: not an image" in done.stderr
    assert {n: (tmp_path / f"out/{n}.png").read_bytes() for n in expected} == expected
