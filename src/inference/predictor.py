"""Image in, map out. Validation, prediction and the benchmarks all go through this."""

import copy
import pickle
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, cast, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..device import after_fork, fork_count, one_thread, per_core, pick_device, pick_dtype
from ..errors import UserError
from ..networks.base import Network
from ..pictures.classes import coloured
from ..pictures.images import from_array, open_image, to_grey, upright
from ..weights.load import load_model
from .detail import look_closer
from .fast import Backend, prepare
from .int8 import OnnxBackend, check_int8, is_int8
from .openvino import CompiledBackend, OpenVINOBackend, check_engine
from .preprocess import as_uint8, check_preset, pick_preset
from .sizes import Size, parse_size


class _Rebuilding:
    """Held by the thread that rebuilds a predictor in a forked process."""

    lock = Lock()


@after_fork
def _release() -> None:
    _Rebuilding.lock = Lock()


class _Settings(NamedTuple):
    """What a predictor was made with besides its network, to rebuild it elsewhere."""

    img_size: Size | None
    device: str
    amp: str
    preset: str
    tta: bool
    detail: int
    engine: str


class Predictor:
    """A network made ready for inference: batch norm folded, channels last, bf16 where fast.

    It keeps no state between calls, so threads may share one. Pickling or copying stores its
    weights and parameters, and loading rebuilds it from them. A forked process rebuilds it
    likewise, and torch computes with one thread there.

    Args:
        model: a network (copied; the original is not changed), the name of published weights such
            as ``u2net``, or the path of a weights file or of an int8 file written by
            ``export.py --int8``, which runs on the CPU.
        img_size: the input size of the network: the side in pixels of a square, at least 32;
            (width, height), or as text ``"480x320"``; ``"auto"`` for each image's own aspect ratio,
            in multiples of 32, with the area of the default; None for the square that it was
            trained at (320 for the published ``u2net``), or that the preset requires.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        amp: ``auto``, ``bf16``, ``fp16`` or ``off`` (float32; on NVIDIA GPUs see
            :func:`~..device.keep_float32`).
        preset: ``default``, or ``rembg`` for that program's masks (in float32 if ``amp="auto"``, at
            that program's size if ``img_size`` is None).
        tta: average each map with that of the mirrored image; takes twice the time.
        detail: the maximum number of crops that go through the network again where the map of an
            image is uncertain, see :func:`~.detail.look_closer`; each takes as long as the image
            itself.
        engine: the runtime of a floating-point network: ``torch``, or ``openvino``, which is faster
            on many CPUs, rounds differently, and takes seconds to compile a network the first time.

    Raises:
        UserError: the file is not a weights file, the network does not take RGB images, or a
            parameter does not fit it.

    Example:
        >>> predict = Predictor("runs/lite/best.pt")  # doctest: +SKIP
        >>> predict("cat.jpg").shape  # the image's own height and width  # doctest: +SKIP
        (480, 640)
    """

    def __init__(
        self,
        model: nn.Module | str | Path,
        img_size: Size | None = None,
        device: str | torch.device = "auto",
        amp: str = "auto",
        preset: str = "default",
        tta: bool = False,
        detail: int = 0,
        engine: str = "torch",
    ) -> None:
        self._settings = _Settings(img_size, str(device), amp, preset, tta, detail, engine)
        check_engine(engine, str(device))
        check_preset(preset, img_size, detail, tta)  # before weights are downloaded
        if is_int8(model):
            source: nn.Module | OnnxBackend = OnnxBackend(model)
        else:
            pick_dtype(amp, pick_device("cpu" if engine == "openvino" else str(device)))
            source = _load(model)
        self._set_up(source)

    def _set_up(self, source: nn.Module | OnnxBackend) -> None:
        """Make everything that the calls use from ``source``, which is not changed."""
        self._source, self._forks = source, fork_count()
        self.preset = pick_preset(self._settings.preset)
        self.tta, self.detail = self._settings.tta, self._settings.detail
        self.model = self._build(source)  # it can no longer be trained or saved
        self.engine: str = getattr(self.model, "runtime", "torch")
        self.origin: str = getattr(self.model, "origin", self.model.config.name)  # of the weights
        # Before and after the network, torch leaves the cores to OpenVINO, but not to ONNX Runtime:
        # a process forked from one that uses it would then hang at exit.
        self._beside = one_thread if self.engine == "openvino" else nullcontext
        self._choose_size()
        self._choose_maps()

    def _build(self, source: nn.Module | OnnxBackend) -> Backend:
        """The backend, and the device and the precision in which it computes."""
        img_size, device, amp, *_, engine = self._settings
        if isinstance(source, OnnxBackend):
            check_int8(device, amp, engine)
            self.device, self.dtype, self.precision = torch.device("cpu"), torch.float32, "int8"
            return copy.copy(source)
        self.device = pick_device("cpu" if engine == "openvino" else device)
        self.dtype = pick_dtype("off" if amp == "auto" and self.preset.exact else amp, self.device)
        self.precision = str(self.dtype).removeprefix("torch.")
        if engine == "openvino":
            return OpenVINOBackend(source, self.dtype)
        sizes = 4 if "auto" in (img_size, getattr(source, "input_size", None)) else 1
        return cast(Backend, prepare(copy.deepcopy(source), self.device, self.dtype, sizes))

    def _choose_size(self) -> None:
        """The input size: the one asked for, the weights' own, or the preset's."""
        img_size, network = self._settings.img_size, self.model
        side = self.preset.pick_size(network.config, network.img_size)
        own = None if self.preset.exact else getattr(network, "input_size", None)
        self.size = parse_size(own if img_size is None else img_size, side)
        self.img_size = self.size.value
        if isinstance(network, CompiledBackend):
            network.expect(self.size)
        if img_size is None and side != network.img_size:
            sizes = f"{side}² as by {self._settings.preset}, trained at {network.img_size}²"
            self.origin = f"{self.origin}, used at {sizes}"

    def _choose_maps(self) -> None:
        """Which of the network's maps are given: the object's, or those of all classes."""
        config = self.model.config
        if config.in_ch != 3:
            raise UserError(f"{self.origin}: takes {config.in_ch}-channel images, not RGB")
        self.channel: int | None = config.object_map  # index of the object's map
        self.classes: int | None = None if self.channel is not None else config.out_ch
        if self.channel:
            self.origin = f"{self.origin}, the second of them of the object"
        if self.classes and self.detail:
            problem = "is for one map of an object, not for several classes"
            raise UserError(problem, "detail", self.detail)
        if self.classes and self.preset.exact:
            problem = f"is for one map; these weights are of {self.classes} classes"
            raise UserError(problem, "preset", self._settings.preset)

    def __getstate__(self) -> dict[str, Any]:
        # As bytes: multiprocessing would send each tensor as an open file, and may run out of them.
        return {"source": pickle.dumps(self._source), "settings": self._settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._settings = state["settings"]
        self._set_up(pickle.loads(state["source"]))

    def _follow_fork(self) -> None:
        """In a forked process, rebuild the backend, which has lost its threads there."""
        if self._forks == fork_count():
            return
        if self.device.type != "cpu":
            raise UserError(
                f"a GPU cannot be used in a process forked from one that uses it ({self.device}); "
                "start processes by spawn, or make the predictor in each of them"
            )
        with _Rebuilding.lock:
            if self._forks != fork_count():
                self._set_up(self._source)

    @overload
    def __call__(self, image: str | Path | np.ndarray) -> np.ndarray: ...
    @overload
    def __call__(self, image: Image.Image) -> Image.Image: ...
    @overload
    def __call__(self, image: Tensor) -> Tensor: ...

    def __call__(
        self, image: str | Path | Image.Image | np.ndarray | Tensor
    ) -> np.ndarray | Image.Image | Tensor:
        """The saliency map of an image, of the same size and type; upright, as its EXIF orientation
        says (:func:`~.images.open_image` and ``ImageOps.exif_transpose`` rotate the image itself).

        A network with several ``classes`` gives C×H×W instead of H×W and, for a PIL image, a
        palette image whose indices are the most probable classes.

        Args:
            image: one of

                - a path, or an array H×W, H×W×3 or H×W×4 (:func:`~.images.from_array`): gives an
                  array H×W float32 in [0, 1];
                - a PIL image of any mode: gives one of mode L, 255 where the network is sure;
                - a tensor 3×H×W or N×3×H×W (:meth:`predict_batch`): gives a float32 tensor H×W or
                  N×H×W in [0, 1], on the tensor's device.

        Raises:
            UserError: the file is not an image, an array or tensor has another shape or range, or
                the network gives values that are not finite.
        """
        if isinstance(image, Tensor):
            alone = image.ndim == 3
            return self.predict_batch(image[None])[0] if alone else self.predict_batch(image)
        if isinstance(image, np.ndarray):
            return self.map(from_array(image))
        if isinstance(image, Image.Image):
            saliency = self._map(upright(image))
            return coloured(saliency) if self.classes else to_grey(saliency.cpu().numpy())
        if not isinstance(image, str | Path):
            kind = type(image).__name__
            raise UserError(f"a {kind}; give a path, a PIL image, an array or a tensor")
        return self.map(open_image(image))

    def map(self, image: Image.Image) -> np.ndarray:
        """The map of an image, rotated upright as its EXIF orientation says.

        Args:
            image: of any mode and size.

        Returns:
            H×W float32 in [0, 1], of the upright image's size; C×H×W for several classes.

        Raises:
            UserError: the image has no pixels, or the network gives values that are not finite.
        """
        return self._map(upright(image)).cpu().numpy()

    def _map(self, image: Image.Image) -> Tensor:
        if not (image.width and image.height):
            raise UserError(f"an image of {image.width}×{image.height} pixels")
        prepared = self.prepare(image)
        saliency = self.resize(self.maps(prepared[None])[0], (image.height, image.width))
        return self.look_closer(image, saliency)

    def predict_batch(self, images: Tensor) -> Tensor:
        """The maps of images of one size; nothing leaves the device that images and network share.

        Args:
            images: N×3×H×W RGB: uint8, uint16, bool, or floats in [0, 1].

        Returns:
            N×H×W float32 in [0, 1], on the images' device; N×C×H×W for several classes. On the CPU,
            exactly the maps of the same images given as arrays.

        Raises:
            UserError: the tensor has another shape, type or range, or the network gives values that
                are not finite.

        Example:
            >>> from src import build_model
            >>> predict = Predictor(build_model("u2net_lite"), img_size=32, device="cpu")
            >>> predict.predict_batch(torch.rand(2, 3, 40, 60)).shape
            torch.Size([2, 40, 60])
        """
        self._follow_fork()
        levels = as_uint8(images)
        height, width = levels.shape[-2:]
        if not len(levels):
            channels = (self.classes,) if self.classes else ()
            return levels.new_zeros((0, *channels, height, width), dtype=torch.float32)
        maps = self.maps(self.preset.prepare_batch(levels, self.size.fit(height, width)))
        maps = self.resize(maps, (height, width))
        if self.detail:
            arrays = map(Image.fromarray, levels.permute(0, 2, 3, 1).cpu().numpy())
            maps = torch.stack(list(map(self.look_closer, arrays, maps)))
        return maps.to(images.device)

    def prepare(self, image: Image.Image) -> Tensor:
        """Convert an upright image to the 3×H×W uint8 tensor that :meth:`maps` takes."""
        self._follow_fork()
        with self._beside():
            return self.preset.prepare(image, self.size.fit(image.height, image.width))

    def resize(self, saliency: Tensor, size: Sequence[int]) -> Tensor:
        """Resize maps …×S×S in [0, 1] to …×H×W; ``size`` is (height, width) of an image."""
        self._follow_fork()
        with self._beside():
            return self.preset.resize(saliency, size)

    def look_closer(self, image: Image.Image, saliency: Tensor) -> Tensor:
        """Refine the map H×W of an upright image with the predictor's ``detail``."""
        if not self.detail:
            return saliency
        found = look_closer(self, image, saliency.cpu().numpy(), self.detail)
        return torch.from_numpy(found)

    def maps(self, images: Tensor) -> Tensor:
        """The maps N×S×S float32 in [0, 1] of prepared images N×3×S×S uint8, on the predictor's
        device; N×C×S×S for several classes.

        Raises:
            UserError: the network gives values that are not finite.
        """
        probabilities = self.probabilities(images)
        return probabilities if self.channel is None else probabilities[:, self.channel]

    def probabilities(self, images: Tensor) -> Tensor:
        """As :meth:`maps`, all maps of the network: N×out_ch×S×S."""
        self._follow_fork()
        if self.device.type != "cpu" or len(images) < 2:
            return self._probabilities(images)
        with per_core(len(images)) as (pool, _):
            return torch.cat(list(pool.map(self._probabilities, images.split(1))))

    def _run(self, images: Tensor) -> Tensor:
        with self._beside():
            dtype = self.dtype if self.engine == "torch" else torch.float32
            prepared = self.preset.normalize(images, dtype, self.model.config)
        return self.model(prepared)

    @torch.inference_mode()
    def _probabilities(self, images: Tensor) -> Tensor:
        images = images.to(self.device, non_blocking=True)
        maps = self._run(images)
        if self.tta:
            maps = (maps + self._run(images.flip(-1)).flip(-1)) / 2
        with self._beside():
            # One number to check instead of a mask: a sum is finite only if all its terms are.
            if not torch.isfinite(maps.sum()):
                raise UserError("the network gives values that are not finite")
            return self.preset.finish(maps)


def _load(model: nn.Module | str | Path) -> nn.Module:
    """A network that belongs to the predictor alone, on the CPU."""
    if isinstance(model, nn.Module) and hasattr(model, "config"):
        return (model.plain() if isinstance(model, Network) else copy.deepcopy(model)).cpu()
    if not isinstance(model, str | Path):
        kind = type(model).__name__
        problem = "expected a network of build_model or load_model, a name of weights or a path"
        raise UserError(f"{problem}, got {kind}", "model")
    return load_model(model)
