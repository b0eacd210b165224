"""Mask files of every kind: how they are read, and which are refused."""

import numpy as np
import pytest
from helpers.data import (
    MASKS,
    OBJECT,
    RAINBOW,
    RED1,
    make_palette_image,
    make_scene,
    paint_object,
    save_image,
)
from PIL import Image

from src import UserError
from train_utils.data.masks import mask_reader, read_mask


@pytest.mark.parametrize("kind", MASKS)
def test_mask_kinds(tmp_path, kind):
    mask = read_mask(save_image(tmp_path / "mask.png", MASKS[kind]))
    assert mask.dtype == np.uint8 and np.array_equal(mask, OBJECT)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_mask(tmp_path, mode):
    """JPEG's noise around edges is neither object nor a reason to refuse."""
    mask = Image.fromarray(np.kron(paint_object(0, 255), np.ones((4, 4), np.uint8))).convert(mode)
    read = read_mask(save_image(tmp_path / "mask.jpg", mask, quality=60))
    assert (read != np.kron(OBJECT, np.ones((4, 4)))).mean() < 0.01


@pytest.mark.parametrize("turned", [False, True])
def test_jpeg_mask_of_the_best_quality(tmp_path, turned):
    """Which leaves 1 and 2 beside 0, and 255 whole, of some shapes: these are no class indices."""
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    seen = set()
    for seed in range(20):
        _, mask = make_scene(seed)
        path = save_image(tmp_path / "mask.jpg", mask, quality=100, exif=exif)
        seen |= set(np.unique(Image.open(path)).tolist())
        assert (read_mask(path) == (np.rot90(mask, -1) if turned else mask) // 255).all()
    assert {1, 255} <= seen


VOID = np.where(np.arange(16) == 15, 255, paint_object(0, 1)).astype(np.uint8)


@pytest.mark.parametrize(
    "content",
    [
        RAINBOW,
        paint_object(0, 38),
        paint_object(0, 127),
        paint_object(2, 5),
        paint_object(0, 300, np.uint16),
        RED1 * 7,
        VOID,
    ],
    ids=["coloured", "0/38", "0/127", "2/5", "dark 16 bit", "class 7 in red", "0/1/255 for void"],
)
def test_refused_masks(tmp_path, content):
    """What would silently become an empty or senseless mask is refused, and named."""
    with pytest.raises(UserError, match=r"mask\.png"):
        read_mask(save_image(tmp_path / "mask.png", content))


def test_two_classes_are_indices_whatever_their_colours(tmp_path):
    """Else --ignore-index, which no pixel has, would turn the labels round."""
    inverted = save_image(
        tmp_path / "mask.png", make_palette_image([(255, 255, 255), (0, 0, 0)], OBJECT)
    )
    for read in (mask_reader(2), mask_reader(2, 255), mask_reader(3)):
        assert np.array_equal(read(inverted), OBJECT)
    assert np.array_equal(
        mask_reader(2)(save_image(tmp_path / "grey.png", paint_object(0, 255))), OBJECT
    )


def test_a_mask_with_a_hole_in_its_numbers(tmp_path):
    Image.fromarray(np.array([[0, 1], [np.nan, 1]], np.float32)).save(tmp_path / "mask.tif")
    with pytest.raises(UserError, match="finite"):
        read_mask(tmp_path / "mask.tif")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
def test_empty_mask_stays_empty(tmp_path, mode):
    assert not read_mask(save_image(tmp_path / "mask.png", Image.new(mode, (9, 7)))).any()
