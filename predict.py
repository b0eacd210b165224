"""Predict masks of pictures, cut-outs, and the same on another background.

    python predict.py photo.jpg --output mask.png
    python predict.py photo.jpg --mode cutout --refine --crop
    python predict.py pictures/ 'more/*.jpg' --recursive --mode background --background blur
    python predict.py - < photo.jpg > mask.png
    python predict.py film.mp4 --mode background --background green --output film-green.mp4

Pictures: JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF, HEIC (with pillow-heif), upright by their EXIF
data; of several frames the first. A mask is 8-bit grey of the picture's own size, 255 where the
network is sure of the object; it is not stretched, so an empty scene stays dark. What is
transparent in a picture lies on white for the network, and stays transparent in what shows the
picture. A file that cannot be read is named and passed over; the exit status is then 2. Under
torchrun each process takes its share. Films (with PyAV) become films with their sound, or a folder
of frames.
"""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from src import Predictor, UserError
from src.device import keep_freed_memory
from src.files import atomic_path
from src.inference.preprocess import PRESETS
from src.inference.stream import stream
from src.inference.video import convert, convert_frames
from src.pictures.images import (
    SUFFIXES,
    frames,
    limit_pixels,
    open_image,
    oriented_size,
    read_image,
)
from src.pictures.jobs import VIDEOS, Job, plan, plan_films
from src.pictures.render import (
    FORMATS,
    MODES,
    Style,
    check_classes,
    encode,
    parse_background,
    render,
)
from train_utils import cli
from train_utils.distributed import (
    from_main,
    gather,
    is_main,
    process_group,
    rank,
    world_size,
)

PIPE = Path("-")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags of predict.py."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("input", type=Path, nargs="+", metavar="INPUT", help=(
        "pictures, folders of them, patterns in quotes, or - for standard input"
    ))  # fmt: skip
    cli.add_weights_flags(parser)
    add("--preset", choices=tuple(PRESETS), default="default", help=(
        "rembg gives that program's masks: Lanczos, stretched by minimum and maximum"
    ))  # fmt: skip
    add("--tta", action="store_true", help="average with the mirrored picture; twice the time")
    files = parser.add_argument_group("files")
    add = files.add_argument
    add("--output", type=Path, metavar="DIR|FILE", help=(
        "a folder, or, for a single picture, a file by its suffix, or - for standard output "
        "(default: predictions/, or - where INPUT is -)"
    ))  # fmt: skip
    add("--recursive", action="store_true", help="folders with all below them; their tree is kept")
    add("--skip-existing", action="store_true", help="go on where an interrupted run ended")
    add("--format", choices=[s[1:] for s in FORMATS], help=(
        "of results in a folder, and of a film's --frames (default: png)"
    ))  # fmt: skip
    add("--frames", action="store_true", help="of a film, write each frame as a picture")
    add("--suffix", metavar="TEXT", help="put behind each result's name")
    add("--max-megapixels", type=cli.positive, default=200, metavar="N", help=(
        "refuse larger pictures: a small file can unpack to all memory"
    ))  # fmt: skip
    look = parser.add_argument_group("results")
    add = look.add_argument
    add("--mode", choices=MODES, default="mask", help="what to write")
    add(
        "--background",
        metavar="COLOUR|blur|FILE",
        help="what to put behind the object (default: white)",
    )
    add("--threshold", type=share, metavar="T", help=(
        "object where the map is T or more, nothing below (default: soft; 0.5 for binary)"
    ))  # fmt: skip
    add("--invert", action="store_true", help="keep what is not the object")
    add("--crop", action="store_true", help="to the object, where there is one")
    add("--size", type=cli.positive, metavar="PX", help="shrink to PX along the longer side")
    add("--refine", action="store_true", help="put edges where the picture has them: hair, say")
    cli.add_device_flags(parser, workers=False)
    args = parser.parse_args(argv)
    _check(parser, args)
    return args


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Defaults that follow from other flags; the end of the program where flags don't agree."""
    piped, films = PIPE in args.input, has_films(args)
    if piped and len(args.input) > 1:
        parser.error("- is one picture, so it goes alone")
    if piped and (args.recursive or args.skip_existing):
        parser.error("--recursive and --skip-existing go with folders, not with -")
    if films and not all(path.suffix.lower() in VIDEOS for path in args.input):
        parser.error("films and pictures go in two runs")
    if args.frames and not films:
        parser.error("--frames goes with films")
    if args.recursive and films:
        parser.error("--recursive goes with folders of pictures, not with films")
    if args.format and films and not args.frames:
        parser.error("--format goes with --frames for films; theirs is the suffix of --output")
    args.output = args.output or (PIPE if piped else Path("predictions"))
    suffix = args.output.suffix.lower()
    named = suffix in FORMATS
    if args.format and named and FORMATS[suffix] != FORMATS[f".{args.format}"]:
        parser.error(f"--format {args.format}: --output {args.output} says otherwise")
    args.format = args.format or "png"
    args.suffix = args.suffix or ""
    if films and args.output == PIPE:
        parser.error("--output -: is for a picture; name a film or a folder")
    if piped and suffix in SUFFIXES and not named:
        parser.error(f"--output {args.output}: choose one of {', '.join(FORMATS)}")
    form = suffix if named else f".{args.format}"
    if args.mode == "cutout" and form in (".jpg", ".jpeg"):
        parser.error("--mode cutout: a JPEG has no transparency; choose --format png or webp")
    if args.background and args.mode != "background":
        parser.error("--background goes with --mode background")
    if "/" in args.suffix or "\\" in args.suffix:
        parser.error(f"--suffix {args.suffix}: is a part of a name, not of a path")


def share(text: str) -> float:
    """A number in 0 … 1, for argparse."""
    value = cli.not_negative(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def style(args: argparse.Namespace) -> Style:
    """How results are to look; reads the background's picture."""
    path = Path(args.background or "white")
    ground = open_image(path) if path.is_file() else parse_background(str(path))
    return Style(args.mode, ground, args.threshold, args.invert, args.crop, args.size, args.refine)


def pixels(job: Job) -> int:
    """Of a picture, by its header."""
    width, height = oriented_size(job.source)
    return width * height


def load(job: Job) -> Image.Image:
    """The picture; says so where it is one of several."""
    picture = open_image(job.source)
    if (count := frames(picture)) > 1:
        tqdm.write(f"{job.source}: the first of its {count} pictures is used", file=sys.stderr)
    return picture


def has_films(args: argparse.Namespace) -> bool:
    """Whether the inputs are films, which come alone."""
    return any(path.suffix.lower() in VIDEOS for path in args.input)


def list_jobs(args: argparse.Namespace) -> list[Job]:
    """The jobs of all ranks; none for what comes from standard input."""
    if args.input == [PIPE]:
        return []
    if has_films(args):
        return plan_films(args.input, args.output, args.suffix, args.frames)
    if args.output == PIPE:
        return plan(args.input, PIPE)
    form = f".{args.format}"
    return plan(args.input, args.output, args.suffix, form, args.recursive, args.skip_existing)


def predict_files(
    args: argparse.Namespace, jobs: list[Job], predictor: Predictor, look: Style
) -> int:
    """Predict this rank's share of the pictures; returns the exit status, alike on all ranks."""
    mine = jobs[rank() :: world_size()]
    left = [job for job in mine if not (args.skip_existing and job.target.exists())]

    def write(job: Job, picture: Image.Image, saliency: np.ndarray) -> None:
        result = render(picture, saliency, look)
        with atomic_path(job.target) as temporary:
            encode(result, temporary, job.target.suffix.lower())

    failed = 0
    shown = None if is_main() else True
    results = stream(predictor, left, load, write, pixels, len(left))
    for job, failure in tqdm(results, "predicting", len(left), disable=shown, unit="picture"):
        if failure:
            failed += 1
            said = str(failure)
            said = said if str(job.source) in said else f"{job.source}: {said}"
            tqdm.write(f"error: {said}", file=sys.stderr)
    return tell(args, "pictures", len(jobs), failed, len(mine) - len(left))


def predict_films(
    args: argparse.Namespace, jobs: list[Job], predictor: Predictor, look: Style
) -> int:
    """Predict this rank's share of the films; returns the exit status, alike on all ranks."""
    mine = jobs[rank() :: world_size()]
    left = [job for job in mine if not (args.skip_existing and job.target.exists())]
    failed = 0
    for job in left:
        if args.frames:
            steps = convert_frames(predictor, job.source, job.target, look, f".{args.format}")
        else:
            steps = convert(predictor, job.source, job.target, look)
        try:
            with tqdm(
                desc=job.source.name, disable=None if is_main() else True, unit="frame"
            ) as bar:
                bar.reset(next(steps))
                for step in steps:
                    bar.update(step)
        except (UserError, OSError) as error:
            failed += 1
            said = error if isinstance(error, UserError) else f"{job.source}: {error}"
            tqdm.write(f"error: {said}", file=sys.stderr)
    return tell(args, "films", len(jobs), failed, len(mine) - len(left))


def tell(args: argparse.Namespace, what: str, count: int, failed: int, skipped: int) -> int:
    """Say what all ranks together have done; returns the exit status."""
    failed, skipped = (sum(gather(n)) for n in (failed, skipped))
    if is_main():
        before = f", {skipped} were there" if skipped else ""
        print(f"{count - failed - skipped} of {count} {what} written to {args.output}{before}")
    return 2 if failed else 0


def predict_pipe(
    args: argparse.Namespace, jobs: list[Job], predictor: Predictor, look: Style
) -> int:
    """One picture, from standard input or to standard output."""
    if args.input == [PIPE]:
        try:
            picture = read_image(io.BytesIO(sys.stdin.buffer.read()))
        except UserError as error:
            raise UserError(f"standard input: {error}") from None
    else:
        if len(jobs) > 1:
            raise UserError(f"--output - is for one picture, not for {len(jobs)}")
        picture = load(jobs[0])
    result = render(picture, predictor.map(picture), look)
    if args.output == PIPE:
        file = io.BytesIO()  # some formats go back and forth in what they write
        encode(result, file, f".{args.format}")
        sys.stdout.buffer.write(file.getvalue())
        return 0
    target = args.output
    if target.suffix.lower() not in FORMATS:
        target = target / f"stdin{args.suffix}.{args.format}"
    with atomic_path(target) as temporary:
        encode(result, temporary, target.suffix.lower())
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and predict; under torchrun each rank takes its share of the pictures."""
    args = parse_args(argv)
    keep_freed_memory()
    with process_group(args.device):
        limit_pixels(args.max_megapixels * 1_000_000)
        look = style(args)
        # Listed by one: another might find what this one has written. Before the weights are
        # loaded, so that a wrong name is told at once.
        jobs = from_main(list_jobs(args) if is_main() else None)
        predictor = Predictor(
            args.weights, args.img_size, args.device, args.amp, args.preset, args.tta
        )
        if predictor.classes:
            check_classes(look, predictor.classes)
        if is_main():
            print(f"{args.weights}: {predictor.origin}", file=sys.stderr)
        if PIPE in (*args.input, args.output):
            return predict_pipe(args, jobs, predictor, look)
        return (predict_films if has_films(args) else predict_files)(args, jobs, predictor, look)


if __name__ == "__main__":
    cli.run(main)
