"""The HTTP API: an image's file in, the result's file out."""

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

from src import Style, UserError
from src.pictures.formats import IMAGE_FORMATS
from src.pictures.images import read_image
from src.pictures.render import encode

from .guard import refusal
from .networks import Networks

PATIENCE = 60  # seconds for an image to arrive


class Wanted(BaseModel, extra="forbid"):
    """The result that is asked for, by the fields of a Style; file format and weights."""

    mode: str = "mask"
    background: str | None = None  # a colour or blur
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
        max_megabytes: of an image's file.
        max_waiting: requests that may hold their images in memory; more are refused.
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
        """The body is the image's file; the answer is the result's, or {"error": …}."""
        nonlocal waiting
        if request.headers.get("content-type", "").startswith("multipart/"):
            return refusal(415, "send the file itself as the body (curl --data-binary @FILE)")
        if waiting >= max_waiting:
            return refusal(503, "too many are waiting; come back in a minute")
        waiting += 1
        try:
            # Received before its turn, or a slow sender would take the turns of others.
            body = await _receive(request, max_megabytes * 1_000_000)
            async with turn:
                content = await anyio.to_thread.run_sync(_answer, networks, body, wanted)
            return Response(content, media_type=Image.MIME[IMAGE_FORMATS[f".{wanted.format}"].name])
        except UserError as error:
            return refusal(400, str(error))
        except OverflowError:
            return refusal(413, f"more than {max_megabytes} MB")
        except ClientDisconnect:
            return refusal(400, "the image did not arrive whole")
        except TimeoutError:
            return refusal(408, f"the image took more than {PATIENCE} s to arrive")
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
    """The result's file."""
    format, background = wanted.format, wanted.background
    if f".{format}" not in IMAGE_FORMATS or (format in ("jpg", "jpeg") and wanted.mode == "cutout"):
        kinds = "png, or webp, tiff, avif, jpeg (not for cut-outs)"
        raise UserError(f"format={format}: choose {kinds}")
    if wanted.size is not None and wanted.size < 1:
        raise UserError(f"size={wanted.size}: choose 1 or more")
    if background is not None and wanted.mode != "background":
        raise UserError("background goes with mode=background")
    fields = wanted.model_dump(exclude={"format", "weights", "background"})
    style = Style(**fields, background=background or "white")
    result = networks.result(read_image(io.BytesIO(body)), wanted.weights, style)
    file = io.BytesIO()
    encode(result, file, f".{format}")
    return file.getvalue()
