"""Networks to and from folders and the Hugging Face Hub.

huggingface_hub's own mixin writes the model card and uploads. It is imported only where it is
needed: to predict takes none of it.
"""

from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..errors import UserError
from ..networks.base import Network
from .storage import FOLDER, load_state, read_file, save_folder

_N = TypeVar("_N", bound=Network)
_CARD = """---
{{ card_data }}
---

`{{ network }}` of the U²-Net toolkit: an image in, a map of its objects or classes out.
`config.json` holds its table and the size in pixels that it was trained at.

```python
from u2net import Predictor, {{ network }}

network = {{ network }}.from_pretrained("this repository's name, or a folder")
result = Predictor(network)("photo.jpg")  # in [0, 1]: H×W, or K×H×W of K classes
```
"""


def save_pretrained(network: Network, folder: str | Path, **options: Any) -> str | None:
    """See :meth:`Network.save_pretrained`."""
    return _mixin()(network).save_pretrained(folder, **options)


def push_to_hub(network: Network, name: str, **options: Any) -> str:
    """See :meth:`Network.push_to_hub`."""
    return _mixin()(network).push_to_hub(name, **options)


def from_pretrained(network_class: type[_N], name: str | Path, **options: Any) -> _N:
    """See :meth:`Network.from_pretrained`."""
    folder = Path(name)
    if not folder.is_dir():
        folder = _download(str(name), options)
    content = read_file(folder)
    try:
        with torch.device("meta"):
            model = network_class(network_class.config_class.from_dict(content["config"]))
    except UserError as error:
        raise UserError(f"{folder}: holds no {network_class.__name__} ({error})") from None
    model.img_size = content.get("img_size", model.img_size)
    load_state(model, content["model"], folder)
    return model.eval()


@cache
def _mixin() -> Any:
    """A class that gives huggingface_hub's mixin a network's files; no base of the networks
    themselves, as every start would import huggingface_hub then."""
    from huggingface_hub import ModelCard, ModelHubMixin

    class HubModel(
        ModelHubMixin,
        library_name="u2net",
        tags=["image-segmentation", "salient-object-detection", "u2net"],
        pipeline_tag="image-segmentation",
        model_card_template=_CARD,
    ):
        def __init__(self, network: Network) -> None:
            self.network = network

        def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
            """The mixin's, with the class to load by."""
            name = type(self.network).__name__
            return super().generate_model_card(*args, network=name, **kwargs)

        def _save_pretrained(self, save_directory: Path) -> None:
            save_folder(self.network, save_directory)

    return HubModel


def _download(name: str, options: dict[str, Any]) -> Path:
    from huggingface_hub import errors, snapshot_download

    absent = errors.HfHubHTTPError, errors.HFValidationError, errors.LocalEntryNotFoundError
    try:
        return Path(snapshot_download(name, allow_patterns=list(FOLDER), **options))
    except (*absent, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{name}: no such folder, and not found on the Hugging Face Hub ({reason})"
        ) from None
