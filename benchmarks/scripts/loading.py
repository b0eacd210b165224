"""Load and augment pairs of image and mask: the tutorials' method against ours.

    python -m benchmarks.scripts.loading --data-path DUTS [--split train]

Medians on one core, in turns. The tutorials' method works on float tensors: decode, to tensor,
resize to 320, random horizontal flip, random crop to 288, normalise. Ours returns uint8 and leaves
normalisation to the device. Without --data-path, images of about 400 x 300 are generated.
"""

import random
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms.functional as TF
from PIL import Image

from my_dataset import SegmentationDataset, find_pairs
from train_utils import cli
from train_utils.data import synthetic
from train_utils.data.pairs import Pair
from transforms import TrainPreset


def tutorial_pair(pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
    """A pair, loaded as in tutorials."""
    image, mask = Image.open(pair.image).convert("RGB"), Image.open(pair.mask).convert("L")
    image = TF.to_tensor(image)
    mask = TF.to_tensor(mask)
    image = TF.resize(image, [320, 320], antialias=True)
    mask = TF.resize(mask, [320, 320], antialias=True)
    if random.random() < 0.5:
        image, mask = TF.hflip(image), TF.hflip(mask)
    top, left = random.randint(0, 32), random.randint(0, 32)
    image, mask = TF.crop(image, top, left, 288, 288), TF.crop(mask, top, left, 288, 288)
    return TF.normalize(image, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), mask


def main() -> None:
    """Print the medians and their ratio."""
    parser = cli.make_parser(__doc__)
    parser.add_argument("--data-path", type=Path, metavar="DIR", help="a data set, as for train.py")
    splits = ("train", "val", "test", "all")
    parser.add_argument("--split", choices=splits, default="train", help="its split")
    parser.add_argument("--pairs", type=cli.positive, default=200, help="pairs to time")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if not args.data_path:
            args.data_path = Path(folder)
            synthetic.write_dataset(args.data_path, train=40, test=1, size=400, seed=0)
        time_pairs(find_pairs(args.data_path, args.split).pairs, args.pairs)


def time_pairs(pairs: list[Pair], count: int) -> None:
    """Time both methods on the same pairs, in turn."""
    data = SegmentationDataset(pairs, TrainPreset(320, 288))
    ways = {"tutorial": lambda i: tutorial_pair(pairs[i]), "ours": lambda i: data[i]}
    times: dict[str, list[float]] = {name: [] for name in ways}
    indices = np.linspace(0, len(pairs) - 1, count).astype(int)
    # In turn, but not so often that it hurts caching.
    for part in np.array_split(indices, min(10, count)):
        for name, way in ways.items():
            way(int(part[0]))
            for index in part.tolist():
                start = time.perf_counter()
                way(index)
                times[name].append(time.perf_counter() - start)
    medians = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    for name, value in medians.items():
        print(f"{name:9s} {value:6.2f} ms per pair")
    print(f"ours is {medians['tutorial'] / medians['ours']:.2f} x as fast")


if __name__ == "__main__":
    cli.run(main)
