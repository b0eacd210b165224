"""The page, built with Gradio: upload images, view and download results."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from gradio.processing_utils import save_pil_to_cache
from PIL import Image

from src import Style, UserError
from src.pictures.images import count_frames, open_image, to_rgb
from src.pictures.render import MODES, Background

from .networks import Networks

AT_ONCE = 20  # images per request
KEPT = 600  # seconds that uploads and results are kept
BEHIND = ("colour", "blur", "image")  # kinds of background
_SLIDER_SIDE = 1600  # pixels on the longer side


class Page(gr.Blocks):
    """Opens only uploaded files.

    Before each event, Gradio looks for files in the values of all its inputs, even a checkbox's: it
    downloads URLs and, in a mounted app, copies any path it is given.
    """

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *rest: Any) -> list[Any]:
        uploaded = Path(self.GRADIO_CACHE).resolve()
        for name in _named_files(inputs):
            path = Path(name)
            # A folder would break Gradio's clean-up, which treats every path as a file.
            if not (lies_in(path, uploaded) and os.path.isfile(path)):
                raise _refused(f"Only uploaded files are opened, within {KEPT // 60} minutes.")
        return await super().preprocess_data(block_fn, inputs, *rest)


def lies_in(path: Path, folder: Path) -> bool:
    """Whether a path lies in ``folder``, which must be resolved.

    A URL is not an absolute path, even if its ``..`` leads into the folder.
    """
    try:
        return path.is_absolute() and path.resolve().is_relative_to(folder)
    except (OSError, ValueError):  # a null byte or a lone surrogate, invalid in file names
        return False


def _named_files(value: Any) -> Iterator[str]:
    """The file names and URLs in a request's JSON, at any depth."""
    if isinstance(value, dict):
        if "path" in value:
            yield str(value["path"])
        value = list(value.values())
    for part in value if isinstance(value, list) else ():
        yield from _named_files(part)


def _refused(message: str) -> gr.Error:
    """An error to show on the page, not logged: it is not the program's fault."""
    return gr.Error(message, print_exception=False)


class Form(NamedTuple):
    """The user's choices: the page's inputs, in this order."""

    files: list[str] | None
    weights: str
    mode: str
    behind: str  # one of BEHIND
    colour: str
    image_behind: str | None
    hard_edge: bool
    threshold: float
    refine: bool
    invert: bool
    crop: bool

    def make_style(self) -> Style:
        """The chosen style.

        Raises:
            UserError: the background image is missing or cannot be read.
        """
        background: Background = "white"
        if self.mode == "background":
            background = "blur" if self.behind == "blur" else _hex(self.colour)
            if self.behind == "image":
                if not self.image_behind:
                    raise UserError("Choose a background image.")
                background = _open(self.image_behind)
        return Style(
            self.mode,
            background,
            self.threshold if self.hard_edge or self.mode == "binary" else None,
            invert=self.invert,
            crop=self.crop,
            refine=self.refine,
        )


Shown = tuple[tuple[Image.Image, Image.Image] | None, list[tuple[str, str]]]


def predict(networks: Networks, form: Form, folder: str) -> Shown:
    """The first image before and after, and all results as titled files in ``folder``."""
    if not form.files:
        raise _refused("Add an image first.")
    if len(form.files) > AT_ONCE:
        raise _refused(f"{len(form.files)} images are too many: at most {AT_ONCE} at a time.")
    try:
        style = form.make_style()
    except UserError as error:
        raise _refused(str(error)) from None
    results, first = [], None
    for path in form.files:
        try:
            image = _open(path)
            result = networks.result(image, form.weights, style)
        except UserError as error:
            gr.Warning(str(error))
            continue
        name = Path(path).stem  # also the file's: browsers name downloads after it
        file = save_pil_to_cache(result, folder, f"{name}-{form.mode}", "png")
        results.append((file, name))
        first = first or (_shrink(image, result.size), _shrink(result, result.size))
        if (frames := count_frames(image)) > 1:
            gr.Info(f"{Path(path).name}: only the first of its {frames} images was used.")
    if not results:
        raise _refused("None of these files could be read as an image.")
    return first, results


def build_page(networks: Networks, max_waiting: int) -> gr.Blocks:
    """The page.

    Args:
        networks: to choose from.
        max_waiting: maximum number of queued requests.
    """
    page = Page(title="U²-Net", delete_cache=(60, KEPT), analytics_enabled=False)
    page.run_history = False  # else browsers store every run, and may send it elsewhere
    with page:
        gr.Markdown("## U²-Net: salient objects and cut-outs")
        with gr.Row():
            with gr.Column(scale=1):
                inputs = _add_inputs(networks.names)
                button = gr.Button("Predict", variant="primary")
            with gr.Column(scale=2):
                slider = gr.ImageSlider(
                    label="Before and after",
                    format="png",
                    image_mode=None,
                    buttons=["fullscreen"],  # shrunk, so no download
                )
                gallery = gr.Gallery(
                    label="Results (PNG)",
                    columns=4,
                    object_fit="contain",
                    buttons=["download", "download_all", "fullscreen"],  # no sharing
                )
        button.click(
            lambda *values: predict(networks, Form(*values), gallery.GRADIO_CACHE),
            inputs,
            [slider, gallery],
            api_visibility="private",  # the API has its own route
            concurrency_limit=1,
        )
    return page.queue(max_size=max_waiting)


def _add_inputs(names: list[str]) -> list[gr.Component]:
    """The inputs, in the order of the fields of Form."""
    files = gr.File(label="Images", file_count="multiple", height=160)
    weights = gr.Dropdown(names, value=names[0], label="Weights")
    mode = gr.Radio(MODES, value="cutout", label="Result")
    with gr.Group(visible=False) as backgrounds:
        behind = gr.Radio(BEHIND, value=BEHIND[0], label="New background")
        colour = gr.ColorPicker("#30a030", label="Colour")
        image = gr.File(label="Background image", height=120)
    refine = gr.Checkbox(True, label="Refine edges (hair, fur)")
    hard_edge = gr.Checkbox(False, label="Hard edge at the threshold")
    threshold = gr.Slider(0, 1, 0.5, step=0.01, label="Threshold", visible=False)
    with gr.Row():
        invert = gr.Checkbox(False, label="Keep background")
        crop = gr.Checkbox(False, label="Crop")
    gr.on(
        [mode.change, hard_edge.change],
        _show_controls,
        [mode, hard_edge],
        [backgrounds, hard_edge, threshold],
        queue=False,
        api_visibility="private",
    )
    return [files, weights, mode, behind, colour, image, hard_edge, threshold, refine, invert, crop]


def _show_controls(mode: str, hard_edge: bool) -> list[gr.Component | gr.Group]:
    """Show only the controls that a mode uses; a binary mask always has a hard edge."""
    binary = mode == "binary"
    return [
        gr.Group(visible=mode == "background"),
        gr.Checkbox(visible=not binary),
        gr.Slider(visible=binary or hard_edge),
    ]


def _open(path: str) -> Image.Image:
    """Open an uploaded image; errors show its original name, not its path on the server."""
    try:
        return open_image(path)
    except UserError as error:
        raise UserError(str(error).replace(str(path), Path(path).name)) from None


def _shrink(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Shrink an image for the slider to ``size``, itself limited to ``_SLIDER_SIDE``."""
    scale = min(1, _SLIDER_SIDE / max(size))
    width, height = (max(1, round(n * scale)) for n in size)
    image = image if image.mode in ("L", "RGBA") else to_rgb(image)
    return image.resize((width, height))


def _hex(colour: str) -> str:
    """The colour as ``#30a030``: Gradio's picker may return ``rgba(48.0, 160, 48, 1)``."""
    if not colour.startswith("rgba("):
        return colour
    values = [float(part) for part in colour[5:-1].split(",")[:3]]
    return "#" + "".join(f"{min(255, max(0, round(value))):02x}" for value in values)
