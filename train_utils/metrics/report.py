"""Reports of scores: table and notes, JSON and CSV."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.files import atomic_path, printable, save_json
from src.words import counted, first_ten

from .score import ScoreResult

COLUMNS = {  # in the order of Qin et al. 2020, tables 3 and 4, then the field's other ones
    "max_f": "maxF",
    "mae": "MAE",
    "soft_mae": "softMAE",
    "sad": "SAD",
    "mse": "MSE×10³",
    "gradient_error": "Grad",
    "weighted_f": "wF",
    "relaxed_boundary_f": "relaxF",
    "s_measure": "S",
    "max_e": "maxE",
    "mean_e": "meanE",
    "adaptive_e": "adpE",
    "max_f_per_image": "maxF/img",
    "mean_f": "meanF",
    "adaptive_f": "adpF",
    "mba": "mBA",
    "hce": "HCE",
}
SEMANTIC_COLUMNS = {
    "pixel_accuracy": "PA",
    "mean_pixel_accuracy": "mPA",
    "mean_precision": "mP",
    "mean_iou": "mIoU",
    "frequency_weighted_iou": "fwIoU",
    "dice": "Dice",
}


def describe(results: Sequence[ScoreResult]) -> str:
    """Everything that is printed about some results, except what could not be scored.

    Args:
        results: of one kind, semantic or not.

    Returns:
        Notes, conditions and the table, in lines.
    """
    semantic = bool(results[0].job.options.classes)
    titles = {key: key for key in ("set", "maps", "images")}
    titles |= SEMANTIC_COLUMNS if semantic else COLUMNS
    rows = [{"set": r.job.set_name, "maps": r.job.source.label, **r.scores} for r in results]
    for row in rows:
        if "mse" in row:  # as papers on matting print it
            row["mse"] *= 1000
    notes = dict.fromkeys(f"note: {note}" for result in results for note in _notes(result))
    lines = [*notes, all_conditions(results), markdown(rows, titles)]
    for result in results if semantic else ():
        for measure, key in (("IoU", "class_iou"), ("recall", "class_accuracy")):
            values = zip(result.job.class_names, result.scores[key], strict=True)
            # Classes in no mask, and for the IoU in no map either, have no value.
            listed = ", ".join(
                f"{name} –" if value is None else f"{name} {value:.3f}" for name, value in values
            )
            lines.append(f"{measure} of {title(result)}: {listed}")
    return "\n".join(lines)


def title(result: ScoreResult) -> str:
    """Which source on which data set."""
    return f"{result.job.source.label} on {result.job.set_name}"


def conditions(result: ScoreResult) -> str:
    """What every score of a result depends on, in a few words."""
    stretch = result.job.options.stretch
    maps = "each map stretched to its full range" if stretch else "maps as they are"
    predictor = result.job.source.predictor
    if predictor is None:
        return maps
    closer = f", up to {counted(predictor.detail, 'part')} looked at again" * bool(predictor.detail)
    return f"{maps}, network at {predictor.size} in {predictor.precision}{closer}"


def all_conditions(results: Sequence[ScoreResult]) -> str:
    """The conditions of some results; of each source, if these differ."""
    by_source = {result.job.source.label: conditions(result) for result in results}
    if len(set(by_source.values())) == 1:
        return conditions(results[0])
    return "\n".join(f"{label}: {text}" for label, text in by_source.items())


def _notes(result: ScoreResult) -> list[str]:
    job, notes = result.job, []
    if job.source.predictor:
        notes.append(f"{job.source.path}: {job.source.predictor.origin}")
    notes += [f"{job.set_name}: {note}" for note in job.data.notes]
    if errors := len(result.errors):
        count = len(job.data.pairs)
        left_out = f"{errors} of {counted(count, 'image')} left out"
        notes.append(f"{job.set_name}: {left_out}: the others are scored")
    empty = result.scores.get("empty_masks")
    if empty:
        notes.append(f"{job.set_name}: {counted(empty, 'empty mask')}, each counted with F = 0")
    if job.cut is not None and job.options.stretch:
        text = "matting measures use stretched maps; papers on matting use maps as they are"
        notes.append(f"{job.set_name}: the {text}")
    if maps := job.maps:
        where, missing, extra = f"{maps.folder} for {job.set_name}", maps.missing, maps.extra
        if maps.resized:
            resized = f"{counted(maps.resized, 'map')} resized to the size of the mask"
            notes.append(f"{where}: {resized}")
        if missing:  # only ten, which leaves room for the scores; the JSON has all
            notes.append(
                f"{where}: no map for {counted(len(missing), 'image')}: {first_ten(missing)}"
            )
        if extra:
            notes.append(f"{where}: no mask for {counted(len(extra), 'map')}: {first_ten(extra)}")
    return notes


def markdown(rows: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> str:
    """Make a Markdown table with aligned columns; numbers to three decimals, as papers round.

    Args:
        rows: of values by key.
        titles: of the keys to show; those that no row has are left out.

    Returns:
        The table's lines.

    Example:
        >>> print(markdown([{"set": "ECSSD", "mae": 0.0331}], {"set": "set", "mae": "MAE"}))
        | set   |   MAE |
        | ----- | ----: |
        | ECSSD | 0.033 |
    """
    keys = [key for key in titles if any(key in row for row in rows)]
    cells = [[titles[key] for key in keys]]
    cells += [[_cell(row.get(key, "–")) for key in keys] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    aligns = ["<" if isinstance(rows[0].get(key), str) else ">" for key in keys]
    rule = [
        "-" * (width - 1) + ("-" if align == "<" else ":")
        for align, width in zip(aligns, widths, strict=True)
    ]
    lines = []
    for line in (cells[0], rule, *cells[1:]):
        columns = zip(line, aligns, widths, strict=True)
        padded = [f"{cell:{align}{width}}" for cell, align, width in columns]
        lines.append(f"| {' | '.join(padded)} |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else printable(value).replace("|", r"\|")


def write_json(path: Path, results: Sequence[ScoreResult]) -> None:
    """Write everything about some results: a list, or a plain object for a single one.

    Args:
        path: of the file.
        results: to write.
    """
    rows = [_json_row(result) for result in results]
    save_json(rows if len(rows) > 1 else rows[0], path)


def _json_row(result: ScoreResult) -> dict[str, Any]:
    job, options, predictor = result.job, result.job.options, result.job.source.predictor
    row: dict[str, Any] = {"data": job.set_name, "split": job.data.split}
    if predictor is None:
        row["pred_dir"] = str(job.source.path)
    else:
        row["weights"] = str(job.source.path)
        row["network"] = predictor.model.config.name
        row["img_size"] = predictor.img_size
        row["precision"] = predictor.precision
        row["engine"] = predictor.engine
        row["detail"] = predictor.detail
    if options.classes:
        row["num_classes"] = options.classes
        row["ignore_index"] = options.ignore_index
    row["normalize"] = options.stretch
    row["unreadable"] = [job.data.pairs[index].name for index in result.errors]
    if job.maps:
        row |= {name: getattr(job.maps, name) for name in ("missing", "extra", "resized")}
    return row | result.scores


def write_csv(path: Path, results: Sequence[ScoreResult]) -> None:
    """Write a row of scores for each image, with six decimals.

    Args:
        path: of the file.
        results: to write; a column that a row lacks is empty in it.
    """
    rows = [
        {
            "set": result.job.set_name,
            "maps": result.job.source.label,
            "normalize": result.job.options.stretch,
            "image": result.job.data.pairs[index].name,
            **_csv_scores(scores, result.job.class_names),
        }
        for result in results
        for index, scores in result.evaluation.rows.items()
    ]
    with (
        atomic_path(path) as temporary,
        # Names that are not UTF-8 appear as print shows them.
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(
            {k: f"{v:.6f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
        )


def _csv_scores(scores: Mapping[str, Any], class_names: Sequence[str]) -> dict[str, Any]:
    """The scores of an image; the IoU of each class becomes a column of its own."""
    columns = {key: value for key, value in scores.items() if not isinstance(value, list)}
    ious = zip(class_names, scores.get("class_iou", ()), strict=False)
    return columns | {f"iou {name}": iou for name, iou in ious}
