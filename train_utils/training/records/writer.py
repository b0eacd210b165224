"""The files of a run that grow with it: log, curves, sample sheets, trackers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from src.files import atomic_path, clear_temporary

from .log import Log, draw_curves
from .trackers import Trackers


class Records:
    """The run's log.csv, curves.png, samples/ and tensorboard/, written as it goes on.

    Args:
        folder: of the run.
        epoch: epochs done. If the run went on beyond its last checkpoint, what it wrote about later
            epochs is dropped, so that nothing is there twice.
        update: optimizer steps done.
        trackers: where curves and sheets go too, see :class:`Trackers`.
    """

    def __init__(
        self, folder: Path, epoch: int, update: int, trackers: Sequence[str] = ("tensorboard",)
    ) -> None:
        self.folder = folder
        clear_temporary(folder)
        clear_temporary(folder / "samples")
        self.log = Log(folder / "log.csv", epoch)
        self.trackers = Trackers(trackers, folder, update)

    def scalars(self, values: Mapping[str, float], update: int) -> None:
        """Add points to the trackers' curves, by name."""
        self.trackers.scalars(values, update)

    def epoch(self, row: dict[str, Any], update: int) -> None:
        """Add a row of the log to log.csv, curves.png and the trackers."""
        with _file_errors_shown():
            self.log.append(row)
            draw_curves(self.log, self.folder / "curves.png")
        self.scalars({f"epoch/{k}": v for k, v in row.items()}, update)
        self.trackers.flush()

    def samples(
        self, triples: Iterable[tuple[Tensor, Tensor, Tensor]], epoch: int, update: int
    ) -> None:
        """Write a sheet of (image 3×S×S uint8, mask 3×H×W and map 3×S×S in [0, 1]), two per row."""
        from torchvision.utils import make_grid, save_image

        tiles = []
        for image, mask, found in triples:
            mask = F.interpolate(mask[None], size=found.shape[-2:])[0]
            tiles += [image.float() / 255, mask, found]
        sheet = make_grid(tiles, nrow=6, padding=4, pad_value=1.0)
        path = self.folder / "samples" / f"epoch_{epoch:04d}.png"
        with _file_errors_shown(), atomic_path(path) as temporary:
            save_image(sheet, temporary, format="png")
        self.trackers.sheet(sheet, path, update)

    def close(self) -> None:
        """Close the trackers, which write what they have buffered."""
        self.trackers.close()


@contextmanager
def _file_errors_shown() -> Iterator[None]:
    """Report file errors, but go on: Windows won't replace a file that is open in a viewer."""
    try:
        yield
    except OSError as error:
        tqdm.write(f"{error.filename}: not written ({error.strerror}); is it open elsewhere?")
