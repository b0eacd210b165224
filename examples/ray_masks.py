"""Masks for a folder or bucket of images, on many machines, with Ray Data.

    pip install . 'ray[data]'
    python examples/ray_masks.py album masks --weights u2net --workers 8

Each worker has its own network, on one core (with --gpus, on a GPU or a share of one), and writes
the masks of the images that Ray gives it. The images may be anywhere that pyarrow can read, such as
s3://bucket/album; the masks go to a folder that all machines can access. They are the same as
predict.py's, but always keep the image's suffix (a.jpg.png), as no worker knows whether there is
also an a.png. --skip-existing resumes an interrupted run.
"""

import argparse
import sys
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import ray
from u2net import Predictor, Style, UserError, render
from u2net.files import atomic_path
from u2net.pictures.formats import IMAGE_SUFFIXES
from u2net.pictures.images import read_image
from u2net.pictures.render import encode


class Masks:
    """A worker: image bytes in, mask files out."""

    def __init__(self, folder: str, output: Path, weights: str, device: str, skip: bool) -> None:
        self.predictor = Predictor(weights, device=device)
        self.folder, self.output, self.skip = folder, output, skip

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Save the masks of some images; return each one's path and problem."""
        problems = [self.save(*row) for row in zip(batch["path"], batch["bytes"], strict=True)]
        return {"path": batch["path"], "problem": np.array(problems, dtype=object)}

    def save(self, path: str, content: bytes) -> str:
        """Save the mask of one image; return the problem with the image, if any."""
        target = self.output / f"{PurePosixPath(path).relative_to(self.folder)}.png"
        if self.skip and target.exists():
            return ""
        try:
            image = read_image(BytesIO(content))
            mask = render(image, self.predictor.map(image), Style())
        except UserError as error:
            return str(error)
        with atomic_path(target) as temporary:
            encode(mask, temporary, ".png")
        return ""


def main() -> int:
    """Read, predict, write; return exit status 2 if an image could not be read."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="folder or bucket of images, searched recursively")
    parser.add_argument("output", type=Path)
    parser.add_argument("--weights", default="u2net", help="(default: u2net)")
    parser.add_argument("--workers", type=int, default=2, help="(default: 2)")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs per worker; 0.5: two share one")
    parser.add_argument("--skip-existing", action="store_true")
    args = parser.parse_args()
    # Like the paths that Ray returns: absolute, and without the scheme for buckets.
    remote = "://" in args.folder
    folder = args.folder.split("://")[-1] if remote else str(Path(args.folder).resolve())
    if not remote and not Path(folder).is_dir():
        parser.error(f"{args.folder}: no such folder")
    images = ray.data.read_binary_files(
        args.folder if remote else folder,
        include_paths=True,
        file_extensions=sorted(suffix[1:] for suffix in IMAGE_SUFFIXES),
        num_cpus=0.1,  # if workers took all cores, they would wait forever
    )
    device = "cuda" if args.gpus else "cpu"
    done = images.map_batches(
        Masks,
        fn_constructor_args=(
            folder, args.output.resolve(), args.weights, device, args.skip_existing
        ),
        compute=ray.data.ActorPoolStrategy(size=args.workers),
        num_cpus=0.9,
        num_gpus=args.gpus or None,
        batch_size=16,
    )  # fmt: skip
    count, failed = 0, 0
    for row in done.iter_rows():
        count += 1
        if row["problem"]:
            failed += 1
            print(f"{row['path']}: {row['problem']}", file=sys.stderr)
    print(f"{count - failed} of {count} masks are in {args.output}")
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
