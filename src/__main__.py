"""The toolkit's commands; each is a script in the clone, and has its own --help.

u2net photo.jpg                        the same as u2net predict photo.jpg
u2net predict photos --weights u2net
u2net train --data-path DUTS
torchrun --nproc_per_node=4 -m u2net train --data-path DUTS
"""

import os
import sys
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import ModuleType

from . import __version__
from .commands import COMMANDS, SCRIPTS


def main(argv: list[str] | None = None) -> None:
    """Run a command, and exit with its status.

    Args:
        argv: the command and its arguments; by default those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv) or [""]
    if asks_help := arguments[0] == "help":
        arguments = [*arguments[1:2], "--help"]
    first = arguments[0]
    word = first if Path(first).exists() else SCRIPTS.get(first, first)
    is_named = word in COMMANDS
    command = word if is_named else "predict"
    arguments = arguments[is_named:]
    if argv is None and command == "train" and not {"-h", "--help"} & set(arguments):
        _restart_with_short_waits()
    sys.argv = [f"u2net {command}", *arguments]  # for --help and for messages

    cli = _script("train_utils.cli")

    def run() -> int | None:
        if first in ("", "-h", "--help"):
            print(describe())
            return 0 if first else 2
        if first == "--version":
            print(f"u2net-toolkit {__version__}")
            return 0
        if not is_named and (problem := _misspelt(first, asks_help)):
            raise cli.UserError(problem)
        return _script(COMMANDS[command][0]).main(arguments)

    cli.run(run)


def _restart_with_short_waits() -> None:
    """Restart with threads that do not keep a core busy while they wait, see train.py: torch reads
    the setting when it is loaded, and it is loaded by now. Does nothing if the user has set it.
    """
    if sys.platform == "linux" and not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
        os.environ["GOMP_SPINCOUNT"] = "1000"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def describe() -> str:
    """The text of ``u2net --help``."""
    listed = [f"  {name:11} {what}" for name, (_, what) in COMMANDS.items()]
    lines = [
        "usage: u2net [COMMAND] ... | --version", "", __doc__, "commands:", *listed, "",
        "u2net COMMAND --help lists that command's flags.",
    ]  # fmt: skip
    return "\n".join(lines)


def _misspelt(word: str, asks_help: bool) -> str | None:
    """The problem with a word that is not a command: it looks like one and is not an image, a
    pattern, a URL or a flag; or help is asked for it.
    """
    is_word = word[:1] != "-" and word.replace("_", "").replace("-", "").isalpha()
    if not asks_help and (not is_word or Path(word).exists()):
        return None
    if near := get_close_matches(word, COMMANDS, 1):
        return f"{word}: no such command or image; did you mean u2net {near[0]}?"
    return f"{word}: no such command; u2net --help lists them" if asks_help else None


def _script(name: str) -> ModuleType:
    """A module of the toolkit: part of the package if it is installed, else a file beside the
    library in the clone (also if pip has installed the clone with ``--editable``)."""
    library = Path(__file__).resolve().parent
    if (library / "scripts").is_dir():
        return import_module(f"u2net.{name}" if "." in name else f"u2net.scripts.{name}")
    if str(library.parent) not in sys.path:
        sys.path.insert(0, str(library.parent))
    return import_module(name)


if __name__ == "__main__":
    main()
