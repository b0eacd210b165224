"""A run split into independent parts, and reports about it."""

import argparse
import os
import re
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from src.errors import UserError
from src.files import printable
from src.pictures.images import count_frames
from src.pictures.plan import Job, Jobs
from src.pictures.render import Box
from src.video.convert import has_all_frames
from src.words import counted

from . import cli
from .distributed import gather, is_main


class Share(NamedTuple):
    """The ``number``-th of ``total`` parts of a run, from 1 on."""

    number: int
    total: int

    @classmethod
    def parse(cls, text: str) -> "Share":
        """An argparse type: ``2/8``.

        Example:
            >>> Share.parse("2/8")
            Share(number=2, total=8)
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise argparse.ArgumentTypeError(f"{text!r} is not a share such as 1/8, 2/8, … 8/8")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"

    def is_in(self, name: str) -> bool:
        """Whether a file's name has the number of the share in it: ``boxes-02.csv``."""
        return str(self.number) in map(str, map(int, re.findall(r"\d+", name)))

    def pick(self, jobs: Jobs) -> Jobs:
        """The jobs of this share, chosen by name, so that each is in one share even if files come
        and go before the others begin."""

        def is_own(folder: str, name: str) -> bool:
            mixed = zlib.crc32(os.fsencode(os.path.join(folder, name)))
            return mixed % self.total == self.number - 1

        return jobs.only(is_own)


@dataclass(frozen=True)
class Earlier:
    """The results of earlier runs; ``job in earlier``: whether the job's result is complete.

    Args:
        kept: whether existing results are kept (``--skip-existing``).
        boxes: of images by their name, if boxes are wanted, else None.
        frames: the suffix of a video's frames, if these are wanted, else None.
    """

    kept: bool = False
    boxes: Mapping[str, Box | None] | None = None
    frames: str | None = None

    def __contains__(self, job: Job) -> bool:
        if not self.kept:
            return False
        if self.frames:
            return has_all_frames(job.target, self.frames)
        has_box = self.boxes is None or printable(job.source) in self.boxes
        return job.target.exists() and has_box

    def leave_out(self, share: Jobs, bar: tqdm) -> Iterator[Job]:
        """The remaining jobs; the bar's total is reduced to their number as they are iterated."""
        for job in share:
            if job in self:
                bar.total -= 1
            else:
                yield job


class Plan(NamedTuple):
    """What a run has to do.

    Args:
        earlier: the results of earlier runs.
        jobs: of all ranks, known to the first one.
        kind: what the jobs are, and which share of how many, in words.
        unreadable: how many folders cannot be read.
        share: this rank's jobs.
    """

    earlier: Earlier
    jobs: Jobs = Jobs()
    kind: str = ""
    unreadable: int = 0
    share: Jobs = Jobs()


def report_replaced(results: int, boxes: Path | None, kept: bool, keepable: bool) -> None:
    """Print how many files a run will replace.

    Args:
        results: how many results exist and are computed again.
        boxes: the file of boxes, if any.
        kept: whether ``--skip-existing`` is given, so that rows of that file are kept.
        keepable: whether it can be given.
    """
    count = results + bool(boxes and not kept and boxes.is_file())
    if count:
        advice = " (--skip-existing keeps them)" if keepable and not kept else ""
        print(f"{counted(count, 'existing file')} will be replaced{advice}", file=sys.stderr)


def report_error(error: UserError | OSError, job: Job) -> None:
    """Print the error of one file; the run goes on."""
    message = error.describe(cli.flag) if isinstance(error, UserError) else str(error)
    if str(job.source) not in message:
        message = f"{job.source}: {message}"
    print_beside_bar(f"error: {message}")


def report_total(plan: Plan, failed: int, skipped: int, output: Path) -> int:
    """Print what all ranks together have done; returns the exit status.

    Args:
        plan: of this rank.
        failed, skipped: how many of its jobs.
        output: where results are.
    """
    failed, skipped = (sum(gather(n)) for n in (failed, skipped))
    if is_main():
        existing = f", {skipped} already existed" if skipped else ""
        count = len(plan.jobs)
        done = count - failed - skipped
        print(f"{done} of {count} {plan.kind} written to {output}{existing}")
    return 2 if failed else 0


def report_frames(image: Image.Image, name: str) -> None:
    """Print a note if an image is the first of several in its file."""
    if (count := count_frames(image)) > 1:
        print_beside_bar(f"{name}: the first of its {count} images is used")


def print_beside_bar(message: str) -> None:
    """Print a message without breaking the progress bar."""
    tqdm.write(message, file=sys.stderr)
