"""Score networks and folders of maps on data sets: a job in, a result out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from src.errors import UserError
from src.inference.predictor import Predictor
from src.inference.sizes import Size

from ..data.dataset import SegmentationDataset
from ..data.loaders import Loader, OrderedSampler, collate_ragged
from ..data.masks import MaskRule
from ..data.pairs import Inventory
from ..distributed import gather, rank, world_size
from .evaluate import Evaluation, Scored, evaluate, predicted, predicted_classes, require_one_map
from .maps import MapDataset, Maps, collate_maps, find_maps, stored_maps
from .semantic import default_names, evaluate_classes


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


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """How to score.

    Args:
        classes: how many there are, for the measures of classes (2: object and background); None
            for those of saliency.
        ignore_index: for classes: the mask value of pixels to ignore.
        structure: for saliency: weighted F, relaxed boundary F, mBA and HCE too.
        stretch: stretch each map by its own minimum and maximum; not for classes.
        batch_size: images at once.
        workers: processes that load images.
        device: where to compute.
    """

    classes: int | None
    ignore_index: int | None
    structure: bool
    stretch: bool
    batch_size: int
    workers: int
    device: torch.device


@dataclass(frozen=True)
class ScoreJob:
    """One source on one data set.

    Args:
        source: what makes the maps.
        set_name: of the data set, in tables.
        data: its pairs.
        options: how to score.
        maps: of the data set, if the source is a folder.
        class_names: of all classes; none for saliency.
    """

    source: Source
    set_name: str
    data: Inventory
    options: ScoreOptions
    maps: Maps | None = None
    class_names: tuple[str, ...] = ()

    @property
    def cut(self) -> int | None:
        """The level of 255 above which a soft mask is object; None for other masks."""
        read = self.data.read
        return read.threshold if isinstance(read, MaskRule) and read.kind == "soft" else None


@dataclass(frozen=True)
class ScoreResult:
    """The result of a job.

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
        """The data set's scores, named as in validation.py's JSON, and the number of images."""
        missing = len(self.job.maps.missing) if self.job.maps else 0
        count = len(self.job.data.pairs) - len(self.errors) - missing
        return {**self.evaluation.results, "images": count}

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
    img_size: Size | None = None,
    device: str = "auto",
    amp: str = "auto",
    detail: int = 0,
    engine: str = "torch",
) -> list[Source]:
    """Load every network, and label all sources.

    Args:
        weights: files of networks.
        pred_dirs: folders of maps.
        semantic: networks may have several maps.
        img_size, device, amp, detail, engine: as for :class:`~src.Predictor`.

    Returns:
        The networks, then the folders.

    Raises:
        UserError: weights can't be used, or give several maps although one is to be scored.
    """
    paths = [*weights, *pred_dirs]
    predictors: list[Predictor | None] = [None] * len(paths)
    for i, path in enumerate(weights):
        predictor = Predictor(path, img_size, device, amp, detail=detail, engine=engine)
        predictors[i] = predictor
        if not semantic:
            require_one_map(predictor, path)
    return list(map(Source, unique_labels(paths), paths, predictors))


def unique_labels(paths: Sequence[Path]) -> list[str]:
    """Short names for tables: the last parts of each path that distinguish it from the others.

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
    """Make a job for each source on each data set; missing maps are reported before any job runs.

    Args:
        data: names and pairs of the data sets.
        sources: from :func:`find_sources`.
        options: how to score.

    Raises:
        UserError: a folder has no maps of a data set.
    """
    jobs = []
    for name, found in data:
        names: tuple[str, ...] = ()
        if options.classes:
            names = found.class_names or default_names(options.classes)
        for source in sources:
            maps = None
            if source.predictor is None:  # a folder for each set by name, or the maps of one set
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
    options, indices = job.options, range(len(job.data.pairs))
    scored = [i for i in indices if not job.maps or job.maps.paths[i]]
    share = scored[rank() :: world_size()]
    loader = _make_loader(job, share, options.batch_size, options.workers, tolerant=True)
    batches, total = _batches(job, loader), len(loader)
    try:
        if options.classes:
            evaluation = evaluate_classes(
                batches, options.classes, options.ignore_index, options.device, total
            )
        else:
            evaluation = evaluate(
                batches, options.stretch, options.structure, options.device, total, job.cut
            )
    except UserError as error:
        first = [reason.args[0] for reason in loader.errors.values()][:1]
        text = "; ".join([error.args[0], *first])
        raise UserError(text, error.parameter, error.value, error.advice) from None
    errors = {index: error for part in gather(loader.errors) for index, error in part.items()}
    return ScoreResult(job, evaluation, dict(sorted(errors.items())))


def _make_loader(
    job: ScoreJob, indices: Sequence[int], batch_size: int, workers: int, tolerant: bool = False
) -> Loader[Any]:
    """Images for the network, or existing maps, each with its mask."""
    options, predictor = job.options, job.source.predictor
    if predictor and predictor.size.auto:  # images of different sizes cannot be batched
        batch_size = 1
    dataset: SegmentationDataset | MapDataset
    if predictor:
        from ..data.transforms import EvalPreset  # imports torchvision

        dataset = SegmentationDataset(job.data.pairs, EvalPreset(predictor.size))
    else:
        assert job.maps
        dataset = MapDataset(job.maps, job.data.pairs, classes=options.classes or 2)
    return Loader(
        dataset,
        OrderedSampler(indices, batch_size),
        workers=workers,
        pin=options.device.type == "cuda",
        collate=collate_ragged if predictor else collate_maps,
        tolerant=tolerant,
    )


def _batches(job: ScoreJob, loader: Loader[Any]) -> Iterator[Scored]:
    """Maps and masks in the form that the measures need."""
    options, predictor = job.options, job.source.predictor
    if predictor is None:
        return stored_maps(loader, options.device, binary=options.classes == 2)
    if options.classes:
        return predicted_classes(predictor, loader, options.classes)
    return predicted(predictor, loader, options.stretch)


def rescore_samples(
    job: ScoreJob, indices: Sequence[int]
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Compute the maps of some images again, as they were scored.

    Args:
        job: the job.
        indices: of the images.

    Yields:
        Index, map H×W uint8 and mask H×W uint8 of each.
    """
    loader = _make_loader(job, indices, batch_size=1, workers=0)
    for (levels,), (mask,), (index,) in _batches(job, loader):
        if job.cut is not None:
            mask = (mask > job.cut).to(torch.uint8)
        yield index, levels.cpu().numpy(), mask.cpu().numpy()
