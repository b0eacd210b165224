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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from my_dataset import SPLITS, Inventory, SegmentationDataset, find_pairs
from src import Predictor
from src.device import pick_device
from src.files import save_json
from src.images import open_image, to_rgb
from train_utils import cli, reports
from train_utils.distributed import is_main, process_group
from train_utils.evaluation import Evaluation, evaluate, predicted
from train_utils.loaders import eval_loader
from train_utils.maps import MapDataset, Maps, collate_maps, find_maps, read_map, stored
from train_utils.masks import read_mask
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
    parser.add_argument("--metrics", choices=("basic", "all"), default="basic", help=(
        "basic: MAE, F, E and S; all: weighted F and relaxed boundary F too"
    ))  # fmt: skip
    parser.add_argument("--normalize", action=argparse.BooleanOptionalAction, default=True, help=(
        "stretch each map by its own minimum and maximum before scoring"
    ))  # fmt: skip
    parser.add_argument("--batch-size", type=cli.positive, default=8, metavar="N", help="pictures")
    out = parser.add_argument_group("output").add_argument
    out("--json", type=cli.file_named(".json"), metavar="F", help="write every score there")
    out("--csv", type=cli.file_named(".csv"), metavar="F", help="write each picture's scores there")
    out("--plot", type=cli.file_named(".png", ".pdf", ".svg"), metavar="F", help=(
        "draw the PR curve and the F-threshold curve of all weights and maps there"
    ))  # fmt: skip
    out("--worst", type=cli.positive, metavar="K", help=(
        "draw the K pictures of the highest MAE: picture, mask, map, error"
    ))  # fmt: skip
    out("--worst-file", type=cli.file_named(".png", ".pdf"), metavar="F", help=(
        "for them; with several sets or weights, their names are added"
    ), default=Path("worst.png"))  # fmt: skip
    cli.add_device_flags(parser)
    args = parser.parse_args(argv)
    if not args.weights and not args.pred_dir:
        parser.error("give --weights, or maps that exist already by --pred-dir")
    return args


@dataclass
class Source:
    """A network, or a folder of maps, under the name that tables show."""

    label: str
    path: Path
    predictor: Predictor | None

    def about(self) -> dict[str, Any]:
        if self.predictor is None:
            return {"pred_dir": str(self.path)}
        return {
            "weights": str(self.path),
            "network": self.predictor.model.config.name,
            "img_size": self.predictor.img_size,
            "precision": str(self.predictor.dtype).removeprefix("torch."),
        }


@dataclass
class Row:
    """One source on one set."""

    source: Source
    name: str  # of the set
    data: Inventory
    maps: Maps | None
    evaluation: Evaluation
    about: dict[str, Any] = field(default_factory=dict)


def score(args: argparse.Namespace, source: Source, name: str, data: Inventory) -> Row:
    """Score one source on one set; all ranks together."""
    device, masks = pick_device(args.device), [pair.mask for pair in data.pairs]
    maps = None
    pin = device.type == "cuda"
    if source.predictor:
        dataset = SegmentationDataset(data.pairs, EvalPreset(source.predictor.img_size))
        loader = eval_loader(dataset, args.batch_size, args.workers, pin)
        batches = predicted(source.predictor, loader, args.normalize)
    else:
        folder = source.path / name if (source.path / name).is_dir() else source.path
        maps = find_maps(folder, masks, [pair.name for pair in data.pairs])
        dataset = MapDataset(maps, masks)
        loader = eval_loader(dataset, args.batch_size, args.workers, pin, collate_maps)
        batches = stored(loader, device)
    found = evaluate(batches, args.normalize, args.metrics == "all", device, len(loader))
    about = {"data": name, "split": data.split, **source.about(), "normalize": args.normalize}
    return Row(source, name, data, maps, found, about)


def sets(args: argparse.Namespace) -> list[tuple[str, Inventory]]:
    """Every data set that is asked for, under the name that tables show."""
    split, invalid = args.split, args.skip_invalid
    if not args.data_path:
        found = find_pairs(None, split, args.image_dir, args.mask_dir, invalid)
        return [(args.image_dir.resolve().name, found)]
    return [
        (label, find_pairs(path, split, args.image_dir, args.mask_dir, invalid))
        for label, path in zip(labels(args.data_path), args.data_path, strict=True)
    ]


def labels(paths: Sequence[Path]) -> list[str]:
    """The last part of each path that tells it from the others: a short name for tables."""
    names = [path.resolve().with_suffix("").parts for path in paths]
    for length in range(1, max(map(len, names), default=1) + 1):
        short = ["/".join(parts[-length:]) for parts in names]
        if len(set(short)) == len(short):
            return short
    return [str(path) for path in paths]


def tell(rows: Sequence[Row]) -> None:
    """Notes and the table, on the screen."""
    for note in dict.fromkeys(note for row in rows for note in notes(row)):
        print(f"note: {note}")
    table = []
    for row in rows:
        head = {
            "set": row.name,
            "maps": row.source.label,
            "images": row.evaluation.results["images"],
        }
        table.append({**head, **row.evaluation.results})
    titles = {"set": "set", "maps": "maps", "images": "images"}
    print(how(rows[0]))
    print(reports.markdown(table, {**titles, **reports.COLUMNS}))


def how(row: Row) -> str:
    """In a few words, what every figure depends on."""
    stretched = ("maps as they are", "each map stretched to its full range")[row.about["normalize"]]
    if not row.source.predictor:
        return stretched
    return f"{stretched}, network at {row.about['img_size']}² in {row.about['precision']}"


def notes(row: Row) -> list[str]:
    """What deserves a word beside the figures."""
    said = [f"{row.name}: {note}" for note in row.data.notes]
    empty = row.evaluation.results["empty_masks"]
    if empty:
        said.append(f"{row.name}: {empty} empty masks, each counted with F = 0")
    if row.maps:
        where = f"{row.maps.folder} for {row.name}"
        if row.maps.resized:
            said.append(
                f"{where}: {row.maps.resized} maps resized, of another size than their mask"
            )
        for kind, names in (("no map of", row.maps.missing), ("no mask for", row.maps.extra)):
            if names:
                said.append(f"{where}: {kind} {len(names)} pictures: {', '.join(names)}")
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
    if args.plot:
        curves: dict[str, dict] = {}
        for row in rows:
            curves.setdefault(row.name, {})[row.source.label] = row.evaluation.curves
        reports.plot_curves(args.plot, curves, how(rows[0]))
    for row in rows if args.worst else ():
        path = args.worst_file
        if len(rows) > 1:
            name = f"{row.name}-{row.source.label}".replace("/", "-")
            path = path.with_stem(f"{path.stem}-{name}")
        draw_worst(path, row, args.worst)


def draw_worst(path: Path, row: Row, count: int) -> None:
    """The sheet of the pictures with the highest MAE."""
    scores = row.evaluation.rows
    worst = sorted(scores, key=lambda index: -scores[index]["mae"])[:count]
    columns = []
    for index in worst:
        pair = row.data.pairs[index]
        picture, mask = to_rgb(open_image(pair.image)), read_mask(pair.mask)
        if row.source.predictor:
            saliency = torch.from_numpy(row.source.predictor(picture))
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
    """Score, print, write; returns the exit status, 2 where maps and masks don't match."""
    data = sets(args)
    paths = [*args.weights, *args.pred_dir]
    sources = [Source(name, path, None) for name, path in zip(labels(paths), paths, strict=True)]
    for source in sources[: len(args.weights)]:
        source.predictor = Predictor(source.path, args.img_size, args.device, args.amp)
    rows = [score(args, source, name, found) for name, found in data for source in sources]
    if is_main():
        tell(rows)
        write(args, rows)
    return 2 if any(row.maps and (row.maps.missing or row.maps.extra) for row in rows) else 0


def main(argv: list[str] | None = None) -> int:
    """Parse and score; under torchrun each rank takes its share of the pictures."""
    args = parse_args(argv)
    with process_group(args.device):
        return validate(args)


if __name__ == "__main__":
    cli.run(main)
