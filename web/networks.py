"""The networks shared by the page and the API."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from src import Predictor, Style, UserError, render
from src.inference.detail import look_closer
from src.inference.sizes import Size

MOST_PARTS = 12  # crops per request to look at again: each takes as long as the image


def name_weights(weights: Sequence[Path]) -> dict[str, Path]:
    """Weights files by short, unique names.

    A name is the file's, without its suffix, after as many of its folders as needed to be unique:
    ``a/best`` and ``b/best``.
    """
    known = [_possible_names(path) for path in weights]
    names = (
        next((name for name in own if sum(name in others for others in known) == 1), own[-1])
        for own in known
    )
    return dict(zip(names, weights, strict=True))


def _possible_names(path: Path) -> list[str]:
    """Names for weights, shortest first; those with a suffix last."""
    if not path.exists():
        return [str(path)]  # published weights
    place = Path(os.path.abspath(path))
    folders = place.parts[1:-1]
    ends = [folders[start:] for start in range(len(folders), -1, -1)]
    return ["/".join([*end, last]) for last in (place.stem, place.name) for end in ends]


class Networks:
    """The networks to choose from, by name; shared by all threads."""

    def __init__(
        self, weights: Sequence[Path], img_size: Size | None, device: str, amp: str
    ) -> None:
        self.paths = name_weights(weights)
        self.by_name = {
            name: Predictor(path, img_size, device, amp) for name, path in self.paths.items()
        }
        self.names = list(self.by_name)

    def describe(self) -> dict[str, Any]:
        """The networks' names (default first), device and precision."""
        default = self.by_name[self.names[0]]
        device, precision = str(default.device), default.precision
        names = {"network": self.names[0], "networks": self.names}
        return {**names, "device": device, "precision": precision}

    def result(
        self, image: Image.Image, name: str | None, style: Style, detail: int = 0
    ) -> Image.Image:
        """The result in ``style`` for an upright image, refined on at most ``detail`` crops.

        Raises:
            UserError: there is no network with that name, or it cannot produce this result.
        """
        if name is not None and name not in self.by_name:
            raise UserError(f"weights={name}: choose one of {', '.join(self.names)}")
        predictor = self.by_name[self.names[0] if name is None else name]
        if detail and predictor.classes:
            raise UserError("needs a single object map, not classes", "detail", detail)
        saliency = predictor.map(image)
        if detail:
            saliency = look_closer(predictor, image, saliency, detail)
        return render(image, saliency, style)
