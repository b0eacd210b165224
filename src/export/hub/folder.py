"""Save networks to folders and the Hugging Face Hub; ``src/weights/hub.py`` loads them.

huggingface_hub's own mixin writes the model card and uploads. It is imported only where it is
needed, as prediction does not need it.
"""

from functools import cache
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...networks.base import Network
from ...weights.storage import save_folder
from .transformers import describe, write_files

_CARD = """---
{{ card_data }}
---

`{{ network }}` of the U²-Net toolkit: an RGB image in, {{ gives }} out. `config.json` holds its
table and the size in pixels that it was trained at. `FOLDER` stands for this repository's name, or
for a folder with these files.

With the toolkit:

```python
from u2net import Predictor, {{ network }}

network = {{ network }}.from_pretrained("FOLDER")
result = Predictor(network)("photo.jpg")  # in [0, 1]: H×W, or K×H×W of K classes
```

With transformers, without the toolkit:

```python
from transformers import pipeline

segment = pipeline("image-segmentation", model="FOLDER", trust_remote_code=True)
mask = segment("photo.jpg")[0]["mask"]  # a PIL image; of classes, one entry for each
```

or step by step:

```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageSegmentation

processor = AutoImageProcessor.from_pretrained("FOLDER", trust_remote_code=True)
model = AutoModelForImageSegmentation.from_pretrained("FOLDER", trust_remote_code=True).eval()
image = Image.open("photo.jpg")
with torch.no_grad():
    outputs = model(**processor(image, return_tensors="pt"))  # outputs.logits: 1×K×S×S
result = processor.post_process_maps(outputs, [(image.height, image.width)])[0]
```
{% if onnx %}
With transformers.js, in browsers and Node.js (one RGB image at a time):

```js
import { pipeline } from "@huggingface/transformers";

const removeBackground = await pipeline("background-removal", "FOLDER");
const cutout = await removeBackground("photo.jpg");
await cutout.save("cutout.png");
```
{% endif %}"""


def save_pretrained(
    network: Network, folder: str | Path, onnx: bool = False, **options: Any
) -> str | None:
    """See :meth:`Network.save_pretrained`."""
    return _mixin()(network, onnx).save_pretrained(folder, **options)


def push_to_hub(network: Network, name: str, onnx: bool = False, **options: Any) -> str:
    """See :meth:`Network.push_to_hub`."""
    return _mixin()(network, onnx).push_to_hub(name, **options)


@cache
def _mixin() -> Any:
    """A class that gives huggingface_hub's mixin a network's files; not a base class of networks,
    as every start would then import huggingface_hub."""
    from huggingface_hub import ModelCard, ModelHubMixin

    class HubModel(
        ModelHubMixin,
        library_name="u2net",
        tags=["image-segmentation", "salient-object-detection", "u2net"],
        pipeline_tag="image-segmentation",
        model_card_template=_CARD,
    ):
        def __init__(self, network: Network, onnx: bool) -> None:
            self.network, self.onnx = network, onnx

        def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
            """The mixin's card, with the class to load it with."""
            name, config = type(self.network).__name__, self.network.config
            gives = f"{config.out_ch} maps of classes" if config.object_map is None else "a mask"
            values = {"network": name, "gives": gives, "onnx": self.onnx}
            return super().generate_model_card(*args, **values, **kwargs)

        def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
            """As the mixin's, which begins by removing an old ``config.json``: checks come before
            that."""
            if self.network.fused:
                raise UserError(f"{save_directory}: the network is fused; save it before fuse()")
            self.entries = describe(self.network)
            write_files(self.network, Path(save_directory), self.onnx)
            return super().save_pretrained(save_directory, **options)

        def _save_pretrained(self, save_directory: Path) -> None:
            save_folder(self.network, save_directory, **self.entries)

    return HubModel
