"""Tiny images, masks, data sets and networks, made where a test needs them."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from src import build_model

ROOT = Path(__file__).resolve().parents[2]


def save_image(path, content, **options):
    """Write an array or a Pillow image, by its suffix; makes the folders on the way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = content if isinstance(content, Image.Image) else Image.fromarray(content)
    image.save(path, **options)
    return path


def make_scene(seed=0, width=48, height=40):
    """A noisy image H×W×3 with a bright rectangle in it, and the rectangle's mask {0, 255}."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
    top, left = rng.integers(2, height // 2), rng.integers(2, width // 2)
    mask = np.zeros((height, width), np.uint8)
    mask[top : top + height // 3, left : left + width // 3] = 255
    picture[mask > 0] += 150
    return picture, mask


def make_pairs(images, masks, stems, suffix=".jpg"):
    """One scene for each stem, in two folders."""
    for seed, stem in enumerate(stems):
        picture, mask = make_scene(seed)
        save_image(images / f"{stem}{suffix}", picture)
        save_image(masks / f"{stem}.png", mask)


def make_duts(root, train=4, test=3):
    """The DUTS layout."""
    for part, count in (("DUTS-TR", train), ("DUTS-TE", test)):
        stems = [f"{part[-2:].lower()}{i}" for i in range(count)]
        if count:
            make_pairs(root / part / f"{part}-Image", root / part / f"{part}-Mask", stems)
    return root


def truncate_file(path, share=0.6):
    """Cut a file's end off: its header stays sound, its pixels do not."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def make_invalid_dataset(images, masks):
    """Sound pairs s0 … s3 and one of each fault; returns what a report must name."""
    make_pairs(images, masks, ["s0", "s1", "s2", "s3", "lonely", "text", "wide", "zero", "dark"])
    (masks / "lonely.png").unlink()
    (images / "text.jpg").write_text("not a picture")
    save_image(masks / "wide.png", make_scene(width=90)[1])
    (masks / "zero.png").write_bytes(b"")
    save_image(masks / "dark.png", make_scene()[1] // 255 * 38)
    make_pairs(images, masks, ["twice"])
    save_image(images / "twice.png", make_scene()[0])
    return ["lonely", "text.jpg", "wide.png", "zero.png", "twice"]


OBJECT = np.zeros((16, 16), bool)
OBJECT[4:9, 3:12] = True  # what the masks below show


def paint_object(low, high, dtype=np.uint8):
    """One grey outside, another inside the object."""
    return np.where(OBJECT, high, low).astype(dtype)


def make_palette_image(colours, indices, **info):
    """A palette image of these indices, unchanged."""
    image = Image.fromarray(indices.astype(np.uint8)).convert("P")
    image.putdata(indices.ravel().tolist())
    image.putpalette([value for colour in colours for value in colour])
    image.info.update(info)
    return image


def add_alpha(colours, alpha):
    """Colours or grey and their transparency."""
    image = Image.fromarray(colours)
    image.putalpha(Image.fromarray(alpha))
    return image


RAINBOW = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
GREY3 = np.repeat(paint_object(3, 250)[..., None], 3, axis=2)
RED1 = np.stack([paint_object(0, 1), paint_object(0, 0), paint_object(0, 0)], axis=2)
SHUFFLED = [(255, 255, 255), (9, 9, 9), (0, 0, 0)]
MASKS = {  # each shows OBJECT
    "0/1": paint_object(0, 1),
    "0/255": paint_object(0, 255),
    "127/128": paint_object(127, 128),
    "almost opaque": add_alpha(GREY3, paint_object(255, 254)),
    "1 bit": Image.fromarray(paint_object(0, 255)).convert("1"),
    "shuffled grey palette": make_palette_image(
        SHUFFLED, np.where(OBJECT, 0, 2 - (np.arange(16) % 2))
    ),
    "0/1 palette": make_palette_image([(0, 0, 0), (1, 1, 1)], OBJECT),
    "coloured palette": make_palette_image(
        [(0, 0, 0), (128, 0, 0), (0, 64, 0)], OBJECT * (1 + OBJECT[::-1])
    ),
    "palette with a transparent colour": make_palette_image(
        [(255, 0, 0), (9, 7, 5)], OBJECT, transparency=0
    ),
    "RGBA alpha": add_alpha(RAINBOW, paint_object(0, 255)),
    "RGBA opaque": add_alpha(GREY3, paint_object(255, 255)),
    "LA alpha": add_alpha(paint_object(200, 0), paint_object(0, 255)),
    "LA opaque": add_alpha(paint_object(0, 255), paint_object(255, 255)),
    "16 bit": paint_object(32767, 32768, np.uint16),
    "16 bit 0/1": paint_object(0, 1, np.uint16),
    "16 bit 0/255": paint_object(0, 255, np.uint16),
    "RGB grey": GREY3,
    "RGB 0/1": GREY3 // 250,
    "RGB 0/1 in red": RED1,  # as simulators write classes
}


SMALL_TABLE = ROOT / "tests/small.json"  # a network that is trained and compiled in little time
SMALL = json.loads(SMALL_TABLE.read_text())


def make_varied_network(name_or_config="u2net_lite", **overrides):
    """A network whose batch norm does something and whose maps vary, so that a wrong place shows;
    trained at 96², as it says."""
    torch.manual_seed(0)
    model = build_model(name_or_config, **overrides).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    answer = model.out_conv if hasattr(model, "out_conv") else model.sides[0]  # IS-Net's
    answer.weight.data *= 20
    model.img_size = 96
    return model


def same_state(first, second):
    """Whether two state_dicts are equal bit for bit, name for name."""
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def break_network(network):
    """Weights that are all finite, and maps that are not; returns it."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data *= 1e8
    return network
