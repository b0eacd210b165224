"""What transformers makes of folders of save_pretrained, where this toolkit is not to be found.

python run_transformers.py IMAGE INPUT FOLDER …

INPUT is an .npy file, a batch for the networks. Each FOLDER gets ``logits.npy`` of it, ``map.npy``
of the image, ``mask.png`` by the pipeline (``mask0.png`` … of classes), and the folder ``again``.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageSegmentation, pipeline

assert "src" not in sys.modules
torch.set_num_threads(1)
image = Image.open(sys.argv[1])
for folder in map(Path, sys.argv[3:]):
    model = AutoModelForImageSegmentation.from_pretrained(folder, trust_remote_code=True)
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    assert not model.training
    with torch.no_grad():
        outputs = model(torch.from_numpy(np.load(sys.argv[2])))
        assert torch.equal(outputs[-1], outputs.logits)  # as in BiRefNet's examples
        np.save(folder / "logits.npy", outputs.logits)
        outputs = model(**processor(image, return_tensors="pt"))
    (result,) = processor.post_process_maps(outputs, [(image.height, image.width)])
    np.save(folder / "map.npy", result)
    found = pipeline("image-segmentation", model=str(folder), trust_remote_code=True)(sys.argv[1])
    for entry in found:
        number = entry["label"].removeprefix("class ")
        entry["mask"].save(folder / f"mask-{number}.png")
    model.save_pretrained(folder / "again")
    processor.save_pretrained(folder / "again")
