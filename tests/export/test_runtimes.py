"""What other programs make of an export: C++ and rembg, against our own prediction."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.data import ROOT, SMALL, make_scene, make_varied_network, same_state
from helpers.golden import ROUNDING, SHARED, needs_shared
from PIL import Image

import convert
import export
from src import Predictor, load_model, save_model
from src.export.onnx import export_onnx
from src.export.torch_export import export_pt2


def on_path(*programs):
    missing = [name for name in programs if shutil.which(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed here: {', '.join(missing)}")


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """An AOTInductor package of a small network, as export.py makes it."""
    folder = tmp_path_factory.mktemp("aoti")
    save_model(make_varied_network(SMALL), folder / "tiny.pt")
    argv = ["--weights", folder / "tiny.pt", "--format", "aoti", "--output", folder / "tiny.pt2"]
    assert export.main([str(a) for a in argv]) == 0
    return folder / "tiny.pt2"


@on_path("g++")
def test_aoti(package):
    """One picture of the size that it was trained at; and what a reader must know."""
    network = torch._inductor.aoti_load_package(str(package))
    about = network.get_metadata()
    assert about["img_size"] == "96" and about["mean"] == "[0.485, 0.456, 0.406]"
    model = load_model(package.with_suffix(".pt"))
    x = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        assert torch.allclose(network(x)[0], model(x), atol=1e-5)


def build_cpp(folder, *options):
    """The programs of cpp/, by the commands of docs/using/export.md."""
    for command in (
        ["cmake", "-S", ROOT / "cpp", "-B", folder, *options],
        ["cmake", "--build", folder],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if 'provided by "OpenCV"' in done.stderr:  # find_package's own words
            pytest.skip("OpenCV is not installed here for C++ (libopencv-dev)")
        assert done.returncode == 0, done.stdout + done.stderr


def check_what_is_written(program, network, image):
    """Nothing beside a whole mask, under a name that can hold it; what was there stays."""
    folder = image.parent
    (folder / "full.bmp").symlink_to("/dev/full")
    (folder / "old.pbm").write_text("old")
    (folder / "folder.png").mkdir()
    for name, problem in (
        ("full.bmp", "not written (No space left on device)"),
        ("old.pbm", "name it .png"),
        ("folder.png", "a folder"),
        ("no/mask.png", "no such folder"),
    ):
        argv = [program, network, image, folder / name]
        done = subprocess.run(argv, capture_output=True, text=True)
        assert done.returncode == 2 and problem in done.stderr, done.stderr
    assert (folder / "old.pbm").read_text() == "old" and (folder / "full.bmp").is_symlink()
    for other in (folder, folder / "old.pbm", folder / "missing.png"):  # no images
        argv = [program, network, other, folder / "mask.png"]
        done = subprocess.run(argv, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith(f"error: {other}: "), done.stderr
    assert not [*folder.glob("*.part")]


@on_path("g++", "cmake")
def test_cpp(package, tmp_path):
    """Its masks are predict.py's, of pictures that shrink, grow and have to be turned upright."""
    build_cpp(tmp_path, f"-DPYTHON={sys.executable}")
    float32 = ["--weights", package.with_suffix(".pt"), "--device", "cpu", "--amp", "off"]
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    for name, size, options in (
        ("large.png", (301, 207), {}),
        ("small.png", (40, 33), {}),
        ("turned.jpg", (120, 90), {"exif": exif, "quality": 95}),
    ):
        Image.fromarray(make_scene(3, *size)[0]).save(tmp_path / name, **options)
        theirs, ours = tmp_path / "theirs.png", tmp_path / "ours.png"
        subprocess.run([tmp_path / "mask", package, tmp_path / name, theirs], check=True)
        subprocess.run(
            [sys.executable, "predict.py", tmp_path / name, "--output", ours, *float32],
            cwd=ROOT, check=True, capture_output=True,
        )  # fmt: skip
        a, b = (np.asarray(Image.open(path)).astype(int) for path in (theirs, ours))
        assert a.shape == b.shape and np.ptp(b) > 10
        assert np.abs(a - b).max() <= 1
    for argv in ([], [tmp_path / "no.pt2", "a", "b"], [package, tmp_path / "no.png", "b"]):
        done = subprocess.run([tmp_path / "mask", *argv], capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith("error: ")
        assert "frame #" not in done.stderr
    check_what_is_written(tmp_path / "mask", package, tmp_path / "large.png")
    (tmp_path / "link.png").symlink_to("large.png")
    for output in ("large.png", "link.png"):  # no output is an input
        argv = [tmp_path / "mask", package, tmp_path / "large.png", tmp_path / output]
        done = subprocess.run(argv, capture_output=True, text=True)
        assert done.returncode == 2 and "would overwrite an input" in done.stderr


RUNTIME = Path(os.environ.get("ONNXRUNTIME", "/usr"))  # an unpacked release, or the system's
HEADERS = [RUNTIME / "include" / name for name in ("", "onnxruntime", "onnxruntime/core/session")]


@on_path("g++", "cmake")
@pytest.mark.skipif(
    not any((folder / "onnxruntime_cxx_api.h").is_file() for folder in HEADERS),
    reason="ONNX Runtime for C++ is not in $ONNXRUNTIME nor installed (libonnxruntime-dev)",
)
def test_cpp_by_onnxruntime(tmp_path):
    """Its masks are predict.py's: images that shrink and grow, files of one size and of any."""
    build = tmp_path / "build"
    build_cpp(build, f"-DONNXRUNTIME={RUNTIME}")
    model = make_varied_network(SMALL)
    predict = Predictor(model, device="cpu", amp="off")
    for static in (True, False):
        export_onnx(model, tmp_path / "net.onnx", static=static)
        for width, height in ((301, 207), (40, 33)):
            image = Image.fromarray(make_scene(3, width, height)[0])
            image.save(tmp_path / "image.png")
            argv = [build / "mask_onnx", tmp_path / "net.onnx", tmp_path / "image.png"]
            subprocess.run([*argv, tmp_path / "mask.png"], check=True)
            theirs = np.asarray(Image.open(tmp_path / "mask.png")).astype(int)
            ours = np.asarray(predict(image)).astype(int)
            assert np.ptp(ours) > 10 and np.abs(theirs - ours).max() <= 1
            done = subprocess.run([*argv, tmp_path / "image.png"], capture_output=True, text=True)
            assert done.returncode == 2 and "would overwrite an input" in done.stderr
    check_what_is_written(build / "mask_onnx", tmp_path / "net.onnx", tmp_path / "image.png")


REMBG = ROOT / ".venv-rembg/bin/python"  # its packages clash with pysodmetrics'
REMBG_MASKS = """
import sys
from pathlib import Path
from unittest.mock import MagicMock
for part in ("alpha.estimate_alpha_cf", "foreground.estimate_foreground_ml", "util.util"):
    sys.modules["pymatting." + part] = MagicMock()  # compiles for a minute, for mattes alone
for package in ("pymatting", "pymatting.alpha", "pymatting.foreground", "pymatting.util"):
    sys.modules[package] = MagicMock()
from PIL import Image
import rembg
model, folder, *pictures = sys.argv[1:]
session = rembg.new_session("u2net_custom", model_path=model)
for path in pictures:
    mask = rembg.remove(Image.open(path), session=session, only_mask=True)
    mask.save(Path(folder) / (Path(path).stem + ".png"))
"""


@pytest.mark.skipif(not REMBG.is_file(), reason="no .venv-rembg here; make test makes it")
def test_rembg(call, tmp_path, weights):
    """An export as it is in rembg's session for other people's networks, and predict.py's preset of
    that name; the published weights on real pictures too, where they are at hand."""
    pictures = [Image.fromarray(make_scene(seed, 64 + 31 * seed, 70)[0]) for seed in range(3)]
    if SHARED.is_dir():
        weights = SHARED / "weights/u2netp.pth"
        paths = sorted((SHARED / "reference/images").iterdir())
        pictures += [Image.open(path).convert("RGB") for path in paths]
    pictures += [one.resize((320, 320)) for one in pictures[-2:]]  # whose maps keep their size
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.bmp")
    argv = ["--weights", weights, "--preset", "rembg", "--output", tmp_path / "lite.onnx"]
    assert call(export.main, *argv)[0] == 0
    subprocess.run(
        [REMBG, "-c", REMBG_MASKS, tmp_path / "lite.onnx", tmp_path, *tmp_path.glob("*.bmp")],
        env={**os.environ, "U2NET_HOME": str(tmp_path)}, check=True,
    )  # fmt: skip
    predict = Predictor(weights, 320, preset="rembg", device="cpu")
    for i, picture in enumerate(pictures):
        theirs = np.asarray(Image.open(tmp_path / f"{i}.png")).astype(int)
        ours = np.asarray(predict(picture)).astype(int)
        assert ours.shape == theirs.shape
        off = np.abs(ours - theirs)
        # Both cut to 8 bits, where float32 may round to either side of a level. Lanczos then
        # resizes in two passes of 8 bits each, whose weights' absolute values sum to 1.56 at most:
        # 1 level becomes 2 at most, and 2 become 4; where a map is smooth, neighbours round alike,
        # and some dozens of pixels do (23 of horse.jpg's 120,000 on one processor, none on others).
        limit = 1 if picture.size == (320, 320) else 4
        assert off.max() <= limit and (off > 1).mean() < 2e-3 and off.mean() < 0.1


@needs_shared
def test_published_weights(call, tmp_path):
    """Official → ours → safetensors → ONNX → official: bit-equal, as nothing is left to fold. On
    the way all seven maps of the official code, by ONNX Runtime and a torch.export program.
    """
    import onnxruntime

    official = SHARED / "weights/u2netp.pth"
    names = [tmp_path / name for name in ("a.pt", "b.safetensors", "c.onnx", "d.pth", "e.pt2")]
    assert call(convert.main, official, names[0])[0] == 0
    assert call(convert.main, names[0], names[1])[0] == 0
    model = load_model(names[1])
    export_onnx(model, names[2], sides=True)
    assert call(convert.main, names[2], names[3], "--official")[0] == 0
    back, start = (torch.load(path, weights_only=True) for path in (names[3], official))
    assert same_state(back, start)
    export_pt2(model, names[4], sides=True)
    session = onnxruntime.InferenceSession(names[2])
    program = torch.export.load(names[4]).module()
    golden = np.load(SHARED / "golden/u2netp_horse.npz")
    for size in ("", "odd_"):
        x, expected = golden[size + "input"], golden[size + "outputs"]
        for maps in (session.run(None, {"images": x}), program(torch.from_numpy(x))):
            found = np.concatenate([np.asarray(m) for m in maps])
            assert found.shape == expected.shape
            assert np.abs(found - expected).max() <= max(1e-4, ROUNDING)
