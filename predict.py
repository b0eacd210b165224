"""Predict masks of images, cut-outs, and the same on another background.

    python predict.py photo.jpg --output mask.png
    python predict.py photo.jpg --mode cutout --refine --crop
    python predict.py images/ 'more/*.jpg' --recursive --mode background --background blur
    python predict.py - < photo.jpg > mask.png
    python predict.py video.mp4 --mode background --background green --output video-green.mp4

Images: JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF, HEIC (with pillow-heif), upright by their EXIF data;
of several frames the first. A mask is 8-bit grey of the image's own size, 255 where the network is
sure of the object; it is not stretched, so an empty scene stays dark. What is transparent in an
image lies on white for the network, and stays transparent in what shows the image. A file that
cannot be read is named and passed over; the exit status is then 2. Under torchrun each process
takes its share. Videos (with PyAV) become videos with their sound, or a folder of frames.
"""

import argparse
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from src import Predictor, Style, UserError, render, stream
from src.device import keep_freed_memory
from src.files import atomic_path
from src.inference.preprocess import PRESETS
from src.inference.video import convert_frames, convert_video
from src.pictures.formats import IMAGE_FORMATS, IMAGE_SUFFIXES, VIDEO_SUFFIXES
from src.pictures.images import count_frames, limit_pixels, open_image, oriented_size, read_image
from src.pictures.plan import Job, plan_images, plan_videos
from src.pictures.render import MODES, check_classes, encode
from train_utils import cli
from train_utils.distributed import from_main, gather, is_main, process_group, rank, world_size

PIPE = Path("-")


@dataclass(frozen=True)
class Files:
    """Which files are read and written."""

    inputs: tuple[Path, ...]
    output: Path
    suffix: str  # appended to each result's name
    format: str  # the suffix of results in a folder, as .png
    recursive: bool
    skip_existing: bool
    frames: bool  # of a video, write images

    @property
    def are_videos(self) -> bool:
        """Whether the inputs are videos, which come alone."""
        return any(path.suffix.lower() in VIDEO_SUFFIXES for path in self.inputs)

    @property
    def are_piped(self) -> bool:
        """Whether an image comes from standard input or goes to standard output."""
        return PIPE in (*self.inputs, self.output)


@dataclass(frozen=True)
class Options:
    """What the flags say."""

    files: Files
    style: Style  # without its background, which is to be read
    background: str
    max_megapixels: int
    weights: Path
    img_size: int | None
    device: str
    amp: str
    preset: str
    tta: bool


def parse_args(argv: Sequence[str] | None = None) -> Options:
    """The flags of predict.py; ends the program where they do not go together."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    text = "images, folders of them, patterns in quotes, or - for standard input"
    add("input", type=Path, nargs="+", metavar="INPUT", help=text)
    cli.add_weights_flags(parser)
    text = "rembg gives that program's masks: Lanczos, stretched by minimum and maximum"
    add("--preset", choices=tuple(PRESETS), default="default", help=text)
    add("--tta", action="store_true", help="average with the mirrored image; twice the time")
    add_file_flags(parser)
    add_result_flags(parser)
    cli.add_device_flags(parser, workers=False)
    args = parser.parse_args(argv)
    try:
        files = check_flags(args)
    except UserError as error:
        parser.error(str(error))
    return Options(
        files=files,
        style=Style(
            mode=args.mode,
            threshold=args.threshold,
            invert=args.invert,
            crop=args.crop,
            size=args.size,
            refine=args.refine,
        ),
        background=args.background or "white",
        max_megapixels=args.max_megapixels,
        weights=args.weights,
        img_size=args.img_size,
        device=args.device,
        amp=args.amp,
        preset=args.preset,
        tta=args.tta,
    )


def add_file_flags(parser: argparse.ArgumentParser) -> None:
    """Which files are read and written."""
    add = parser.add_argument_group("files").add_argument
    text = (
        "a folder, or, for a single image, a file by its suffix, or - for standard output "
        "(default: predictions/, or - where INPUT is -)"
    )
    add("--output", type=Path, metavar="DIR|FILE", help=text)
    add("--recursive", action="store_true", help="folders with all below them; their tree is kept")
    add("--skip-existing", action="store_true", help="continue an interrupted run")
    text = "of results in a folder, and of a video's --frames (default: png)"
    add("--format", choices=[suffix[1:] for suffix in IMAGE_FORMATS], help=text)
    add("--frames", action="store_true", help="of a video, write each frame as an image")
    add("--suffix", default="", metavar="TEXT", help="appended to each result's name")
    text = "refuse larger images: a small file can unpack to all memory"
    add("--max-megapixels", type=cli.positive, default=200, metavar="N", help=text)


def add_result_flags(parser: argparse.ArgumentParser) -> None:
    """How results look."""
    add = parser.add_argument_group("results").add_argument
    add("--mode", choices=MODES, default="mask", help="what to write")
    text = "what to put behind the object (default: white)"
    add("--background", metavar="COLOUR|blur|FILE", help=text)
    text = "object where the map is T or more, nothing below (default: soft; 0.5 for binary)"
    add("--threshold", type=zero_to_one, metavar="T", help=text)
    add("--invert", action="store_true", help="keep what is not the object")
    add("--crop", action="store_true", help="to the object, where there is one")
    add("--size", type=cli.positive, metavar="PX", help="shrink to PX along the longer side")
    add("--refine", action="store_true", help="put edges where the image has them: hair, say")


def zero_to_one(text: str) -> float:
    """A number in 0 … 1, for argparse."""
    value = cli.not_negative(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def check_flags(args: argparse.Namespace) -> Files:
    """The files that the flags name.

    Raises:
        UserError: flags that do not go together.
    """
    piped = PIPE in args.input
    output = args.output or (PIPE if piped else Path("predictions"))
    named = output.suffix.lower() if output.suffix.lower() in IMAGE_FORMATS else ""
    files = Files(
        inputs=tuple(args.input),
        output=output,
        suffix=args.suffix,
        format=f".{args.format or 'png'}",
        recursive=args.recursive,
        skip_existing=args.skip_existing,
        frames=args.frames,
    )
    if files.are_videos:
        check_video_flags(files, args.format)
    elif files.frames:
        raise UserError("--frames goes with videos")
    if piped and len(files.inputs) > 1:
        raise UserError("- is one image, so it goes alone")
    if piped and (files.recursive or files.skip_existing):
        raise UserError("--recursive and --skip-existing go with folders, not with -")
    if piped and not named and output.suffix.lower() in IMAGE_SUFFIXES:
        raise UserError(f"--output {output}: choose one of {', '.join(IMAGE_FORMATS)}")
    if named and args.format and IMAGE_FORMATS[named] != IMAGE_FORMATS[files.format]:
        raise UserError(f"--format {args.format}: --output {output} says otherwise")
    if args.mode == "cutout" and (named or files.format) in (".jpg", ".jpeg"):
        raise UserError("--mode cutout: a JPEG has no transparency; choose --format png or webp")
    if args.background and args.mode != "background":
        raise UserError("--background goes with --mode background")
    if "/" in files.suffix or "\\" in files.suffix:
        raise UserError(f"--suffix {files.suffix}: is a part of a name, not of a path")
    return files


def check_video_flags(files: Files, format: str | None) -> None:
    """Of the flags, those that have another meaning for videos, or none."""
    if not all(path.suffix.lower() in VIDEO_SUFFIXES for path in files.inputs):
        raise UserError("videos and images go in two runs")
    if files.recursive:
        raise UserError("--recursive goes with folders of images, not with videos")
    if format and not files.frames:
        raise UserError("--format goes with --frames for videos; theirs is the suffix of --output")
    if files.output == PIPE:
        raise UserError("--output -: is for an image; name a video or a folder")


def list_jobs(files: Files) -> list[Job]:
    """The jobs of all ranks; none for what comes from standard input."""
    if files.inputs == (PIPE,):
        return []
    if files.are_videos:
        return plan_videos(files.inputs, files.output, files.suffix, files.frames)
    if files.output == PIPE:
        return plan_images(files.inputs, PIPE)
    return plan_images(
        files.inputs,
        files.output,
        files.suffix,
        files.format,
        files.recursive,
        files.skip_existing,
    )


def predict_images(files: Files, jobs: list[Job], predictor: Predictor, style: Style) -> int:
    """Predict this rank's share of the images; returns the exit status, alike on all ranks."""
    share = jobs[rank() :: world_size()]
    left = [job for job in share if not (files.skip_existing and job.target.exists())]

    def pixels(job: Job) -> int:
        width, height = oriented_size(job.source)
        return width * height

    def write(job: Job, image: Image.Image, saliency: np.ndarray) -> None:
        result = render(image, saliency, style)
        with atomic_path(job.target) as temporary:
            encode(result, temporary, job.target.suffix.lower())

    failed = 0
    results = stream(predictor, left, load_image, write, pixels, len(left))
    hidden = None if is_main() else True
    for job, error in tqdm(results, "predicting", len(left), disable=hidden, unit="image"):
        if error is not None:
            failed += 1
            report_error(error, job)
    return report_total(files, "images", len(jobs), failed, len(share) - len(left))


def predict_videos(files: Files, jobs: list[Job], predictor: Predictor, style: Style) -> int:
    """Predict this rank's share of the videos; returns the exit status, alike on all ranks."""
    share = jobs[rank() :: world_size()]
    left = [job for job in share if not (files.skip_existing and job.target.exists())]
    failed = 0
    hidden = None if is_main() else True
    for job in left:
        if files.frames:
            steps = convert_frames(predictor, job.source, job.target, style, files.format)
        else:
            steps = convert_video(predictor, job.source, job.target, style)
        try:
            with tqdm(desc=job.source.name, disable=hidden, unit="frame") as bar:
                bar.reset(next(steps))
                for step in steps:
                    bar.update(step)
        except (UserError, OSError) as error:
            failed += 1
            report_error(error, job)
    return report_total(files, "videos", len(jobs), failed, len(share) - len(left))


def predict_pipe(files: Files, jobs: list[Job], predictor: Predictor, style: Style) -> int:
    """One image, from standard input or to standard output."""
    if files.inputs == (PIPE,):
        name = "standard input"
        try:
            image = read_image(io.BytesIO(sys.stdin.buffer.read()))
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
    else:
        if len(jobs) > 1:
            raise UserError(f"--output - is for one image, not for {len(jobs)}")
        name = str(jobs[0].source)
        image = load_image(jobs[0])
    try:
        result = render(image, predictor.map(image), style)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    if files.output == PIPE:
        file = io.BytesIO()  # some formats go back and forth in what they write
        encode(result, file, files.format)
        sys.stdout.buffer.write(file.getvalue())
        return 0
    target = files.output
    if target.suffix.lower() not in IMAGE_FORMATS:
        target = target / f"stdin{files.suffix}{files.format}"
    with atomic_path(target) as temporary:
        encode(result, temporary, target.suffix.lower())
    return 0


def load_image(job: Job) -> Image.Image:
    """The image; says so where it is one of several."""
    image = open_image(job.source)
    if (count := count_frames(image)) > 1:
        tqdm.write(f"{job.source}: the first of its {count} images is used", file=sys.stderr)
    return image


def report_error(error: UserError | OSError, job: Job) -> None:
    """Print what is wrong with one file; the run goes on."""
    message = error.describe(cli.flag) if isinstance(error, UserError) else str(error)
    if str(job.source) not in message:
        message = f"{job.source}: {message}"
    tqdm.write(f"error: {message}", file=sys.stderr)


def report_total(files: Files, kind: str, count: int, failed: int, skipped: int) -> int:
    """Print what all ranks together have done; returns the exit status."""
    failed, skipped = (sum(gather(n)) for n in (failed, skipped))
    if is_main():
        existing = f", {skipped} were there" if skipped else ""
        print(f"{count - failed - skipped} of {count} {kind} written to {files.output}{existing}")
    return 2 if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and predict; under torchrun each rank takes its share of the images."""
    options = parse_args(argv)
    files = options.files
    keep_freed_memory()
    with process_group(options.device):
        limit_pixels(options.max_megapixels * 1_000_000)
        text = options.background
        background = open_image(text) if Path(text).is_file() else text
        style = replace(options.style, background=background)
        # Listed by one rank: another might find what this one has written. Before the weights are
        # loaded, so that a wrong name is reported at once.
        jobs = from_main(list_jobs(files) if is_main() else None)
        predictor = Predictor(
            options.weights,
            options.img_size,
            options.device,
            options.amp,
            options.preset,
            options.tta,
        )
        if predictor.classes:
            check_classes(style, predictor.classes)
        if is_main():
            print(f"{options.weights}: {predictor.origin}", file=sys.stderr)
        if files.are_piped:
            return predict_pipe(files, jobs, predictor, style)
        predict = predict_videos if files.are_videos else predict_images
        return predict(files, jobs, predictor, style)


if __name__ == "__main__":
    cli.run(main)
