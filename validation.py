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
from dataclasses import dataclass
from pathlib import Path

from my_dataset import SPLITS, find_pairs, has_list
from src.device import keep_freed_memory, pick_device
from src.files import check_writable
from src.weights.load import SHIPPED
from train_utils import cli
from train_utils.data.masks import MaskReader
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

_MOST_ON_A_SHEET = 40


@dataclass(frozen=True)
class Outputs:
    """The files to write; None for those that are not wanted."""

    json: Path | None
    csv: Path | None
    plot: Path | None
    worst_file: Path | None
    worst: int = 0

    def check(self) -> None:
        """Raise a UserError where one of them cannot be written."""
        for path in (self.json, self.csv, self.plot, self.worst_file):
            if path:
                check_writable(path)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the flags of validation.py; exits with status 2 where they don't agree."""
    parser = cli.make_parser(__doc__)
    cli.add_weights_flags(parser, several=True)
    parser.add_argument(
        "--pred-dir",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="score the maps in these folders; for a set called NAME, those in DIR/NAME if it "
        "exists",
    )
    cli.add_data_flags(parser, several=True)
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
    if args.worst and args.worst > _MOST_ON_A_SHEET:
        parser.error(
            f"--worst: at most {_MOST_ON_A_SHEET} on a sheet; --csv has every image's scores"
        )
    if args.worst and args.plot and args.plot.absolute() == args.worst_file.absolute():
        parser.error(f"--plot and --worst-file are the same {args.plot}")
    return args


def _add_score_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--split",
        choices=SPLITS,
        help="which images (default: DUTS-TE in the DUTS layout, all images of other folders)",
    )
    parser.add_argument(
        "--metrics",
        choices=("basic", "all", "semantic"),
        default="basic",
        help="basic: MAE, F, E and S; all: weighted F and relaxed boundary F too; semantic: "
        "accuracies, IoU and Dice of the classes, a network's maps as they are",
    )
    parser.add_argument(
        "--num-classes",
        type=cli.positive,
        default=2,
        metavar="K",
        help="semantic: 2 is object and background; more: masks, and maps, hold class indices",
    )
    parser.add_argument(
        "--ignore-index",
        type=cli.natural,
        metavar="I",
        help="semantic: pixels whose mask holds this are left out",
    )
    parser.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="stretch each map by its own minimum and maximum before scoring",
    )
    parser.add_argument("--batch-size", type=cli.positive, default=8, metavar="N", help="images")


def _add_output_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "--json", type=cli.file_named(".json"), metavar="F", help="write every score there"
    )
    group.add_argument(
        "--csv", type=cli.file_named(".csv"), metavar="F", help="write each image's scores there"
    )
    group.add_argument(
        "--plot",
        type=cli.file_named(".png", ".pdf", ".svg"),
        metavar="F",
        help="draw the PR curve and the F-threshold curve of all weights and maps there; "
        "semantic: confusion matrices",
    )
    group.add_argument(
        "--worst",
        type=cli.positive,
        metavar="K",
        help=f"draw the K ≤ {_MOST_ON_A_SHEET} images of the highest MAE, or lowest mIoU: image, "
        "mask, map, error",
    )
    group.add_argument(
        "--worst-file",
        type=cli.file_named(".png", ".pdf"),
        default=Path("worst.png"),
        metavar="F",
        help="for them; with several sets or weights, their names are added",
    )


def find_data(
    data_paths: Sequence[Path],
    split: str | None,
    image_dir: Path | None,
    mask_dir: Path | None,
    skip_invalid: bool,
    read: MaskReader,
) -> list[tuple[str, Inventory]]:
    """Find every data set, under the name that tables show."""
    options = split, image_dir, mask_dir, skip_invalid, read
    if not data_paths:
        name = image_dir.resolve().name if image_dir else ""
        return [(name, find_pairs(None, *options))]
    sets = []
    for label, path in zip(unique_labels(data_paths), data_paths, strict=True):
        found = find_pairs(path, *options)
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


def write_results(results: Sequence[ScoreResult], outputs: Outputs) -> None:
    """Write the files that are wanted."""
    if outputs.json:
        report.write_json(outputs.json, results)
    if outputs.csv:
        report.write_csv(outputs.csv, results)
    if outputs.plot:
        semantic = results[0].job.options.semantic
        (plots.plot_confusion if semantic else plots.plot_curves)(outputs.plot, results)
    if outputs.worst_file:
        for result in results:
            name = f"-{result.job.set_name}-{result.job.source.label}".replace("/", "-")
            suffix = name if len(results) > 1 else ""
            path = outputs.worst_file.with_stem(outputs.worst_file.stem + suffix)
            plots.plot_worst(path, result, outputs.worst)


def main(argv: list[str] | None = None) -> int:
    """Score; returns the exit status, 2 where something could not be scored."""
    args = parse_args(argv)
    worst_file = args.worst_file if args.worst else None
    outputs = Outputs(args.json, args.csv, args.plot, worst_file, args.worst or 0)
    keep_freed_memory()
    with process_group(args.device):
        if is_main():
            outputs.check()
        options = ScoreOptions(
            metrics=args.metrics,
            num_classes=args.num_classes,
            ignore_index=args.ignore_index,
            normalize=args.normalize,
            batch_size=args.batch_size,
            workers=args.workers,
            device=pick_device(args.device),
        )
        folders = args.split, args.image_dir, args.mask_dir, args.skip_invalid
        data = find_data(args.data_path or (), *folders, options.read_mask)
        sources = find_sources(
            args.weights,
            args.pred_dir,
            semantic=options.semantic,
            img_size=args.img_size,
            device=args.device,
            amp=args.amp,
        )
        results = [score(job) for job in make_jobs(data, sources, options)]
        if is_main():
            print_results(results)
            write_results(results, outputs)
        from_main(None)  # the others wait, as torchrun ends all once one has left with 2
        return 0 if all(result.complete for result in results) else 2


if __name__ == "__main__":
    cli.run(main)
