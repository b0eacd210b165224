"""A web page for trying networks, and an HTTP API, in one process.

    python app.py --weights u2netp.pth runs/u2net_full-1/best.pt
    curl --data-binary @photo.jpg 'http://127.0.0.1:7860/api/predict?mode=cutout' -o a.png

The page accepts only uploaded images: it never opens a path or URL that a user enters. Uploads and
results are deleted after ten minutes and when the program ends. Requires the extra:
pip install '.[app]'.

    python app.py --browser

serves another page, built by make browser with its weights, that runs in the visitor's browser: no
image is sent to this server, and it computes nothing.
"""

import argparse
import os
import re
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.device import describe_computing, keep_float32
from src.pictures.images import limit_pixels
from src.weights.load import SHIPPED
from train_utils import cli
from train_utils.kinds import Kind
from web.networks import Networks

if TYPE_CHECKING:  # the extra's packages are imported on use: --help works without them
    from web.arrival import Application

BUILT = Path(__file__).resolve().parent / "build/browser"
PORT = Kind(int, "N", 0, 2**16)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags of app.py."""
    parser = cli.make_parser(__doc__)
    cli.add_weights_flags(parser, several=True)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 accepts other machines")
    add("--port", type=PORT, default=7860, metavar="N", help="port to listen on; 0 for a free one")
    text = "let web pages from this origin use the API; * for all; may be repeated"
    add("--cors", type=parse_origin, action="append", default=[], metavar="ORIGIN", help=text)
    add("--max-megabytes", type=cli.positive, default=20, metavar="N", help="largest image file")
    add("--max-megapixels", type=cli.positive, default=50, metavar="N", help="largest image")
    text = "requests that may wait for their turn; more are refused"
    add("--max-waiting", type=cli.positive, default=64, metavar="N", help=text)
    text = "serve the page that runs in the browser, as built by make browser"
    add("--browser", type=Path, nargs="?", const=BUILT, metavar="DIR", help=text)
    cli.add_device_flags(parser, workers=False)
    args = parser.parse_args(argv)
    if args.browser:
        kept = {"host", "port", "browser"}
        given = [key for key, value in vars(args).items() if value != parser.get_default(key)]
        if others := [cli.flag(key) for key in given if key not in kept]:
            parser.error(f"--browser computes nothing here, so it cannot take {', '.join(others)}")
    args.weights = args.weights or [SHIPPED]
    return args


def parse_origin(text: str) -> str:
    """An argparse type: an origin, normalised as browsers send it.

    Raises:
        ArgumentTypeError: the text is not an origin.

    Example:
        >>> parse_origin("https://Example.com:8443")
        'https://example.com:8443'
    """
    if text in ("*", "null"):
        return text
    if not re.fullmatch(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^\s/?#@]+", text):
        expected = "http://NAME or https://NAME:PORT without a path, or '*' for all"
        raise argparse.ArgumentTypeError(f"{text!r} is not an origin; give {expected}")
    origin = text.lower()
    default = ":80" if origin.startswith("http:") else ":443"
    return origin.removesuffix(default)  # browsers omit it


def build_server(
    networks: Networks,
    folder: Path,
    *,
    max_megabytes: int,
    max_waiting: int,
    origins: Sequence[str] = (),
) -> "Application":
    """The page and the API as one ASGI application.

    Args:
        networks: to choose from.
        folder: where uploads and results are kept.
        max_megabytes: maximum size of an image file.
        max_waiting: maximum number of queued requests.
        origins: sites whose pages may use the API.
    """
    import gradio
    from fastapi import FastAPI

    from web.api import build_api
    from web.guard import Guard
    from web.page import build_page

    page = gradio.mount_gradio_app(
        FastAPI(openapi_url=None),
        build_page(networks, max_waiting),
        path="/",
        max_file_size=max_megabytes * 1_000_000,
        footer_links=[],
    )
    api = build_api(networks, max_megabytes * 1_000_000, max_waiting, origins)
    return Guard(page, api, folder, max_megabytes * 1_000_000)


def main(argv: list[str] | None = None) -> int:
    """Parse the flags, load the networks, serve until interrupted."""
    args = parse_args(argv)
    cli.require_packages("gradio")
    try:
        (_serve_browser_page if args.browser else _serve_networks)(args)
    except SystemExit as end:  # raised on SIGTERM
        _leave_threads(end.code)
        raise
    _leave_threads(0)
    return 0


def _leave_threads(status: Any) -> None:
    """Exit without waiting for threads that are still working on abandoned requests."""
    mine = threading.main_thread()
    if any(not (thread.daemon or thread is mine) for thread in threading.enumerate()):
        sys.stdout.flush()
        os._exit(status)  # Python would wait for them


def _serve_browser_page(args: argparse.Namespace) -> None:
    from web.listen import address_of, bind, make_server, serve
    from web.static import BrowserPage

    page = BrowserPage(args.browser)
    with bind(args.host, args.port) as listener:
        print(address_of(listener, args.host), flush=True)
        serve(make_server(page), listener)


def _serve_networks(args: argparse.Namespace) -> None:
    from web.listen import address_of, bind, make_server, serve

    keep_float32()
    limit_pixels(args.max_megapixels * 1_000_000)
    with (
        bind(args.host, args.port) as listener,  # before loading the networks, which takes time
        tempfile.TemporaryDirectory(prefix="u2net-") as folder,
    ):
        weights = _drop_doubles(args.weights)
        networks = Networks(weights, args.img_size, args.device, args.amp)
        predictors = list(networks.by_name.values())
        for path, predictor in zip(weights, predictors, strict=True):
            print(cli.describe_weights(path, predictor.origin), file=sys.stderr)
        used = [(predictor.device, predictor.precision) for predictor in predictors]
        print(describe_computing(*used), file=sys.stderr)
        os.environ["GRADIO_TEMP_DIR"] = folder
        server = build_server(
            networks,
            Path(folder),
            max_megabytes=args.max_megabytes,
            max_waiting=args.max_waiting,
            origins=args.cors,
        )
        print(f"{address_of(listener, args.host)}  (API: /api/docs)", flush=True)
        serve(make_server(server), listener)


def _drop_doubles(weights: list[Path]) -> list[Path]:
    """Each file once; repeated ones are reported."""
    places: dict[str, Path] = {}
    for path in weights:
        if places.setdefault(os.path.abspath(path), path) is not path:
            print(f"{path}: given twice; loaded once", file=sys.stderr)
    return list(places.values())


if __name__ == "__main__":
    cli.run(main)
