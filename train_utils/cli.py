"""What every script's command line shares: flags, and how errors reach the user."""

import argparse
import signal
import sys
from collections.abc import Callable, Container
from dataclasses import replace
from difflib import get_close_matches
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

import torch

from src import UserError
from src.compat import is_compile_error
from src.networks.base import MIN_SIZE
from src.weights.load import SHIPPED
from src.weights.storage import MAX_SIZE

from .config import DECLARATIONS, GROUPS, Settings, declared_default
from .config import default_workers as default_workers
from .distributed import (
    is_first_report,
    is_launched,
    launched_rank,
    rank,
    record_errors,
    world_size,
)
from .kinds import FRACTION, NATURAL, NOT_NEGATIVE, POSITIVE, Declaration, Kind, read_recipe


class Parser(argparse.ArgumentParser):
    """Errors in one line, with the flag that was probably meant; under torchrun by one process."""

    def error(self, message: str) -> NoReturn:
        _, wrong, flags = message.partition("unrecognized arguments: ")
        typed = flags.split("=")[0].split(" ")[0].replace("_", "-")
        near = get_close_matches(typed, self._option_string_actions, 1) if wrong else []
        hint = f"; did you mean {near[0]}?" if near else ""
        self.exit(2, f"error: {message}{hint} ({self.prog} --help lists all)\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        if launched_rank() == 0:  # all ranks have the same flags to complain of
            super()._print_message(message, file)


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_default = action.default not in (None, [], ()) and action.default is not False
        if has_default and "(default" not in (action.help or ""):
            return super()._get_help_string(action)
        return action.help


def make_parser(doc: str | None) -> Parser:
    """A parser whose help is the script's docstring, with defaults behind each flag."""
    return Parser(description=doc, formatter_class=_Formatter)


def parse_settings(argv: list[str] | None, doc: str | None) -> Settings:
    """The settings of a training run: those of flags before those of a recipe file before defaults.

    Exits with status 2 and one line where they are wrong.
    """
    parser = make_parser(doc)
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE.toml",
        help="a recipe: settings by group, as recipes/ has them; flags stand above it",
    )
    for group in GROUPS:
        _add_settings(parser, group)
    try:
        args = parser.parse_args(argv)
        if args.config:
            parser.set_defaults(**read_recipe(args.config, DECLARATIONS))
            args = parser.parse_args(argv)
        values = {name: getattr(args, name) for name in DECLARATIONS}
        return Settings(**{name: value for name, value in values.items() if value is not None})
    except UserError as error:
        parser.error(error.describe(flag))


def _add_settings(
    parser: argparse.ArgumentParser,
    group: str,
    names: Container[str] = DECLARATIONS,
    single: Container[str] = (),
) -> argparse._ArgumentGroup:
    """A flag for each setting of a group that is among ``names``; those in ``single`` take one
    value where a run takes several.
    """
    flags = parser.add_argument_group(group)
    exclusive: dict[frozenset[str], argparse._MutuallyExclusiveGroup] = {}
    for name, declared in DECLARATIONS.items():
        if declared.group != group or name not in names:
            continue
        target: argparse._ActionsContainer = flags
        if declared.excludes:
            pair = frozenset((name, declared.excludes))
            if pair not in exclusive:
                exclusive[pair] = flags.add_mutually_exclusive_group()
            target = exclusive[pair]
        options = _options(replace(declared, several=declared.several and name not in single))
        target.add_argument(flag(name), help=declared.help, **options)
        flags.set_defaults(**{name: declared_default(name)})
    return flags


def _options(declared: Declaration) -> dict[str, Any]:
    """What argparse is told of a flag beside its name and help."""
    kind = declared.kind
    if kind.type is bool:
        return {"action": argparse.BooleanOptionalAction}
    if kind.type is str and kind.words:
        return {"choices": kind.words}
    options: dict[str, Any] = {"type": _reader(kind), "metavar": declared.placeholder}
    if declared.several:
        options["nargs"] = "+"
    if declared.alone is not None:
        options |= {"nargs": "?", "const": declared.alone}
    return options


def add_weights_flags(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Which network to use (``several``: none, one or more), and at which size."""
    number: dict[str, Any] = {"nargs": "+", "default": []} if several else {"default": SHIPPED}
    text = (
        "weights of any kind: a checkpoint of train.py, .safetensors, the official U-2-Net layout, "
        ".onnx, a folder of save_pretrained (default: weights/u2net_lite.safetensors, ours)"
    )
    parser.add_argument("--weights", type=Path, **number, metavar="W", help=text)
    text = "side of the square that the network sees (default: as trained, 320 if unknown)"
    parser.add_argument("--img-size", type=side, metavar="PX", help=text)


def add_data_flags(
    parser: argparse.ArgumentParser, several: bool = False
) -> argparse._ArgumentGroup:
    """Where images and masks are; ``several``: --data-path names one set or more."""
    names = ("data_path", "image_dir", "mask_dir", "skip_invalid")
    return _add_settings(parser, "data", names, single=() if several else ("data_path",))


def add_device_flags(
    parser: argparse.ArgumentParser, workers: bool = True
) -> argparse._ArgumentGroup:
    """Where and how to compute; ``workers``: the script loads images in other processes."""
    return _add_settings(parser, "device", ("device", "amp", *(["workers"] if workers else [])))


def flag(parameter: str) -> str:
    """The flag of a parameter: ``img_size`` is ``--img-size``."""
    return f"--{parameter.replace('_', '-')}"


def _reader(kind: Kind) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return kind.parse(text)
        except ValueError as error:  # argparse would put words of its own in place of these
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


# For argparse: integers ≥ 1 and ≥ 0, the side of a network's input in pixels, finite numbers ≥ 0,
# and numbers in 0 … 1, 1 excluded.
positive, natural = _reader(POSITIVE), _reader(NATURAL)
side = _reader(Kind(int, MIN_SIZE, MAX_SIZE + 1))
not_negative, fraction = _reader(NOT_NEGATIVE), _reader(FRACTION)


def file_named(*suffixes: str) -> Callable[[str], Path]:
    """A path to write to, for argparse; the suffix keeps it off weights and images."""

    def parse(text: str) -> Path:
        path = Path(text)
        if path.suffix.lower() not in suffixes or path.is_dir():
            kinds = " or ".join(dict.fromkeys(suffixes))
            raise argparse.ArgumentTypeError(f"{text!r} is not the name of a {kinds} file")
        return path

    return parse


def run(main: Callable[[], int | None]) -> None:
    """Run a script's main and exit: 2 and one clear message for what the user can fix."""
    for stream in (sys.stdout, sys.stderr):  # names of files, where the console has no Unicode
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not is_launched():  # else it may come while others are waited for, without end
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: clean up, then go
    try:
        status = record_errors(main)() or 0
    except (Exception, KeyboardInterrupt) as error:
        message, status = _explain(error)
        if not message:
            raise
        if is_first_report(message):
            source = f"rank {rank()}: " if world_size() > 1 else ""
            print(f"error: {source}{message}", file=sys.stderr, flush=True)
    sys.exit(status)


def _explain(error: BaseException) -> tuple[str, int]:
    """What the user reads in place of a traceback, and the exit status; no text for a bug."""
    match error:
        case UserError():
            return error.describe(flag), 2
        case torch.OutOfMemoryError():
            advice = "lower {img_size}, or, to train, {batch_size} (and raise {accum})"
            return UserError("out of GPU memory", advice=advice).describe(flag), 2
        case RuntimeError():
            return _explain_torch(error)
        case OSError():  # a full disk, say
            return f"{error.filename or 'input or output'}: {error.strerror or error}", 2
        case KeyboardInterrupt():
            return "interrupted", 130
    return "", 1


def _explain_torch(error: RuntimeError) -> tuple[str, int]:
    """As :func:`_explain`, of conditions for which torch has no class of their own."""
    first_line = str(error).strip().partition("\n")[0].rstrip(". ")
    if is_compile_error(error):
        problem = f"torch cannot build here ({first_line})"
        return UserError(problem, "compile", advice="leave it out").describe(flag), 2
    if "alloc_cpu" in first_line:  # of the allocator of the CPU: the place in its source
        advice = "lower {img_size}, or, to train, {batch_size}"
        return UserError("out of memory", advice=advice).describe(flag), 2
    # A loader's process was killed. Errors that it raised itself have another beginning.
    if first_line.startswith("DataLoader worker (pid"):
        advice = "lower {workers}; continue a training with {resume} auto"
        return UserError(f"{first_line}: out of memory?", advice=advice).describe(flag), 1
    return "", 1
