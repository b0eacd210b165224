"""A network of this toolkit as a model of Hugging Face's transformers.

Nothing imports this module here: ``transformers.py`` beside it bundles it, with all that it needs
from the rest of the library, into one file in a model's folder, which
``from_pretrained(folder, trust_remote_code=True)`` then runs without this library.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import BatchFeature, ImageSegmentationPipeline, PretrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_transforms import to_pil_image
from transformers.image_utils import make_flat_list_of_images
from transformers.modeling_outputs import SemanticSegmenterOutput

from ...inference.preprocess import resize_input, resize_map, to_tensor
from ...networks.registry import build_model
from ...pictures.classes import most_probable
from ...pictures.images import to_grey, to_rgb, turn


class U2NetForImageSegmentationConfig(PretrainedConfig):
    """The content of ``config.json``.

    Args:
        config: the network's table.
        img_size: the side in pixels of the square that it was trained on.
        **kwargs: passed on to transformers.
    """

    model_type = "isnet"  # under this name, transformers.js loads any network with one map

    def __init__(
        self, config: dict[str, Any] | None = None, img_size: int = 320, **kwargs: Any
    ) -> None:
        self.config: Any = config
        self.img_size = img_size
        super().__init__(**kwargs)


class U2NetForImageSegmentation(PreTrainedModel):
    """The network; its tensors have the same names as without transformers.

    Args:
        config: the content of ``config.json``.
    """

    config_class = U2NetForImageSegmentationConfig
    main_input_name = "pixel_values"

    def __init__(self, config: U2NetForImageSegmentationConfig) -> None:
        super().__init__(config)
        network = build_model(config.config or {})
        self._network = [network]  # in a list, as a module would put its name before the tensors'
        for name, child in network.named_children():
            self.add_module(name, child)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Networks initialise themselves."""

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> SemanticSegmenterOutput:
        """``logits`` N×K×H×W of images N×3×H×W prepared by the image processor."""
        network = self._network[0]
        network.training = self.training
        return SemanticSegmenterOutput(logits=network.logits(pixel_values)[0])


class U2NetImageProcessor(BaseImageProcessor):
    """Converts images to the network's input, and its logits to maps of the images' sizes.

    Args:
        size: ``height`` and ``width`` in pixels that images are resized to.
        image_mean: of the three channels in [0, 1].
        image_std: likewise.
        activation: what turns logits into probabilities, ``sigmoid`` or ``softmax``.
        object_map: the index of the object's map; None for several classes.
        **kwargs: passed on to transformers.
    """

    model_input_names = ("pixel_values",)

    def __init__(
        self,
        size: dict[str, int] | None = None,
        image_mean: Sequence[float] = (0.485, 0.456, 0.406),
        image_std: Sequence[float] = (0.229, 0.224, 0.225),
        activation: str = "sigmoid",
        object_map: int | None = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.size = size or {"height": 320, "width": 320}
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        self.activation, self.object_map = activation, object_map

    def preprocess(self, images: Any, return_tensors: str | None = None, **_: Any) -> BatchFeature:
        """``pixel_values`` N×3×S×S of a PIL image, an array, a tensor, or a list of them."""
        prepared = torch.stack([self._prepare(one) for one in make_flat_list_of_images(images)])
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self.image_mean, self.image_std))
        values = prepared.float().div_(255).sub_(mean).div_(std)
        return BatchFeature({"pixel_values": values}, tensor_type=return_tensors)

    def _prepare(self, image: Any) -> Tensor:
        if not isinstance(image, Image.Image):
            image = to_pil_image(image)
        image = to_rgb(turn(image))
        return resize_input(to_tensor(image), (self.size["height"], self.size["width"]))

    def post_process_maps(
        self, outputs: Any, target_sizes: Sequence[Sequence[int]] | None = None
    ) -> list[Tensor]:
        """The map of each image, H×W in [0, 1]; K×H×W for K classes.

        Args:
            outputs: of the model.
            target_sizes: height and width of each image; None for the size of the network's maps.
        """
        logits = outputs.logits.float()
        maps = logits.softmax(1) if self.activation == "softmax" else logits.sigmoid()
        if self.object_map is not None:
            maps = maps[:, self.object_map]
        sizes = target_sizes or [maps.shape[-2:]] * len(maps)
        return [resize_map(one, tuple(size)) for one, size in zip(maps, sizes, strict=True)]

    def post_process_semantic_segmentation(
        self, outputs: Any, target_sizes: Sequence[Sequence[int]] | None = None
    ) -> list[Tensor]:
        """The class of each pixel, H×W: for an object's map, 1 from a probability of 0.5."""
        maps = self.post_process_maps(outputs, target_sizes)
        return [most_probable(one if one.ndim == 3 else one[None]) for one in maps]


class U2NetPipeline(ImageSegmentationPipeline):
    """``pipeline("image-segmentation")``: an object's mask keeps all its grey levels."""

    def check_model_type(self, supported_models: Any) -> None:
        """Nothing to check, as this pipeline comes with its model."""

    def postprocess(
        self, model_outputs: Any, mask_threshold: float | None = None, **options: Any
    ) -> list[dict[str, Any]]:
        """One entry for the object, or one for each class that the image shows.

        Args:
            model_outputs: of the model.
            mask_threshold: makes the object's mask black and white; None leaves it grey.
            **options: passed on to transformers.
        """
        processor, sizes = self.image_processor, model_outputs["target_size"]
        if processor.object_map is None:
            return super().postprocess(model_outputs, **options)
        saliency = processor.post_process_maps(model_outputs, sizes)[0].cpu().numpy()
        if mask_threshold is not None:
            saliency = (saliency >= mask_threshold).astype(np.float32)
        return [{"score": None, "label": "foreground", "mask": to_grey(saliency)}]
