"""One class for every kind of picture, from many threads at once."""

from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from helpers.data import break_network, make_scene, save_image
from PIL import Image

from src import LITE, Predictor, Style, UserError, build_model, render
from src.device import per_core, pick_device
from src.inference.preprocess import normalize


@pytest.fixture(scope="module")
def predictor():
    torch.manual_seed(5)
    return Predictor(build_model("u2net_lite"), 64, "cpu", "off")


def test_every_kind_gives_its_own_kind_and_the_same_map(predictor, tmp_path):
    picture, _ = make_scene(1, 50, 40)
    path = save_image(tmp_path / "a.png", picture)
    expected = predictor(path)
    assert isinstance(expected, np.ndarray) and expected.dtype == np.float32
    assert expected.shape == (40, 50) and np.array_equal(predictor(str(path)), expected)
    assert np.array_equal(predictor(picture), expected)
    assert np.array_equal(predictor(picture / 255.0), expected)
    mask = predictor(Image.fromarray(picture))
    assert mask.mode == "L" and np.array_equal(mask, (expected * 255).round())
    tensor = torch.from_numpy(picture).permute(2, 0, 1)
    assert torch.equal(predictor(tensor), torch.from_numpy(expected))
    batch = predictor(torch.stack([tensor, tensor.flip(-1)]).double() / 255)
    assert batch.shape == (2, 40, 50) and torch.equal(batch[0], torch.from_numpy(expected))
    assert predictor(tensor[None][:0]).shape == (0, 40, 50)


def test_grey_and_16_bit_arrays(predictor):
    grey = make_scene(1)[0][..., 0]
    expected = predictor(np.repeat(grey[..., None], 3, axis=2))
    assert np.array_equal(predictor(grey), expected)
    assert np.array_equal(predictor(grey[..., None]), expected)
    assert np.array_equal(predictor(grey.astype(np.uint16) * 257), expected)
    assert np.array_equal(predictor((grey.astype(np.uint16) * 257).astype(">u2")), expected)
    opaque = np.dstack([grey, grey, grey, np.full_like(grey, 255)])
    assert np.array_equal(predictor(opaque), expected)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.int64),
        np.full((4, 4, 3), 255.0),
        np.full((4, 4), np.nan),
        torch.zeros(4, 4),
        torch.zeros(1, 4, 4),
        torch.full((3, 4, 4), torch.nan),
        torch.zeros(3, 4, 4).to_sparse(),
        torch.zeros(3, 4, 4, device="meta"),
        Image.new("RGB", (0, 5)),
        None,
        [Image.new("RGB", (4, 4))],
        "a\0b",
    ],
    ids=lambda wrong: f"{type(wrong).__name__} {getattr(wrong, 'shape', '')}",
)
def test_what_is_no_picture_is_refused(predictor, wrong):
    with pytest.raises(UserError, match=r"give|divide|finite|0×5|cannot be read"):
        predictor(wrong)


def test_colours_times_alpha(predictor):
    """Modes that pictures have on the way to being resized."""
    picture = Image.fromarray(
        np.dstack([make_scene(1)[0], np.full(make_scene(1)[1].shape, 90, np.uint8)])
    )
    found, expected = predictor(picture.convert("RGBa")), predictor(picture)
    assert np.abs(np.asarray(found, int) - expected).max() <= 3


def test_threads_share_one(predictor):
    pictures = [make_scene(seed, 40 + seed, 40)[0] for seed in range(12)]
    expected = [predictor(picture) for picture in pictures]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(predictor, pictures * 3))
    assert all(map(np.array_equal, found, expected * 3))


def test_threads_that_share_batches(predictor, monkeypatch):
    """A batch takes a thread for each core; after the last one torch has all cores again, though
    the second begins while the first has them set to one each."""
    monkeypatch.setattr(torch, "get_num_threads", cores := Mock(side_effect=[4, 1, 1, 1]))
    monkeypatch.setattr(torch, "set_num_threads", held := Mock())
    first, second = per_core(9), per_core(9)
    assert first.__enter__()[1] == second.__enter__()[1] == 4
    first.__exit__(None, None, None)
    assert not held.called, "the second still shares the cores"
    second.__exit__(None, None, None)
    held.assert_called_once_with(4)
    assert cores.call_count == 1


def test_a_gpu_is_named_by_its_number(monkeypatch):
    """Threads that compute have a current GPU of their own, the first."""
    there = Mock(device=torch.device("cuda:1"))
    monkeypatch.setattr(torch, "empty", lambda *_, device: there)
    assert pick_device("cuda") == torch.device("cuda:1")


def test_tensors_of_any_float_type(predictor):
    picture = torch.from_numpy(make_scene(1)[0]).permute(2, 0, 1) / 255
    expected = predictor(picture)
    assert torch.equal(predictor(picture.clone().requires_grad_()), expected)
    assert (predictor(picture.bfloat16()) - expected).abs().mean() < 0.01
    for dtype in (torch.float16, torch.float64):
        rounded = picture.to(dtype)
        array = rounded.permute(1, 2, 0).numpy()
        assert np.array_equal(predictor(array), predictor(rounded).numpy())
    floats = (picture[None] * 255).to(memory_format=torch.channels_last)
    kept = floats.clone()
    normalize(floats)
    assert torch.equal(floats, kept), "the caller's stay as they are"


@pytest.mark.parametrize("preset", ["default", "rembg"])
def test_batches_are_the_same_images_one_by_one(weights, preset):
    """To the bit; of integers, truth values and floats; of other layouts too."""
    predictor = Predictor(weights, 64, "cpu", "off", preset=preset)
    arrays = [make_scene(seed, 50, 40)[0] for seed in range(3)]
    expected = torch.from_numpy(np.stack([predictor(array) for array in arrays]))
    images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
    for batch in (images, images.contiguous(), images / 255, images.to(torch.uint16) * 257):
        assert torch.equal(predictor.predict_batch(batch), expected)
    masks = images > 128
    expected = predictor(masks[0].permute(1, 2, 0).numpy())
    assert np.array_equal(predictor.predict_batch(masks)[0].numpy(), expected)


def test_batches_of_classes():
    torch.manual_seed(5)
    network = build_model("u2net_lite", out_ch=3, activation="softmax")
    predictor = Predictor(network, 64, "cpu", "off")
    image = torch.from_numpy(make_scene(1, 50, 40)[0]).permute(2, 0, 1)
    assert torch.equal(predictor(image), torch.from_numpy(predictor(make_scene(1, 50, 40)[0])))
    assert predictor.predict_batch(image[None][:0]).shape == (0, 3, 40, 50)


@pytest.mark.parametrize("form", ["array", "image", "tensor", "path", "batch"])
@pytest.mark.parametrize("options", [{}, {"preset": "rembg"}, {"tta": True}], ids=str)
def test_maps_that_are_not_finite(form, options, tmp_path):
    """Weights may be finite and what comes of them not: an error, and no black mask."""
    torch.manual_seed(5)
    predictor = Predictor(break_network(build_model("u2net_lite")), 64, "cpu", "off", **options)
    array = make_scene(1)[0]
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    image = {
        "array": array,
        "image": Image.fromarray(array),
        "tensor": tensor,
        "path": save_image(tmp_path / "a.png", array),
        "batch": torch.stack([tensor, tensor]),
    }[form]
    with pytest.raises(UserError, match="the network gives values that are not finite"):
        predictor(image)


@pytest.mark.parametrize(
    ("options", "size", "named"),
    [
        ({"in_ch": 1}, 64, "takes 1-channel images"),
        ({}, 31, "img_size 31: expected from 32 to 8192"),
    ],
)
def test_networks_that_are_not_for_pictures(options, size, named):
    network = build_model(LITE.replace(**options))
    with pytest.raises(UserError, match=named):
        Predictor(network, size, "cpu", "off")


def test_arguments_of_other_kinds(weights):
    for wrong in (None, 3, {}):
        with pytest.raises(UserError, match=f"model: .* got {type(wrong).__name__}"):
            Predictor(wrong)
    with pytest.raises(UserError, match=r"model: expected a network of build_model .* got Conv2d"):
        Predictor(torch.nn.Conv2d(3, 1, 1))
    with pytest.raises(UserError, match="preset"):
        Predictor(weights, preset=[])
    with pytest.raises(UserError, match=r"images: expected a tensor .* got ndarray"):
        Predictor(weights, 64, "cpu", "off").predict_batch(np.zeros((1, 3, 40, 40)))
    with pytest.raises(UserError, match="tta no: expected True or False"):
        Predictor(weights, 64, "cpu", "off", tta="no")


def test_tta_is_the_mean_of_both_views(weights):
    predictor, picture = Predictor(weights, 64, "cpu", "off"), make_scene(2, 64, 64)[0]
    both = Predictor(weights, 64, "cpu", "off", tta=True)(picture)
    mirrored = predictor(picture[:, ::-1].copy())[:, ::-1]
    assert both == pytest.approx((predictor(picture) + mirrored) / 2, abs=1e-5)


def test_predictor_turns_pictures_upright(weights):
    """A picture given as an object as one given by its path."""
    picture = Image.new("RGB", (60, 40))
    picture.getexif()[0x0112] = 6
    predict = Predictor(weights)
    assert predict(picture).size == (40, 60)
    saliency = predict.map(picture)
    assert saliency.shape == (60, 40)
    assert render(picture, saliency, Style("cutout")).size == (40, 60)
