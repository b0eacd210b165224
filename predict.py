"""Predict masks or cut-outs of images, or replace their background.

    python predict.py photo.jpg --output mask.png
    python predict.py photo.jpg --mode cutout --refine --crop
    python predict.py images/ 'more/*.jpg' --recursive --mode background --background blur
    python predict.py - < photo.jpg > mask.png
    python predict.py video.mp4 --mode background --background green --output video-green.mp4

Images: whatever Pillow decodes (JPEG, PNG, WebP, TIFF, AVIF, JPEG 2000 …), HEIC with pillow-heif;
turned upright by their EXIF data; the first of several frames. Other files in a folder are listed.
A mask is 8-bit grey at the image's own size, 255 where the network is sure of the object; it is not
stretched, so an empty scene stays dark. Results that show the image keep its EXIF data, and its
transparency unless the background is replaced. A file that cannot be read is reported and skipped;
the exit status is then 2. Under torchrun each process takes its share. Videos (with PyAV) become
videos with their sound (cut-outs transparent ones, .webm or .mov), or a folder of frames.
"""

import argparse
import io
import math
import sys
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from src import Predictor, Style, UserError, stream
from src.device import describe_computing, set_up_process
from src.files import atomic_path, check_outputs, is_stdout, printable
from src.inference.preprocess import PRESETS
from src.pictures.formats import IMAGE_FORMATS, IMAGE_SUFFIXES, result_format
from src.pictures.images import limit_pixels, open_image, oriented_size, read_image
from src.pictures.plan import PIPE, Job, Jobs, check_targets, plan_images, plan_pipe, plan_videos
from src.pictures.render import MODES, Box, check_classes, encode, margin_pixels, render_with_box
from src.pictures.search import LeftOut, is_video
from src.video.convert import convert_frames, convert_video
from train_utils import cli
from train_utils.boxes import collect_boxes, read_boxes, write_boxes
from train_utils.distributed import from_main, is_main, no_bar, process_group, scatter, world_size
from train_utils.shares import (
    Earlier,
    Plan,
    Share,
    print_beside_bar,
    report_error,
    report_frames,
    report_replaced,
    report_total,
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags of predict.py; exits with status 2 if they conflict."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    text = "images, folders of them, patterns in quotes, or - for standard input"
    add("input", type=Path, nargs="+", metavar="INPUT", help=text)
    cli.add_weights_flags(parser)
    text = "rembg: masks as that program makes them, by Lanczos and stretched to the full range"
    add("--preset", choices=tuple(PRESETS), default="default", help=text)
    add("--tta", action="store_true", help="average with the mirrored image; twice the time")
    text = "look again at up to N parts of a large image where its map is unsure"
    add("--detail", type=cli.natural, default=0, metavar="N", help=text)
    add_file_flags(parser)
    add_result_flags(parser)
    cli.add_device_flags(parser, workers=False)
    cli.add_engine_flag(parser)
    args = parser.parse_args(argv)
    args.videos = any(map(is_video, args.input))
    args.output = args.output or (PIPE if PIPE in args.input else Path("predictions"))
    try:
        check_flags(args)
        if args.videos:
            check_video_flags(args)
    except UserError as error:
        parser.error(error.describe(cli.flag))
    args.format = f".{args.format or 'png'}"
    return args


def add_file_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the files to read and write."""
    add = parser.add_argument_group("files").add_argument
    text = (
        "a folder, or, for a single image, a file by its suffix, or - for standard output "
        "(default: predictions/, or - where INPUT is -)"
    )
    add("--output", type=Path, metavar="DIR|FILE", help=text)
    add("--recursive", action="store_true", help="search folders recursively, keeping their tree")
    add("--skip-existing", action="store_true", help="continue an interrupted run")
    text = "predict the K-th of N shares of the images: 1/8 to 8/8 are all, in any order or at once"
    add("--share", type=Share.parse, metavar="K/N", help=text)
    text = "format of results in a folder, and of a video's --frames (default: png)"
    add("--format", choices=[suffix[1:] for suffix in IMAGE_FORMATS], help=text)
    add("--frames", action="store_true", help="of a video, write each frame as an image")
    text = "of a video, average maps over time along what moves, so that they do not flicker"
    add("--steady", action="store_true", help=text)
    suffix = add("--suffix", default="", metavar="TEXT", help="appended to each result's name")
    suffix.may_be_empty = True  # type: ignore[attr-defined]
    text = "refuse larger images: a small file can unpack to all memory"
    add("--max-megapixels", type=cli.positive, default=200, metavar="N", help=text)


def add_result_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for how results look."""
    add = parser.add_argument_group("results").add_argument
    add("--mode", choices=MODES, default="mask", help="what to write")
    text = "what to put behind the object (default: white)"
    add("--background", metavar="COLOUR|blur|FILE", help=text)
    text = "object where the map is T or more, nothing below (default: soft; 0.5 for binary)"
    add("--threshold", type=cli.not_negative, metavar="T", help=text)
    add("--invert", action="store_true", help="keep what is not the object")
    add("--crop", action="store_true", help="crop to all that is visible of the object")
    text = "margin around that box: pixels, as 20, or a share of its longer side, as 5%%"
    add("--margin", default="0", metavar="PX|PCT", help=text)
    add("--size", type=cli.positive, metavar="PX", help="shrink to PX along the longer side")
    add("--refine", action="store_true", help="refine edges by the image's own (hair, for example)")
    add("--strip", action="store_true", help="leave out EXIF, GPS, XMP, comments and DPI")
    text = "write image,x,y,width,height of each box that --crop would crop to"
    boxes = cli.file_named(".csv", streams=True)
    add("--boxes", type=boxes, metavar="FILE.csv", help=text)


def check_flags(args: argparse.Namespace) -> None:
    """Check that the flags go together.

    Raises:
        UserError: they conflict.
    """
    piped = PIPE in args.input
    output, suffix = args.output, args.output.suffix.lower()
    format = f".{args.format or 'png'}"
    if piped and len(args.input) > 1:
        raise UserError("- is a single image; leave out the other inputs")
    if piped and (args.recursive or args.skip_existing or args.share):
        raise UserError("--recursive, --skip-existing and --share go with folders, not with -")
    if suffix in IMAGE_FORMATS:
        if args.format and IMAGE_FORMATS[suffix] != IMAGE_FORMATS[format]:
            raise UserError(f"--format {args.format} contradicts --output {output}")
        format = suffix
    elif piped and suffix in IMAGE_SUFFIXES:
        raise UserError(f"--output {output}: choose one of {', '.join(IMAGE_FORMATS)}")
    if args.mode == "cutout" and format in (".jpg", ".jpeg"):
        place = f"--format {args.format}" if args.format else f"--output {output}"
        advice = "choose png, webp, tiff or avif for a cutout"
        raise UserError(f"{place}: a JPEG has no transparency; {advice}")
    boxed, mode = args.crop or args.boxes, args.mode
    misplaced = {
        "--frames goes with videos": args.frames and not args.videos,
        "--steady goes with videos": args.steady and not args.videos,
        "--boxes goes with images, not with videos": args.boxes and args.videos,
        "--margin goes with --crop or --boxes": margin_pixels(args.margin, 100) and not boxed,
        f"--boxes {args.boxes}: each share has a file of its own; name it after its number": (
            args.boxes and args.share and not args.share.is_in(args.boxes.name)
        ),
        "--background goes with --mode background": args.background and mode != "background",
        f"--boxes {args.boxes}: the image is written there; name another file": (
            output == PIPE and args.boxes and is_stdout(args.boxes)
        ),
        f"--suffix {args.suffix}: is a part of a name, not of a path": {*"/\\"} & {*args.suffix},
        "--suffix goes with a folder of results": args.suffix
        and (output == PIPE or (suffix in IMAGE_FORMATS and not output.is_dir())),
    }
    for reason in (reason for reason, wrong in misplaced.items() if wrong):
        raise UserError(reason)


def check_video_flags(args: argparse.Namespace) -> None:
    """Check the flags that mean something else, or nothing, for videos."""
    if not all(map(is_video, args.input)):
        raise UserError("videos and images need separate runs")
    if args.recursive:
        raise UserError("--recursive goes with folders of images, not with videos")
    if args.format and not args.frames:
        raise UserError("--format goes with --frames for videos; theirs is the suffix of --output")
    if args.output == PIPE:
        raise UserError("--output -: is for an image; name a video or a folder")
    if args.crop and not args.frames:
        raise UserError("--crop: all frames of a video have one size; it goes with --frames")


def make_style(args: argparse.Namespace) -> Style:
    """How the results look."""
    text = args.background or "white"
    named = Path(text).suffix.lower() in IMAGE_SUFFIXES or "/" in text or "\\" in text
    background = open_image(text) if named or Path(text).is_file() else text
    if isinstance(background, Image.Image) and is_main():
        report_frames(background, text)
    fields = ("mode", "threshold", "invert", "crop", "size", "refine", "margin", "strip")
    return Style(background=background, **{name: getattr(args, name) for name in fields})


def list_jobs(args: argparse.Namespace, earlier: Earlier) -> Plan:
    """The checked jobs of all ranks; ``earlier``: the results of earlier runs."""
    left_out = LeftOut()
    inputs, output = args.input, args.output
    beside = [path for path in (args.background, args.weights) if path]  # also read
    if inputs == [PIPE]:
        cli.require_stream("stdin")
        jobs = Jobs([plan_pipe(output, args.suffix, args.format)])
    elif args.videos:
        transparent = args.mode == "cutout"
        jobs = plan_videos(inputs, output, args.suffix, args.frames, left_out, transparent)
    else:
        skip = args.skip_existing and output != PIPE
        jobs = plan_images(inputs, output, args.suffix, args.format, args.recursive, skip, left_out)
    listed, kind = jobs, "videos" if args.videos else "images"
    if args.share:
        jobs = args.share.pick(listed)
        kind = f"{kind} (share {args.share} of {len(listed)})"
    if output == PIPE:
        cli.require_stream("stdout")
        if len(jobs) > 1:
            raise UserError(f"--output - is for one image, not for {len(jobs)}")
    else:
        suffix = args.format if args.frames else ""
        replaced = check_targets(jobs, beside, suffix, earlier.__contains__)
        report_replaced(replaced, args.boxes, earlier.kept, keepable=inputs != [PIPE])
    check_outputs({"boxes": args.boxes}, chain(beside, (job.source for job in listed)))
    for error in left_out.errors:
        print(f"error: {error.describe(cli.flag)}", file=sys.stderr)
    for line in filter(None, (left_out.describe(cli.flag), *left_out.notes)):
        print(line, file=sys.stderr)
    return Plan(earlier, jobs, kind, len(left_out.errors))


def predict_images(args: argparse.Namespace, plan: Plan, predictor: Predictor, style: Style) -> int:
    """Predict this rank's share of the images; returns the exit status, equal on all ranks."""

    def pixels(job: Job) -> int:  # 0 for a pipe, which cannot be read twice
        return math.prod(oriented_size(job.source)) if job.source.is_file() else 0

    def write(job: Job, image: Image.Image, saliency: np.ndarray) -> Box | None:
        owned = [saliency]  # with no name for it here, it is freed as soon as possible
        del saliency
        result, box = render_with_box(image, owned.pop(), style, reuse=True)
        with atomic_path(job.target) as temporary:
            encode(result, temporary, result_format(job.target, args.format))
        return box

    failed = 0
    names = (printable(job.source) for job in plan.jobs)
    with (
        collect_boxes(args.boxes, names, plan.earlier.boxes or {}) as boxes,
        tqdm(desc="predicting", total=len(plan.share), disable=no_bar(), unit="image") as bar,
    ):
        left = plan.earlier.leave_out(plan.share, bar)
        first = list(islice(left, 8))  # with fewer images than cores, each gets several
        items, total = chain(first, left), len(first)
        for job, box in stream(predictor, items, load_image, write, pixels, total):
            bar.update()
            if isinstance(box, UserError):
                failed += 1
                report_error(box, job)
            elif args.boxes:
                boxes[printable(job.source)] = box
        skipped = len(plan.share) - bar.total
    return report_total(plan, failed, skipped, args.output)


def predict_videos(args: argparse.Namespace, plan: Plan, predictor: Predictor, style: Style) -> int:
    """Predict this rank's share of the videos; returns the exit status, equal on all ranks."""
    left = [job for job in plan.share if job not in plan.earlier]
    failed = 0
    for job in left:
        if args.frames:
            steps = convert_frames(
                predictor, job.source, job.target, style, args.format, print_beside_bar, args.steady
            )
        else:
            steps = convert_video(predictor, job.source, job.target, style, args.steady)
        try:
            with tqdm(desc=job.source.name, disable=no_bar(), unit="frame") as bar:
                bar.reset(next(steps))
                for step in steps:
                    bar.update(step)
        except (UserError, OSError) as error:
            failed += 1
            report_error(error, job)
    return report_total(plan, failed, len(plan.share) - len(left), args.output)


def predict_pipe(args: argparse.Namespace, plan: Plan, predictor: Predictor, style: Style) -> int:
    """One image, from standard input or to standard output."""
    (job,) = plan.jobs
    try:
        image = load_image(job)
        result, box = render_with_box(image, predictor.map(image), style, reuse=True)
    except UserError as error:
        name = "standard input" if job.source == PIPE else str(job.source)
        about = "" if name in error.args[0] else f"{name}: "
        raise UserError(about + error.args[0], advice=error.advice) from None
    if args.boxes:
        write_boxes(args.boxes, {**(plan.earlier.boxes or {}), printable(job.source): box})
    if args.output == PIPE:
        file = io.BytesIO()  # some formats seek while they are written
        encode(result, file, args.format)
        sys.stdout.buffer.write(file.getvalue())
    else:
        with atomic_path(job.target) as temporary:
            encode(result, temporary, result_format(job.target, args.format))
    return 0


def load_image(job: Job) -> Image.Image:
    """The image of a job."""
    if job.source == PIPE:
        image, name = read_image(io.BytesIO(sys.stdin.buffer.read())), "standard input"
    else:
        image, name = open_image(job.source), str(job.source)
    report_frames(image, name)
    return image


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and predict; under torchrun each rank takes its share of the images."""
    args = parse_args(argv)
    set_up_process()
    with process_group(args.device):
        limit_pixels(args.max_megapixels * 1_000_000, "{max_megapixels} N allows more")
        style = make_style(args)
        boxes = read_boxes(args.boxes) if args.boxes else None  # no other file is written over
        known = {} if boxes and not args.skip_existing else boxes
        earlier = Earlier(args.skip_existing, known, args.format if args.frames else None)
        # Only one rank lists files, as another might find results just written; each gets its
        # share. This precedes loading the weights, so that a wrong name is reported at once.
        plan = list_jobs(args, earlier) if is_main() else Plan(earlier)
        plan = plan._replace(share=scatter(lambda number: plan.jobs.share(number, world_size())))
        piped = PIPE in (*args.input, args.output)
        if piped and not is_main():
            return 0  # one image, one stream: rank 0 does it
        what = args.weights, args.img_size, args.device, args.amp
        predictor = Predictor(*what, args.preset, args.tta, args.detail, args.engine)
        if predictor.classes:
            check_classes(style, predictor.classes, bool(args.boxes))
        if is_main():
            computing = describe_computing((predictor.device, predictor.precision))
            about = cli.describe_weights(args.weights, predictor.origin)
            print(f"{about}; {computing}", file=sys.stderr)
        if piped:
            return predict_pipe(args, plan, predictor, style)
        predict = predict_videos if args.videos else predict_images
        return predict(args, plan, predictor, style) or from_main(2 if plan.unreadable else 0)


if __name__ == "__main__":
    cli.run(main)
