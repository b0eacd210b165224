"""What every script's command line shares: flags, and how errors reach the user."""

import argparse
import math
import os
import signal
import sys
from collections.abc import Callable
from difflib import get_close_matches
from io import TextIOWrapper
from pathlib import Path
from typing import IO, NoReturn

import torch

from src import UserError
from src.compat import is_compile_error
from src.device import AMP_CHOICES
from src.networks.base import MIN_SIZE
from src.weights.load import SHIPPED
from src.weights.storage import MAX_SIZE

from .distributed import is_launched, launched_rank


def make_parser(doc: str) -> argparse.ArgumentParser:
    """A parser whose help is the script's docstring, with defaults behind each flag."""

    class Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
        def _get_help_string(self, action: argparse.Action) -> str:
            silent = action.default in (None, False) or action.default == []
            if silent or "(default" in action.help:
                return action.help
            return super()._get_help_string(action)

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            _, wrong, flags = message.partition("unrecognized arguments: ")
            flag = flags.split("=")[0].split(" ")[0].replace("_", "-")
            near = get_close_matches(flag, self._option_string_actions, 1) if wrong else []
            hint = f"; did you mean {near[0]}?" if near else ""
            self.exit(2, f"error: {message}{hint} ({self.prog} --help lists all)\n")

        def _print_message(self, message: str, file: IO[str] | None = None) -> None:
            if launched_rank() == 0:  # under torchrun all ranks have the same flags to complain of
                super()._print_message(message, file)

    return Parser(description=doc, formatter_class=Formatter)


def add_weights_flags(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Which network to use (``several``: none, one or more), and at which size."""
    number = {"nargs": "+", "default": []} if several else {"default": SHIPPED}
    parser.add_argument("--weights", type=Path, **number, metavar="W", help=(
        "weights of any kind: a checkpoint of train.py, .safetensors, the official U-2-Net layout, "
        ".onnx, a folder of save_pretrained (default: weights/u2net_lite.safetensors, ours)"
    ))  # fmt: skip
    parser.add_argument("--img-size", type=side, metavar="PX", help=(
        "side of the square that the network sees (default: as trained, 320 if unknown)"
    ))  # fmt: skip


def add_data_flags(
    parser: argparse.ArgumentParser, several: bool = False
) -> argparse._ArgumentGroup:
    """Where pictures and masks are; ``several``: --data-path names one set or more."""
    group = parser.add_argument_group("data")
    number = {"nargs": "+"} if several else {}
    group.add_argument("--data-path", type=Path, **number, metavar="DIR", help=(
        "DUTS layout (DUTS-TR/DUTS-TR-Image, DUTS-TR/DUTS-TR-Mask, DUTS-TE/...), or images/ and "
        "masks/ with optional train.txt, val.txt and test.txt (stems, one a line)"
    ))  # fmt: skip
    group.add_argument("--image-dir", type=Path, metavar="DIR", help="in place of --data-path")
    group.add_argument("--mask-dir", type=Path, metavar="DIR", help="goes with --image-dir")
    group.add_argument("--skip-invalid", action="store_true", help=(
        "leave faulty pairs out in place of stopping; decodes every file once to find them"
    ))  # fmt: skip
    return group


def add_device_flags(
    parser: argparse.ArgumentParser, workers: bool = True
) -> argparse._ArgumentGroup:
    """Where and how to compute; ``workers``: the script loads pictures in other processes."""
    group = parser.add_argument_group("device")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    group.add_argument("--amp", default="auto", choices=AMP_CHOICES, help=(
        "precision; auto is bf16 where the hardware computes in it, else float32"
    ))  # fmt: skip
    if workers:
        group.add_argument("--workers", type=natural, default=default_workers(), metavar="N", help=(
            "processes that load pictures; 0 loads them in the main one"
        ))  # fmt: skip
    return group


def default_workers() -> int:
    """Eight beside a GPU; without one the processor has better things to do than to load."""
    return min(8, os.cpu_count() or 1) if torch.cuda.is_available() else 1


def positive(text: str) -> int:
    """An integer ≥ 1, for argparse."""
    return _integer(text, 1)


def natural(text: str) -> int:
    """An integer ≥ 0, for argparse."""
    return _integer(text, 0)


def side(text: str) -> int:
    """How many pixels a side a network may see, for argparse."""
    return _integer(text, MIN_SIZE, MAX_SIZE)


def _integer(text: str, least: int, most: int = 2**31 - 1) -> int:
    if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from {least} to {most}")
    return int(text)


def file_named(*suffixes: str) -> Callable[[str], Path]:
    """A path to write to, for argparse; the suffix keeps it off weights and pictures."""

    def parse(text: str) -> Path:
        path = Path(text)
        if path.suffix.lower() not in suffixes or path.is_dir():
            kinds = " or ".join(dict.fromkeys(suffixes))
            raise argparse.ArgumentTypeError(f"{text!r} is not the name of a {kinds} file")
        return path

    return parse


def not_negative(text: str) -> float:
    """A finite number ≥ 0, for argparse."""
    return _number(text, math.inf)


def weight(text: str) -> float | str:
    """A finite number ≥ 0, or ``balanced``, for argparse."""
    return text if text == "balanced" else not_negative(text)


def fraction(text: str) -> float:
    """A number in 0 … 1, 1 excluded, for argparse."""
    return _number(text, 1)


def _number(text: str, end: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < end:
        limit = f"< {end:g}" if end < math.inf else "finite"
        raise argparse.ArgumentTypeError(f"{text!r} is not a number ≥ 0 and {limit}")
    return value


def run(main: Callable[[], int | None]) -> None:
    """Run a script's main and exit: 2 and one clear message for what the user can fix."""
    for stream in (sys.stdout, sys.stderr):  # names of files, where the console has no Unicode
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not is_launched():  # else it may come while others are waited for, without end
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: clean up, then go
    try:
        sys.exit(main() or 0)
    except UserError as error:
        sys.exit(_fail(error.describe(_flag), 2))
    except torch.OutOfMemoryError:
        advice = "lower --img-size, or, to train, --batch-size (and raise --accum)"
        sys.exit(_fail(f"out of GPU memory; {advice}", 2))
    except RuntimeError as error:
        if "alloc_cpu" in str(error):
            sys.exit(_fail("out of memory; lower --img-size, or, to train, --batch-size", 2))
        if is_compile_error(error):
            reason = str(error).strip().splitlines()[0]
            sys.exit(_fail(f"--compile: torch cannot build here ({reason}); leave it out", 2))
        if "DataLoader worker (pid" not in str(error):  # that one was killed; it raised nothing
            raise
        reason = str(error).splitlines()[0].rstrip(". ")
        sys.exit(_fail(f"{reason}: out of memory? Lower --workers; training: --resume auto", 1))
    except OSError as error:  # a full disk, say
        sys.exit(_fail(f"{error.filename or 'input or output'}: {error.strerror or error}", 2))
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted", 130))


def _flag(parameter: str) -> str:
    """The flag of a parameter: ``img_size`` is ``--img-size``."""
    return f"--{parameter.replace('_', '-')}"


def _fail(message: str, status: int) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return status
