"""Settings of a run: from flags, from recipe files, and against the record of a checkpoint."""

import argparse
import json
import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest
from helpers.data import ROOT

import train
from src import UserError, build_model
from train_utils import cli
from train_utils.config import DECLARATIONS, GROUPS, Settings
from train_utils.kinds import read_recipe
from train_utils.training.build import size_starts, start_weights
from train_utils.training.build.network import _check_fit, _differences
from train_utils.training.checkpoint import check_record

RECIPES = sorted((ROOT / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_a_run(path):
    settings = train.parse_args(["--config", str(path), "--data-path", "x"])
    assert settings.data_path == (Path("x"),)
    assert f"--config recipes/{path.name}" in path.read_text(encoding="utf-8")


def test_the_tutorials_recipe_is_the_defaults():
    recipe = train.parse_args(["--config", str(ROOT / "recipes/tutorial.toml")])
    assert replace(recipe, model=None) == train.parse_args([])


def test_flags_stand_above_the_recipe(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        "[recipe]\nlr = 1\nepochs = 7\nema = 0.5\nsync_bn = true\nclass_weights = 'balanced'\n"
        "[network]\nimg_size = [64, 96]\npretrained = 'w.pt'\n",
        encoding="utf-8-sig",  # as editors on Windows write it
    )
    settings = train.parse_args(["--epochs", "9", "--config", str(path), "--no-sync-bn"])
    assert (settings.lr, settings.epochs, settings.ema, settings.sync_bn) == (1.0, 9, 0.5, False)
    assert settings.img_size == (64, 96) and settings.pretrained == Path("w.pt")
    assert settings.class_weights == ("balanced",) and type(settings.lr) is float


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[recipe]\nlrr = 1", r"\[recipe\] lrr: no such setting; did you mean lr\?"),
        ("[network]\nlr = 1", r"\[network\] lr: belongs in \[recipe\]"),
        ("[recipe]\nlr = 'fast'", r"\[recipe\] lr: 'fast' is not a number"),
        ("[recipe]\nlr = true", r"\[recipe\] lr: True is not a number"),
        ("[recipe]\nepochs = 3.0", r"\[recipe\] epochs: 3.0 is not an integer from 1"),
        ("[recipe]\nepochs = 0", r"\[recipe\] epochs: 0 is not an integer from 1"),
        ("[recipe]\nsync_bn = 1", r"\[recipe\] sync_bn: 1 is not true or false"),
        ("[device]\namp = 'int8'", r"\[device\] amp: 'int8' is not one of auto, bf16"),
        ("[network]\nimg_size = []", r"\[network\] img_size: expected one value or more"),
        ("[run]\noutput_dir = 3", r"\[run\] output_dir: 3 is not a path"),
        ("lr = 1", r"lr: is outside a table; write it below \[recipe\]$"),
        ("device = 'cpu'", r"device: is outside a table; write it below \[device\]$"),
        ("[lr]\nvalue = 1", r"lr: is a setting, not a table; write lr = … below \[recipe\]$"),
        ("[[lr]]", r"lr: is a setting, not a table; write lr = … below \[recipe\]$"),
        ("[[run]]\nseed = 1", r"run: is not a table; write its settings below \[run\]$"),
        ("[speed]\nlr = 1", r"speed: unknown table; expected \[data\], \[network\]"),
        ("lr = ", "not TOML"),
        (None, "cannot be read"),
    ],
)
def test_a_wrong_recipe_is_named(tmp_path, capsys, text, named):
    """The file and the key, with status 2."""
    path = tmp_path / "mine.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=f"mine.toml: {named}"):
        read_recipe(path, DECLARATIONS)
    with pytest.raises(SystemExit) as left:
        train.parse_args(["--config", str(path)])
    assert left.value.code == 2 and "mine.toml: " in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "patience"), [([], 5), (["--patience", "4"], 4)])
def test_a_contradiction_names_the_recipe_it_comes_from(tmp_path, capsys, flags, patience):
    path = tmp_path / "mine.toml"
    path.write_text("[recipe]\npatience = 5\nepochs = 2")
    with pytest.raises(SystemExit) as left:
        train.parse_args(["--config", str(path), "--eval-interval", "3", *flags])
    told = capsys.readouterr().err
    assert left.value.code == 2 and f"--patience {patience}: only" in told
    assert ("mine.toml sets --patience" in told) == (not flags)


def test_each_setting_has_a_flag_of_its_group(monkeypatch):
    parsers = []
    parse = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(
        argparse.ArgumentParser, "parse_args", lambda p, a: parsers.append(p) or parse(p, a)
    )
    train.parse_args([])
    groups = {group.title: group._group_actions for group in parsers[0]._action_groups}
    flags = {a.dest: name for name, actions in groups.items() for a in actions if name in GROUPS}
    assert flags == {name: declared.group for name, declared in DECLARATIONS.items()}
    assert [field.name for field in fields(Settings)] == list(DECLARATIONS)


def test_values_are_checked_in_python_too():
    with pytest.raises(UserError, match="epochs: 0 is not an integer from 1"):
        Settings(epochs=0)
    with pytest.raises(UserError, match="amp: 'int8' is not one of auto"):
        Settings(amp="int8")
    assert Settings(img_size=[64]).img_size == (64,)


RANGES = [
    (
        "192-352",
        None,
        [(192, 172), (224, 201), (256, 230), (288, 259), (320, 288), (352, 316)],
        288,
    ),
    (" 64 - 128", "32-96", [(64, 32), (96, 64), (128, 96)], 96),
    ("64-128", "64-128", [(64, 64), (96, 96), (128, 128)], 96),
    ("64-96", "48", [(64, 48), (96, 48)], 96),
    ("320", "9/10", [(320, 288)], 320),
]


@pytest.mark.parametrize(("sizes", "crops", "drawn", "shown"), RANGES)
def test_a_range_of_sizes(tmp_path, sizes, crops, drawn, shown):
    """From flags, a recipe, Python and what args.json and a checkpoint hold: the same run."""
    flags = ["--img-size", sizes, *(["--crop-size", crops] if crops else [])]
    settings = train.parse_args(flags)
    assert settings.stages == [drawn] and settings.eval_sizes == [shown]
    assert settings.smallest_crop == min(crop for _, crop in drawn)
    recipe = tmp_path / "mine.toml"
    kept = json.loads(json.dumps({name: settings.to_dict()[name] for name in SIZE_SETTINGS}))
    recipe.write_text("[network]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in kept.items()))
    assert train.parse_args(["--config", str(recipe)]) == Settings(**kept) == settings
    check_record(settings, settings.record(), Settings(**kept).record())


SIZE_SETTINGS = ("img_size", "crop_size")


def test_a_range_is_a_stage():
    settings = Settings(img_size=(128, "64-96"), epochs=4)
    assert settings.stages == [[(128, 115)], [(64, 57), (96, 86)]]
    assert settings.eval_sizes == [128, 96] and settings.first_epochs == [0, 2]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        *(
            (f"--img-size {value}", f"--img-size: '{value}' is not a")
            for value in ("352-192", "190-200", "16-64", "0-64", "192-192", "192-351", "192-99999")
        ),
        *(
            (f"--img-size {value}", f"--img-size: '{value}' is not an integer from 1 to")
            for value in ("text", "-192", "192-", "64-96-128", "192-352.0", "192:352", "9/10")
        ),
        ("--img-size 32-64", "--crop-size 28: expected at least 32"),
        ("--img-size 28 --overfit 1", "--img-size 28: expected at least 32 ("),
        ("--img-size 64-128 --crop-size 64-96", "a range of 2 sizes; as many as --img-size, where"),
        ("--img-size 320 --crop-size 64-96", "a range of 2 sizes; as many as --img-size, where"),
        ("--img-size 64-128 --crop-size 96-160", "--crop-size 96: larger than the image; at most"),
        ("--img-size 64-128 --crop-size 72", "--crop-size 72: larger than the image; at most"),
        ("--img-size 64-128 --crop-size 96-64", "--crop-size: '96-64' is not a range"),
        ("--img-size 64-128 --crop-size 8/10", "--crop-size: '8/10' is not an integer"),
        ("--img-size 64-128 --crop-size 64 96", "--crop-size: expected 1 value, got 2"),
        ("--img-size 64-96 128-160 --epochs 1", "--epochs 1: each size needs an epoch of its own"),
    ],
)
def test_a_wrong_range_is_refused(capsys, flags, named):
    with pytest.raises(SystemExit) as left:
        train.parse_args(flags.split())
    error = capsys.readouterr().err
    assert left.value.code == 2 and named in error and error.count("\n") == 1


def test_another_range_is_another_run():
    begun = Settings(img_size="64-128")
    message = refused(Settings(img_size="64-160"), begun.record())
    assert "--img-size was ['64-128'], now ['64-160']" in message and "--crop-size" not in message
    assert "was ['9/10'], now ['64-128']" in refused(
        replace(begun, crop_size=("64-128",)), begun.record()
    )


def test_defaults_of_zero_are_shown(call):
    _, out, _ = call(train.main, "--help")
    squeezed = " ".join(out.split())
    for text in (
        "of weights, order and crops (default: 0)",
        "0 for none (default: 0.0)",
        "the middle one (288) for evaluation",
        "(default: tensorboard)",
    ):
        assert text in squeezed


def refused(settings, before, **facts):
    with pytest.raises(UserError) as caught:
        check_record(settings, before, settings.record() | facts)
    return caught.value.describe(cli.flag)


def test_overfit_runs_crop_nothing():
    """So a size that is large enough whole is one, and what is too small is named for what it is.

    32 of 9/10 would be 28, and U-Net's unpadded convolutions need more than 184 pixels.
    """
    settings = train.parse_args(["--overfit", "1", "--img-size", "32", "64-96"])
    assert settings.stages == [[(32, 32)], [(64, 64), (96, 96)]]
    _check_fit(settings, build_model("unet_bn"))
    _check_fit(train.parse_args(["--overfit", "2", "--img-size", "200"]), build_model("unet"))
    for flags, network, error in (
        ("--overfit 1 --img-size 32", "u2net_lite", "--overfit 1: batch norm needs more"),
        ("--overfit 2 --img-size 160", "unet", "--img-size 160: the unpadded convolutions"),
        ("--img-size 200", "unet", "--crop-size 180: the unpadded convolutions"),
    ):
        with pytest.raises(UserError) as caught:
            _check_fit(train.parse_args(flags.split()), build_model(network))
        assert caught.value.describe(cli.flag).startswith(error)


def test_no_size_is_skipped_by_another_number_of_epochs():
    """Of a run that is shortened before it has come to all of them."""
    state = {"epoch": 4, "step": 0, "schedule": {"epochs": 24, "starts": [0, 8, 16]}}
    sizes = {"img_size": (64, 96, 128)}
    with pytest.raises(UserError) as caught:
        size_starts(Settings(**sizes, epochs=6), state)
    assert caught.value.describe(cli.flag) == (
        "--epochs 6: each size needs an epoch of its own, but they begin after 0, 4, 4; pass more "
        "epochs"
    )
    assert size_starts(Settings(**sizes, epochs=8), state) == [0, 4, 5]
    assert size_starts(Settings(**sizes, epochs=48), state) == [0, 16, 32]


def test_what_a_resumed_run_may_change():
    """The white list; all else must agree."""
    may_change = {name for name, declared in DECLARATIONS.items() if declared.may_change}
    assert may_change == {
        *("workers", "compile", "checkpoint_activations"),
        *("output_dir", "resume", "eval_interval", "save_every", "keep", "tracker"),
        *("epochs", "patience"),
    }
    begun = Settings(epochs=8)
    other = replace(begun, workers=3, compile=True, eval_interval=1, save_every=9, keep=1)
    check_record(other, begun.record(), other.record())
    message = refused(replace(begun, lr=0.5, augment="strong"), begun.record())
    assert "--lr was 0.001, now 0.5; --augment was 'basic', now 'strong'" in message
    assert "start weights (--pretrained or --backbone) was 'sha256 a', now None" in refused(
        begun, begun.record() | {"start": "sha256 a"}, start=None
    )


def test_an_older_checkpoint_lacks_settings():
    """Each counts as its default, also one that follows from others."""
    settings = Settings(img_size=(64, 96), epochs=8)
    before = settings.record()
    for name in ("crop_size", "clip_grad", "loss"):
        del before[name]
    before |= {"eval_interval": 3, "compile": True}  # which were in the record once
    check_record(settings, before, settings.record() | {"start": None})
    changed = replace(settings, clip_grad=1.0, crop_size=(48, 48))
    assert "--crop-size was [57, 86], now [48, 48]; --clip-grad was 0.0, now 1.0" in refused(
        changed, before
    )


def test_start_weights_are_told_apart_by_content(tmp_path):
    """Not by name; who resumes from a path need not name them, who says auto repeats all flags."""
    one, copied, other = (tmp_path / name for name in ("one.pt", "copied.pt", "other.pt"))
    one.write_bytes(b"weights")
    shutil.copy(one, copied)
    other.write_bytes(b"others")
    start = start_weights(Settings(pretrained=one), None)
    assert start == start_weights(Settings(pretrained=copied), None)
    assert start != start_weights(Settings(pretrained=other), None)
    assert start == start_weights(Settings(backbone=str(one)), None)
    assert start_weights(Settings(backbone="imagenet"), None) == "imagenet"
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(one, folder / "best.pt")
    assert start_weights(Settings(pretrained=folder), None) == start
    (folder / "log.csv").touch()  # a run's folder grows
    assert start_weights(Settings(pretrained=folder), None) == start
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text(name)
    start_of_two = start_weights(Settings(pretrained=folder), None)
    (folder / "README.md").touch()
    assert start != start_of_two == start_weights(Settings(pretrained=folder), None)
    state = {"flags": {"start": start}}
    assert start_weights(Settings(resume="runs/net-1/last.pt"), state) == start
    assert start_weights(Settings(resume="auto"), state) is None


def test_how_networks_of_one_name_differ():
    """The name alone would read as if nothing was wrong."""
    narrow, named = build_model({"name": "unet_bn", "width": 8}), build_model("unet_bn")
    assert _differences(narrow, named) == " with width 8, not 64"
    assert _differences(build_model("unet"), named) == ""
    assert _differences(build_model("unet_bn", out_ch=3), named) == ""
    table = build_model("u2net_lite").config.to_dict()
    table["encoder"][0]["height"] = 6
    other = _differences(build_model(table), build_model("u2net_lite"))
    assert other == " with other values of encoder"
