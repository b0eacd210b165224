"""Folders of save_pretrained in Hugging Face's transformers and transformers.js."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers.data import ROOT, SMALL, make_scene, make_varied_network, same_state, save_image
from PIL import Image

import convert
from src import NETWORKS, Predictor, UserError, build_model, load_model
from src.export.hub.transformers import CODE, ONNX, PREPROCESSOR, bundle_code
from src.export.hub.transformers_js import _weigh
from src.export.onnx import IR_VERSION
from src.inference.preprocess import resize_input
from src.weights.load import SHIPPED

HERE = Path(__file__).parent
PACKAGES = Path(os.environ.get("NODE_PACKAGES", ROOT))  # npm install @huggingface/transformers
NARROW = {name: {"width": 8} for name in ("unet_bn", "segnet")}
CLASSES = {
    "three classes": ("unet_bn", {"width": 8, "out_ch": 3, "activation": "softmax"}),
    "two classes": ("unet_bn", {"width": 8, "out_ch": 2, "activation": "softmax"}),
}
NAMES = [*NETWORKS, *CLASSES, "shipped"]
needs_transformers = pytest.mark.skipif(
    not importlib.util.find_spec("transformers"), reason="transformers is not installed"
)


def make_network(name):
    if name == "shipped":
        return load_model(SHIPPED)
    if name in ("unet", "fcn8s"):  # have no batch norm
        torch.manual_seed(0)
        return build_model(name, width=8).eval()
    registered, options = CLASSES.get(name, (name, NARROW.get(name, {})))
    return make_varied_network(registered, **options)


def make_photo(path, width=130, height=90):
    return save_image(path, make_scene(1, width, height)[0])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each network, after transformers has worked in all of them by itself."""
    root = tmp_path_factory.mktemp("networks")
    make_photo(root / "photo.png")
    torch.manual_seed(2)
    np.save(root / "input.npy", torch.randn(2, 3, 70, 93))
    for name in NAMES:
        make_network(name).save_pretrained(root / name)
    command = [sys.executable, HERE / "run_transformers.py", root / "photo.png", root / "input.npy"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(root / "cache"), "PYTHONPATH": ""}
    done = subprocess.run(
        [*command, *(root / name for name in NAMES)],
        cwd=root, capture_output=True, text=True, env={**os.environ, **offline},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "not supported" not in done.stderr, done.stderr
    yield root
    shutil.rmtree(root)  # two of the networks are large


@needs_transformers
@pytest.mark.parametrize("name", NAMES)
def test_transformers_gives_our_maps(folders, name):
    """Of a batch of another size, of an image, by the pipeline, and back here after its saving."""
    folder, model = folders / name, load_model(folders / name)
    with torch.no_grad():
        expected = model.logits(torch.from_numpy(np.load(folders / "input.npy")))[0].numpy()
    assert expected.std() > 0.1, "nothing would differ"
    assert np.abs(np.load(folder / "logits.npy") - expected).max() <= 1e-5 * np.abs(expected).max()
    predict = Predictor(model, device="cpu", amp="off")
    image = Image.open(folders / "photo.png")
    limit = 5e-5 if name in CLASSES else 1e-5  # their logits go up to 40 before softmax
    assert np.abs(np.load(folder / "map.npy") - predict.map(image)).max() <= limit
    masks = {path.name: np.asarray(Image.open(path)).astype(int) for path in folder.glob("*.png")}
    mask = np.asarray(predict(image)).astype(int)
    if model.config.object_map is None:
        shown = {f"mask-{i}.png": (mask == i) * 255 for i in np.unique(mask)}
        assert masks.keys() == shown.keys()
        assert all((masks[name] != shown[name]).mean() < 1e-3 for name in shown)
    else:
        assert masks.keys() == {"mask-foreground.png"} and np.ptp(mask) > 1
        assert np.abs(masks["mask-foreground.png"] - mask).max() <= 1
    again = load_model(folder / "again")
    assert same_state(again.state_dict(), model.state_dict())
    assert again.img_size == model.img_size and again.config == model.config


def test_the_code_stands_alone(tmp_path):
    """No part of this library is imported or missing, whoever has transformers or not."""
    code = bundle_code()
    assert "from ." not in code and "import src" not in code
    assert "exif_transpose" not in code  # fails where any tag is garbled
    (tmp_path / CODE).write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F", tmp_path / CODE],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    for name in NETWORKS:
        assert f'"{name}"' in code


@pytest.mark.parametrize("size", [32, 192])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (31, 700), (192, 32), (1201, 900)])
def test_bytes_are_resized_as_by_torch(height, width, size):
    """Bit for bit: one level in the input can be several in the mask."""
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    x = (image.float() @ _weigh(width, size).T + 0.5).floor().clamp(max=255)
    x = (_weigh(height, size) @ x + 0.5).floor().clamp(max=255)
    expected = resize_input(image, size).float()
    assert (x != expected).float().mean() < 1e-3 and (x - expected).abs().max() <= 1
    if size in (height, width) or max(height, width) < 1000:
        assert torch.equal(x, expected)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small network's folder with the file for transformers.js."""
    folder = tmp_path_factory.mktemp("js") / "small"
    make_varied_network(SMALL).save_pretrained(folder, onnx=True)
    return folder


def test_onnx_takes_whole_images(whole, tmp_path):
    """What transformers.js does with the file, done here, is predict.py's mask."""
    session = onnxruntime.InferenceSession(whole / ONNX, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["pixel_values"]
    predict = Predictor(whole, device="cpu", amp="off")
    for width, height in ((130, 90), (50, 333), (96, 96), (1, 1)):
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        values = pixels.transpose(2, 0, 1)[None].astype(np.float32)
        (mask,) = session.run(None, {"pixel_values": values})
        assert mask.min() >= 0 and mask.max() <= 1
        expected = np.asarray(predict(Image.fromarray(pixels))).astype(int)
        assert np.abs((mask[0, 0] * 255).astype(np.uint8) - expected).max() <= 1


def test_onnx_in_nodejs(whole, tmp_path):
    """The masks of transformers.js itself, under Node.js, without a network."""
    if not shutil.which("node") or not (PACKAGES / "node_modules/@huggingface").is_dir():
        pytest.skip("no Node.js, or no @huggingface/transformers in $NODE_PACKAGES/node_modules")
    images = [make_photo(tmp_path / f"in/{i}.png", *size) for i, size in enumerate(SIZES)]
    (tmp_path / "out").mkdir()
    command = ["node", HERE / "background_removal.mjs", PACKAGES, whole, tmp_path / "out"]
    done = subprocess.run([*command, *images], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    predict = Predictor(whole, device="cpu", amp="off")
    for path in images:
        cutout = Image.open(tmp_path / "out" / path.name)
        expected = np.asarray(predict(Image.open(path))).astype(int)
        assert np.ptp(expected) > 2, "nothing would differ"
        assert np.abs(np.asarray(cutout.getchannel("A")) - expected).max() <= 2
        assert np.array_equal(cutout.convert("RGB"), Image.open(path).convert("RGB"))


def test_onnx_in_older_runtimes(whole):
    """The same version of the format as all other exports, with names of axes that say which."""
    file = onnx.load(whole / ONNX)
    assert file.ir_version == IR_VERSION and file.opset_import[0].version == 18
    for value in (*file.graph.input, *file.graph.output):
        _, _, *sides = value.type.tensor_type.shape.dim
        assert [side.dim_param for side in sides] == ["height", "width"]


SIZES = ((130, 90), (50, 333), (96, 96))


def test_what_a_folder_holds(whole, tmp_path):
    """transformers.js reads its settings from the same files; a card says how to load each."""
    config = json.loads((whole / "config.json").read_text())
    assert config["model_type"] == "isnet" and config["transformers.js_config"]["dtype"] == "fp32"
    processor = json.loads((whole / PREPROCESSOR).read_text())
    assert processor["do_resize"] is processor["do_normalize"] is processor["do_rescale"] is False
    assert processor["size"] == {"height": 96, "width": 96}
    card = (whole / "README.md").read_text()
    assert "from u2net import" in card and "trust_remote_code=True" in card
    assert '"background-removal"' in card and "a mask out" in card
    isnet = make_varied_network("isnet_lite")
    isnet.save_pretrained(tmp_path)
    processor = json.loads((tmp_path / PREPROCESSOR).read_text())
    assert processor["image_mean"] == [0.5] * 3 and processor["image_std"] == [1] * 3
    assert "do_resize" not in processor
    assert "background-removal" not in (tmp_path / "README.md").read_text()


def test_what_transformers_js_cannot_take(call, tmp_path, whole):
    classes = build_model(SMALL, out_ch=3)
    with pytest.raises(UserError, match=r"model\.onnx: transformers\.js takes .* 3 maps"):
        classes.save_pretrained(tmp_path / "classes", onnx=True)
    shutil.copytree(whole, tmp_path / "old")
    reason = r"model\.onnx: was made from .* earlier weights; pass onnx"
    with pytest.raises(UserError, match=reason):
        build_model(SMALL).save_pretrained(tmp_path / "old")
    assert same_state(load_model(tmp_path / "old").state_dict(), load_model(whole).state_dict())
    status, _, error = call(convert.main, SHIPPED, tmp_path / "a.pt", "--onnx")
    assert status == 2 and "--onnx goes with a folder" in error
    status, _, error = call(convert.main, SHIPPED, tmp_path / "old")
    assert status == 2 and "pass --onnx" in error


def test_older_folders_are_read(whole, tmp_path):
    """Of versions that wrote the two files alone."""
    table = json.loads((whole / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({k: table[k] for k in ("config", "img_size")}))
    shutil.copy(whole / "model.safetensors", tmp_path)
    assert same_state(load_model(tmp_path).state_dict(), load_model(whole).state_dict())
