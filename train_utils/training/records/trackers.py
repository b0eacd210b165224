"""Where curves and sheets go besides the run's files: TensorBoard, Weights & Biases, MLflow."""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from src import UserError
from src.files import save_json

from .args import read_args

_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow-skinny"}
_PROJECT = "u2net"  # unless the environment names one
_IDS = "trackers.json"  # in the run's folder: its ids in the trackers


def check_trackers(names: Sequence[str]) -> None:
    """Check that the trackers' packages are installed.

    Raises:
        UserError: one is not; the error names it.
    """
    for name in names:
        package = _PACKAGES.get(name)
        if package and find_spec(name) is None:
            raise UserError(
                f"needs the package {package}", "tracker", name, f"pip install {package}"
            )


class Trackers:
    """All trackers of a run, as one.

    A resumed run continues its run in each of them: ``trackers.json`` in its folder has their ids.
    wandb and mlflow read their own environment variables (``WANDB_PROJECT``, ``WANDB_MODE``,
    ``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME``, …). A tracker that fails later, because its
    server is gone for example, is reported and dropped.

    Args:
        names: any of ``tensorboard``, ``wandb`` and ``mlflow``; ``none`` adds none.
        folder: of the run; the trackers receive its ``args.json``.
        update: optimizer steps done.

    Raises:
        UserError: a package is missing, or a tracker cannot start.
    """

    def __init__(self, names: Sequence[str], folder: Path, update: int) -> None:
        check_trackers(names)
        ids, settings = read_args(folder / _IDS), read_args(folder / "args.json")
        self.all: dict[str, Any] = {}
        for name in dict.fromkeys(names):
            if name == "tensorboard":
                self.all |= _open_tensorboard(folder, update)
            elif name != "none":
                with _named(name):
                    make = _Wandb if name == "wandb" else _MLflow
                    tracker: Any = make(folder, settings, ids.get(name))
                self.all[name] = tracker
                if ids.get(name) != tracker.id:
                    ids[name] = tracker.id
                    save_json(ids, folder / _IDS)

    def scalars(self, values: Mapping[str, float], update: int) -> None:
        """Add points to curves by name, at an optimizer step; nan and inf are left out."""
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        self._each(lambda tracker: tracker.scalars(finite, update))

    def sheet(self, image: Tensor, path: Path, update: int) -> None:
        """Add a sheet of samples, 3×H×W in [0, 1], and its file."""
        self._each(lambda tracker: tracker.sheet(image, path, update))

    def flush(self) -> None:
        """Write buffered values."""
        self._each(lambda tracker: tracker.flush())

    def close(self) -> None:
        """Close all trackers."""
        self._each(lambda tracker: tracker.close())

    def _each(self, act: Callable[[Any], None]) -> None:
        for name, tracker in [*self.all.items()]:
            try:
                act(tracker)
            except Exception as error:
                if name == "tensorboard":  # a full disk, which breaks other files of the run too
                    raise
                reason = str(error).strip().partition("\n")[0]
                tqdm.write(f"{name}: {reason}; the run goes on without it", file=sys.stderr)
                del self.all[name]


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Report whatever keeps a tracker from starting: no account, no server …"""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        advice = {
            "wandb": "log in with `wandb login`, or set WANDB_MODE=offline",
            "mlflow": "see MLFLOW_TRACKING_URI",
        }
        raise UserError(f"cannot start: {reason}", "tracker", name, advice[name]) from None


def _open_tensorboard(folder: Path, update: int) -> dict[str, "_TensorBoard"]:
    try:
        return {"tensorboard": _TensorBoard(folder, update)}
    except UnicodeEncodeError:
        print(f"{folder}: no TensorBoard events, as its name is not UTF-8", flush=True)
        return {}


class _TensorBoard:
    def __init__(self, folder: Path, update: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.board: Any = SummaryWriter(folder / "tensorboard", purge_step=update + 1)
        self.flush: Callable[[], None] = self.board.flush
        self.close: Callable[[], None] = self.board.close

    def scalars(self, values: Mapping[str, float], update: int) -> None:
        for name, value in values.items():
            self.board.add_scalar(name, value, update)

    def sheet(self, image: Tensor, path: Path, update: int) -> None:
        self.board.add_image("samples: image, mask, map", image, update)


class _Wandb:
    def __init__(self, folder: Path, settings: dict[str, Any], known: str | None) -> None:
        import wandb

        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=os.environ.get("WANDB_NAME", folder.absolute().name),
            dir=os.environ.get("WANDB_DIR", str(folder)),
            config=settings,
            id=known,
            resume="allow",
            settings=wandb.Settings(console="off"),
        )
        self.id: str = self.run.id
        # wandb's own step cannot go back, but that of a run resumed from a checkpoint does.
        self.run.define_metric("update", hidden=True)
        self.run.define_metric("*", step_metric="update")

    def scalars(self, values: Mapping[str, float], update: int) -> None:
        self.run.log({**values, "update": update})

    def sheet(self, image: Tensor, path: Path, update: int) -> None:
        import wandb

        pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        self.run.log({"samples": wandb.Image(pixels), "update": update})

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.run.finish()


class _MLflow:
    def __init__(self, folder: Path, settings: dict[str, Any], known: str | None) -> None:
        import mlflow

        self.entities = mlflow.entities
        self.client = mlflow.MlflowClient()
        if known:
            self.client.update_run(known, "RUNNING")
            self.id = known
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        experiment = self.client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self.client.create_experiment(name)
        run = self.client.create_run(number, run_name=folder.absolute().name)
        self.id = run.info.run_id
        given = {k: v for k, v in settings.items() if k not in ("versions", "resumed")}
        params = [self.entities.Param(k, str(v)[:500]) for k, v in given.items() if v is not None]
        self.client.log_batch(self.id, params=params)

    def scalars(self, values: Mapping[str, float], update: int) -> None:
        now = int(time.time() * 1000)
        metrics = [self.entities.Metric(k, v, now, update) for k, v in values.items()]
        self.client.log_batch(self.id, metrics=metrics)

    def sheet(self, image: Tensor, path: Path, update: int) -> None:
        self.client.log_artifact(self.id, str(path), "samples")

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.client.set_terminated(self.id)
