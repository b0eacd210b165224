"""draw_masks.py writes annotations as PNG masks."""

import numpy as np
import pytest
from helpers.annotations import annotate, coco, write
from helpers.data import make_pairs, make_scene, save_image
from PIL import Image

import draw_masks
from my_dataset import find_pairs


@pytest.fixture
def png_set(tmp_path):
    make_pairs(tmp_path / "png/images", tmp_path / "png/masks", ["a", "b", "c"])
    return tmp_path / "png"


@pytest.mark.parametrize("form", ["rle", "labelme", "yolo"])
def test_masks_are_those_that_training_draws(png_set, tmp_path, call, form):
    root = annotate(png_set, tmp_path / "set", form)
    argv = ["--data-path", root, "--output", root / "masks"]
    status, out, err = call(draw_masks.main, *argv)
    assert status == 0 and f"{root / 'masks'}: 3 masks" in out, err
    for stem in "abc":
        drawn, own = (np.asarray(Image.open(p / f"masks/{stem}.png")) for p in (root, png_set))
        assert np.array_equal(drawn, own)
    assert not find_pairs(root).pairs[0].is_drawn
    argv = ["--data-path", root, "--annotations", annotations(root), "--output", root / "masks"]
    status, _, err = call(draw_masks.main, *argv)
    assert status == 2 and "3 of the masks exist already" in err and "--overwrite" in err
    assert call(draw_masks.main, *argv, "--overwrite")[0] == 0


def annotations(root):
    return next(path for path in (root / "annotations", root / "labels") if path.is_dir())


def test_classes(tmp_path, call):
    save_image(tmp_path / "images/a.jpg", make_scene()[0])
    file = write(coco({"a.jpg": make_scene()[1]}, names=("cat", "dog")), tmp_path / "a.json")
    argv = ["--annotations", file, "--classes", "dog", "cat", "--output", tmp_path / "out"]
    status, _, err = call(draw_masks.main, *argv)
    assert status == 0, err
    written = Image.open(tmp_path / "out/a.png")
    assert written.mode == "P"
    assert np.array_equal(np.asarray(written), make_scene()[1] // 255 * 2)


def test_nothing_is_written_over(png_set, tmp_path, call):
    argv = ["--data-path", png_set, "--output", png_set / "masks", "--overwrite"]
    status, _, err = call(draw_masks.main, *argv)
    assert status == 2 and "would overwrite an input" in err


def test_no_mask_is_written_among_the_images(png_set, tmp_path, call):
    """Where it would be an image, or one of two, to whatever reads the set next."""
    root = annotate(png_set, tmp_path / "set", "yolo")
    for output in (root / "images", root / "labels/../images"):
        status, _, err = call(draw_masks.main, "--data-path", root, "--output", output)
        assert status == 2 and "is the images' own folder; choose another" in err
    assert {path.suffix for path in (root / "images").iterdir()} == {".jpg"}


def test_an_image_whose_labels_are_unclear_gets_no_empty_mask(tmp_path, call):
    """Two images of one name, with --skip-invalid: both are left out."""
    for name in ("a.png", "b.png", "x.png", "x.jpg"):
        save_image(tmp_path / "images" / name, make_scene()[0])
    for name in "ax":
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / f"labels/{name}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    argv = ["--data-path", tmp_path, "--output", tmp_path / "masks", "--skip-invalid"]
    status, told, _ = call(draw_masks.main, *argv)
    assert status == 0 and "1 fault, left out" in told and "1 image without a label file" in told
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == ["a.png", "b.png"]
