"""Predict masks or cut-outs of pictures.

    python predict.py photo.jpg --weights runs/u2net_lite-1/best.pt --output mask.png
    python predict.py pictures/ more/*.jpg --weights best.pt --output masks
    python predict.py photo.jpg --weights best.pt --mode cutout --output cutouts

A mask is an 8-bit grey PNG of the picture's own size, 255 where the network is sure of the object;
it is not stretched, so an empty scene stays dark. A cut-out is the picture as an RGBA PNG with the
mask as its alpha. Folders are read one level deep. A picture that cannot be read is named and
passed over; the exit status is then 2. Under torchrun each process takes its share.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops
from tqdm import tqdm

from src import Predictor, UserError
from src.files import atomic_path
from src.images import SUFFIXES, list_images, open_image, to_rgb
from src.presets import PRESETS
from train_utils import cli
from train_utils.distributed import gather, is_main, process_group, rank, world_size


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags of predict.py."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("input", type=Path, nargs="+", metavar="INPUT", help="pictures, or folders of them")
    cli.add_weights_flags(parser)
    add("--output", type=Path, default=Path("predictions"), metavar="DIR|FILE", help=(
        "a folder, or for a single picture a .png file"
    ))  # fmt: skip
    add("--mode", choices=("mask", "cutout"), default="mask", help="what to write")
    add("--preset", choices=tuple(PRESETS), default="default", help=(
        "rembg gives that program's masks: Lanczos, stretched by minimum and maximum"
    ))  # fmt: skip
    cli.add_device_flags(parser, workers=False)
    return parser.parse_args(argv)


def plan(inputs: list[Path], output: Path) -> dict[Path, Path]:
    """Each picture and the file to write for it.

    Raises:
        UserError: an input is missing or an empty folder, or a result would overwrite a picture.
    """
    pictures: list[Path] = []
    for path in inputs:
        if path.is_dir():
            inside = list_images(path)
            if not inside:
                raise UserError(f"{path}: holds no pictures ({', '.join(sorted(SUFFIXES))})")
            pictures += inside
        elif path.exists():
            pictures.append(path)
        else:
            raise UserError(f"{path}: no such file or folder")
    pictures = list(dict.fromkeys(pictures))
    if output.suffix.lower() == ".png":
        if len(pictures) > 1:
            raise UserError(
                f"--output {output} is one file for {len(pictures)} pictures; name a folder"
            )
        return _safe({pictures[0]: output})
    if output.is_file() or output.suffix.lower() in SUFFIXES:
        raise UserError(f"--output {output}: name a folder, or a .png file for one picture")
    stems = Counter(path.stem for path in pictures)
    names = {p: f"{p.stem if stems[p.stem] == 1 else p.name}.png" for p in pictures}
    doubled = [name for name, n in Counter(names.values()).items() if n > 1]
    if doubled:
        raise UserError(
            f"two pictures are called {doubled[0][:-4]}; predict their folders one by one"
        )
    return _safe({path: output / name for path, name in names.items()})


def _safe(jobs: dict[Path, Path]) -> dict[Path, Path]:
    originals = {path.resolve() for path in jobs}
    for target in jobs.values():
        if target.resolve() in originals:
            raise UserError(f"--output: {target} would overwrite a picture; name another folder")
    return jobs


def render(picture: Image.Image, saliency: np.ndarray, mode: str) -> Image.Image:
    """The picture to write: a grey mask, or the picture with the map as its alpha.

    Args:
        picture: upright, any mode.
        saliency: H×W in [0, 1], of the picture's size.
        mode: ``mask`` or ``cutout``.
    """
    mask = Image.fromarray((saliency * 255).round().astype(np.uint8))
    if mode == "mask":
        return mask
    if picture.has_transparency_data:  # what was transparent stays so
        cutout = picture.convert("RGBA")
        mask = ImageChops.multiply(mask, cutout.getchannel("A"))
    else:
        cutout = to_rgb(picture).copy()
    cutout.putalpha(mask)
    return cutout


def predict(args: argparse.Namespace) -> int:
    """Predict this rank's share of the pictures; returns the exit status, alike on all ranks."""
    jobs = plan(args.input, args.output)
    share = list(jobs.items())[rank() :: world_size()]
    predictor = Predictor(args.weights, args.img_size, args.device, args.amp, args.preset)
    if is_main():
        print(f"{args.weights}: {predictor.origin}", file=sys.stderr)
    failed = 0
    show = None if is_main() else True
    for source, target in tqdm(share, "predicting", disable=show, unit="picture"):
        try:
            picture = open_image(source)
            result = render(picture, predictor(np.asarray(to_rgb(picture))), args.mode)
        except UserError as error:
            failed += 1
            tqdm.write(f"error: {error}", file=sys.stderr)
            continue
        with atomic_path(target) as temporary:
            result.save(temporary, format="png")
    failed = sum(gather(failed))
    if is_main():
        print(f"{len(jobs) - failed} of {len(jobs)} pictures written to {args.output}")
    return 2 if failed else 0


def main(argv: list[str] | None = None) -> int:
    """Parse and predict; under torchrun each rank takes its share of the pictures."""
    args = parse_args(argv)
    with process_group(args.device):
        return predict(args)


if __name__ == "__main__":
    cli.run(main)
