"""The HTTP API: image file in, result file out."""

import asyncio
import io
import os
import re
import time
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any

import anyio
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from PIL import Image, ImageColor
from pydantic import BaseModel, Field, ValidationError, WithJsonSchema
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from src import Style, UserError
from src.pictures.formats import IMAGE_FORMATS
from src.pictures.images import count_frames, read_image
from src.pictures.render import MARGIN, MODES, encode, margin_pixels

from .arrival import Application, Arrivals, Refused, refusal
from .cors import Cors
from .networks import MOST_PARTS, Networks

_FORM = 10_000  # bytes a form may have besides its image
_RAW = ("image/", "application/octet-stream", "application/x-www-form-urlencoded")  # curl's default
_FORMATS = [suffix[1:] for suffix in IMAGE_FORMATS]
_FILE = {"type": "string", "format": "binary"}
_COLOURS = {"enum": ["blur", *ImageColor.colormap]}
_BACKGROUND = {"type": "string", "anyOf": [_COLOURS, {"pattern": "^#([0-9a-fA-F]{3}){1,2}$"}]}


class Wanted(BaseModel, extra="forbid"):
    """The requested result: the fields of a Style, plus detail, file format and weights."""

    mode: Annotated[str, WithJsonSchema({"type": "string", "enum": list(MODES)})] = "mask"
    background: Annotated[str | None, WithJsonSchema(_BACKGROUND)] = Field(
        None, description="with mode=background: a colour (white, #00ff00) or blur"
    )
    threshold: Annotated[
        float | None, WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1})
    ] = Field(None, description="minimum map value for a pixel to count as object")
    refine: bool = Field(False, description="align edges with those in the image")
    detail: Annotated[
        int, WithJsonSchema({"type": "integer", "minimum": 0, "maximum": MOST_PARTS})
    ] = Field(0, description="look again at up to this many parts of the image")
    invert: bool = Field(False, description="keep the background, not the object")
    crop: bool = Field(False, description="crop to the box around the object")
    margin: Annotated[str, WithJsonSchema({"type": "string", "pattern": MARGIN})] = Field(
        "0", description="margin around that box: pixels, or a percentage of its longer side (5%)"
    )
    strip: bool = Field(False, description="remove EXIF, GPS, XMP, comments and resolution")
    size: Annotated[int | None, WithJsonSchema({"type": "integer", "minimum": 1})] = Field(
        None, description="shrink the result to at most this many pixels on its longer side"
    )
    format: Annotated[str, WithJsonSchema({"type": "string", "enum": _FORMATS})] = "png"
    weights: str | None = None


class Problem(BaseModel):
    """The body of every error response."""

    error: str = Field(description="what is wrong and how to fix it")


class Health(BaseModel):
    """The state of the server, and what it runs on."""

    status: str
    network: str = Field(description="the default weights")
    networks: list[str] = Field(description="all weights to choose from")
    device: str
    precision: str


def build_api(
    networks: Networks, max_bytes: int, max_waiting: int, origins: Sequence[str] = ()
) -> Application:
    """The API as an ASGI application.

    Args:
        networks: to choose from.
        max_bytes: maximum size of an image file.
        max_waiting: maximum number of queued requests; further ones are refused.
        origins: sites whose pages may call it from a browser.
    """
    api = FastAPI(
        title="U²-Net",
        version="1",
        docs_url="/api/docs",
        openapi_url="/api/openapi.json",
        redoc_url=None,
        redirect_slashes=False,
    )
    for kind, handler in _HANDLERS.items():
        api.add_exception_handler(kind, handler)
    _add_routes(api, networks, max_bytes, max_waiting)
    full = "too many uploads in progress; try again in a minute"
    room = (max_waiting + _turns() + 1) * max_bytes
    return Cors(Arrivals(api, max_bytes + _FORM, room, full), origins)


def _turns() -> int:
    """The number of requests processed at once."""
    return max(1, min(4, os.cpu_count() or 1))


def _add_routes(api: FastAPI, networks: Networks, max_bytes: int, max_waiting: int) -> None:
    choices = WithJsonSchema({"type": "string", "enum": networks.names})

    class Chosen(Wanted):
        weights: Annotated[str | None, choices] = Field(None, description="default: the first")

    turn = asyncio.Semaphore(_turns())
    waiting = 0

    @api.head("/api/health", include_in_schema=False)
    @api.get("/api/health")
    async def health() -> Health:
        """The state of the server, and what it runs on."""
        return Health(status="ok", **networks.describe())

    @api.post(
        "/api/predict",
        response_class=Response,
        responses={200: _RESULT, **_errors(400, 408, 409, 413, 415, 422, 500, 503)},
        openapi_extra={"requestBody": _BODY},
    )
    async def predict(request: Request, wanted: Annotated[Chosen, Query()]) -> Response:
        """Image file in, result file out.

        The image can also be sent in the field `file` of a form (multipart/form-data), with the
        parameters as other fields.
        """
        nonlocal waiting
        image, fields = await _read(request)
        chosen = Chosen.model_validate(wanted.model_dump(exclude_unset=True) | fields)
        if len(image) > max_bytes:
            raise Refused(413, f"more than {max_bytes // 1_000_000} MB")
        if turn.locked() and waiting >= max_waiting:
            raise Refused(503, "too many requests are waiting; try again in a minute")
        waiting += 1
        try:
            await turn.acquire()
        finally:
            waiting -= 1
        try:
            start = time.perf_counter()
            content, frames = await anyio.to_thread.run_sync(
                _answer, networks, image, chosen, abandon_on_cancel=True
            )
            milliseconds = round(1000 * (time.perf_counter() - start))
        finally:
            turn.release()
        media_type = Image.MIME[IMAGE_FORMATS[f".{chosen.format}"].name]
        headers = {"X-Milliseconds": str(milliseconds), "X-Frames": str(frames)}
        return Response(content, headers=headers, media_type=media_type)


async def _read(request: Request) -> tuple[bytes, dict[str, Any]]:
    """The image file, and the other fields if it came in a form.

    Raises:
        Refused: unsupported content type, a missing field, or a parameter given twice.
    """
    given = [name for name, _ in request.query_params.multi_items()]
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    image, fields = b"", {}
    if kind == "multipart/form-data":
        async with request.form(max_files=2) as form:
            for name, value in form.multi_items():
                given.append(name)
                if isinstance(value, UploadFile) and name == "file":
                    image = await value.read()
                elif isinstance(value, UploadFile) or name == "file":
                    raise Refused(422, f"{name}: send the image in field 'file' (-F file=@FILE)")
                else:
                    fields[name] = value
        if "file" not in given:
            raise Refused(422, "file: missing from the form; send the image in this field")
    elif not kind or kind.startswith(_RAW):
        image = await request.body()
    else:
        advice = "send the image as the body, or in the field 'file' of multipart/form-data"
        raise Refused(415, f"{kind}: {advice}")
    twice = next((name for name in given if given.count(name) > 1), None)
    if twice:
        raise Refused(409, f"{twice}: given twice")
    return image, fields


def _answer(networks: Networks, body: bytes, wanted: Wanted) -> tuple[bytes, int]:
    """The result file, and the number of frames in the image."""
    format, background = wanted.format, wanted.background
    if f".{format}" not in IMAGE_FORMATS:
        raise UserError(f"format={format}: choose {', '.join(_FORMATS)}")
    if format in ("jpg", "jpeg") and wanted.mode == "cutout":
        raise Refused(409, f"format={format} has no transparency; choose png, webp, tiff or avif")
    if not 0 <= wanted.detail <= MOST_PARTS:
        raise UserError(f"detail={wanted.detail}: choose 0 to {MOST_PARTS}")
    if wanted.size is not None and wanted.size < 1:
        raise UserError(f"size={wanted.size}: choose 1 or more")
    if re.match("[0-9]{7}", wanted.margin.strip()):
        raise UserError(f"margin={wanted.margin}: choose 999999 or less")
    if margin_pixels(wanted.margin, 100) and not wanted.crop:
        raise Refused(409, "margin requires crop=true")
    if background is not None and wanted.mode != "background":
        raise Refused(409, f"background requires mode=background, not mode={wanted.mode}")
    if not body:
        raise UserError(
            "the image is empty; send its bytes as the body, or in the field 'file' of a form"
        )
    fields = wanted.model_dump(exclude={"format", "weights", "background", "detail"})
    style = Style(**fields, background="white" if background is None else background)
    image = read_image(io.BytesIO(body))
    result = networks.result(image, wanted.weights, style, wanted.detail)
    file = io.BytesIO()
    encode(result, file, f".{format}")
    return file.getvalue(), count_frames(image)


async def _explain(request: Request, error: Exception) -> Response:
    """Every error as ``{"error": …}``."""
    match error:
        case Refused():
            return refusal(error.status, error.message)
        case UserError():
            return refusal(400, str(error))
        case RequestValidationError() | ValidationError():
            return refusal(422, _describe_fault(error.errors()[0]))
        case HTTPException(status_code=404):
            return refusal(404, "not found")
        case HTTPException(status_code=405, headers={"Allow": allowed}):
            methods = ", ".join(sorted(allowed.split(", ")))
            text = f"{request.method} is not allowed here; use {methods}"
            return refusal(405, text, {"Allow": methods})
        case HTTPException():
            return refusal(error.status_code, str(error.detail))
    return refusal(500, "internal error; see the server's log")


def _describe_fault(fault: Mapping[str, Any]) -> str:
    """What is wrong with a parameter, of pydantic's faults."""
    name, value = str(fault["loc"][-1]), str(fault["input"])[:50]
    match fault["type"]:
        case "extra_forbidden":
            near = get_close_matches(name.lower(), Wanted.model_fields, 1)
            advice = f"did you mean {near[0]}?" if near else _PARAMETERS
            return f"{name}: no such parameter; {advice}"
        case "bool_parsing":
            return f"{name}={value}: choose true or false"
        case "int_parsing" | "float_parsing":
            return f"{name}={value}: not {'a number' if 'float' in fault['type'] else 'an integer'}"
    return f"{name}: {fault['msg']}"


_PARAMETERS = f"choose from {', '.join(Wanted.model_fields)}"
_HANDLED = (RequestValidationError, ValidationError, UserError, Refused, HTTPException, Exception)
_HANDLERS = dict.fromkeys(_HANDLED, _explain)

# Forms are only described in words: unlike with image/*, no schema can say which of their bytes are
# an image, so tools that generate requests from the schema would send unreadable ones.
_BODY = {"required": True, "content": {"image/*": {"schema": _FILE}}}
_RESULT = {
    "description": "The result",
    "content": {Image.MIME[name]: {"schema": _FILE} for name, _ in IMAGE_FORMATS.values()},
    "headers": {
        "X-Milliseconds": {
            "description": "time to read, process and write the image, in milliseconds",
            "schema": {"type": "integer"},
        },
        "X-Frames": {
            "description": "number of frames or pages; only the first was used",
            "schema": {"type": "integer"},
        },
    },
}
_REASONS = {
    400: "The image cannot be read, or a value is invalid",
    408: "The request arrived too slowly",
    409: "Parameters conflict, or one is given twice",
    413: "The image file is too large",
    415: "The body is neither an image file nor a form",
    422: "A parameter is unknown or of the wrong type, or the form has no file",
    500: "Internal error",
    503: "Too many requests are waiting or being received, or the server is shutting down",
}


def _errors(*codes: int) -> dict[int | str, dict[str, Any]]:
    """A route's documented errors."""
    return {code: {"model": Problem, "description": _REASONS[code]} for code in codes}
