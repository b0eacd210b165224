"""What the scripts' command lines share: flags, and how errors are reported."""

import argparse
import os
import select
import signal
import sys
import warnings
from collections.abc import Callable, Container
from difflib import get_close_matches
from importlib.util import find_spec
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

import torch

from src import UserError
from src.compat import is_compile_error
from src.device import end_at_once
from src.files import is_stream
from src.inference.openvino import ENGINES
from src.inference.sizes import Size, parse_size
from src.networks.base import MIN_SIZE
from src.pictures.images import MAX_PIXELS, limit_pixels
from src.weights.load import SHIPPED
from src.weights.named import PUBLISHED

from .config import DECLARATIONS, GROUPS, Settings
from .distributed import (
    is_first_report,
    is_launched,
    launched_rank,
    record_errors,
    wait_for_reports,
)
from .kinds import FRACTION, NATURAL, NUMBER, POSITIVE, WEIGHTS, read_recipe

_EXTRAS = {  # the toolkit's extra that installs each package
    **dict.fromkeys(("cv2", "matplotlib", "skimage", "tensorboard", "torchvision"), "train"),
    **dict.fromkeys(("fastapi", "gradio", "uvicorn"), "app"),
    "onnxscript": "export",
}

# Argparse types: integers ≥ 1 and ≥ 0, finite numbers ≥ 0, numbers in 0 … 1, 1 excluded; and a path
# or name of weights.
positive, natural, not_negative, fraction = POSITIVE, NATURAL, NUMBER, FRACTION
weights_path = WEIGHTS
class_count, class_index = (DECLARATIONS[n].kind for n in ("num_classes", "ignore_index"))


class Parser(argparse.ArgumentParser):
    """Reports errors in one line, with the flag probably meant; under torchrun from one process."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = super().parse_known_args(args, namespace)
        if "" in unknown:
            self.error("an argument: the value is empty")
        return found, unknown

    def _get_values(self, action: Any, arg_strings: list[str]) -> Any:
        """As argparse does, but refuse empty values, which come from unset shell variables."""
        if "" in arg_strings and not getattr(action, "may_be_empty", False):
            name = action.option_strings[0] if action.option_strings else action.dest
            self.error(f"{name}: the value is empty")
        return super()._get_values(action, arg_strings)

    def error(self, message: str) -> NoReturn:
        _, wrong, flags = message.partition("unrecognized arguments: ")
        typed = flags.split("=")[0].split(" ")[0].replace("_", "-")
        near = get_close_matches(typed, self._option_string_actions, 1) if wrong else []
        hint = f"; did you mean {near[0]}?" if near else ""
        self.exit(2, f"error: {message}{hint} ({self.prog} --help lists all)\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        if launched_rank() == 0:  # all ranks would report the same
            super()._print_message(message, file)


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_default = action.default not in (None, "", [], ()) and action.default is not False
        if has_default and "(default" not in (action.help or ""):
            if isinstance(action.default, tuple):  # as one would type them
                return f"{action.help} (default: {' '.join(map(str, action.default))})"
            return super()._get_help_string(action)
        return action.help


def make_parser(doc: str | None) -> Parser:
    """A parser whose help is the script's docstring, with defaults after each flag."""
    return Parser(description=doc, formatter_class=_Formatter)


def parse_settings(argv: list[str] | None, doc: str | None) -> Settings:
    """The settings of a training run: flags override a recipe file, which overrides defaults.

    Exits with status 2 and one line if they are wrong.
    """
    parser = make_parser(doc)
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE.toml",
        help="a TOML file of settings, see recipes/; flags override it",
    )
    for group in GROUPS:
        _add_settings(parser, group)
    recipe: dict[str, Any] = {}
    try:
        args = parser.parse_args(argv)
        typed = sys.argv[1:] if argv is None else argv
        if sum(arg.partition("=")[0] == "--config" for arg in typed) > 1:
            parser.error("--config: given twice; a run has one recipe, and flags beside it")
        if args.config:
            recipe = read_recipe(args.config, DECLARATIONS)
            parser.set_defaults(**recipe)
            args = parser.parse_args(argv)
        return Settings(**{name: getattr(args, name) for name in DECLARATIONS})
    except UserError as error:
        name = error.parameter or ""
        from_recipe = name in recipe and getattr(args, name) == recipe[name]
        source = f" ({args.config} sets {flag(name)})" if from_recipe else ""
        parser.error(error.describe(flag) + source)


def _add_settings(
    parser: argparse.ArgumentParser, group: str, names: Container[str] = DECLARATIONS
) -> None:
    """Add a flag for each setting of a group that is in ``names``."""
    flags = parser.add_argument_group(group)
    for name, declared in DECLARATIONS.items():
        if declared.group != group or name not in names:
            continue
        options: dict[str, Any] = {"type": declared.kind, "metavar": declared.kind.metavar}
        if declared.kind.type is bool:
            options = {"action": argparse.BooleanOptionalAction}
        elif declared.several:
            options["nargs"] = "+"
        elif declared.alone is not None:
            options |= {"nargs": "?", "const": declared.alone}
        spellings = dict.fromkeys((flag(name), flag(name).replace("colour", "color")))
        flags.add_argument(*spellings, default=declared.default(), help=declared.help, **options)


def input_size(text: str) -> Size:
    """``--img-size``, for argparse: a side in pixels, (width, height), or ``auto``."""
    try:
        size = parse_size(text, MIN_SIZE)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("img_size ")) from None
    value = size.value
    return (size.width, size.height) if value not in (size.width, "auto") else value


def add_weights_flags(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Add the flags for which network to use (``several``: none, one or more), at which size."""
    number: dict[str, Any] = {"nargs": "+", "default": []} if several else {"default": SHIPPED}
    text = (
        f"a name ({', '.join(PUBLISHED)}), whose weights are downloaded once; or a file or folder: "
        "a checkpoint of train.py, .safetensors, the official U-2-Net layout, .onnx, or what "
        "save_pretrained wrote (default: lite, which comes with the toolkit)"
    )
    parser.add_argument("--weights", type=weights_path, **number, metavar="W", help=text)
    text = (
        "what the network sees: the side of a square, WxH (width first), or auto for each image's "
        "own aspect at that area (default: a square as trained, 320 if unknown)"
    )
    parser.add_argument("--img-size", type=input_size, metavar="PX|WxH|auto", help=text)


_PAIRS = (
    *("data_path", "image_dir", "mask_dir", "annotations", "skip_invalid"),
    *("masks", "mask_threshold", "classes", "class_colours"),
)


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for where images and masks are."""
    _add_settings(parser, "data", _PAIRS)


def add_device_flags(parser: argparse.ArgumentParser, workers: bool = True) -> None:
    """Add the flags for where and how to compute; ``workers``: other processes load images."""
    _add_settings(parser, "device", ("device", "amp", "workers")[: 3 if workers else 2])


def add_engine_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag for what computes the maps."""
    text = (
        "what computes on a CPU: openvino (pip install openvino) is faster on many, rounds "
        "differently, and takes a few seconds longer the first time it sees weights or a size"
    )
    parser.add_argument("--engine", choices=ENGINES, default="torch", help=text)


def flag(parameter: str) -> str:
    """The flag of a parameter: ``img_size`` is ``--img-size``."""
    return f"--{parameter.replace('_', '-')}"


def file_named(*suffixes: str, streams: bool = False) -> Callable[[str], Path]:
    """An argparse type: a path to write to, whose suffix cannot be that of weights or images.

    ``streams``: also devices and pipes of any name (``/dev/stdout``).
    """

    def parse(text: str) -> Path:
        path = Path(text)
        named = path.suffix.lower() in suffixes and not path.is_dir()
        if not named and not (streams and is_stream(path)):
            kinds = " or ".join(dict.fromkeys(suffixes))
            raise argparse.ArgumentTypeError(f"{text!r} is not the name of a {kinds} file")
        return path

    return parse


def run(main: Callable[[], int | None]) -> None:
    """Run a script's main and exit; with 2 and one clear message for what the user can fix."""
    _open_streams()
    end_at_once()
    limit_pixels(MAX_PIXELS)
    for stream in (sys.stdout, sys.stderr):  # file names on a console without Unicode
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.filterwarnings("ignore", module=r"PIL\.")  # about files, whose errors are reported
    if not is_launched():  # else it may come while waiting for other ranks, without end
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: clean up, then go
    try:
        status = record_errors(main)() or 0
    except (Exception, KeyboardInterrupt) as error:
        # The reader of standard output has seen enough, as in u2net weights | head -1.
        if isinstance(error, BrokenPipeError) and _is_unread():
            _flush_output()
            sys.exit(_UNREAD)
        message, status = _explain(error)
        if not message:
            raise
        if is_first_report(message):
            source = f"rank {launched_rank()}: " if is_launched() else ""
            print(f"error: {source}{message}", file=sys.stderr, flush=True)
        sys.unraisablehook = lambda _: None  # of a loader whose workers are gone, say
        wait_for_reports()
    sys.exit(_flush_output() or status)


_UNREAD = 141  # as a shell shows the end by SIGPIPE: standard output has no reader any more
_closed: set[str] = set()  # standard streams that the caller has closed


def _open_streams() -> None:
    """Redirect closed standard streams (``<&- >&- 2>&-``) to the null device: tqdm and others write
    to them anyway, and the next file to be opened would get their number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            _closed.add(name)
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115


def _is_unread() -> bool:
    """Whether standard output is a pipe without a reader; Windows cannot tell."""
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(1, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _flush_output() -> int:
    """Flush printed output; returns a status other than 0 if that fails, without a traceback."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error, BrokenPipeError):
            return _UNREAD
        print(f"error: standard output: {error.strerror}", file=sys.stderr)
        return 2
    return 0


def describe_weights(weights: Path, origin: str) -> str:
    """Which weights a script uses: ``best.pt: checkpoint of this toolkit, u2net_lite, 1 map``."""
    better = f"; for better masks: {flag('weights')} u2net" if weights == SHIPPED else ""
    return f"{weights}: {origin}{better}"


def require_packages(*names: str) -> None:
    """Check that packages are installed, before anything takes time.

    Raises:
        ModuleNotFoundError: one is not; :func:`run` says how to install it.
    """
    for name in names:
        if find_spec(name) is None:
            raise ModuleNotFoundError(name=name)


def require_stream(name: str) -> None:
    """Check that ``stdin`` or ``stdout`` is open, before it is used.

    Raises:
        UserError: the caller has closed it.
    """
    if name in _closed:
        raise UserError(f"standard {name.removeprefix('std')}put is closed; name a file")


def _explain(error: BaseException) -> tuple[str, int]:
    """The message in place of a traceback, and the exit status; no message for a bug."""
    first_line = str(error).strip().partition("\n")[0].rstrip(". ")
    on_gpu = isinstance(error, torch.OutOfMemoryError)
    match error:
        case UserError():
            return error.describe(flag), 2
        case ModuleNotFoundError() if (package := (error.name or "").split(".")[0]) in _EXTRAS:
            script = Path(sys.argv[0]).name
            extra = _EXTRAS[package]  # of the clone; setup.py puts the package's name there
            return f"{script} needs {package}: pip install '.[{extra}]'", 2
        case ModuleNotFoundError() if not error.args:  # from require_packages
            return f"{Path(sys.argv[0]).name} needs {error.name}: pip install {error.name}", 2
        case KeyboardInterrupt():
            return "interrupted", 130
        case OSError():  # a full disk, say
            return f"{error.filename or 'input or output'}: {error.strerror or error}", 2
        case RuntimeError() if is_compile_error(error):
            problem = f"torch cannot build here ({first_line})"
            return UserError(problem, "compile", advice="leave it out").describe(flag), 2
        # torch has no classes for errors of the CPU allocator and of killed DataLoader workers.
        case RuntimeError() if on_gpu or "alloc_cpu" in first_line:
            memory = "GPU memory" if on_gpu else "memory"
            advice = "lower {img_size}, or, to train, {batch_size} (and raise {accum})"
            return UserError(f"out of {memory}", advice=advice).describe(flag), 2
        case RuntimeError() if first_line.startswith("DataLoader worker "):
            advice = "lower {workers}; continue a training with {resume} auto"
            return UserError(f"{first_line}: out of memory?", advice=advice).describe(flag), 1
    return "", 1
