"""Score weights, or maps that exist already, on data sets: the measures that papers print.

    python validation.py --weights runs/u2net_lite-1/best.pt --data-path DUTS
    python validation.py --weights u2net.pth u2netp.pth --data-path ECSSD DUTS --metrics all
    python validation.py --pred-dir maps --data-path ECSSD --metrics all --csv each.csv --worst 8
    python validation.py --weights best.pt u2netp.pth --data-path ECSSD --plot curves.png

The table, ready to paste, is in the papers' order and rounding; --json has every digit. Each map is
resized to its mask's own size and, unless --no-normalize is given, stretched by its own minimum and
maximum, as published numbers are. maxF: precision and recall averaged over the pictures, then F
(beta^2 = 0.3), then the maximum over 256 thresholds, as in the papers; maxF/img: F curves averaged,
then the maximum, as in PySODMetrics. A mask is object where > 127 of 255; with an empty one every F
is 0, the others are as defined. Under torchrun each process takes its share of the pictures.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Subset

from my_dataset import SPLITS, SegmentationDataset, find_pairs, has_list
from src import UserError
from src.device import keep_freed_memory, pick_device
from src.files import check_writable, save_json
from src.pictures.images import open_image, to_rgb
from src.weights.load import SHIPPED
from train_utils import cli
from train_utils.data.loaders import Tolerant, ragged
from train_utils.data.masks import mask_reader
from train_utils.data.pairs import Inventory
from train_utils.distributed import from_main, gather, is_main, process_group
from train_utils.metrics import report
from train_utils.metrics.evaluate import Scored, evaluate, predicted, predicted_classes
from train_utils.metrics.maps import MapDataset, Maps, collate_maps, find_maps, stored
from train_utils.metrics.plots import class_panels, saliency_panels, worst_sheet
from train_utils.metrics.rows import Row, names_of
from train_utils.metrics.semantic import evaluate_classes
from train_utils.metrics.sources import Source, find_sources
from transforms import EvalPreset


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags of validation.py."""
    parser = cli.make_parser(__doc__)
    cli.add_weights_flags(parser, several=True)
    parser.add_argument("--pred-dir", type=Path, nargs="+", default=[], metavar="DIR", help=(
        "score the maps in these folders; for a set called NAME, those in DIR/NAME if it exists"
    ))  # fmt: skip
    cli.add_data_flags(parser, several=True)
    parser.add_argument("--split", choices=SPLITS, help=(
        "which pictures (default: DUTS-TE in the DUTS layout, all pictures of other folders)"
    ))  # fmt: skip
    parser.add_argument("--metrics", choices=("basic", "all", "semantic"), default="basic", help=(
        "basic: MAE, F, E and S; all: weighted F and relaxed boundary F too; semantic: accuracies, "
        "IoU and Dice of the classes, a network's maps as they are"
    ))  # fmt: skip
    parser.add_argument("--num-classes", type=cli.positive, default=2, metavar="K", help=(
        "semantic: 2 is object and background; more: masks, and maps, hold class indices"
    ))  # fmt: skip
    parser.add_argument("--ignore-index", type=cli.natural, metavar="I", help=(
        "semantic: pixels whose mask holds this are left out"
    ))  # fmt: skip
    parser.add_argument("--normalize", action=argparse.BooleanOptionalAction, default=True, help=(
        "stretch each map by its own minimum and maximum before scoring"
    ))  # fmt: skip
    parser.add_argument("--batch-size", type=cli.positive, default=8, metavar="N", help="pictures")
    out = parser.add_argument_group("output").add_argument
    out("--json", type=cli.file_named(".json"), metavar="F", help="write every score there")
    out("--csv", type=cli.file_named(".csv"), metavar="F", help="write each picture's scores there")
    out("--plot", type=cli.file_named(".png", ".pdf", ".svg"), metavar="F", help=(
        "draw the PR curve and the F-threshold curve of all weights and maps there; semantic: "
        "confusion matrices"
    ))  # fmt: skip
    out("--worst", type=cli.positive, metavar="K", help=(
        "draw the K ≤ 40 pictures of the highest MAE, or lowest mIoU: picture, mask, map, error"
    ))  # fmt: skip
    out("--worst-file", type=cli.file_named(".png", ".pdf"), metavar="F", help=(
        "for them; with several sets or weights, their names are added"
    ), default=Path("worst.png"))  # fmt: skip
    cli.add_device_flags(parser)
    args = parser.parse_args(argv)
    if not args.weights and not args.pred_dir:
        args.weights = [SHIPPED]
    semantic = args.metrics == "semantic"
    if not semantic and (args.num_classes != 2 or args.ignore_index is not None):
        parser.error("--num-classes and --ignore-index go with --metrics semantic")
    if not 2 <= args.num_classes <= 255:
        parser.error(f"--num-classes {args.num_classes}: from 2 to 255")
    if args.worst and args.worst > 40:
        parser.error("--worst: at most 40 on a sheet; --csv has every picture's scores")
    if args.worst and args.plot and args.plot.absolute() == args.worst_file.absolute():
        parser.error(f"--plot and --worst-file are the same {args.plot}")
    return args


def score(args: argparse.Namespace, source: Source, name: str, data: Inventory) -> Row:
    """Score one source on one set; all ranks together."""
    device, semantic = pick_device(args.device), args.metrics == "semantic"
    maps = None if source.predictor else maps_of(source, name, data)
    dataset = dataset_of(args, source, data, maps)
    pin, collate = device.type == "cuda", collate_maps if maps else ragged
    loader = Tolerant(dataset, args.batch_size, args.workers, pin, collate)
    batches = measured(args, source, loader)
    about = {"data": name, "split": data.split, **source.about()}
    total = len(loader)
    try:
        if semantic:
            classes = args.num_classes, args.ignore_index
            found = evaluate_classes(batches, *classes, device, total)
            about |= {"num_classes": args.num_classes, "ignore_index": args.ignore_index}
        else:
            found = evaluate(batches, args.normalize, args.metrics == "all", device, total)
    except UserError as error:
        first = [fault for _, fault in loader.faults[:1]]
        raise UserError("; ".join([str(error), *first])) from None
    row = Row(source, name, data, maps, found, about)
    faults = [fault for part in gather(loader.faults) for fault in part]
    row.faults = {dataset.items[i][0] if maps else i: error for i, error in sorted(faults)}
    about["normalize"] = args.normalize and not semantic
    about |= {"unreadable": [data.pairs[index].name for index in row.faults]}
    if maps:
        about |= {"missing": maps.missing, "extra": maps.extra, "resized": maps.resized}
    scored = len(data.pairs) - len(row.faults) - (len(maps.missing) if maps else 0)
    found.results.setdefault("images", scored)
    return row


def dataset_of(
    args: argparse.Namespace, source: Source, data: Inventory, maps: Maps | None
) -> SegmentationDataset | MapDataset:
    """Pictures for the network, or maps that exist already, each with its mask."""
    if source.predictor:
        preset = EvalPreset(source.predictor.img_size)
        return SegmentationDataset(data.pairs, preset, read=reader(args))
    classes = args.num_classes if args.metrics == "semantic" else 2
    return MapDataset(maps, [pair.mask for pair in data.pairs], reader(args), classes)


def measured(args: argparse.Namespace, source: Source, loader: Any) -> Iterator[Scored]:
    """Maps and masks as the measures take them."""
    semantic = args.metrics == "semantic"
    if not source.predictor:
        return stored(loader, pick_device(args.device), semantic and args.num_classes == 2)
    if semantic:
        return predicted_classes(source.predictor, loader, args.num_classes)
    return predicted(source.predictor, loader, args.normalize)


def maps_of(source: Source, name: str, data: Inventory) -> Maps:
    """The maps of a set in a folder of them: of all its sets, or of this one alone."""
    folder = source.path / Path(name).name
    return find_maps(folder if folder.is_dir() else source.path, data.pairs)


def reader(args: argparse.Namespace) -> Callable[[Path], np.ndarray]:
    """How mask files are read."""
    return mask_reader(args.num_classes if args.metrics == "semantic" else None, args.ignore_index)


def sets(args: argparse.Namespace) -> list[tuple[str, Inventory]]:
    """Every data set that is asked for, under the name that tables show."""
    more = args.split, args.image_dir, args.mask_dir, args.skip_invalid, reader(args)
    if not args.data_path:
        name = args.image_dir.resolve().name if args.image_dir else ""
        return [(name, find_pairs(None, *more))]
    named = zip(report.labels(args.data_path), args.data_path, strict=True)
    found = [(label, find_pairs(path, *more)) for label, path in named]
    for path, (_, data) in zip(args.data_path, found, strict=True):
        if data.split == "all":
            val = has_list(path, "val") and not has_list(path, "test")
            data.notes.append(
                f"all {len(data.pairs)} pictures, those that train.py takes too; "
                f"--split {'val' if val else 'test'} scores only the ones held out"
            )
    return found


def tell(rows: Sequence[Row]) -> None:
    """Notes and the table, on the screen."""
    for note in dict.fromkeys(note for row in rows for note in row.notes()):
        print(f"note: {note}")
    for fault in dict.fromkeys(fault for row in rows for fault in row.faults.values()):
        print(f"error: left out: {fault}", file=sys.stderr)
    table = [{"set": r.name, "maps": r.source.label, **r.evaluation.results} for r in rows]
    semantic = rows[0].evaluation.confusion is not None
    print(how(rows))
    heads = {key: key for key in ("set", "maps", "images")}
    print(report.markdown(table, {**heads, **(report.SEMANTIC if semantic else report.COLUMNS)}))
    for row in rows if semantic else ():
        for measure, key in (("IoU", "class_iou"), ("recall", "class_accuracy")):
            values = zip(row.class_names(), row.evaluation.results[key], strict=True)
            listed = ", ".join(f"{name} {value:.3f}" for name, value in values if value is not None)
            print(f"{measure} of {row.source.label} on {row.name}: {listed}")


def how(rows: Sequence[Row]) -> str:
    """What the figures depend on; of each source, where they differ in that."""
    said = {row.source.label: row.how() for row in rows}
    if len(set(said.values())) == 1:
        return rows[0].how()
    return "\n".join(f"{label}: {what}" for label, what in said.items())


def write(args: argparse.Namespace, rows: Sequence[Row]) -> None:
    """The files that were asked for."""
    if args.json:
        results = [{**row.about, **row.evaluation.results} for row in rows]
        save_json(results if len(results) > 1 else results[0], args.json)
    if args.csv:
        report.write_csv(args.csv, [
            {"set": row.name, "maps": row.source.label, "normalize": row.about["normalize"],
             "picture": row.data.pairs[index].name, **row.columns(scores)}
            for row in rows
            for index, scores in row.evaluation.rows.items()
        ])  # fmt: skip
    if args.plot and rows[0].evaluation.confusion is not None:
        matrices = [(row.evaluation.confusion.numpy(), row.class_names()) for row in rows]
        titles = [f"{row.source.label} on {row.name}" for row in rows]
        report.plot_confusion(args.plot, dict(zip(titles, matrices, strict=True)))
    elif args.plot:
        curves: dict[str, dict] = {}
        for row in rows:
            curves.setdefault(row.name, {})[row.source.label] = row.evaluation.curves
        report.plot_curves(args.plot, curves, how(rows))
    for row in rows if args.worst else ():
        several = f"-{row.name}-{row.source.label}".replace("/", "-") if len(rows) > 1 else ""
        draw_worst(args, args.worst_file.with_stem(args.worst_file.stem + several), row)


def draw_worst(args: argparse.Namespace, path: Path, row: Row) -> None:
    """The sheet of the pictures with the highest MAE, or the lowest mean IoU."""
    scores, semantic = row.evaluation.rows, args.metrics == "semantic"
    first, second = ("mean_iou", "pixel_accuracy") if semantic else ("mae", "max_f")
    ordered = sorted(scores, key=lambda index: scores[index][first], reverse=not semantic)
    drawn, present = [], set()
    for index, found, mask in again(args, row, ordered[: args.worst]):
        pair = row.data.pairs[index]
        picture = np.asarray(to_rgb(open_image(pair.image)))
        if semantic:
            panels = class_panels(picture, mask, found, args.ignore_index)
            present |= {*np.unique(found).tolist(), *np.unique(mask).tolist()}
        else:
            panels = saliency_panels(picture, mask, found, args.normalize)
        said = ", ".join(f"{name} {scores[index][name]:.3f}" for name in (first, second))
        drawn.append((f"{pair.name}: {said}", panels))
    order = "lowest mean IoU" if semantic else "highest MAE"
    title = f"{row.source.label} on {row.name}: the {len(drawn)} of {order} ({row.how()})"
    names = row.class_names() if semantic else []
    colours = {name: i for i, name in enumerate(names) if i in present}
    error = "wrong red, ignored grey" if semantic else "missed red, added blue"
    worst_sheet(path, drawn, title, error, colours)


def again(
    args: argparse.Namespace, row: Row, indices: Sequence[int]
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Some pictures once more, as they were scored: index, map and mask H×W uint8."""
    dataset = dataset_of(args, row.source, row.data, row.maps)
    numbers = [item[0] for item in dataset.items] if row.maps else range(len(dataset))
    some = Subset(dataset, [numbers.index(index) for index in indices])
    loader = DataLoader(some, 1, collate_fn=collate_maps if row.maps else ragged)
    for (levels,), (mask,), (index,) in measured(args, row.source, loader):
        yield index, levels.cpu().numpy(), mask.cpu().numpy()


def validate(args: argparse.Namespace) -> int:
    """Score, print, write; returns the exit status, 2 where something could not be scored."""
    if is_main():
        for path in (args.json, args.csv, args.plot, args.worst and args.worst_file):
            if path:
                check_writable(path)
    data = sets(args)
    sources = find_sources(
        args.weights, args.pred_dir, args.metrics, args.img_size, args.device, args.amp
    )
    for name, found in data:  # whatever is wrong with flags, before the work is done
        for source in sources:
            if source.predictor is None:
                maps_of(source, name, found)
    for _, found in data if args.metrics == "semantic" else ():
        names_of(found, args.num_classes)
    rows = [score(args, source, name, found) for name, found in data for source in sources]
    if is_main():
        tell(rows)
        write(args, rows)
    from_main(None)  # the others wait, as torchrun ends all once one of them has left with 2
    unmatched = any(row.maps and (row.maps.missing or row.maps.extra) for row in rows)
    return 2 if unmatched or any(row.faults for row in rows) else 0


def main(argv: list[str] | None = None) -> int:
    """Parse and score; under torchrun each rank takes its share of the pictures."""
    args = parse_args(argv)
    keep_freed_memory()
    with process_group(args.device):
        return validate(args)


if __name__ == "__main__":
    cli.run(main)
