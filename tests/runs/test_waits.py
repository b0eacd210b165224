"""How long threads wait before they sleep, which has to be settled before torch is loaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from src import __main__ as commands

ROOT = Path(__file__).parents[2]
FIRST = """
import os, sys
class Finder:
    def find_spec(self, name, path, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"))
            os._exit(0)
sys.meta_path.insert(0, Finder())
import {script}
"""


def waits(script: str, **variables: str) -> str:
    """What the variable is when the script comes to load torch."""
    own = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, "-c", f"{FIRST.format(script=script)}"]
    done = subprocess.run(
        command, cwd=ROOT, env={**own, **variables}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize("script", ["train", "train_multi_GPU"])
def test_training_shortens_them_before_torch_is_loaded(script):
    assert waits(script) == "1000"


def test_the_user_has_the_last_word():
    assert waits("train", GOMP_SPINCOUNT="7") == "7"
    assert waits("train", OMP_WAIT_POLICY="active") == "None"


def test_the_command_starts_anew(monkeypatch):
    started = []
    monkeypatch.setattr(os, "execv", lambda *command: started.append(command))
    monkeypatch.setattr(sys, "argv", ["u2net", "train", "--epochs", "-1"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "u2net", "train", "--epochs", "-1"])
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    for _ in range(2):  # the second time it has been done
        with pytest.raises(SystemExit) as left:
            commands.main()
        assert left.value.code == 2  # of the flag
        monkeypatch.setattr(sys, "argv", ["u2net", "train", "--epochs", "-1"])
    given = [sys.executable, "-m", "u2net", "train", "--epochs", "-1"]
    assert started == [(sys.executable, given)] and os.environ["GOMP_SPINCOUNT"] == "1000"
