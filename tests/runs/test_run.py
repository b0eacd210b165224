"""How a script ends: what its user reads, and the exit status."""

import re

import pytest
import torch
from torch._inductor.exc import InductorError

from train_utils import cli


def test_interrupt_is_not_an_error_of_the_program(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as left:
        cli.run(main)
    assert left.value.code == 130 and capsys.readouterr().err == "error: interrupted\n"


def test_errors_of_loaders_are_told_apart(capsys):
    """Killed, mostly for want of memory; or an error of the program, which keeps its traceback."""

    def fails(words):
        def main():
            raise RuntimeError(words)

        return main

    with pytest.raises(SystemExit) as left:
        cli.run(fails("DataLoader worker (pid 7) is killed by signal: Killed. Details"))
    assert left.value.code == 1 and "out of memory?" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="size of tensor"):
        cli.run(fails("Caught RuntimeError in DataLoader worker process 0.\nsize of tensor"))


def test_no_compiler_for_compile(capsys):
    def main():
        raise InductorError(RuntimeError("No working C++ compiler found"), None)

    with pytest.raises(SystemExit) as left:
        cli.run(main)
    assert left.value.code == 2
    assert re.search("error: --compile: .*No working C.* leave it out", capsys.readouterr().err)


def test_no_memory(capsys):
    """In torch's words, and what to do."""
    with pytest.raises(SystemExit) as left:
        cli.run(lambda: torch.empty(2**60))
    assert left.value.code == 2
    assert "out of memory; lower --img-size" in capsys.readouterr().err
