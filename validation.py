"""Score weights, or maps that exist already, on data sets: the measures that papers print.

    python validation.py --weights runs/u2net_lite-1/best.pt --data-path DUTS
    python validation.py --weights u2net.pth u2netp.pth --data-path ECSSD DUTS --metrics all
    python validation.py --pred-dir maps --data-path ECSSD --metrics all --csv each.csv --worst 8
    python validation.py --weights best.pt u2netp.pth --data-path ECSSD --plot curves.png

The table, ready to paste, is in the papers' order and rounding; --json has every digit. Each map is
resized to its mask's own size and, unless --no-normalize is given, stretched by its own minimum and
maximum, as published numbers are. maxF: precision and recall averaged over the images, then F
(beta^2 = 0.3), then the maximum over 256 thresholds, as in the papers; maxF/img: F curves averaged,
then the maximum, as in PySODMetrics. A mask is object where > 127 of 255; with an empty one every F
is 0, the others are as defined. Under torchrun each process takes its share of the images.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from my_dataset import SPLITS, find_pairs, has_list
from src.device import keep_freed_memory, pick_device
from src.files import check_writable
from src.weights.load import SHIPPED
from train_utils import cli
from train_utils.data.masks import mask_reader
from train_utils.data.pairs import Inventory
from train_utils.distributed import from_main, is_main, process_group
from train_utils.metrics import plots, report
from train_utils.metrics.score import (
    ScoreOptions,
    ScoreResult,
    find_sources,
    make_jobs,
    score,
    unique_labels,
)

_MAX_WORST = 40  # on a sheet


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the flags of validation.py; exits with status 2 where they don't agree."""
    parser = cli.make_parser(__doc__)
    cli.add_weights_flags(parser, several=True)
    text = "score the maps in these folders; for a set called NAME, those in DIR/NAME if it exists"
    parser.add_argument("--pred-dir", type=Path, nargs="+", default=[], metavar="DIR", help=text)
    cli.add_data_flags(parser)
    _add_score_flags(parser)
    _add_output_flags(parser)
    cli.add_device_flags(parser)
    args = parser.parse_args(argv)
    if not args.weights and not args.pred_dir:
        args.weights = [SHIPPED]
    if args.metrics != "semantic" and (args.num_classes != 2 or args.ignore_index is not None):
        parser.error("--num-classes and --ignore-index go with --metrics semantic")
    if not 2 <= args.num_classes <= 255:
        parser.error(f"--num-classes {args.num_classes}: from 2 to 255")
    if not args.worst:
        args.worst_file = None
    elif args.worst > _MAX_WORST:
        parser.error(f"--worst: at most {_MAX_WORST} on a sheet; --csv has every image's scores")
    elif args.plot and args.plot.absolute() == args.worst_file.absolute():
        parser.error(f"--plot and --worst-file are the same {args.plot}")
    return args


def _add_score_flags(parser: argparse.ArgumentParser) -> None:
    text = "which images (default: DUTS-TE in the DUTS layout, all images of other folders)"
    parser.add_argument("--split", choices=SPLITS, help=text)
    text = (
        "basic: MAE, F, E and S; all: weighted F and relaxed boundary F too; semantic: "
        "accuracies, IoU and Dice of the classes, a network's maps as they are"
    )
    kinds = "basic", "all", "semantic"
    parser.add_argument("--metrics", choices=kinds, default=kinds[0], help=text)
    text = "semantic: 2 is object and background; more: masks, and maps, hold class indices"
    parser.add_argument("--num-classes", type=cli.positive, default=2, metavar="K", help=text)
    text = "semantic: pixels whose mask holds this are left out"
    parser.add_argument("--ignore-index", type=cli.natural, metavar="I", help=text)
    text = "stretch each map by its own minimum and maximum before scoring"
    boolean = argparse.BooleanOptionalAction
    parser.add_argument("--normalize", action=boolean, default=True, help=text)
    parser.add_argument("--batch-size", type=cli.positive, default=8, metavar="N", help="images")


def _add_output_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    json, csv = cli.file_named(".json"), cli.file_named(".csv")
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
    text = "file for --worst; with several sets or weights, their names are added"
    sheet, default = cli.file_named(".png", ".pdf"), Path("worst.png")
    group.add_argument("--worst-file", type=sheet, default=default, metavar="F", help=text)


def find_data(args: argparse.Namespace, classes: int | None) -> list[tuple[str, Inventory]]:
    """Find every data set, under the name that tables show."""
    options = args.split, args.image_dir, args.mask_dir, args.skip_invalid
    read = mask_reader(classes, args.ignore_index)
    if not args.data_path:
        name = args.image_dir.resolve().name if args.image_dir else ""
        return [(name, find_pairs(None, *options, read))]
    sets = []
    for label, path in zip(unique_labels(args.data_path), args.data_path, strict=True):
        found = find_pairs(path, *options, read)
        if found.split == "all":
            held_out = "val" if has_list(path, "val") and not has_list(path, "test") else "test"
            found.notes.append(
                f"all {len(found.pairs)} images, those that train.py takes too; "
                f"--split {held_out} scores only the ones held out"
            )
        sets.append((label, found))
    return sets


def print_results(results: Sequence[ScoreResult]) -> None:
    """Print notes and the table, and on stderr what could not be scored."""
    errors = [error.describe(cli.flag) for result in results for error in result.errors.values()]
    for error in dict.fromkeys(errors):
        print(f"error: left out: {error}", file=sys.stderr)
    print(report.describe(results))


def write_results(args: argparse.Namespace, results: Sequence[ScoreResult]) -> None:
    """Write the files that are wanted."""
    if args.json:
        report.write_json(args.json, results)
    if args.csv:
        report.write_csv(args.csv, results)
    if args.plot:
        plot = plots.plot_confusion if args.metrics == "semantic" else plots.plot_curves
        plot(args.plot, results)
    for result in results if args.worst else ():
        name = f"-{result.job.set_name}-{result.job.source.label}".replace("/", "-")
        suffix = name if len(results) > 1 else ""
        path = args.worst_file.with_stem(args.worst_file.stem + suffix)
        plots.plot_worst(path, result, args.worst)


def main(argv: list[str] | None = None) -> int:
    """Score; returns the exit status, 2 where something could not be scored."""
    args = parse_args(argv)
    keep_freed_memory()
    with process_group(args.device):
        for path in (args.json, args.csv, args.plot, args.worst_file):
            if path and is_main():
                check_writable(path)
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
        )
        results = [score(job) for job in make_jobs(data, sources, options)]
        if is_main():
            print_results(results)
            write_results(args, results)
        from_main(None)  # the others wait, as torchrun ends all once one has left with 2
        return 0 if all(result.complete for result in results) else 2


if __name__ == "__main__":
    cli.run(main)
