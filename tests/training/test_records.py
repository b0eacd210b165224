"""What a run leaves to look at."""

from matplotlib.figure import Figure

from train_utils.training import records


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
