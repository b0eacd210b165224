"""``args.json``: the settings that a run was started and resumed with."""

import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from src.files import save_json


def write_args(
    folder: Path, args: Mapping[str, Any], launch: str | None = None, resumed: str | None = None
) -> None:
    """Write ``args.json``; for a resumed run, add what has changed.

    Args:
        folder: the run's.
        args: its settings, to which versions and git commit are added.
        launch: torchrun's launch that the run belongs to.
        resumed: how much of the run was done when it was resumed; None for a new one. The settings
            that it was started with stay; a list under this name receives the changes.
    """
    import torchvision

    path = folder / "args.json"
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "commit": git_commit(),
    }
    now = {**args, "versions": versions, "launch": launch}
    before = read_args(path) if resumed else {}
    if before:
        now = json.loads(json.dumps(now, default=str))
        changed = {name: value for name, value in now.items() if before.get(name) != value}
        earlier = before.get("resumed") or []
        now = {**before, "resumed": [*earlier, {"after": resumed, "launch": launch, **changed}]}
    save_json(now, path)


def read_args(path: Path) -> dict[str, Any]:
    """What a JSON file of a run holds; nothing, if it is missing or damaged."""
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}


def was_started_by(folder: Path, launch: str | None) -> bool:
    """Whether the run in a folder belongs to this launch, according to its ``args.json``."""
    noted = read_args(folder / "args.json")
    launches = [entry.get("launch") for entry in (noted, *noted.get("resumed", []))]
    return launch is not None and launch in launches


def git_commit() -> str | None:
    """The commit of this code, with ``-dirty`` if files differ from it; None outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
