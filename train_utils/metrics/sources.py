"""What is to be scored: networks, and folders of maps, under the names that tables show."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src import Predictor, UserError

from .report import labels


@dataclass
class Source:
    """A network, or a folder of maps, under the name that tables show."""

    label: str
    path: Path
    predictor: Predictor | None

    def about(self) -> dict[str, Any]:
        """What its scores depend on, for JSON."""
        if self.predictor is None:
            return {"pred_dir": str(self.path)}
        return {
            "weights": str(self.path),
            "network": self.predictor.model.config.name,
            "img_size": self.predictor.img_size,
            "precision": self.predictor.precision,
        }


def find_sources(
    weights: Sequence[Path],
    pred_dirs: Sequence[Path],
    metrics: str,
    img_size: int | None,
    device: str,
    amp: str,
) -> list[Source]:
    """Every network and folder of maps that is asked for; the others as :class:`Predictor` takes.

    Raises:
        UserError: weights can't be used, or give several maps where one is to be scored.
    """
    paths = [*weights, *pred_dirs]
    sources = [Source(label, p, None) for label, p in zip(labels(paths), paths, strict=True)]
    for source in sources[: len(weights)]:
        source.predictor = Predictor(source.path, img_size, device, amp)
        maps = source.predictor.model.config.out_ch
        if metrics != "semantic" and maps != 1:
            raise UserError(
                f"{source.path}: gives {maps} maps, not one; score it by --metrics semantic "
                f"--num-classes {maps}"
            )
    return sources
