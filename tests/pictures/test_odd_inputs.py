"""Two hundred odd and hostile files in one folder: each is written, or named with its fault."""

import numpy as np
import pytest
import torch
from helpers.odd_inputs import GREY, all_inputs
from PIL import Image

import predict
from src import build_model, save_model
from src.pictures.images import open_image, to_rgb

INPUTS = {name: (content, outcome) for name, content, outcome in all_inputs()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """All of them predicted at once: status, what was said, and the folder of masks."""
    root = tmp_path_factory.mktemp("odd")
    torch.manual_seed(0)
    save_model(build_model("u2net_lite"), root / "w.pt")
    (root / "in").mkdir()
    for name, (content, _) in INPUTS.items():
        (root / "in" / name).write_bytes(content)
    (root / "in" / "folder.png").mkdir()
    (root / "in" / "nowhere.png").symlink_to(root / "absent.png")
    (root / "in" / ".hidden.png").write_text("no picture")
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("predict.tqdm.write", lambda text, file: said.append(text))
        argv = [str(root / "in"), "--weights", str(root / "w.pt"), "--img-size", "32"]
        argv += ["--device", "cpu", "--amp", "off", "--output"]
        status = [
            predict.main([*argv, str(root / mode), "--mode", mode]) for mode in ("mask", "cutout")
        ]
    return status, said, root


def test_the_run_goes_to_its_end(run):
    status, said, root = run
    assert status == [2, 2] and len(INPUTS) >= 200
    assert not list((root / "mask").glob(".*"))  # nothing half written
    assert not any("folder.png" in line or "nowhere" in line or "hidden" in line for line in said)


@pytest.mark.parametrize("name", INPUTS)
def test_outcome(run, name):
    _, said, root = run
    _, outcome = INPUTS[name]
    errors = [line for line in said if line.startswith(f"error: {root / 'in' / name}: ")]
    results = [_result(root / mode, name) for mode in ("mask", "cutout")]
    if outcome is None:  # whether a decoder bears it is its own affair
        assert (results[0] is None) == (len(errors) == 2)
    elif isinstance(outcome[0], int):
        assert not errors
        mask, cutout = results
        assert (mask.mode, mask.size) == ("L", outcome)
        assert (cutout.mode, cutout.size) == ("RGBA", outcome)
    else:
        words = (outcome,) if isinstance(outcome, str) else outcome
        assert results == [None, None] and len(errors) == 2
        assert any(word in errors[0] for word in words), errors


def _result(folder, name):
    stem = name.rpartition(".")[0]
    for path in (folder / f"{name}.png", folder / f"{stem}.png"):
        if path.is_file():
            with Image.open(path) as image:
                image.load()
                return image
    return None


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["jpeg", "png", "webp", "tiff", "avif"])
def test_turned_pictures_are_upright(run, form, orientation):
    """As EXIF 2.32 defines its values: where the first row and the first column are to be seen."""
    turn = {
        1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud,
        5: lambda x: x.transpose(1, 0, 2), 6: lambda x: np.rot90(x, -1),
        7: lambda x: np.rot90(x, 2).transpose(1, 0, 2), 8: np.rot90,
    }  # fmt: skip
    read = {n: np.array(open_image(run[2] / "in" / f"turned{n}.{form}"), float) for n in turn}
    errors = {
        n: np.abs(read[n] - turn[orientation](read[1])).mean()
        for n in turn
        if read[n].shape == turn[orientation](read[1]).shape
    }
    assert min(errors, key=errors.get) == orientation and errors[orientation] < 8, errors


def test_deep_and_float_greys_are_scaled(run):
    """What the network sees of them is what it sees of the same picture in 8 bits."""
    plain = np.array(GREY, int)
    for name in ("I16.png", "I16.tif", "I16B.tif", "F-share.tif", "F-levels.tif"):
        found = np.array(to_rgb(open_image(run[2] / "in" / name)), int)
        assert np.abs(found - plain[..., None]).max() <= 1, name
