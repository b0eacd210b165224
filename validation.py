"""Score weights, or existing maps, on data sets with the measures that papers report.

    python validation.py --weights runs/u2net_lite-1/best.pt --data-path DUTS
    python validation.py --weights u2net.pth u2netp.pth --data-path ECSSD DUTS --metrics all
    python validation.py --pred-dir maps --data-path ECSSD --metrics all --csv each.csv --worst 8
    python validation.py --weights best.pt u2netp.pth --data-path ECSSD --plot curves.png

The table, ready to paste, is in the papers' order and rounding; --json has every digit. Each map is
resized to its mask's own size and, unless --no-normalize is given, stretched by its own minimum and
maximum, as published numbers are. maxF: precision and recall averaged over the images, then F
(beta^2 = 0.3), then the maximum over 256 thresholds, as in the papers; maxF/img: F curves averaged,
then the maximum, as in PySODMetrics. A mask is object where > 127 of 255; if empty, every F is 0,
the others are as defined. Under torchrun each process takes its share of the images.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from my_dataset import SPLITS, find_pairs, has_list
from src.device import describe_computing, pick_device, set_up_process
from src.files import check_outputs, real_path
from src.pictures.images import list_images
from src.weights.load import SHIPPED
from src.words import counted
from train_utils import cli
from train_utils.data.masks import count_classes, mask_reader
from train_utils.data.pairs import Inventory
from train_utils.data.splits import check_names
from train_utils.distributed import from_main, is_main, process_group
from train_utils.metrics import plots, report
from train_utils.metrics.score import (
    ScoreJob,
    ScoreOptions,
    ScoreResult,
    find_sources,
    make_jobs,
    score,
    unique_labels,
)

_MAX_WORST = 40  # images on a sheet


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the flags of validation.py; exits with status 2 if they conflict."""
    parser = cli.make_parser(__doc__)
    cli.add_weights_flags(parser, several=True)
    text = "look again at up to N parts of each image, as predict.py --detail does"
    parser.add_argument("--detail", type=cli.natural, default=0, metavar="N", help=text)
    text = "score the maps in these folders; for a set called NAME, those in DIR/NAME if it exists"
    parser.add_argument("--pred-dir", type=Path, nargs="+", default=[], metavar="DIR", help=text)
    cli.add_data_flags(parser)
    _add_score_flags(parser)
    _add_output_flags(parser)
    cli.add_device_flags(parser)
    cli.add_engine_flag(parser)
    args = parser.parse_args(argv)
    if not args.weights and not args.pred_dir:
        args.weights = [SHIPPED]
    for name in ("detail", "img_size", "engine"):
        if getattr(args, name) != parser.get_default(name) and not args.weights:
            parser.error(f"{cli.flag(name)}: maps are scored as they are; it goes with --weights")
    if args.num_classes is None:
        args.num_classes = count_classes(args.classes, args.ignore_index) if args.classes else 2
    of_classes = args.num_classes != 2 or args.ignore_index is not None or args.classes
    if args.metrics != "semantic" and of_classes:
        parser.error("--num-classes, --ignore-index and --classes go with --metrics semantic")
    if args.metrics == "semantic" and args.masks == "soft":
        parser.error("--masks soft: levels are scored by --metrics basic or all")
    if args.annotations and len(args.annotations) != len(args.data_path or (None,)):
        parser.error("--annotations: expected one for each --data-path, or auto")
    if args.worst_file and not args.worst:
        parser.error("--worst-file goes with --worst K")
    if args.worst:
        args.worst_file = args.worst_file or Path("worst.png")
    if (args.worst or 0) > _MAX_WORST:
        parser.error(f"--worst: at most {_MAX_WORST} on a sheet; --csv has every image's scores")
    return args


def _add_score_flags(parser: argparse.ArgumentParser) -> None:
    text = "which images (default: DUTS-TE in the DUTS layout, all images of other folders)"
    parser.add_argument("--split", choices=SPLITS, help=text)
    text = (
        "basic: MAE, F, E and S; all: weighted F, relaxed boundary F, mBA and HCE too; semantic: "
        "accuracies, IoU and Dice of the classes, a network's maps as they are"
    )
    kinds = "basic", "all", "semantic"
    parser.add_argument("--metrics", choices=kinds, default=kinds[0], help=text)
    text = (
        "semantic: 2 is object and background; more: masks, and maps, hold class indices (default: "
        "as many as --classes, else 2)"
    )
    parser.add_argument("--num-classes", type=cli.class_count, metavar="K", help=text)
    text = "semantic: pixels whose mask holds this are left out"
    parser.add_argument("--ignore-index", type=cli.class_index, metavar="I", help=text)
    text = "stretch each map by its own minimum and maximum before scoring"
    boolean = argparse.BooleanOptionalAction
    parser.add_argument("--normalize", action=boolean, default=True, help=text)
    parser.add_argument(
        "--batch-size", type=cli.positive, default=8, metavar="N", help="images per batch"
    )


def _add_output_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    json, csv = (cli.file_named(suffix, streams=True) for suffix in (".json", ".csv"))
    group.add_argument("--json", type=json, metavar="F", help="write every score there")
    group.add_argument("--csv", type=csv, metavar="F", help="write each image's scores there")
    text = (
        "draw the PR curve and the F-threshold curve of all weights and maps there; semantic: "
        "confusion matrices"
    )
    figure = cli.file_named(".png", ".pdf", ".svg")
    group.add_argument("--plot", type=figure, metavar="F", help=text)
    text = (
        f"draw the K ≤ {_MAX_WORST} images of the highest MAE, or lowest mIoU: image, mask, map, "
        "error"
    )
    group.add_argument("--worst", type=cli.positive, metavar="K", help=text)
    text = (
        "file for --worst; with several sets or weights, their names are added (default: worst.png)"
    )
    sheet = cli.file_named(".png", ".pdf")
    group.add_argument("--worst-file", type=sheet, metavar="F", help=text)


def find_data(args: argparse.Namespace, classes: int | None) -> list[tuple[str, Inventory]]:
    """Find every data set; each comes with its name for tables."""
    options = args.split, args.image_dir, args.mask_dir, args.skip_invalid
    named = args.classes or (), args.class_colours
    read = mask_reader(classes, args.ignore_index, args.masks, args.mask_threshold, *named)
    annotations = args.annotations or [None] * len(args.data_path or (None,))
    if not args.data_path:
        name = real_path(args.image_dir).name if args.image_dir else ""
        where = args.image_dir or annotations[0]
        name = name or (real_path(Path(where)).stem if where else "")
        found = find_pairs(None, *options, read, annotations[0])
        if found.split == "all":
            found.notes.append(_advise_split(where, len(found.pairs)))
        return [(name, found)]
    sets = []
    labels = unique_labels(args.data_path)
    for label, path, file in zip(labels, args.data_path, annotations, strict=True):
        found = find_pairs(path, *options, read, file)
        if found.split == "all":
            found.notes.append(_advise_split(path, len(found.pairs)))
        sets.append((label, found))
    if args.weights:
        check_names(dict(zip(map(str, args.data_path), (found for _, found in sets), strict=True)))
    return sets


def _advise_split(folder: Path, count: int) -> str:
    """A note on scoring all images of a set, some of which may have been trained on."""
    held_out = "val" if has_list(folder, "val") and not has_list(folder, "test") else "test"
    if any(has_list(folder, split) for split in SPLITS[:-1]):
        return (
            f"all {counted(count, 'image')}, those that train.py takes too; --split {held_out} "
            "scores only the ones held out"
        )
    return (
        f"all {counted(count, 'image')}; if the network was trained on this set, --split test "
        "scores only the ones that train.py holds out"
    )


def print_results(results: Sequence[ScoreResult]) -> None:
    """Print notes and the table; what could not be scored is listed on stderr."""
    errors = [error.describe(cli.flag) for result in results for error in result.errors.values()]
    for error in dict.fromkeys(errors):
        print(f"error: left out: {error}", file=sys.stderr)
    print(report.describe(results))


def write_results(args: argparse.Namespace, results: Sequence[ScoreResult]) -> None:
    """Write the requested files."""
    if args.json:
        report.write_json(args.json, results)
    if args.csv:
        report.write_csv(args.csv, results)
    if args.plot:
        plot = plots.plot_confusion if args.metrics == "semantic" else plots.plot_curves
        plot(args.plot, results)
    if args.worst:
        sheets = worst_sheets(args, [result.job for result in results])
        for result, path in zip(results, sheets, strict=True):
            plots.plot_worst(path, result, args.worst)


def worst_sheets(args: argparse.Namespace, jobs: Sequence[ScoreJob]) -> list[Path]:
    """The file that each job's worst images are drawn to."""
    sheet: Path = args.worst_file
    if len(jobs) == 1:
        return [sheet]
    names = [f"{job.set_name}-{job.source.label}".replace("/", "-") for job in jobs]
    for i, name in enumerate(names):  # sets with equal names, or a-b of c next to a of b-c
        if count := names[:i].count(name):
            names[i] = f"{name}-{count + 1}"
    return [sheet.with_stem(f"{sheet.stem}-{name}") for name in names]


def check_files(args: argparse.Namespace, jobs: Sequence[ScoreJob]) -> None:
    """Check, before anything is computed, that no output overwrites an input."""
    worst = worst_sheets(args, jobs) if args.worst else None
    outputs = {"json": args.json, "csv": args.csv, "plot": args.plot, "worst_file": worst}
    check_outputs(outputs, inputs_of(args, jobs))


def inputs_of(args: argparse.Namespace, jobs: Sequence[ScoreJob]) -> Iterator[Path]:
    """All files that the jobs read, and those next to them that other splits read."""
    yield from args.weights
    yield from filter(None, (*(args.annotations or ()), args.class_colours))
    pairs = [pair for job in jobs for pair in job.data.pairs]
    yield from {pair.mask for pair in pairs if pair.is_drawn}
    folders = {file.parent for pair in pairs for file in (pair.image, pair.mask)}
    for folder in folders | {job.maps.folder for job in jobs if job.maps}:
        yield from list_images(folder)
    for folder in (*(args.data_path or ()), args.image_dir):
        yield from folder.glob("*.txt") if folder else ()  # lists and names of classes


def main(argv: list[str] | None = None) -> int:
    """Score; returns the exit status, 2 if something could not be scored."""
    args = parse_args(argv)
    cli.require_packages("torchvision", *(["matplotlib"] if args.plot or args.worst else []))
    set_up_process()
    with process_group(args.device):
        if is_main():  # fail early; checked again below, against all inputs
            check_outputs(
                {name: getattr(args, name) for name in ("json", "csv", "plot", "worst_file")}
            )
        semantic = args.metrics == "semantic"
        options = ScoreOptions(
            classes=args.num_classes if semantic else None,
            ignore_index=args.ignore_index,
            structure=args.metrics == "all",
            stretch=args.normalize and not semantic,
            batch_size=args.batch_size,
            workers=args.workers,
            device=pick_device(args.device),
        )
        data = find_data(args, options.classes)
        sources = find_sources(
            args.weights,
            args.pred_dir,
            semantic=semantic,
            img_size=args.img_size,
            device=args.device,
            amp=args.amp,
            detail=args.detail,
            engine=args.engine,
        )
        jobs = make_jobs(data, sources, options)
        if is_main():
            check_files(args, jobs)
            networks = [source.predictor for source in sources if source.predictor]
            used = [(network.device, network.precision) for network in networks]
            print(describe_computing(*(used or [(options.device, "float32")])), file=sys.stderr)
        results = [score(job) for job in jobs]
        if is_main():
            print_results(results)
            write_results(args, results)
        from_main(None)  # the others wait, as torchrun ends all ranks once one exits with 2
        return 0 if all(result.complete for result in results) else 2


if __name__ == "__main__":
    cli.run(main)
