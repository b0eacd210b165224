"""Finds the images to predict, and names the file of each result."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ...errors import UserError
from ...files import is_stream, real_path
from ...words import counted, first_ten
from ..formats import IMAGE_FORMATS, IMAGE_SUFFIXES
from ..search import Found, LeftOut, find_images, is_missing, named_after_others
from .checks import check_overwriting, check_unique, unique_names
from .jobs import Job, Jobs, Names, pack, unpack


def plan_images(
    inputs: Sequence[Path],
    output: Path,
    suffix: str = "",
    format: str = ".png",
    recursive: bool = False,
    skip_existing: bool = False,
    left_out: LeftOut | None = None,
) -> Jobs:
    """A job for each image, in order, each image once; a million take some 10 MB.

    Args:
        inputs: images, folders of them, or patterns (``*``, ``?``, ``**``).
        output: a folder; for a single image also a file, in one of :data:`~.formats.IMAGE_FORMATS`.
        suffix: appended to each name, before the format's suffix.
        format: the format's suffix, if ``output`` is a folder.
        recursive: read folders with all their subfolders, and create the same ones in ``output``.
        skip_existing: images among the inputs that have a result's name count as results of an
            earlier run, not as inputs.
        left_out: gets the files in folders and patterns that are not used.

    Raises:
        UserError: an input is missing or holds no image, or a result would overwrite an image or
            another result.
    """
    left_out = LeftOut() if left_out is None else left_out
    if len(missing := [str(path) for path in inputs if is_missing(path)]) > 1:
        raise UserError(f"{first_ten(missing)}: no such files or folders")
    place = real_path(output)
    listed = _list_images(inputs, left_out, recursive, place)
    if is_stream(output) or (output.suffix.lower() in IMAGE_FORMATS and not output.is_dir()):
        if (count := sum(files.number for files in listed)) > 1:
            raise UserError(f"is one file for {count} images; name a folder", "output", output)
        source = Path(listed[0].folder, *unpack(listed[0].packed))
        return check_overwriting(Jobs([Job(source, output)]), place="file")
    if output.is_file() or output.suffix.lower() in IMAGE_SUFFIXES:
        kinds = " or ".join(IMAGE_FORMATS)
        raise UserError(f"name a folder, or a {kinds} file for one image", "output", output)
    if not suffix and any(path.is_dir() and real_path(path) == place for path in inputs):
        raise UserError(
            "is the images' own folder; choose another", "output", output, "or give a {suffix}"
        )
    jobs = _name_results(listed, output, f"{suffix}{format}")
    named = {path for path in inputs if path.is_file()}  # others may be earlier results
    if suffix and skip_existing:
        jobs = _leave_out_results(jobs, named, left_out)
    may_be_result = bool(suffix) and not skip_existing
    check_overwriting(jobs, skippable=lambda source: may_be_result and source not in named)
    _note_results(jobs, left_out)
    return jobs


class _Listed(NamedTuple):
    """Images of one folder, packed, as there may be millions of folders."""

    folder: str
    place: str  # below the output
    number: int
    packed: bytes  # their names


def _list_images(
    inputs: Sequence[Path], left_out: LeftOut, recursive: bool, output: Path
) -> list[_Listed]:
    """The images of all inputs by folder, each image once."""
    listed: list[_Listed] = []
    last: Found | None = None
    for found in _once(
        found for path in inputs for found in find_images(path, left_out, recursive, output)
    ):
        if last and (last.folder, last.place) == (found.folder, found.place):
            last.names.extend(found.names)  # files that were named one by one
            continue
        listed += _packed(last)
        last = found
    listed += _packed(last)
    if not listed and left_out.errors:
        raise left_out.errors[0]
    return listed


def _packed(found: Found | None) -> Iterator[_Listed]:
    if found:
        place = str(found.place)
        yield _Listed(str(found.folder), place, len(found.names), pack(found.names))


def _once(folders: Iterator[Found]) -> Iterator[Found]:
    """Drop images that came before, from another input or through a link to a folder."""
    before: dict[str, set[str] | None] = {}  # by folder; None: all its images
    for found in folders:
        # A link to a file is an image of its own.
        known = before.setdefault(os.path.realpath(found.folder), set())
        if known is None:
            continue
        names = [name for name in dict.fromkeys(found.names) if name not in known]
        if found.whole:
            before[os.path.realpath(found.folder)] = None
        else:
            known.update(names)
        if names:
            yield found._replace(names=names)


def _name_results(listed: Sequence[_Listed], output: Path, ending: str) -> Jobs:
    """Jobs whose results are named after their images.

    Raises:
        UserError: two results would have the same name.
    """
    shared = {place for place, n in Counter(files.place for files in listed).items() if n > 1}
    names: dict[str, list[str]] = {place: [] for place in shared}
    for files in listed:
        if files.place in shared:
            names[files.place] += unpack(files.packed)
    results: dict[str, Iterator[str]] = {}
    for place in shared:
        unique = unique_names(names[place], [ending] * len(names[place]))
        check_unique(unique, partial(_sources, listed, place))
        results[place] = iter(unique)
    jobs = Jobs()
    for files in listed:
        sources = unpack(files.packed)
        if files.place in shared:
            targets = list(islice(results[files.place], files.number))
        else:
            targets = unique_names(sources, [ending] * files.number)
        jobs.add(Names(files.folder, str(output / files.place), sources, targets))
    return jobs


def _sources(listed: Sequence[_Listed], place: str) -> Iterator[str]:
    """The images whose results go to one place."""
    for files in listed:
        if files.place == place:
            yield from (os.path.join(files.folder, name) for name in unpack(files.packed))


def _leave_out_results(jobs: Jobs, named: set[Path], left_out: LeftOut) -> Jobs:
    """The jobs whose source is not a result of an earlier run, or is named explicitly."""
    places = {folder: os.path.realpath(folder) for pair in jobs.folders() for folder in pair}
    sources = {places[source] for source, _ in jobs.folders()}
    results: dict[str, set[str]] = {}  # by folder, of folders that hold images too
    for files in jobs.by_folder():
        if places[files.target] in sources:
            results.setdefault(places[files.target], set()).update(files.targets)

    def is_result(folder: str, name: str) -> bool:
        return name in results.get(places[folder], ()) and Path(folder, name) not in named

    for folder, names in ((files.source, files.sources) for files in jobs.by_folder()):
        if found := [name for name in names if is_result(folder, name)]:
            left_out.add(Path(folder, min(found)), "result of an earlier run", len(found))
    return jobs.only(lambda folder, name: not is_result(folder, name))


def _note_results(jobs: Jobs, left_out: LeftOut) -> None:
    """Note which images, where results are in the same folder, may be results of an earlier run."""
    here = {os.path.realpath(folder) for folder in {target for _, target in jobs.folders()}}
    beside: dict[str, list[str]] = {}
    for folder in dict.fromkeys(source for source, _ in jobs.folders()):
        if os.path.realpath(folder) in here:
            beside[folder] = []
    for files in jobs.by_folder() if beside else ():
        if files.source in beside:
            beside[files.source] += files.sources
    count, example = 0, ""
    for folder, names in beside.items():
        for result, original in named_after_others(names):
            count += 1
            example = example or f"{Path(folder, result)} beside {Path(folder, original)}"
    if count:
        named = counted(count, "image named after another is", "images named after others are")
        left_out.notes.append(
            f"{named} predicted too, such as {example}; if these are earlier results, leave them "
            "out by a pattern, or write results into a folder of their own"
        )
