"""Networks to and from folders and the Hugging Face Hub, by huggingface_hub's own mixin, which is
imported once it is needed: predicting needs none of it.
"""

from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from .storage import FOLDER, load_state, read_file, save_folder

_CARD = """---
{{ card_data }}
---

`{{ network }}` of the U²-Net toolkit: a picture in, a map of its objects or classes out.
`config.json` holds its table and the size in pixels that it was trained at.

```python
from u2net import Predictor, {{ network }}

network = {{ network }}.from_pretrained("this repository's name, or a folder")
result = Predictor(network)("photo.jpg")  # in [0, 1]: H×W, or K×H×W of K classes
```
"""


@cache
def _mixin() -> type:
    """huggingface_hub's mixin around a network, for what it writes and sends."""
    from huggingface_hub import ModelCard, ModelHubMixin

    class Shared(
        ModelHubMixin,
        library_name="u2net",
        tags=["image-segmentation", "salient-object-detection", "u2net"],
        pipeline_tag="image-segmentation",
        model_card_template=_CARD,
    ):
        def __init__(self, network: HubNetwork) -> None:
            self.network = network

        def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
            """The mixin's, with the class to load by."""
            name = type(self.network).__name__
            return super().generate_model_card(*args, network=name, **kwargs)

        def _save_pretrained(self, save_directory: Path) -> None:
            save_folder(self.network, save_directory)

    return Shared


class HubNetwork:
    """Adds ``save_pretrained(folder)``, ``push_to_hub(id)`` and ``from_pretrained(folder or id)``.

    A network class names what makes its ``config`` from a dict in ``config_class``.
    """

    config_class: Any

    def save_pretrained(self, folder: str | Path, **options: Any) -> str | None:
        """Write ``config.json``, ``model.safetensors`` and a card to a folder.

        Args:
            folder: made where it is missing.
            **options: of :meth:`huggingface_hub.ModelHubMixin.save_pretrained`.

        Returns:
            The commit's address where ``push_to_hub=True`` sends it too.
        """
        return _mixin()(self).save_pretrained(folder, **options)

    def push_to_hub(self, name: str, **options: Any) -> str:
        """Send the same to a repository on the Hub; returns the commit's address.

        Args:
            name: ``owner/name``, made where it is missing.
            **options: of :meth:`huggingface_hub.ModelHubMixin.push_to_hub`: ``private``,
                ``token``, ``branch``, ``commit_message``, …
        """
        return _mixin()(self).push_to_hub(name, **options)

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> "HubNetwork":
        """The network of a folder that ``save_pretrained`` made, or of a repository on the Hub.

        Args:
            name: the folder, else ``owner/name`` on the Hub.
            **options: of :func:`huggingface_hub.snapshot_download`: ``revision``, ``token``,
                ``cache_dir``, ``local_files_only``, …

        Returns:
            The network in eval mode, on the CPU.

        Raises:
            UserError: nothing there by that name, or no network of this class in it.
        """
        folder = Path(name)
        if not folder.is_dir():
            folder = _download(str(name), options)
        content = read_file(folder)
        try:
            with torch.device("meta"):
                model = cls(cls.config_class.from_dict(content["config"]))
        except UserError as error:
            raise UserError(f"{folder}: holds no {cls.__name__} ({error})") from None
        model.img_size = content.get("img_size", model.img_size)
        load_state(model, content["model"], folder)
        return model.eval()


def _download(name: str, options: dict[str, Any]) -> Path:
    from huggingface_hub import errors, snapshot_download

    absent = errors.HfHubHTTPError, errors.HFValidationError, errors.LocalEntryNotFoundError
    try:
        return Path(snapshot_download(name, allow_patterns=list(FOLDER), **options))
    except (*absent, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{name}: no such folder, nor to be had from the Hub ({reason})") from None
