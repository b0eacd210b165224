"""What is built of the page that computes in the browser, and how it is served."""

import json
import re
import shutil
from pathlib import Path

import pytest

import app
from src import UserError, load_model
from src.weights.load import SHIPPED
from web.browser import build


def test_what_is_built(built):
    """Small enough; how images are prepared is what the file's metadata say."""
    folder, printed = built
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    assert sizes[folder / "model.onnx"] <= 2_500_000
    rest = [size for path, size in sizes.items() if path.parent == folder]
    assert sum(rest) - sizes[folder / "model.onnx"] <= 200_000
    about = json.loads((folder / "model.json").read_text())
    assert about["img_size"] == load_model(SHIPPED).img_size
    assert about["mean"] == [0.485, 0.456, 0.406]
    assert about["bytes"] == sizes[folder / "model.onnx"] and about["resampling"] == "bilinear"
    for row in ("network", "page", "runtime wasm", "runtime jspi", "runtime webgpu"):
        assert re.search(rf"^{row} +[\d.]+ kB", printed, re.M)
    assert "MIT" in (folder / "runtime/LICENCE.txt").read_text()
    page = Path(folder / "index.html").read_text()
    assert not re.search(r"https?://", page)
    assert f"{folder}/model.onnx: 2.3 MB" in printed  # none of the place where it was made


def test_what_a_build_replaces(built, tmp_path):
    """An earlier build and nothing else, not even what holds a file of the same name; a link to
    one stays a link."""
    earlier, link, page = (tmp_path / name for name in ("earlier", "link", "made/page"))
    shutil.copytree(built[0], earlier)
    link.symlink_to(earlier)
    build.check_output(link)
    shutil.copytree(built[0] / "worker", page)
    build.put_in_place(page, link)
    assert link.is_symlink() and sorted(earlier.iterdir()) == sorted(earlier.glob("*.js"))
    (tmp_path / "model.json").write_text("{}")
    shutil.copytree(built[0], tmp_path / "with")
    (tmp_path / "with/runtime/thesis.txt").write_text("all my work")
    for output, words in {
        "": "holds earlier; choose",
        "with": "holds runtime/thesis.txt; choose",
        "model.json": "is a file; choose a folder",
        "model.json/page": "choose another folder",
    }.items():
        with pytest.raises(UserError, match=words) as error:
            build.check_output(tmp_path / output)
        assert error.value.parameter == "output"


def test_flags(call, tmp_path):
    status, _, told = call(app.main, "--browser", tmp_path)
    assert status == 2 and told.count("\n") == 1 and "make browser" in told
    status, _, told = call(app.main, "--browser", tmp_path, "--cors", "*", "--device", "cpu")
    assert status == 2 and "--cors" in told and "--device" in told


@pytest.mark.parametrize("size", ["480x320", "auto"])
def test_the_page_takes_squares(call, tmp_path, size):
    status, _, err = call(build.main, "--img-size", size, "--output", tmp_path / "page")
    assert status == 2 and "--img-size" in err and "square images" in err
    assert not (tmp_path / "page").exists()
