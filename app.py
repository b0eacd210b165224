"""A page to try networks on, and an HTTP API, from one process.

    python app.py --weights u2netp.pth runs/u2net_full-1/best.pt
    curl --data-binary @photo.jpg 'http://127.0.0.1:7860/api/predict?mode=cutout' -o a.png

The page takes pictures from the browser and nothing else: no path and no address that a user names
is ever opened. Uploads and results are removed after ten minutes, and when the program ends. It
needs the extra: pip install '.[app]'.
"""

import argparse
import asyncio
import io
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from src import Predictor, UserError
from src.images import limit_pixels, open_image, read_image, to_rgb, upright
from src.results import FORMATS, MODES, Style, encode, parse_background, render
from src.weights import SHIPPED
from train_utils import cli

try:
    import anyio
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse, Response
    from starlette.requests import ClientDisconnect
except ImportError as missing:
    print(f"error: app.py needs {missing.name}: pip install '.[app]'", file=sys.stderr)
    sys.exit(2)

AT_ONCE = 20  # pictures in one go on the page
SHOWN = 1600  # pixels, of the longer side in the slider
KEPT = 600  # seconds that uploads and results stay
PATIENCE = 60  # seconds for a picture to arrive


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags of app.py."""
    parser = cli.make_parser(__doc__)
    cli.add_weights_flags(parser, several=True)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    add("--port", type=cli.positive, default=7860, help="to listen on")
    add("--max-megabytes", type=cli.positive, default=20, metavar="N", help="of an upload")
    add("--max-megapixels", type=cli.positive, default=50, metavar="N", help="of a picture")
    add("--max-waiting", type=cli.positive, default=64, metavar="N", help=(
        "so many requests, with their pictures in memory, wait for their turn; more are told to "
        "come back"
    ))  # fmt: skip
    cli.add_device_flags(parser, workers=False)
    args = parser.parse_args(argv)
    args.weights = args.weights or [SHIPPED]
    return args


class Networks:
    """The networks to choose from; threads share them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.by_name: dict[str, Predictor] = {}
        for path in args.weights:
            name = path.stem if path.stem not in self.by_name else str(path)
            self.by_name[name] = Predictor(path, args.img_size, args.device, args.amp)
        self.names = list(self.by_name)

    def result(self, picture: Image.Image, name: str | None, style: Style) -> Image.Image:
        """What ``style`` makes of an upright picture."""
        if name and name not in self.by_name:
            raise UserError(f"weights={name}: choose one of {', '.join(self.names)}")
        return render(picture, self.by_name[name or self.names[0]].map(picture), style)


class Page(gr.Blocks):
    """Opens what was uploaded and nothing else.

    Before any event, Gradio looks for files in the values of all its inputs, a checkbox's too; it
    downloads what is an address, and, in an app that is mounted, copies whatever path it is given.
    """

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *rest: Any) -> list[Any]:
        uploaded = Path(self.GRADIO_CACHE).resolve()
        for name in _named_files(inputs):
            path = Path(name)
            # An address is no absolute path, even where its dots lead into the folder. A folder
            # would end Gradio's clearing away, which takes all that was named for files.
            inside = path.is_absolute() and path.resolve().is_relative_to(uploaded)
            if not (inside and path.is_file()):
                raise _refused(f"Only what was uploaded is opened, for {KEPT // 60} minutes.")
        return await super().preprocess_data(block_fn, inputs, *rest)


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


class NothingFetched:
    """Refuses those of Gradio's routes that open an address named in the request."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        path = scope.get("path", "")
        if "/proxy=" in path or ("/file=" in path and ":/" in path):
            await _error(403, "addresses are not opened")(scope, receive, send)
        else:
            await self.app(scope, receive, send)


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
    scale = min(1, SHOWN / max(size))
    image = image if image.mode in ("L", "RGBA") else to_rgb(image)
    return image.resize([max(1, round(n * scale)) for n in size])


def _hex(colour: str) -> str:
    """Gradio's picker gives ``rgba(48.0, 160, 48, 1)`` or ``#30a030``."""
    if not colour.startswith("rgba("):
        return colour
    values = [float(part) for part in colour[5:-1].split(",")[:3]]
    return "#" + "".join(f"{min(255, max(0, round(value))):02x}" for value in values)


def build_server(args: argparse.Namespace, networks: Networks) -> Any:
    """Page and API as one ASGI application."""
    server = FastAPI(title="U²-Net", docs_url="/api/docs", openapi_url="/api/openapi.json")
    turn = asyncio.Semaphore(max(1, min(4, os.cpu_count() or 1)))
    waiting = 0

    @server.post("/api/predict")
    async def predict(
        request: Request, mode: str = "mask", background: str = "white",
        threshold: float | None = None, refine: bool = False, invert: bool = False,
        crop: bool = False, size: int | None = None, format: str = "png",
        weights: str | None = None,
    ) -> Response:  # fmt: skip
        """The body is the picture's file; the answer is the result's, or {"error": …}."""
        nonlocal waiting
        if waiting >= args.max_waiting:
            return _error(503, "too many are waiting; come back in a minute")
        waiting += 1
        try:
            # Before its turn, which a slow sender would take from the others.
            body = await _receive(request, args.max_megabytes * 1_000_000)

            def work() -> bytes:
                ground = parse_background(background)
                style = Style(mode, ground, threshold, invert, crop, size, refine)
                return _answer(networks, body, weights, style, format)

            async with turn:
                content = await anyio.to_thread.run_sync(work)
            return Response(content, media_type=Image.MIME[FORMATS[f".{format}"][0]])
        except UserError as error:
            return _error(400, str(error))
        except OverflowError:
            return _error(413, f"more than {args.max_megabytes} MB")
        except ClientDisconnect:
            return _error(400, "the picture did not arrive whole")
        except TimeoutError:
            return _error(408, f"the picture took more than {PATIENCE} s to arrive")
        finally:
            waiting -= 1

    page = build_page(networks, args.max_waiting)
    limit = f"{args.max_megabytes}mb"
    mounted = gr.mount_gradio_app(server, page, path="/", max_file_size=limit, footer_links=[])
    return NothingFetched(mounted)


async def _receive(request: Request, limit: int) -> bytes:
    """The whole body.

    Raises:
        OverflowError: it is longer than ``limit`` bytes.
        TimeoutError: it does not arrive.
    """
    body = bytearray()
    async with asyncio.timeout(PATIENCE):
        async for part in request.stream():
            body += part
            if len(body) > limit:
                raise OverflowError
    return bytes(body)


def _answer(networks: Networks, body: bytes, weights: str | None, style: Style, form: str) -> bytes:
    if f".{form}" not in FORMATS or (form in ("jpg", "jpeg") and style.mode == "cutout"):
        raise UserError(f"format={form}: choose png, or webp, tiff, avif, jpeg (not for cut-outs)")
    if style.size is not None and style.size < 1:
        raise UserError(f"size={style.size}: choose 1 or more")
    result = networks.result(upright(read_image(io.BytesIO(body))), weights, style)
    file = io.BytesIO()
    encode(result, file, f".{form}")
    return file.getvalue()


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status)


def main(argv: list[str] | None = None) -> int:
    """Parse, load the networks, serve until interrupted."""
    args = parse_args(argv)
    limit_pixels(args.max_megapixels * 1_000_000)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as for Ctrl-C: clean up, then go
    networks = Networks(args)
    with tempfile.TemporaryDirectory(prefix="u2net-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        server = build_server(args, networks)
        print(f"http://{args.host}:{args.port}  (API: /api/docs)", flush=True)
        uvicorn.run(server, host=args.host, port=args.port, log_level="warning")
    return 0


if __name__ == "__main__":
    cli.run(main)
