"""The run as a whole, on a small generated set: what it writes, how it stops and goes on."""

import csv
import json
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

import predict
import train
import validation
from src import Predictor, U2Net, UserError, build_model, load_model, save_model
from src.predictor import _to_half
from train_utils import engine, optim, synthetic
from train_utils.trainer import Trainer

SIZES = ["--img-size", "48", "--crop-size", "40", "--batch-size", "4"]
RECIPE = ["--model", "u2net_lite", "--epochs", "3", "--eval-interval", "1", "--ema", "0.9"]
FLAGS = [*SIZES, *RECIPE, "--workers", "0", "--device", "cpu", "--amp", "off"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    synthetic.write_dataset(folder, train=18, test=5, size=64, seed=0)
    return folder


def run(data, folder, *flags):
    return train.main(["--data-path", str(data), "--output-dir", str(folder), *FLAGS, *flags])


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "whole"
    assert run(data, folder) == 0
    return folder


def rows(folder):
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_folder(finished):
    log = rows(finished)
    assert [row["epoch"] for row in log] == ["1", "2", "3"]
    for row in log:
        terms = [float(row[k]) for k in row if k.startswith("loss_")]
        assert len(terms) == 7
        assert float(row["loss"]) == pytest.approx(sum(terms), rel=1e-4)
        assert 0 < float(row["ema_mae"]) < 1
    args = json.loads((finished / "args.json").read_text())
    assert args["img_size"] == 48 and args["versions"]["torch"] == torch.__version__
    for name in ("curves.png", "samples/epoch_0001.png", "samples/epoch_0003.png"):
        with Image.open(finished / name) as image:
            assert min(image.size) > 48, name


def test_training_lowers_the_loss(finished):
    losses = [float(row["loss"]) for row in rows(finished)]
    assert losses[-1] < losses[0]


def test_best_is_the_best_epoch(finished):
    """best.pt is written when a score improves, and only then."""
    scores = [float(row["ema_max_f"]) for row in rows(finished)]
    kept = torch.load(finished / "best.pt", weights_only=True)
    assert kept["epoch"] == scores.index(max(scores)) + 1
    assert kept["scores"]["max_f"] == pytest.approx(max(scores), abs=1e-5)
    last = torch.load(finished / "last.pt", weights_only=True)
    assert last["best"]["epoch"] == kept["epoch"]


def test_a_worse_score_leaves_best_alone(data, tmp_path, monkeypatch):
    """Tutorials never update the best value, so that every evaluation overwrites the file."""
    scores = iter([0.5, 0.9, 0.7])
    result = {"mae": 0.1, "mean_f": 0.1}
    monkeypatch.setattr(
        engine, "evaluate", lambda *_: {**result, "max_f": next(scores), "images": 1}
    )
    run(data, tmp_path / "run", "--ema", "0")
    assert torch.load(tmp_path / "run/best.pt", weights_only=True)["epoch"] == 2


def test_validation_repeats_the_logged_scores(finished, data, tmp_path, capsys):
    """The weights alone give the score that training logged: same preparation, same measures."""
    flags = ["--weights", str(finished / "best.pt"), "--data-path", str(data), "--workers", "0"]
    flags += ["--amp", "off", "--device", "cpu", "--json", str(tmp_path / "s.json")]
    assert validation.main(flags) == 0
    scores = json.loads((tmp_path / "s.json").read_text())
    best = max(rows(finished), key=lambda row: float(row["ema_max_f"]))
    assert scores["images"] == 5 and scores["split"] == "test" and scores["img_size"] == 48
    for name in ("mae", "max_f", "mean_f"):
        assert scores[name] == pytest.approx(float(best["ema_" + name]), abs=1e-5)
    assert f"{scores['max_f']:.4f}" in capsys.readouterr().out


def test_scores_do_not_depend_on_the_batch(finished, data, tmp_path):
    results = []
    for batch in ("1", "3"):
        path = tmp_path / f"{batch}.json"
        flags = ["--weights", str(finished / "best.pt"), "--data-path", str(data), "--json"]
        validation.main([*flags, str(path), "--batch-size", batch, "--workers", "0"])
        results.append(json.loads(path.read_text()))
    for name in ("mae", "max_f", "max_f_per_image", "mean_f", "adaptive_f"):
        assert results[0][name] == pytest.approx(results[1][name], abs=2e-4), name


@pytest.mark.parametrize("mode", ["mask", "cutout"])
def test_predict(finished, data, tmp_path, mode):
    source = sorted((data / "DUTS-TE/DUTS-TE-Image").iterdir())[0]
    target = tmp_path / "out.png"
    flags = [str(source), "--weights", str(finished / "best.pt"), "--output", str(target)]
    assert predict.main([*flags, "--mode", mode]) == 0
    expected = Predictor(finished / "best.pt")(source)
    with Image.open(source) as picture, Image.open(target) as result:
        assert result.size == picture.size
        assert result.mode == {"mask": "L", "cutout": "RGBA"}[mode]
        grey = np.asarray(result.getchannel("L" if mode == "mask" else "A")) / 255
        if mode == "cutout":
            assert np.array_equal(result.convert("RGB"), picture.convert("RGB"))
    assert np.abs(grey - expected).max() <= 0.51 / 255


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_resumed_equals_unbroken(data, finished, tmp_path, monkeypatch, number):
    """A signal in the middle of the second epoch; the resumed run ends bit for bit alike."""
    steps = []
    original = Trainer.train_step

    def interrupted_step(self, batches):
        steps.append(None)
        if len(steps) == 6:
            os.kill(os.getpid(), number)
        return original(self, batches)

    monkeypatch.setattr(Trainer, "train_step", interrupted_step)
    assert run(data, tmp_path / "run") == 128 + number
    assert len(steps) == 6, "the step is finished, and no other begun"
    state = torch.load(tmp_path / "run/last.pt", weights_only=True)
    assert (state["epoch"], state["step"]) == (1, 2)
    assert run(data, tmp_path / "run", "--resume", "auto") == 0
    resumed, whole = (
        torch.load(folder / "last.pt", weights_only=True) for folder in (tmp_path / "run", finished)
    )
    for part in ("model", "ema"):
        for name, value in whole[part].items():
            assert torch.equal(resumed[part][name], value), name
    assert resumed["best"] == whole["best"]
    for ours, theirs in zip(rows(tmp_path / "run"), rows(finished), strict=True):
        assert ours == theirs


def test_divergence_ends_the_run_and_spares_last(data, tmp_path):
    """A loss of nan names the cure; what was saved before stays, and nothing bad becomes best."""
    folder = tmp_path / "run"
    with pytest.raises(UserError, match=r"batch \d: loss (nan|inf).*pictures: synthetic.*--lr"):
        run(data, folder, "--lr", "1e30", "--ema", "0")
    for path in folder.glob("*.pt"):
        state = torch.load(path, weights_only=True)["model"]
        assert all(torch.isfinite(value).all() for value in state.values()), path.name


def test_resume_rebuilds_its_network(data, tmp_path, finished):
    """Neither --model nor the pretrained file is needed again; another --model is refused."""
    start = load_model(finished / "best.pt")
    start = U2Net(start.config.replace(conv_bias=True))
    save_model(start, tmp_path / "start.pt")
    flags = ["--data-path", str(data), *SIZES, "--epochs", "1", "--workers", "0", "--amp", "off"]
    folder = tmp_path / "run"
    argv = [*flags, "--pretrained", str(tmp_path / "start.pt"), "--output-dir", str(folder)]
    assert train.main(argv) == 0
    (tmp_path / "start.pt").unlink()
    assert train.main([*flags, "--resume", str(folder / "last.pt")]) == 0
    with pytest.raises(UserError, match="holds a u2net_lite"):
        train.main([*flags, "--resume", str(folder / "last.pt"), "--model", "u2net_full"])


def test_changed_flags_are_named(data, finished):
    with pytest.raises(UserError, match=r"lr was 0.001, is 0.01; seed was 0, is 3"):
        run(data, finished, "--resume", "auto", "--lr", "0.01", "--seed", "3")


def test_average_forgets_its_beginning():
    """After 20 updates of a constant, hardly any of the first weights is left, though 0.999^20 is
    0.98; after many the decay is the one asked for."""
    layer = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(layer.weight, 0.0)
    ema = optim.make_ema(layer, 0.999)
    ema.update_parameters(layer)
    torch.nn.init.constant_(layer.weight, 1.0)
    for _ in range(20):
        ema.update_parameters(layer)
    assert ema.module.weight.item() > 0.99
    ema.n_averaged.fill_(10**6)
    torch.nn.init.constant_(ema.module.weight, 0.0)
    ema.update_parameters(layer)
    assert ema.module.weight.item() == pytest.approx(0.001, rel=1e-3)


def test_cutout_keeps_what_was_transparent():
    picture = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    picture.putpixel((1, 0), (200, 0, 0, 0))
    cutout = predict.render(picture, np.ones((1, 2)), "cutout")
    assert [cutout.getpixel((x, 0)) for x in (0, 1)] == [(200, 0, 0, 255), (200, 0, 0, 0)]


def test_predictor_turns_pictures_upright(finished):
    """A picture given as an object as one given by its path."""
    picture = Image.new("RGB", (60, 40))
    picture.getexif()[0x0112] = 6
    assert Predictor(finished / "best.pt")(picture).shape == (60, 40)


def test_accumulation_equals_the_large_batch():
    """Without batch norm in the way, two half batches step like one whole one."""
    torch.manual_seed(0)
    pictures = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    masks = torch.randint(0, 2, (4, 1, 32, 32), dtype=torch.uint8)
    results = []
    for split in (4, 2):
        torch.manual_seed(1)
        model = build_model("u2net_lite").eval()
        model.training = True  # the top level alone: its list of logits, running statistics inside
        trainer = make_trainer(model)
        parts = zip(pictures.split(split), masks.split(split), strict=True)
        trainer.train_step([(picture, mask, None) for picture, mask in parts])
        results.append(model.out_conv.weight.detach().clone())
    assert torch.allclose(*results, atol=1e-6)


def make_trainer(model, **options):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scheduler = optim.make_scheduler(optimizer, 0, 10)
    scaler = optim.make_scaler(torch.device("cpu"), torch.float32)
    loss = train.DeepSupervisionBCE()
    return Trainer(model, optimizer, scheduler, scaler, loss, torch.float32, **options)


def test_clipping_bounds_the_step():
    """The step of plain SGD is lr times the gradient, so its length shows the clipped norm."""
    model = build_model("u2net_lite").train()
    before = [p.detach().clone() for p in model.parameters()]
    pictures = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    masks = torch.ones(2, 1, 32, 32, dtype=torch.uint8)
    make_trainer(model, clip_grad=0.01).train_step([(pictures, masks, None)])
    moved = sum(((p - b) ** 2).sum() for p, b in zip(model.parameters(), before, strict=True))
    assert moved.sqrt().item() == pytest.approx(0.1 * 0.01, rel=1e-2)


def test_no_decay_on_norms_and_biases():
    model = build_model("u2net_lite")
    decayed, free = optim.make_optimizer(model, 1e-3, 0.1).param_groups
    assert decayed["weight_decay"] == 0.1 and free["weight_decay"] == 0
    names = {id(p): name for name, p in model.named_parameters()}
    kinds = (torch.nn.BatchNorm2d,)
    norms = {f"{n}.weight" for n, module in model.named_modules() if isinstance(module, kinds)}
    expected = norms | {name for name in names.values() if name.endswith("bias")}
    assert {names[id(p)] for p in free["params"]} == expected
    assert {names[id(p)] for p in decayed["params"]} == set(names.values()) - expected


def test_schedule():
    """Linear from almost nothing to the peak at the end of warm-up, then down to almost nothing."""
    optimizer = optim.make_optimizer(torch.nn.Linear(2, 2), 1.0, 0)
    scheduler = optim.make_scheduler(optimizer, 10, 110)
    rates = []
    for _ in range(110):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(1e-3) and rates[5] == pytest.approx(0.5, abs=1e-3)
    assert rates.index(max(rates)) == 10 and max(rates) == pytest.approx(1)
    assert rates[60] == pytest.approx(0.5, abs=2e-3) and rates[-1] < 2e-3


def test_half_precision_keeps_channels_of_huge_constants():
    """bf16 has steps of 1 at 226: a layer with such a bias must stay in float32."""
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.ReLU(), torch.nn.Conv2d(1, 1, 1))
    with torch.no_grad():
        net[0].weight.fill_(1), net[0].bias.fill_(226.28)
        net[2].weight.fill_(5), net[2].bias.fill_(-5 * 226.28)
        picture = torch.linspace(0, 1, 9).view(1, 1, 3, 3)
        half = _to_half(net.requires_grad_(False), torch.bfloat16)(picture.bfloat16())
    assert (half.float() - 5 * picture).abs().max() < 0.05


def test_weights_of_a_run_are_its_average(finished):
    """last.pt holds the raw weights and their average; loading it gives what was scored."""
    state = torch.load(finished / "last.pt", weights_only=True)
    loaded = load_model(finished / "last.pt").state_dict()
    assert torch.equal(loaded["out_conv.weight"], state["ema"]["out_conv.weight"])
    assert not torch.equal(loaded["out_conv.weight"], state["model"]["out_conv.weight"])
