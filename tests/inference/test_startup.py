"""What predicting a picture imports: little beside torch, which takes the longest of all."""

import subprocess
import sys

from helpers.data import ROOT, make_scene, save_image

SCRIPT = """
import sys, torch
before = set(sys.modules)
import predict
assert predict.main(sys.argv[1:]) == 0
print(*sorted(set(sys.modules) - before))
"""


def test_prediction_imports_little(weights, tmp_path):
    picture = save_image(tmp_path / "a.jpg", make_scene()[0])
    argv = ["--weights", weights, "--img-size", "32", "--mode", "cutout", "--refine"]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, picture, *argv, "--output", tmp_path / "a.png"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = done.stdout.splitlines()[-1].split()
    packages = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    expected = {"PIL", "numpy", "predict", "safetensors", "src", "torch", "tqdm", "train_utils"}
    assert packages <= expected
    assert not any(
        name.startswith(("torch._dynamo", "torch.distributed.elastic")) for name in names
    )
