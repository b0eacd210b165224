"""Score weights on a data set: MAE and the F-measures that papers print.

    python validation.py --weights runs/u2net_lite-1/best.pt --data-path DUTS
    python validation.py --weights u2netp.pth --data-path ECSSD --json ecssd.json

Every map is resized to its mask's own size and, unless --no-normalize is given, stretched by its
own minimum and maximum, as published numbers are. maxF: precision and recall averaged over the
pictures, then F (beta^2 = 0.3), then the maximum over 256 thresholds, as in the papers; maxF/image:
F curves averaged, then the maximum, as in PySODMetrics. An empty mask counts with F = 0.
"""

import argparse

from my_dataset import SPLITS, SegmentationDataset, find_pairs
from src import Predictor
from src.files import save_json
from train_utils import cli
from train_utils.distributed import is_main, process_group
from train_utils.evaluation import evaluate
from train_utils.loaders import eval_loader
from transforms import EvalPreset

COLUMNS = {
    "maxF": "max_f",
    "maxF/image": "max_f_per_image",
    "meanF": "mean_f",
    "adpF": "adaptive_f",
    "MAE": "mae",
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags of validation.py."""
    parser = cli.make_parser(__doc__)
    cli.add_weights_flags(parser)
    cli.add_data_flags(parser)
    parser.add_argument("--split", choices=SPLITS, help=(
        "which pictures (default: DUTS-TE in the DUTS layout, all pictures of other folders)"
    ))  # fmt: skip
    parser.add_argument("--metrics", choices=("basic",), default="basic", help="MAE and F-measures")
    parser.add_argument("--normalize", action=argparse.BooleanOptionalAction, default=True, help=(
        "stretch each map by its own minimum and maximum before scoring"
    ))  # fmt: skip
    parser.add_argument("--batch-size", type=cli.positive, default=8, metavar="N", help="pictures")
    parser.add_argument(
        "--json", type=cli.json_file, metavar="F", help="write the scores there too"
    )
    cli.add_device_flags(parser)
    return parser.parse_args(argv)


def validate(args: argparse.Namespace) -> int:
    """Score, print, write; returns the exit status."""
    found = find_pairs(args.data_path, args.split, args.image_dir, args.mask_dir, args.skip_invalid)
    predictor = Predictor(args.weights, args.img_size, args.device, args.amp)
    data = SegmentationDataset(found.pairs, EvalPreset(predictor.img_size))
    pin = predictor.device.type == "cuda"
    loader = eval_loader(data, args.batch_size, args.workers, pin)
    scores = evaluate(predictor, loader, args.normalize)
    if not is_main():
        return 0
    about = {
        "weights": str(args.weights),
        "network": predictor.model.config.name,
        "data": str(args.data_path or args.image_dir),
        "split": found.split,
        "img_size": predictor.img_size,
        "precision": str(predictor.dtype).removeprefix("torch."),
        "normalize": args.normalize,
    }
    for note in found.notes:
        print(f"note: {note}")
    if scores["empty_masks"]:
        print(f"note: {scores['empty_masks']} empty masks, each counted with F = 0")
    print("  ".join(f"{key} {value}" for key, value in about.items()))
    print(f"{scores['images']} pictures")
    print("  ".join(f"{title:>10}" for title in COLUMNS))
    print("  ".join(f"{scores[key]:10.4f}" for key in COLUMNS.values()))
    if args.json:
        save_json({**about, **scores}, args.json)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Parse and score; under torchrun each rank takes its share of the pictures."""
    args = parse_args(argv)
    with process_group(args.device):
        return validate(args)


if __name__ == "__main__":
    cli.run(main)
