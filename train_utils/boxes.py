"""The boxes of objects, in one CSV file for all images of a run."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from src.errors import UserError
from src.files import atomic_path, is_stream
from src.pictures.render import Box

from .distributed import gather, is_main

_FIELDS = ["image", "x", "y", "width", "height"]
Boxes = dict[str, Box | None]


def read_boxes(path: Path) -> Boxes:
    """The boxes of an earlier run by their image's name; none if there is no such file.

    Raises:
        UserError: the file is not such a file, or cannot be read.
    """
    if not path.exists() or is_stream(path):  # a stream cannot be read back
        return {}
    found: Boxes = {}
    try:
        if not path.stat().st_size:
            return found
        header, *rows = csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline=""))
        if header != _FIELDS:
            raise ValueError
        for name, *numbers in rows:
            x, y, width, height = map(int, numbers) if any(numbers) else (0, 0, 0, 0)
            found[name] = (x, y, x + width, y + height) if any(numbers) else None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, csv.Error):
        reason = f"holds no boxes of an earlier run ({','.join(_FIELDS)}); name another file"
        raise UserError(reason, "boxes", path) from None
    return found


@contextmanager
def collect_boxes(
    path: Path | None, images: Iterable[str], earlier: Mapping[str, Box | None]
) -> Iterator[Boxes]:
    """A dictionary for the boxes that this rank finds; those of all ranks are written at the end.

    After an error, those that rank 0 has found so far are written, so that another run can continue
    from there.

    Args:
        path: of the CSV file; None writes none.
        images: names of all images, in the order of the rows; read at the end, by rank 0. Images
            without a box then have no row.
        earlier: boxes of images that are not predicted again. Those not among ``images`` come
            first.

    Yields:
        Boxes by the image's name; None is a row without numbers.
    """
    found: Boxes = {}

    def write(*parts: Boxes) -> None:
        if not path or not is_main():
            return
        boxes = dict(earlier)
        for part in parts:
            boxes |= part
        wanted = dict.fromkeys(images)
        names = (*(name for name in earlier if name not in wanted), *wanted)
        write_boxes(path, {name: boxes[name] for name in names if name in boxes})

    try:
        yield found
    except BaseException:
        write(found)  # the other ranks may be gone
        raise
    if path:
        write(*gather(found))


def write_boxes(path: Path, boxes: Boxes) -> None:
    """Write boxes by their image's name; None becomes a row without numbers."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_FIELDS)
        for name, box in boxes.items():
            left, top, right, bottom = box or (0, 0, 0, 0)
            numbers = [left, top, right - left, bottom - top] if box else [""] * 4
            writer.writerow([name, *numbers])
