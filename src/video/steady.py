"""Steadies a video's maps: a mean over time that follows motion."""

from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError

_SIDE = 384  # pixels along the longer side at which motion is estimated
_KEPT = 0.8  # share of the mean so far, where the image looks unchanged
_NOISE = 12.0  # of 255: grey levels by which the same point may differ between frames
_CUT = 0.5  # of all pixels: if fewer are found again, a new scene begins
_CHANGED = 0.6  # of a map's level: a change this large is not flicker


class Steady:
    """The running mean of a video's maps, each warped to the next frame.

    Motion comes from dense optical flow (Kroeger et al. 2016). Where a frame does not look like the
    warped one before it, the mean restarts: behind moving objects, and everywhere after a cut.

    Raises:
        UserError: OpenCV is missing.
    """

    def __init__(self) -> None:
        self._cv2 = _import_cv2()
        self._flow = self._cv2.DISOpticalFlow_create(self._cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self._before: tuple[np.ndarray, np.ndarray] | None = None  # grey frame, mean map

    def add(self, image: Image.Image, saliency: np.ndarray) -> np.ndarray:
        """The map of the next frame.

        Args:
            image: the frame, RGB.
            saliency: H×W float32 in [0, 1], its own map.

        Returns:
            H×W float32 in [0, 1].

        Raises:
            UserError: the map is of several classes.
        """
        if saliency.ndim != 2:
            raise UserError("maps of several classes cannot be averaged over time", "steady")
        cv2 = self._cv2
        scale = min(1.0, _SIDE / max(image.size))
        size = tuple(max(16, round(n * scale)) for n in image.size)
        grey = cv2.resize(np.asarray(image.convert("L")), size, interpolation=cv2.INTER_AREA)
        own = cv2.resize(saliency, size, interpolation=cv2.INTER_AREA)
        mean = own
        if self._before is not None and self._before[0].shape == grey.shape:
            mean = self._mix(grey, own)
        self._before = (grey, mean)
        if mean is own:
            return saliency
        # The average removes flicker of whole regions; edges stay as sharp as they are.
        change = cv2.resize(mean - own, image.size, interpolation=cv2.INTER_LINEAR)
        return np.clip(saliency + change, 0, 1)

    def _mix(self, grey: np.ndarray, own: np.ndarray) -> np.ndarray:
        """The mean of ``own`` and the previous frame's map, or ``own`` itself after a cut."""
        assert self._before is not None
        cv2, (grey_before, mean_before) = self._cv2, self._before
        flow = self._flow.calc(grey, grey_before, None)
        y, x = np.mgrid[: grey.shape[0], : grey.shape[1]].astype(np.float32)
        where = (x + flow[..., 0], y + flow[..., 1])
        inside = (where[0] >= 0) & (where[0] < grey.shape[1])
        inside &= (where[1] >= 0) & (where[1] < grey.shape[0])
        moved, image = (
            cv2.remap(values, *where, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            for values in (mean_before, grey_before)
        )
        apart = cv2.GaussianBlur(cv2.absdiff(grey, image).astype(np.float32), (0, 0), 1.5)
        same = np.exp(-((apart / _NOISE) ** 2)) * inside
        if (same > 0.5).mean() < _CUT:
            return own
        change = cv2.GaussianBlur(np.abs(moved - own), (0, 0), 3)
        share = _KEPT * same * np.clip(2 - change / (_CHANGED / 2), 0, 1)
        return own + share.astype(np.float32) * (moved - own)


def _import_cv2() -> Any:
    try:
        import cv2
    except ImportError:
        reason = "needs OpenCV: pip install opencv-python-headless"
        raise UserError(reason, "steady") from None
    return cv2
