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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from my_dataset import SPLITS, Inventory, SegmentationDataset, find_pairs, has_list
from src import Predictor, UserError
from src.device import pick_device
from src.files import check_writable, save_json
from src.images import open_image, to_rgb
from src.weights import SHIPPED
from train_utils import cli, reports
from train_utils.distributed import from_main, gather, is_main, process_group
from train_utils.evaluation import Evaluation, evaluate, predicted, predicted_classes
from train_utils.loaders import Tolerant
from train_utils.maps import MapDataset, Maps, collate_maps, find_maps, read_map, stored
from train_utils.masks import mask_reader, read_mask
from train_utils.semantic import (
    class_names,
    confusion_matrix,
    semantic_measures,
)
from train_utils.sources import Source, find_sources
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
        "draw the K ≤ 40 pictures of the highest MAE: picture, mask, map, error"
    ))  # fmt: skip
    out("--worst-file", type=cli.file_named(".png", ".pdf"), metavar="F", help=(
        "for them; with several sets or weights, their names are added"
    ), default=Path("worst.png"))  # fmt: skip
    cli.add_device_flags(parser)
    args = parser.parse_args(argv)
    if not args.weights and not args.pred_dir:
        args.weights = [SHIPPED]
    semantic = args.metrics == "semantic"
    if semantic and (args.csv or args.worst):
        parser.error("--csv and --worst go with --metrics basic or all")
    if not semantic and (args.num_classes != 2 or args.ignore_index is not None):
        parser.error("--num-classes and --ignore-index go with --metrics semantic")
    if not 2 <= args.num_classes <= 255:
        parser.error(f"--num-classes {args.num_classes}: from 2 to 255")
    if args.worst and args.worst > 40:
        parser.error("--worst: at most 40 on a sheet; --csv has every picture's scores")
    if args.worst and args.plot and args.plot.absolute() == args.worst_file.absolute():
        parser.error(f"--plot and --worst-file are the same {args.plot}")
    return args


@dataclass
class Row:
    """One source on one set."""

    source: Source
    name: str  # of the set
    data: Inventory
    maps: Maps | None
    evaluation: Evaluation
    about: dict[str, Any]
    confusion: torch.Tensor | None = None
    faults: dict[int, str] = field(default_factory=dict)  # of pictures that could not be scored

    def class_names(self) -> list[str]:
        return names_of(self.data, self.about["num_classes"])


def names_of(data: Inventory, classes: int) -> list[str]:
    """Of the set's classes.txt, if it has one."""
    return class_names(data.pairs[0].image.parent.parent, classes)


def score(args: argparse.Namespace, source: Source, name: str, data: Inventory) -> Row:
    """Score one source on one set; all ranks together."""
    device, masks = pick_device(args.device), [pair.mask for pair in data.pairs]
    semantic, read = args.metrics == "semantic", reader(args)
    maps, collate = None, None
    if source.predictor:
        dataset = SegmentationDataset(data.pairs, EvalPreset(source.predictor.img_size), read=read)
    else:
        maps, collate = maps_of(source, name, data), collate_maps
        dataset = MapDataset(maps, masks, read, args.num_classes if semantic else 2)
    pin = device.type == "cuda"
    loader = Tolerant(dataset, args.batch_size, args.workers, pin, collate)
    if maps:
        batches = stored(loader, device, args.num_classes == 2 and semantic)
    elif semantic:
        batches = predicted_classes(source.predictor, loader, args.num_classes)
    else:
        batches = predicted(source.predictor, loader, args.normalize)
    about = {"data": name, "split": data.split, **source.about()}
    confusion, total = None, len(loader)
    try:
        if semantic:
            classes = args.num_classes, args.ignore_index
            confusion = confusion_matrix(batches, *classes, device, total)
            found = Evaluation(semantic_measures(confusion), {}, {})
            about |= {"num_classes": args.num_classes, "ignore_index": args.ignore_index}
        else:
            found = evaluate(batches, args.normalize, args.metrics == "all", device, total)
    except UserError as error:
        first = [fault for _, fault in loader.faults[:1]]
        raise UserError("; ".join([str(error), *first])) from None
    row = Row(source, name, data, maps, found, about, confusion)
    faults = [fault for part in gather(loader.faults) for fault in part]
    row.faults = {dataset.items[i][0] if maps else i: error for i, error in sorted(faults)}
    about["normalize"] = args.normalize and not semantic
    about |= {"unreadable": [data.pairs[index].name for index in row.faults]}
    if maps:
        about |= {"missing": maps.missing, "extra": maps.extra, "resized": maps.resized}
    scored = len(data.pairs) - len(row.faults) - (len(maps.missing) if maps else 0)
    found.results.setdefault("images", scored)
    return row


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
    named = zip(reports.labels(args.data_path), args.data_path, strict=True)
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
    for note in dict.fromkeys(note for row in rows for note in notes(row)):
        print(f"note: {note}")
    for fault in dict.fromkeys(fault for row in rows for fault in row.faults.values()):
        print(f"error: left out: {fault}", file=sys.stderr)
    table = [{"set": r.name, "maps": r.source.label, **r.evaluation.results} for r in rows]
    semantic = rows[0].confusion is not None
    print(how(rows[0]))
    heads = {key: key for key in ("set", "maps", "images")}
    print(reports.markdown(table, {**heads, **(reports.SEMANTIC if semantic else reports.COLUMNS)}))
    for row in rows if semantic else ():
        for measure, key in (("IoU", "class_iou"), ("recall", "class_accuracy")):
            values = zip(row.class_names(), row.evaluation.results[key], strict=True)
            listed = ", ".join(f"{name} {value:.3f}" for name, value in values if value is not None)
            print(f"{measure} of {row.source.label} on {row.name}: {listed}")


def how(row: Row) -> str:
    """In a few words, what every figure depends on."""
    full = row.about.get("normalize", False)
    stretched = "each map stretched to its full range" if full else "maps as they are"
    if not row.source.predictor:
        return stretched
    return f"{stretched}, network at {row.about['img_size']}² in {row.about['precision']}"


def notes(row: Row) -> list[str]:
    """What deserves a word beside the figures."""
    said = [f"{row.name}: {note}" for note in row.data.notes]
    if row.source.predictor:
        said.insert(0, f"{row.source.path}: {row.source.predictor.origin}")
    empty = row.evaluation.results.get("empty_masks")
    if empty:
        said.append(f"{row.name}: {empty} empty masks, each counted with F = 0")
    if row.maps:
        where = f"{row.maps.folder} for {row.name}"
        if row.maps.resized:
            said.append(
                f"{where}: {row.maps.resized} maps resized, of another size than their mask"
            )
        if row.maps.missing:
            names = reports.few(row.maps.missing)
            said.append(f"{where}: no map of {len(row.maps.missing)} pictures: {names}")
        if row.maps.extra:
            names = reports.few(row.maps.extra)
            said.append(f"{where}: no mask for {len(row.maps.extra)} maps: {names}")
    return said


def write(args: argparse.Namespace, rows: Sequence[Row]) -> None:
    """The files that were asked for."""
    if args.json:
        results = [{**row.about, **row.evaluation.results} for row in rows]
        save_json(results if len(results) > 1 else results[0], args.json)
    if args.csv:
        reports.write_csv(args.csv, [
            {"set": row.name, "maps": row.source.label, "normalize": args.normalize,
             "picture": row.data.pairs[index].name, **scores}
            for row in rows
            for index, scores in row.evaluation.rows.items()
        ])  # fmt: skip
    if args.plot and rows[0].confusion is not None:
        reports.plot_confusion(args.plot, {
            f"{row.source.label} on {row.name}": (row.confusion.numpy(), row.class_names())
            for row in rows
        })  # fmt: skip
    elif args.plot:
        curves: dict[str, dict] = {}
        for row in rows:
            curves.setdefault(row.name, {})[row.source.label] = row.evaluation.curves
        reports.plot_curves(args.plot, curves, how(rows[0]))
    for row in rows if args.worst else ():
        several = f"-{row.name}-{row.source.label}".replace("/", "-") if len(rows) > 1 else ""
        draw_worst(args.worst_file.with_stem(args.worst_file.stem + several), row, args.worst)


def draw_worst(path: Path, row: Row, count: int) -> None:
    """The sheet of the pictures with the highest MAE."""
    scores = row.evaluation.rows
    worst = sorted(scores, key=lambda index: -scores[index]["mae"])[:count]
    columns = []
    for index in worst:
        pair = row.data.pairs[index]
        picture, mask = to_rgb(open_image(pair.image)), read_mask(pair.mask)
        if row.source.predictor:
            saliency = torch.from_numpy(row.source.predictor(np.asarray(picture)))
        else:
            saliency = torch.from_numpy(read_map(row.maps.paths[index])) / 255
        saliency = Predictor.resize(saliency, mask.shape).numpy()
        if row.about["normalize"] and np.ptp(saliency):
            saliency = (saliency - saliency.min()) / np.ptp(saliency)
        caption = ", ".join(f"{name} {scores[index][name]:.3f}" for name in ("mae", "max_f"))
        columns.append((f"{pair.name}: {caption}", np.asarray(picture), mask, saliency))
    title = f"{row.source.label} on {row.name}: the {len(worst)} highest MAE ({how(row)})"
    reports.worst_sheet(path, columns, title)


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
        write(args, rows)
        tell(rows)
    from_main(None)  # the others wait, as torchrun ends all once one of them has left with 2
    unmatched = any(row.maps and (row.maps.missing or row.maps.extra) for row in rows)
    return 2 if unmatched or any(row.faults for row in rows) else 0


def main(argv: list[str] | None = None) -> int:
    """Parse and score; under torchrun each rank takes its share of the pictures."""
    args = parse_args(argv)
    with process_group(args.device):
        return validate(args)


if __name__ == "__main__":
    cli.run(main)
