"""Picture in, map out. Validation, prediction and the benchmarks all go through this."""

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from .device import pick_device, pick_dtype
from .images import normalize, open_image, resize_input, to_rgb, to_tensor, upright
from .weights import load_model


class Predictor:
    """A network made ready for inference: batch norm folded, channels last, bf16 where fast.

    Args:
        model: a network (copied, the caller's stays as it is) or the path of a weights file.
        img_size: the side in pixels of the square that the network sees; None for the one that
            it was trained at (320 for published weights).
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        amp: ``auto``, ``bf16``, ``fp16`` or ``off`` (float32).

    Example:
        >>> predict = Predictor("runs/lite/best.pt")  # doctest: +SKIP
        >>> predict("cat.jpg").shape  # the picture's own height and width  # doctest: +SKIP
        (480, 640)
    """

    def __init__(
        self,
        model: nn.Module | str | Path,
        img_size: int | None = None,
        device: str | torch.device = "auto",
        amp: str = "auto",
    ) -> None:
        model = copy.deepcopy(model) if isinstance(model, nn.Module) else load_model(model)
        self.origin = getattr(model, "origin", model.config.name)  # what kind of weights they were
        self.img_size = img_size or model.img_size
        self.device = pick_device(str(device))
        self.dtype = pick_dtype(amp, self.device)
        model = model.fuse() if hasattr(model, "fuse") else model.eval()
        model = model.requires_grad_(False).to(self.device, memory_format=torch.channels_last)
        self.model = _to_half(model, self.dtype) if self.dtype != torch.float32 else model

    def __call__(self, picture: Image.Image | str | Path) -> np.ndarray:
        """The saliency map of one picture: H×W float32 in [0, 1], at the picture's own size."""
        image = upright(picture) if isinstance(picture, Image.Image) else open_image(picture)
        prepared = self.prepare(image)
        return self.resize(self.maps(prepared[None])[0], (image.height, image.width)).cpu().numpy()

    def prepare(self, image: Image.Image) -> Tensor:
        """An upright picture to the 3×S×S uint8 tensor that :meth:`maps` takes, S = img_size."""
        return resize_input(to_tensor(to_rgb(image)), self.img_size)

    def maps(self, pictures: Tensor) -> Tensor:
        """Prepared pictures N×3×S×S uint8 to maps N×S×S float32 in [0, 1], on the device."""
        return self.probabilities(pictures)[:, 0]

    @torch.inference_mode()
    def probabilities(self, pictures: Tensor) -> Tensor:
        """As :meth:`maps`, all of the network's: N×out_ch×S×S."""
        pictures = pictures.to(self.device, non_blocking=True)
        return self.model(normalize(pictures, self.dtype))

    @staticmethod
    def resize(saliency: Tensor, size: Sequence[int]) -> Tensor:
        """Map(s) …×S×S to …×H×W, bilinear (with antialias where it shrinks), still in [0, 1]."""
        stack = saliency.reshape(1, -1, *saliency.shape[-2:])
        resized = F.interpolate(stack, size=tuple(size), mode="bilinear", antialias=True)
        return resized.view(*saliency.shape[:-2], *size).clamp_(0, 1)


def _to_half(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The network in bf16 or fp16, but for the few convolutions that these would spoil.

    A folded bias beyond 128 stands for a channel with a huge constant in it (the published lite
    weights have one of 226, which the next layer's bias of 1361 takes away again). bf16 has steps
    of 1 and more there, so what the channel carries would drown: such layers stay in float32.
    """
    exact = {
        conv
        for conv in model.modules()
        if isinstance(conv, nn.Conv2d) and conv.bias is not None and conv.bias.abs().max() > 128
    }
    for module in model.modules():
        if module not in exact and not list(module.children()):
            module.to(dtype)
        if exact and isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda conv, args: (args[0].to(conv.weight.dtype),))
    return model
