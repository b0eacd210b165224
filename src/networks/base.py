"""The base class of all networks: the contract of their outputs, loading and saving."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .config import NetworkConfig, U2NetConfig

BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
MIN_SIZE = 32  # smallest side in pixels that every network takes


class Network(nn.Module):
    """A network from image to maps.

    Args:
        config: the table that the network is built from.

    Shape: input N×in_ch×H×W float, normalised, any H, W ≥ 32.

    Returns (forward): in training mode a list of logits, the output map first, each N×out_ch×H×W
    (``unet``: only of the centre, as its convolutions are unpadded). In eval mode the first map as
    float32 probabilities, N×out_ch×H×W in [0, 1].
    """

    config_class: ClassVar[type[NetworkConfig] | type[U2NetConfig]] = NetworkConfig
    config: NetworkConfig | U2NetConfig
    img_size: int  # the side that images are resized to; kept with the weights
    input_size: str | None = None  # in place of that square: "480x320" or "auto"; for exports
    origin: str  # where the weights came from, for messages; set by load_model
    fused = False
    recompute = False  # training stores only the outputs of stages, see run
    margin: ClassVar[int] = 0  # pixels that training mode's maps lack on each side
    jumps: ClassVar[bool] = False  # rounding may change a map a lot (SegNet's)
    backbone: ClassVar[str | None] = None  # torchvision's network whose weights it can start from

    def __init__(self, config: NetworkConfig | U2NetConfig) -> None:
        super().__init__()
        self.config = config
        self.img_size = config.img_size

    @property
    def map_names(self) -> list[str]:
        """The names of training mode's maps in logs, in order."""
        return ["fused"]

    @property
    def num_maps(self) -> int:
        """How many maps training mode returns."""
        return len(self.map_names)

    @property
    def stride(self) -> int:
        """Downsampling factor of the coarsest map that a batch norm sees, per side."""
        return 1

    def plain(self) -> "Network":
        """A copy with this toolkit's own names and outputs, whatever a subclass changes in them."""
        return copy.deepcopy(self)

    def plain_state(self) -> dict[str, Tensor]:
        """The tensors of :meth:`plain` by name, not copied."""
        return self.state_dict()

    def logits(self, x: Tensor) -> list[Tensor]:
        """The list that training mode returns, in either mode."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Any:  # a subclass may return maps in another form
        maps = self.logits(x)
        return maps if self.training else self.probabilities(maps[0])

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits N×out_ch×H×W to float32 probabilities by the config's activation."""
        logits = logits.float()
        return logits.softmax(1) if self.config.activation == "softmax" else logits.sigmoid()

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Start from the weights of torchvision's network that ``backbone`` names.

        Raises:
            UserError: the layers in ``state`` are not those of that network.
        """
        raise NotImplementedError

    def run(self, stage: nn.Module, x: Tensor | list[Tensor]) -> Tensor:
        """Run a stage. With ``recompute``, training discards the activations inside the stage and
        recomputes them in the backward pass (Chen et al. 2016, "Training deep nets with sublinear
        memory cost"): less memory for more time, and the same step.
        """
        if not (self.recompute and self.training and torch.is_grad_enabled()):
            return stage(x)
        contexts = (nullcontext(), _frozen_statistics(stage))
        return checkpoint(stage, x, use_reentrant=False, context_fn=lambda: contexts)

    def fuse(self) -> Self:
        """Fold every batch norm into its convolution, in place; sets eval mode. Returns self."""
        self.eval()
        self.fused = True
        for module in self.modules():
            fuse = getattr(module, "fuse", None)
            if fuse and module is not self:
                fuse()
        return self

    def save_pretrained(self, folder: str | Path, **options: Any) -> str | None:
        """Write ``config.json``, ``model.safetensors``, a model card, and the files with which
        transformers loads them without this library, to a folder.

        Args:
            folder: created if missing.
            **options: of :meth:`huggingface_hub.ModelHubMixin.save_pretrained`, and ``onnx=True``
                for ``onnx/model.onnx`` too, which transformers.js loads.

        Returns:
            The URL of the commit if ``push_to_hub=True`` uploads the files too.

        Raises:
            UserError: the network is fused; or ``onnx=True``, and a package is missing or the
                network does not give one map of RGB images.
        """
        from ..export import hub

        return hub.save_pretrained(self, folder, **options)

    def push_to_hub(self, name: str, **options: Any) -> str:
        """Upload the same files to a repository on the Hugging Face Hub.

        Args:
            name: ``owner/name``, created if missing.
            **options: of :meth:`huggingface_hub.ModelHubMixin.push_to_hub`: ``private``,
                ``token``, ``branch``, ``commit_message``, …; and ``onnx=True``, as above.

        Returns:
            The URL of the commit.
        """
        from ..export import hub

        return hub.push_to_hub(self, name, **options)

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> Self:
        """Load a network from a folder of ``save_pretrained`` or from a repository on the Hub.

        Args:
            name: the folder, else ``owner/name`` on the Hub.
            **options: of :func:`huggingface_hub.snapshot_download`: ``revision``, ``token``,
                ``cache_dir``, ``local_files_only``, …

        Returns:
            The network in eval mode, on the CPU.

        Raises:
            UserError: nothing has that name, or it does not hold a network of this class.
        """
        from ..weights import hub

        return hub.from_pretrained(cls, name, **options)


@contextmanager
def _frozen_statistics(stage: nn.Module) -> Iterator[None]:
    """Let batch norms update copies of their statistics, which have counted the batch already."""
    norms = [m for m in stage.modules() if isinstance(m, BATCH_NORMS)]
    kept = [dict(norm.named_buffers(recurse=False)) for norm in norms]
    for norm, buffers in zip(norms, kept, strict=True):
        for name, buffer in buffers.items():
            setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)


def init_he(network: nn.Module) -> None:
    """Normal weights of variance 2 / fan-in (He et al. 2015) for all convolutions, biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
