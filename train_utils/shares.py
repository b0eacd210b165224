"""A run in several parts that know nothing of each other, and what it says of them all."""

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

from . import cli
from .distributed import gather, is_main


class Share(NamedTuple):
    """The ``number``-th of ``total`` parts of a run, from 1 on."""

    number: int
    total: int

    @classmethod
    def parse(cls, text: str) -> "Share":
        """``2/8``, for argparse.

        Example:
            >>> Share.parse("2/8")
            Share(number=2, total=8)
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise argparse.ArgumentTypeError(f"{text!r} is none of 1/8, 2/8, … 8/8, for example")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"

    def is_in(self, name: str) -> bool:
        """Whether a file's name has the number of the share in it: ``boxes-02.csv``."""
        return str(self.number) in map(str, map(int, re.findall(r"\d+", name)))

    def pick(self, jobs: Jobs) -> Jobs:
        """The jobs of this share. By their names, so that each is in one share, whatever files come
        and go while the others begin."""

        def is_own(folder: str, name: str) -> bool:
            mixed = zlib.crc32(os.fsencode(os.path.join(folder, name)))
            return mixed % self.total == self.number - 1

        return jobs.only(is_own)


@dataclass(frozen=True)
class Earlier:
    """What earlier runs have made; ``job in earlier`` says whether that is the job's whole result.

    Args:
        kept: whether results that are there are kept (``--skip-existing``).
        boxes: of images by their name, where boxes are wanted, else None.
        frames: the suffix of a video's frames, where these are wanted, else None.
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
        """The jobs that are left; the bar's total becomes their number, as the list is gone
        through.
        """
        for job in share:
            if job in self:
                bar.total -= 1
            else:
                yield job


class Plan(NamedTuple):
    """What a run has to do.

    Args:
        earlier: what earlier runs have made.
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


def report_error(error: UserError | OSError, job: Job) -> None:
    """Print what is wrong with one file; the run goes on."""
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
    """Say so where an image is the first of several in its file."""
    if (count := count_frames(image)) > 1:
        print_beside_bar(f"{name}: the first of its {count} images is used")


def print_beside_bar(message: str) -> None:
    """Print a message, and leave the progress bar whole."""
    tqdm.write(message, file=sys.stderr)


def hidden() -> bool | None:
    """For tqdm: shown by one rank, where there is a terminal."""
    return None if is_main() else True
