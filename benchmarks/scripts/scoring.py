"""The cost of scoring: all measures against PySODMetrics, map by map, and what validation adds to
the network.

    python -m benchmarks.scripts.scoring --data-path ECSSD --weights u2netp.pth

First, existing maps in memory: PySODMetrics scores them in one process with one thread, its
default, measure by measure; ours scores the same maps, also in one thread, so that only the work
differs. Our time includes the relaxed boundary F, which PySODMetrics lacks. Both take turns, batch
by batch; figures are medians. Then, in turns, the network alone on prepared images in memory,
against validation of the same images from files, with all measures.
"""

import argparse
import statistics
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch

from my_dataset import SegmentationDataset, find_pairs
from src import Predictor
from train_utils import cli
from train_utils.config import default_workers
from train_utils.data.loaders import eval_loader
from train_utils.data.masks import read_mask
from train_utils.metrics.evaluate import evaluate, predicted
from train_utils.metrics.measures.saliency import SaliencyMetrics, histogram, to_levels
from train_utils.metrics.measures.structure import structural
from transforms import EvalPreset

from ..timing import seconds

MEASURES = "MAE", "Fmeasure", "Emeasure", "Smeasure", "WeightedFmeasure"


def ours(maps: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """All our measures of some maps, in this thread."""
    counts = [histogram(torch.from_numpy(s), torch.from_numpy(m)) for s, m in maps]
    SaliencyMetrics().update(counts, [structural(s, m, stretch=True) for s, m in maps])


def theirs(name: str, maps: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """One PySODMetrics measure of some maps."""
    import py_sod_metrics

    measure = getattr(py_sod_metrics, name)()
    for saliency, mask in maps:
        measure.step(saliency, mask * 255)


def score_maps(maps: list[tuple[np.ndarray, np.ndarray]], batch: int) -> None:
    """The first part: existing maps."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    columns: dict[str, list[float]] = {name: [] for name in (*MEASURES, "ours")}
    for start in range(0, len(maps), batch):
        some = maps[start : start + batch]
        for name in MEASURES:
            columns[name].append(seconds(partial(theirs, name, some)) / len(some))
        columns["ours"].append(seconds(partial(ours, some)) / len(some))
    torch.set_num_threads(threads)
    medians = {name: 1e3 * statistics.median(values) for name, values in columns.items()}
    together = sum(medians[name] for name in MEASURES)
    for name in MEASURES:
        print(f"PySODMetrics {name:18s} {medians[name]:6.2f} ms per map")
    print(f"PySODMetrics in total       {together:6.2f} ms")
    print(f"ours, relaxed boundary too  {medians['ours']:6.2f} ms,", end=" ")
    print(f"{medians['ours'] / together:.2f} of that")


def validate(predictor: Predictor, data: SegmentationDataset, batch: int, rounds: int) -> None:
    """The second part: network alone and validation in turns, on the same images."""
    pictures = torch.stack([data[i][0] for i in range(len(data))])
    loader = eval_loader(data, batch, default_workers())

    def network() -> None:
        for part in pictures.split(batch):
            predictor.maps(part)

    def whole() -> None:
        evaluate(predicted(predictor, loader, True), structure=True)

    network(), whole()
    alone, all_of_it = zip(
        *[(seconds(network), seconds(whole)) for _ in range(rounds)], strict=True
    )
    each = [1e3 * statistics.median(values) / len(data) for values in (alone, all_of_it)]
    print(f"network alone               {each[0]:6.1f} ms per image")
    print(f"validation, all measures    {each[1]:6.1f} ms, {each[1] / each[0]:.2f} of that")


def main() -> None:
    """Parse the flags, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-path", type=Path, required=True, metavar="DIR")
    parser.add_argument("--weights", type=Path, required=True, metavar="W")
    parser.add_argument("--pictures", type=cli.positive, default=64, metavar="N")
    parser.add_argument("--batch-size", type=cli.positive, default=8, metavar="N")
    parser.add_argument("--rounds", type=cli.positive, default=3, metavar="N")
    args = parser.parse_args()
    predictor = Predictor(args.weights)
    pairs = find_pairs(args.data_path).pairs
    pairs = pairs[:: max(1, len(pairs) // args.pictures)][: args.pictures]
    maps = []
    for pair in pairs:
        mask, saliency = read_mask(pair.mask), torch.from_numpy(predictor(pair.image))
        saliency = predictor.resize(saliency, mask.shape)
        maps.append((to_levels(saliency, stretch=False).numpy(), mask))
    score_maps(maps, args.batch_size)
    data = SegmentationDataset(pairs, EvalPreset(predictor.img_size))
    validate(predictor, data, args.batch_size, args.rounds)


if __name__ == "__main__":
    cli.run(main)
