"""Score networks and folders of maps on data sets: a job in, a result out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from src.errors import UserError
from src.inference.predictor import Predictor

from ..data.dataset import SegmentationDataset
from ..data.loaders import Loader, collate_ragged, eval_loader
from ..data.masks import MaskReader, mask_reader
from ..data.pairs import Inventory
from ..distributed import gather
from .evaluate import (
    Evaluation,
    Scored,
    evaluate,
    predicted,
    predicted_classes,
    require_one_map,
)
from .maps import MapDataset, Maps, collate_maps, find_maps, stored_maps
from .semantic import class_names, evaluate_classes


@dataclass(frozen=True)
class Source:
    """A network, or a folder of maps.

    Args:
        label: its name in tables.
        path: of the weights or the folder.
        predictor: of the network; None for a folder.
    """

    label: str
    path: Path
    predictor: Predictor | None = None


@dataclass(frozen=True)
class ScoreOptions:
    """How to score.

    Args:
        metrics: ``basic``; ``all``: weighted F and relaxed boundary F too; ``semantic``: those of
            classes.
        num_classes: semantic: how many; 2 is object and background.
        ignore_index: semantic: a mask's value for pixels that count nowhere.
        normalize: stretch each map by its own minimum and maximum; not of classes.
        batch_size: images at once.
        workers: processes that load images.
        device: where to compute.
    """

    metrics: str = "basic"
    num_classes: int = 2
    ignore_index: int | None = None
    normalize: bool = True
    batch_size: int = 8
    workers: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def semantic(self) -> bool:
        """Whether classes are scored."""
        return self.metrics == "semantic"

    @property
    def stretch(self) -> bool:
        """Whether maps are stretched."""
        return self.normalize and not self.semantic

    @property
    def read_mask(self) -> MaskReader:
        """How masks are read."""
        return mask_reader(self.num_classes if self.semantic else None, self.ignore_index)


@dataclass(frozen=True)
class ScoreJob:
    """One source on one data set.

    Args:
        source: what makes the maps.
        set_name: of the data set, in tables.
        data: its pairs.
        options: how to score.
        maps: of the data set, where the source is a folder.
        class_names: semantic: of all classes.
    """

    source: Source
    set_name: str
    data: Inventory
    options: ScoreOptions
    maps: Maps | None = None
    class_names: tuple[str, ...] = ()

    def dataset(self) -> SegmentationDataset | MapDataset:
        """Images for the network, or maps that exist already, each with its mask."""
        read = self.options.read_mask
        if self.maps is not None:
            classes = self.options.num_classes if self.options.semantic else 2
            return MapDataset(self.maps, [pair.mask for pair in self.data.pairs], read, classes)
        from ..data.transforms import EvalPreset  # imports torchvision

        assert self.source.predictor
        return SegmentationDataset(
            self.data.pairs, EvalPreset(self.source.predictor.img_size), read=read
        )


@dataclass(frozen=True)
class ScoreResult:
    """What came out of a job.

    Args:
        job: the job.
        evaluation: the scores.
        errors: of images that could not be scored, by their index.
    """

    job: ScoreJob
    evaluation: Evaluation
    errors: dict[int, UserError]

    @property
    def scores(self) -> dict[str, Any]:
        """Of the data set, by the names of validation.py's JSON, with the number of images."""
        missing = len(self.job.maps.missing) if self.job.maps else 0
        scores = dict(self.evaluation.results)
        scores.setdefault("images", len(self.job.data.pairs) - len(self.errors) - missing)
        return scores

    @property
    def complete(self) -> bool:
        """Whether all images were scored, and all maps have an image."""
        maps = self.job.maps
        return not self.errors and not (maps and (maps.missing or maps.extra))


def find_sources(
    weights: Sequence[Path],
    pred_dirs: Sequence[Path] = (),
    *,
    semantic: bool = False,
    img_size: int | None = None,
    device: str = "auto",
    amp: str = "auto",
) -> list[Source]:
    """Load every network, and label all sources.

    Args:
        weights: files of networks.
        pred_dirs: folders of maps.
        semantic: networks may have several maps.
        img_size, device, amp: as :class:`~src.Predictor` takes them.

    Returns:
        The networks, then the folders.

    Raises:
        UserError: weights can't be used, or give several maps where one is to be scored.
    """
    labels = unique_labels([*weights, *pred_dirs])
    sources = []
    for label, path in zip(labels, weights, strict=False):
        predictor = Predictor(path, img_size, device, amp)
        if not semantic:
            require_one_map(predictor, path)
        sources.append(Source(label, path, predictor))
    folders = zip(labels[len(weights) :], pred_dirs, strict=True)
    return sources + [Source(label, path) for label, path in folders]


def unique_labels(paths: Sequence[Path]) -> list[str]:
    """Short names for tables: the last parts of each path that tell it from the others.

    Example:
        >>> unique_labels([Path("runs/1/best.pt"), Path("runs/2/best.pt")])
        ['1/best', '2/best']
    """
    absolute = [path.absolute() for path in paths]
    names = [(path if path.is_dir() else path.with_suffix("")).parts for path in absolute]
    for length in range(1, max(map(len, names), default=1) + 1):
        short = ["/".join(parts[-length:]) for parts in names]
        if len(set(short)) == len(short):
            return short
    return [str(path) for path in paths]


def make_jobs(
    data: Sequence[tuple[str, Inventory]], sources: Sequence[Source], options: ScoreOptions
) -> list[ScoreJob]:
    """Make a job of each source on each data set, so that what is missing shows before any runs.

    Args:
        data: names and pairs of the data sets.
        sources: of :func:`find_sources`.
        options: how to score.

    Raises:
        UserError: a folder has no maps of a data set, or class names cannot be read.
    """
    jobs = []
    for name, found in data:
        names: tuple[str, ...] = ()
        if options.semantic:
            folder = found.pairs[0].image.parent.parent
            names = tuple(class_names(folder, options.num_classes))
        for source in sources:
            maps = None
            if source.predictor is None:  # the maps of all sets in folders by name, or of one
                own = source.path / Path(name).name
                maps = find_maps(own if own.is_dir() else source.path, found.pairs)
            jobs.append(ScoreJob(source, name, found, options, maps, names))
    return jobs


def score(job: ScoreJob) -> ScoreResult:
    """Score one source on one data set, all ranks together.

    Args:
        job: what to score.

    Returns:
        The scores, and the errors of images that could not be scored; the same on all ranks.

    Raises:
        UserError: no image could be scored, or the network does not fit.
    """
    options, dataset = job.options, job.dataset()
    loader = eval_loader(
        dataset,
        options.batch_size,
        options.workers,
        options.device.type == "cuda",
        collate_maps if job.maps else None,
        tolerant=True,
    )
    batches, total = _batches(job, loader), len(loader)
    try:
        if options.semantic:
            evaluation = evaluate_classes(
                batches, options.num_classes, options.ignore_index, options.device, total
            )
        else:
            structure = options.metrics == "all"
            evaluation = evaluate(batches, options.stretch, structure, options.device, total)
    except UserError as error:
        first = [str(failed.error) for failed in loader.errors[:1]]
        raise UserError("; ".join([str(error), *first])) from None
    failed = {error.index: error.error for part in gather(loader.errors) for error in part}
    if isinstance(dataset, MapDataset):
        failed = {dataset.items[place][0]: error for place, error in failed.items()}
    return ScoreResult(job, evaluation, dict(sorted(failed.items())))


def _batches(job: ScoreJob, loader: Loader[Any]) -> Iterator[Scored]:
    """Maps and masks as the measures take them."""
    options, predictor = job.options, job.source.predictor
    if predictor is None:
        binary = options.semantic and options.num_classes == 2
        return stored_maps(loader, options.device, binary)
    if options.semantic:
        return predicted_classes(predictor, loader, options.num_classes)
    return predicted(predictor, loader, options.stretch)


def rescore_samples(
    job: ScoreJob, indices: Sequence[int]
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Make the maps of some images once more, as they were scored.

    Args:
        job: the job.
        indices: of the images.

    Yields:
        Index, map H×W uint8 and mask H×W uint8 of each.
    """
    dataset = job.dataset()
    places = {index: index for index in indices}
    if isinstance(dataset, MapDataset):
        places = {index: place for place, (index, _) in enumerate(dataset.items)}
    loader = Loader(
        dataset,
        workers=0,
        pin=False,
        collate=collate_maps if job.maps else collate_ragged,
        batch_size=1,
        sampler=[(0, places[index]) for index in indices],
    )
    for (levels,), (mask,), (index,) in _batches(job, loader):
        yield index, levels.cpu().numpy(), mask.cpu().numpy()
