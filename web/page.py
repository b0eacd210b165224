"""The page: pictures from the browser, results to look at and to take along. Made with Gradio."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from src import UserError
from src.pictures.images import open_image, to_rgb
from src.pictures.render import MODES, Style, parse_background

from .networks import Networks

AT_ONCE = 20  # pictures in one go
KEPT = 600  # seconds that uploads and results stay
_SHOWN = 1600  # pixels, of the longer side in the slider


class Page(gr.Blocks):
    """Opens what was uploaded and nothing else.

    Before any event, Gradio looks for files in the values of all its inputs, a checkbox's too; it
    downloads what is an address, and, in an app that is mounted, copies whatever path it is given.
    """

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *rest: Any) -> list[Any]:
        uploaded = Path(self.GRADIO_CACHE).resolve()
        for name in _named_files(inputs):
            path = Path(name)
            # A folder would end Gradio's clearing away, which takes all that was named for files.
            if not (lies_in(path, uploaded) and path.is_file()):
                raise _refused(f"Only what was uploaded is opened, for {KEPT // 60} minutes.")
        return await super().preprocess_data(block_fn, inputs, *rest)


def lies_in(path: Path, folder: Path) -> bool:
    """Whether it is a path to something in ``folder``, a resolved one. An address is no absolute
    path, even where its dots lead into the folder.
    """
    return path.is_absolute() and path.resolve().is_relative_to(folder)


def _named_files(value: Any) -> Iterator[str]:
    """The file names and addresses in a request's JSON, at any depth."""
    if isinstance(value, dict):
        if "path" in value:
            yield str(value["path"])
        value = list(value.values())
    for part in value if isinstance(value, list) else ():
        yield from _named_files(part)


def _refused(message: str) -> gr.Error:
    """Shown on the page; no fault of the program, so nothing for its log."""
    return gr.Error(message, print_exception=False)


def build_page(networks: Networks, max_waiting: int) -> gr.Blocks:
    """The page."""

    def predict(files, name, mode, ground, colour, picture, hard, threshold, refine, invert, crop):
        if not files:
            raise _refused("Drop a picture first.")
        if len(files) > AT_ONCE:
            raise _refused(f"{len(files)} pictures: {AT_ONCE} at once, please.")
        background: Any = (255, 255, 255)
        try:
            if mode == "background":
                if ground == "picture" and not picture:
                    raise UserError("Choose the background's picture.")
                background = {
                    "colour": lambda: parse_background(_hex(colour)),
                    "blur": lambda: "blur",
                    "picture": lambda: _open(picture),
                }[ground]()
            style = Style(mode, background, threshold if hard else None, invert, crop, None, refine)
        except UserError as error:
            raise _refused(str(error)) from None
        results, first = [], None
        for path in files:
            try:
                picture_in = _open(path)
                result = networks.result(picture_in, name, style)
            except UserError as error:
                gr.Warning(str(error))
                continue
            results.append((result, Path(path).stem))
            first = first or (_shown(picture_in, result.size), _shown(result, result.size))
        if not results:
            raise _refused("None of these files could be read as a picture.")
        return first, results

    page = Page(title="U²-Net", delete_cache=(60, KEPT), analytics_enabled=False)
    page.run_history = False  # else the browser keeps every run, and may send it elsewhere
    with page:
        gr.Markdown("## U²-Net: salient objects and cut-outs")
        with gr.Row():
            with gr.Column(scale=1):
                files = gr.File(label="Pictures", file_count="multiple", height=160)
                name = gr.Dropdown(networks.names, value=networks.names[0], label="Weights")
                mode = gr.Radio(MODES, value="cutout", label="Result")
                with gr.Group(visible=False) as grounds:
                    ground = gr.Radio(["colour", "blur", "picture"], value="colour", label="Behind")
                    colour = gr.ColorPicker("#30a030", label="Colour")
                    picture = gr.File(label="Picture behind", height=120)
                refine = gr.Checkbox(True, label="Edges where the picture has them (hair, say)")
                hard = gr.Checkbox(False, label="Hard edge at the threshold")
                threshold = gr.Slider(0, 1, 0.5, step=0.01, label="Threshold")
                with gr.Row():
                    invert = gr.Checkbox(False, label="Keep the rest")
                    crop = gr.Checkbox(False, label="Crop")
                button = gr.Button("Predict", variant="primary")
            with gr.Column(scale=2):
                slider = gr.ImageSlider(label="Before and after", format="png", image_mode=None)
                gallery = gr.Gallery(
                    label="Results (PNG)", format="png", columns=4, object_fit="contain"
                )
        mode.change(
            lambda chosen: gr.Group(visible=chosen == "background"),
            mode, grounds, queue=False, api_visibility="private",
        )  # fmt: skip
        button.click(
            predict,
            [files, name, mode, ground, colour, picture, hard, threshold, refine, invert, crop],
            [slider, gallery],
            api_visibility="private",  # the API is a route of its own
            concurrency_limit=1,
        )
    return page.queue(max_size=max_waiting)


def _open(path: str) -> Image.Image:
    """An uploaded picture; errors name it as its owner did, not by where it lies here."""
    try:
        return open_image(path)
    except UserError as error:
        raise UserError(str(error).replace(str(path), Path(path).name)) from None


def _shown(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """As large as the slider needs; both of its pictures are of one size."""
    scale = min(1, _SHOWN / max(size))
    image = image if image.mode in ("L", "RGBA") else to_rgb(image)
    return image.resize([max(1, round(n * scale)) for n in size])


def _hex(colour: str) -> str:
    """Gradio's picker gives ``rgba(48.0, 160, 48, 1)`` or ``#30a030``."""
    if not colour.startswith("rgba("):
        return colour
    values = [float(part) for part in colour[5:-1].split(",")[:3]]
    return "#" + "".join(f"{min(255, max(0, round(value))):02x}" for value in values)
