"""Picture in, map or cut-out out."""

import numpy as np
import torch
from PIL import Image

import predict
from src import Predictor
from src.predictor import _to_half


def test_cutout_keeps_what_was_transparent():
    picture = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    picture.putpixel((1, 0), (200, 0, 0, 0))
    cutout = predict.render(picture, np.ones((1, 2)), "cutout")
    assert [cutout.getpixel((x, 0)) for x in (0, 1)] == [(200, 0, 0, 255), (200, 0, 0, 0)]


def test_predictor_turns_pictures_upright(weights):
    """A picture given as an object as one given by its path."""
    picture = Image.new("RGB", (60, 40))
    picture.getexif()[0x0112] = 6
    assert Predictor(weights)(picture).size == (40, 60)


def test_half_precision_keeps_channels_of_huge_constants():
    """bf16 has steps of 1 at 226: a layer with such a bias must stay in float32."""
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.ReLU(), torch.nn.Conv2d(1, 1, 1))
    with torch.no_grad():
        net[0].weight.fill_(1), net[0].bias.fill_(226.28)
        net[2].weight.fill_(5), net[2].bias.fill_(-5 * 226.28)
        picture = torch.linspace(0, 1, 9).view(1, 1, 3, 3)
        half = _to_half(net.requires_grad_(False), torch.bfloat16)(picture.bfloat16())
    assert (half.float() - 5 * picture).abs().max() < 0.05
