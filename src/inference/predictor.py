"""Picture in, map out. Validation, prediction and the benchmarks all go through this."""

import copy
from pathlib import Path
from typing import overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..device import per_core, pick_device, pick_dtype
from ..errors import UserError
from ..networks.base import MIN_SIZE, Network
from ..pictures.classes import coloured
from ..pictures.images import from_array, open_image, to_grey, upright
from ..weights.load import load_model
from ..weights.onnx import is_quantized, read_graph
from .fast import prepare
from .int8 import OnnxRunner
from .preprocess import pick_preset


class Predictor:
    """A network made ready for inference: batch norm folded, channels last, bf16 where fast.

    It keeps no state between calls, so threads may share one.

    Args:
        model: a network (copied, the caller's stays as it is), or the path of a weights file or of
            one written by ``export.py --int8``, which runs on the CPU.
        img_size: the side in pixels of the square that the network sees; None for the one that
            it was trained at (320 for published weights).
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        amp: ``auto``, ``bf16``, ``fp16`` or ``off`` (float32).
        preset: ``default``, or ``rembg`` for that program's masks (in float32 by ``amp="auto"``).
        tta: average each map with that of the mirrored picture; takes twice the time.

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
        preset: str = "default",
        tta: bool = False,
    ) -> None:
        self.preset = pick_preset(preset)
        self.resize = self.preset.resize
        self.tta = tta
        model = _copy(model) if isinstance(model, nn.Module) else _load(model)
        self.int8 = isinstance(model, OnnxRunner)
        if self.int8:
            device, amp = _check_int8(str(device), amp), "off"
        config = model.config
        self.origin = getattr(model, "origin", config.name)  # what kind of weights they were
        if config.in_ch != 3:
            raise UserError(f"{self.origin}: takes {config.in_ch} channels, pictures have 3")
        self.img_size = img_size or model.img_size
        if self.img_size < MIN_SIZE:
            raise UserError(f"--img-size {self.img_size}: at least {MIN_SIZE}")
        self.device = pick_device(str(device))
        amp = "off" if amp == "auto" and self.preset.exact else amp
        self.dtype = pick_dtype(amp, self.device)
        self.channel = config.object_map
        self.classes = config.out_ch if self.channel is None else None
        if self.classes and self.preset.exact:
            raise UserError(
                f"--preset {preset}: is for one map; these weights tell {self.classes} classes"
            )
        self.model = model if self.int8 else prepare(model, self.device, self.dtype)

    @property
    def precision(self) -> str:
        """What it computes in: int8, or float32, bfloat16 or float16."""
        return "int8" if self.int8 else str(self.dtype).removeprefix("torch.")

    @overload
    def __call__(self, picture: str | Path | np.ndarray) -> np.ndarray: ...
    @overload
    def __call__(self, picture: Image.Image) -> Image.Image: ...
    @overload
    def __call__(self, picture: Tensor) -> Tensor: ...

    def __call__(
        self, picture: str | Path | Image.Image | np.ndarray | Tensor
    ) -> np.ndarray | Image.Image | Tensor:
        """The saliency map of a picture at its own size, of the kind that the picture is.

        A network of ``classes`` gives C×H×W in place of H×W, and as a PIL image a palette picture
        whose indices are the most probable classes.

        Args:
            picture: one of

                - a path, or an array H×W, H×W×3 or H×W×4 (:func:`~.images.from_array`): gives an
                  array H×W float32 in [0, 1];
                - a PIL image of any mode: gives one of mode L, 255 where the network is sure;
                - a tensor 3×H×W or N×3×H×W, uint8 or float in [0, 1]: gives a float32 tensor H×W
                  or N×H×W in [0, 1], on the tensor's device.

        Raises:
            UserError: the file is no picture, or array or tensor have another shape or range.
        """
        if isinstance(picture, Tensor):
            if picture.layout != torch.strided or picture.is_meta:
                raise UserError("a tensor without its values at hand; give a plain one")
            images = picture[None] if picture.ndim == 3 else picture
            if images.ndim != 4 or images.shape[1] != 3:
                raise UserError(f"a tensor of {list(picture.shape)}; give 3×H×W or N×3×H×W")
            images = images.detach().cpu()
            images = images.float() if images.is_floating_point() else images
            maps = [self._map(from_array(one.permute(1, 2, 0).numpy())) for one in images]
            stacked = torch.stack(maps) if maps else images.new_zeros(images[:, 0].shape).float()
            return (stacked if picture.ndim == 4 else stacked[0]).to(picture.device)
        if isinstance(picture, np.ndarray):
            return self.map(from_array(picture))
        if isinstance(picture, Image.Image):
            found = self._map(upright(picture))
            return coloured(found) if self.classes else to_grey(found.cpu().numpy())
        if not isinstance(picture, str | Path):
            raise UserError(
                f"a {type(picture).__name__}; give a path, a PIL image, an array or a tensor"
            )
        return self.map(open_image(picture))

    def map(self, image: Image.Image) -> np.ndarray:
        """The map of an upright picture, H×W float32 in [0, 1], at the picture's own size; C×H×W of
        a network of classes."""
        return self._map(image).cpu().numpy()

    def _map(self, image: Image.Image) -> Tensor:
        if not (image.width and image.height):
            raise UserError(f"a picture of {image.width}×{image.height} pixels")
        prepared = self.prepare(image)
        return self.resize(self.maps(prepared[None])[0], (image.height, image.width))

    def prepare(self, image: Image.Image) -> Tensor:
        """An upright picture to the 3×S×S uint8 tensor that :meth:`maps` takes, S = img_size."""
        return self.preset.prepare(image, self.img_size)

    def maps(self, pictures: Tensor) -> Tensor:
        """Prepared pictures N×3×S×S uint8 to maps N×S×S float32 in [0, 1], on the device; N×C×S×S
        of a network of classes."""
        found = self.probabilities(pictures)
        return found if self.classes else found[:, self.channel]

    def probabilities(self, pictures: Tensor) -> Tensor:
        """As :meth:`maps`, all of the network's: N×out_ch×S×S."""
        if self.device.type != "cpu" or len(pictures) < 2:
            return self._probabilities(pictures)
        with per_core(len(pictures)) as (pool, _):
            return torch.cat(list(pool.map(self._probabilities, pictures.split(1))))

    @torch.inference_mode()
    def _probabilities(self, pictures: Tensor) -> Tensor:
        pictures = pictures.to(self.device, non_blocking=True)
        maps = self.model(self.preset.normalize(pictures, self.dtype))
        if self.tta:
            mirrored = self.model(self.preset.normalize(pictures.flip(-1), self.dtype))
            maps = (maps + mirrored.flip(-1)) / 2
        return self.preset.finish(maps)


def _copy(model: nn.Module) -> nn.Module:
    return model.plain() if isinstance(model, Network) else copy.deepcopy(model)


def _load(path: str | Path) -> nn.Module:
    if Path(path).suffix.lower() == ".onnx" and is_quantized(read_graph(path)[0]):
        return OnnxRunner(path)
    return load_model(path)


def _check_int8(device: str, amp: str) -> str:
    """The device of a quantised file.

    Raises:
        UserError: another was asked for, or a precision.
    """
    if device not in ("auto", "cpu"):
        raise UserError(f"--device {device}: an int8 file runs on the CPU; leave the flag out")
    if amp != "auto":
        raise UserError(f"--amp {amp}: an int8 file has its precision; leave the flag out")
    return "cpu"
