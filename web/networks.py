"""The networks that page and API share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from src import Predictor, Style, UserError, render
from src.inference.detail import look_closer
from src.inference.sizes import Size

MOST_PARTS = 12  # that a request may have looked at again: each takes as long as the image


class Networks:
    """The networks to choose from, by name; threads share them."""

    def __init__(
        self, weights: Sequence[Path], img_size: Size | None, device: str, amp: str
    ) -> None:
        self.by_name: dict[str, Predictor] = {}
        for path in weights:
            name = path.stem if path.stem not in self.by_name else str(path)
            self.by_name[name] = Predictor(path, img_size, device, amp)
        self.names = list(self.by_name)

    def describe(self) -> dict[str, Any]:
        """Which networks there are, the default first, and where they compute."""
        default = self.by_name[self.names[0]]
        device, precision = str(default.device), default.precision
        names = {"network": self.names[0], "networks": self.names}
        return {**names, "device": device, "precision": precision}

    def result(
        self, image: Image.Image, name: str | None, style: Style, detail: int = 0
    ) -> Image.Image:
        """What ``style`` makes of an upright image, of which ``detail`` parts are looked at again.

        Raises:
            UserError: there is no network of that name, or it cannot give such results.
        """
        if name and name not in self.by_name:
            raise UserError(f"weights={name}: choose one of {', '.join(self.names)}")
        predictor = self.by_name[name or self.names[0]]
        if detail and predictor.classes:
            raise UserError("is for one map of an object, not for classes", "detail", detail)
        saliency = predictor.map(image)
        if detail:
            saliency = look_closer(predictor, image, saliency, detail)
        return render(image, saliency, style)
