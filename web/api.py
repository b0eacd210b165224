"""The HTTP API: a picture's file in, the result's file out."""

import asyncio
import io
import os
from typing import Annotated

import anyio
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from PIL import Image
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from src import UserError
from src.pictures.images import read_image
from src.pictures.render import FORMATS, Style, encode, parse_background

from .guard import refusal
from .networks import Networks

PATIENCE = 60  # seconds for a picture to arrive


class Wanted(BaseModel, extra="forbid"):
    """What the result is to be; as predict.py's flags."""

    mode: str = "mask"
    background: str | None = None
    threshold: float | None = None
    refine: bool = False
    invert: bool = False
    crop: bool = False
    size: int | None = None
    format: str = "png"
    weights: str | None = None


def build_api(networks: Networks, max_megabytes: int, max_waiting: int) -> FastAPI:
    """The API as an ASGI application.

    Args:
        networks: to choose from.
        max_megabytes: of a picture's file.
        max_waiting: so many requests hold their pictures in memory; more are sent away.
    """
    api = FastAPI(
        title="U²-Net", docs_url="/api/docs", openapi_url="/api/openapi.json", redoc_url=None
    )
    turn = asyncio.Semaphore(max(1, min(4, os.cpu_count() or 1)))
    waiting = 0

    @api.exception_handler(RequestValidationError)
    async def wrong(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return refusal(422, f"{first['loc'][-1]}: {first['msg']}")

    @api.post("/api/predict")
    async def predict(request: Request, wanted: Annotated[Wanted, Query()]) -> Response:
        """The body is the picture's file; the answer is the result's, or {"error": …}."""
        nonlocal waiting
        if request.headers.get("content-type", "").startswith("multipart/"):
            return refusal(415, "send the file itself as the body (curl --data-binary @FILE)")
        if waiting >= max_waiting:
            return refusal(503, "too many are waiting; come back in a minute")
        waiting += 1
        try:
            # Before its turn, which a slow sender would take from the others.
            body = await _receive(request, max_megabytes * 1_000_000)
            async with turn:
                content = await anyio.to_thread.run_sync(_answer, networks, body, wanted)
            return Response(content, media_type=Image.MIME[FORMATS[f".{wanted.format}"][0]])
        except UserError as error:
            return refusal(400, str(error).removeprefix("--"))  # flags are predict.py's
        except OverflowError:
            return refusal(413, f"more than {max_megabytes} MB")
        except ClientDisconnect:
            return refusal(400, "the picture did not arrive whole")
        except TimeoutError:
            return refusal(408, f"the picture took more than {PATIENCE} s to arrive")
        finally:
            waiting -= 1

    return api


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


def _answer(networks: Networks, body: bytes, wanted: Wanted) -> bytes:
    form = wanted.format
    if f".{form}" not in FORMATS or (form in ("jpg", "jpeg") and wanted.mode == "cutout"):
        raise UserError(f"format={form}: choose png, or webp, tiff, avif, jpeg (not for cut-outs)")
    if wanted.size is not None and wanted.size < 1:
        raise UserError(f"size={wanted.size}: choose 1 or more")
    if wanted.background is not None and wanted.mode != "background":
        raise UserError("background goes with mode=background")
    style = Style(
        wanted.mode, parse_background(wanted.background or "white"), wanted.threshold,
        wanted.invert, wanted.crop, wanted.size, wanted.refine,
    )  # fmt: skip
    result = networks.result(read_image(io.BytesIO(body)), wanted.weights, style)
    file = io.BytesIO()
    encode(result, file, f".{form}")
    return file.getvalue()
