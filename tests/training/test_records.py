"""What a run leaves to look at: curves, and trackers: the real packages offline, where they are
installed, and one that fails.
"""

import json
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure

from src import UserError
from train_utils.training import records
from train_utils.training.records import check_trackers, trackers
from train_utils.training.records.trackers import Trackers


@pytest.fixture
def folder(tmp_path):
    run = tmp_path / "mine-1"
    run.mkdir()
    (run / "args.json").write_text(json.dumps({"lr": 0.01, "model": "u2net_lite", "keep": None}))
    return run


def write(names, folder, update):
    """A point, and a sheet, of a run that ends there."""
    board = Trackers(names, folder, update)
    board.scalars({"epoch/loss": 1.0 / (update + 1), "epoch/max_f": float("nan")}, update + 1)
    sheet = folder / "sheet.png"
    sheet.write_bytes(b"png")
    board.sheet(torch.rand(3, 8, 8), sheet, update + 1)
    board.flush()
    board.close()


def test_mlflow_goes_on_in_the_same_run(folder, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="an optional package")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for update in (0, 5):
        write(["mlflow"], folder, update)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("u2net").experiment_id])
    assert json.loads((folder / "trackers.json").read_text()) == {"mlflow": run.info.run_id}
    assert run.info.run_name == "mine-1" and run.info.status == "FINISHED"
    assert run.data.params == {"lr": "0.01", "model": "u2net_lite"}
    history = client.get_metric_history(run.info.run_id, "epoch/loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (6, 1 / 6)]
    assert "epoch/max_f" not in run.data.metrics
    assert [f.path for f in client.list_artifacts(run.info.run_id, "samples")]


def test_wandb_goes_on_in_the_same_run(folder, monkeypatch):
    pytest.importorskip("wandb", reason="an optional package")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for update in (0, 5):
        write(["wandb"], folder, update)
    name = json.loads((folder / "trackers.json").read_text())["wandb"]
    runs = sorted(path.name for path in (folder / "wandb").glob("offline-run-*"))
    assert runs and all(run.endswith(f"-{name}") for run in runs)


def test_an_absent_package_is_named(monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    check_trackers(["none"])
    for name, package in (("wandb", "wandb"), ("mlflow", "mlflow-skinny")):
        with pytest.raises(UserError, match=f"pip install {package}"):
            check_trackers(["tensorboard" if name == "none" else name])


def test_what_cannot_begin_is_named(folder, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no API key configured.\nmore")

    monkeypatch.setattr(trackers, "check_trackers", lambda names: None)
    monkeypatch.setattr(trackers, "_Wandb", refuse)
    with pytest.raises(UserError, match="tracker wandb: cannot start: no API key configured"):
        Trackers(["wandb"], folder, 0)


def test_one_that_fails_on_the_way_is_left_out(folder, monkeypatch, capsys):
    points = []

    def scalars(values, update):
        points.append((update, values))
        if update == 2:
            raise OSError("server is gone")

    fake = SimpleNamespace(scalars=scalars, id="x", close=lambda: points.append("closed"))
    monkeypatch.setattr(trackers, "check_trackers", lambda names: None)
    monkeypatch.setattr(trackers, "_MLflow", lambda *_: fake)
    board = Trackers(["mlflow"], folder, 0)
    for update in (1, 2, 3):
        board.scalars({"loss": 1.0, "lr": float("inf")}, update)
    board.close()
    assert points == [(1, {"loss": 1.0}), (2, {"loss": 1.0})]
    assert "mlflow: server is gone; the run goes on without it" in capsys.readouterr().err


def test_curves(tmp_path, monkeypatch):
    """A panel for what the log has, so that an error of .06 isn't drawn beside a score of .9."""
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    for measures in ({"max_f": 0.8, "mae": 0.06}, {"mean_iou": 0.5}):
        log = records.Log(tmp_path / "log.csv")
        log.append({"epoch": 1, "loss": 2.0})
        log.append({"epoch": 2, "loss": 1.0, **measures})
        records.draw_curves(log, tmp_path / "curves.png")
    legends = [
        [[text.get_text() for text in axes.get_legend().get_texts()] for axes in figure.axes]
        for figure in drawn
    ]
    assert legends == [
        [["loss (best 1.000)"], ["max_f (best 0.800)"], ["mae (best 0.060)"]],
        [["loss (best 1.000)"], ["mean_iou (best 0.500)"]],
    ]
