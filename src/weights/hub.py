"""Load networks from folders and the Hugging Face Hub; ``src/export/hub/`` writes and uploads
them."""

from pathlib import Path
from typing import Any, TypeVar

import torch

from ..errors import UserError
from ..networks.base import Network
from .load import find_state
from .storage import FOLDER, load_state, read_file

_N = TypeVar("_N", bound=Network)


def from_pretrained(network_class: type[_N], name: str | Path, **options: Any) -> _N:
    """See :meth:`Network.from_pretrained`."""
    folder = Path(name)
    if not folder.is_dir():
        folder = _download(str(name), options)
    content = read_file(folder)
    _, table, state = find_state(content, folder)
    try:
        with torch.device("meta"):
            model = network_class(network_class.config_class.from_dict(table))
    except UserError as error:
        raise UserError(f"{folder}: holds no {network_class.__name__} ({error})") from None
    model.img_size = content.get("img_size", model.img_size)
    load_state(model, state, folder)
    return model.eval()


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
