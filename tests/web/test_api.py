"""The API of a running server: answers, errors, forms, and the document that describes it."""

import io
import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest
from helpers.data import ROOT
from helpers.processes import PATIENCE
from helpers.servers.app import ORIGIN, photo
from PIL import Image, ImageDraw

from src import Predictor
from src.pictures.render import MODES, Style, render


def test_answers_are_the_librarys(server):
    picture = Image.open(io.BytesIO(photo()))
    saliency = Predictor(server.weights, 64, "cpu", "off").map(picture)
    for query, style in {
        "": Style(),
        "mode=cutout&refine=true": Style("cutout", refine=True),
        "mode=background&background=%2300ff00": Style("background", (0, 255, 0)),
        "mode=binary&threshold=0.4&invert=1&crop=1": Style(
            "binary", threshold=0.4, invert=True, crop=True
        ),
        "size=30": Style(size=30),
        "mode=overlay&crop=1&margin=10%25": Style("overlay", crop=True, margin="10%"),
    }.items():
        status, body = server.post(photo(), query)
        assert status == 200, body
        found, expected = Image.open(io.BytesIO(body)), render(picture, saliency, style)
        assert found.mode == expected.mode and np.array_equal(found, expected)
    other = server.post(photo(), "weights=u2net_lite")[1]
    assert other != server.post(photo(), "weights=net")[1]


def test_a_second_look(server):
    """As the library's, of the parameter's number of parts."""
    ground = np.random.default_rng(0).integers(60, 120, (24, 36, 3), np.uint8)
    picture = Image.fromarray(ground).resize((540, 360), Image.Resampling.BICUBIC)
    ImageDraw.Draw(picture).ellipse((100, 140, 440, 230), fill=(150, 110, 60))  # seen at 64² too
    file = io.BytesIO()
    picture.save(file, "PNG")
    weights = ROOT / "weights/u2net_lite.safetensors"
    for parts in (0, 12):
        status, body = server.post(file.getvalue(), f"weights=u2net_lite&detail={parts}")
        assert status == 200, body
        maps = [
            Predictor(weights, 64, "cpu", "off", detail=n)(picture) for n in (parts, 12 - parts)
        ]
        found = np.array(Image.open(io.BytesIO(body)))
        assert np.array_equal(found, maps[0]) and not np.array_equal(found, maps[1])


def test_what_an_image_says_of_itself(server):
    """A result keeps it, unless it is to be stripped."""
    exif = Image.Exif()
    exif[271] = "Maker"
    file = io.BytesIO()
    Image.open(io.BytesIO(photo())).convert("RGB").save(file, "JPEG", exif=exif)
    for query, kept in {"mode=overlay": "Maker", "mode=overlay&strip=true": None}.items():
        status, body = server.post(file.getvalue(), query)
        assert status == 200, body
        assert Image.open(io.BytesIO(body)).getexif().get(271) == kept


@pytest.mark.parametrize(("form", "kind"), [("png", "png"), ("jpg", "jpeg"), ("tif", "tiff")])
def test_media_type(server, form, kind):
    """As IANA has it registered."""
    request = urllib.request.Request(f"{server.url}/api/predict?format={form}", photo())
    with urllib.request.urlopen(request) as answer:
        assert answer.headers.get_content_type() == f"image/{kind}"
        assert Image.open(io.BytesIO(answer.read())).format == kind.upper()


@pytest.mark.parametrize(
    ("body", "query", "status", "words"),
    [
        (b"no picture", "", 400, "not an image"),
        (b"", "", 400, "the image is empty"),
        (photo()[:300], "", 400, "cannot be read"),
        (b"0" * 1_000_001, "", 413, "more than 1 MB"),
        ("large", "", 400, "more than 2 million pixels"),
        (photo(), "mode=magic", 400, "mode magic: choose"),
        (photo(), "threshold=7", 400, "threshold"),
        (photo(), "mode=background&background=/etc/passwd", 400, "neither a colour"),
        (photo(), "mode=background&background=http://127.0.0.1/a.png", 400, "neither a colour"),
        (photo(), "mode=", 400, '"mode: choose one of'),
        (photo(), "mode=background&background=", 400, "neither a colour"),
        (photo(), "weights=", 400, "weights=: choose one of net, u2net_lite"),
        (photo(), "margin=1000000&crop=1", 400, "margin=1000000: choose 999999 or less"),
        (photo(), "background=blur", 409, "mode=background"),
        (photo(), "mode=background&background=%23ff000080", 400, "a background is opaque"),
        (photo(), "margin=5", 409, "margin requires crop=true"),
        (photo(), "weights=../net.pt", 400, "choose one of net, u2net_lite"),
        (photo(), "format=exe", 400, "format=exe"),
        (photo(), "format=jpg&mode=cutout", 409, "format=jpg"),
        (photo(), "size=0", 400, "size=0"),
        (photo(), "size=much", 422, "size=much: not an integer"),
        (photo(), "threshold=", 422, "threshold=: not a number"),
        (photo(), "refine=maybe", 422, "refine=maybe: choose true or false"),
        (photo(), "detail=13", 400, "detail=13: choose 0 to 12"),
        (photo(), "detail=-1", 400, "detail=-1: choose 0 to 12"),
        (photo(), "tresh=0.5", 422, "tresh: no such parameter; did you mean threshold?"),
        (photo(), "modus=mask", 422, "modus: no such parameter; "),
        (photo(), "size=1&size=2", 409, "size: given twice"),
        (photo(), "weights=%00", 400, "choose one of"),
    ],
)
def test_what_is_refused(server, body, query, status, words):
    if body == "large":
        file = io.BytesIO()
        Image.new("L", (2001, 1000)).save(file, "PNG")
        body = file.getvalue()
    found, answer = server.post(body, query)
    assert found == status and words in json.dumps(json.loads(answer), ensure_ascii=False)


def test_an_image_lies_as_its_exif_says(server):
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.open(io.BytesIO(photo())).convert("RGB").save(file, "JPEG", exif=exif)
    status, body = server.post(file.getvalue())
    assert status == 200 and Image.open(io.BytesIO(body)).size == (40, 60)


def make_form(*fields):
    """A form's body; bytes are files, and text is text."""
    parts = b""
    for name, value in fields:
        kind = b'; filename="a.png"' if isinstance(value, bytes) else b""
        content = value if isinstance(value, bytes) else value.encode()
        head = b'--a\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n'
        parts += head % (name.encode(), kind) + content + b"\r\n"
    return parts + b"--a--\r\n"


FORM = "multipart/form-data; boundary=a"


def test_a_form_is_answered_as_a_body_is(server):
    """Its parameters may be fields, or stand in the address."""
    expected = server.post(photo(), "mode=cutout&size=30")
    form = make_form(("mode", "cutout"), ("file", photo()), ("size", "30"))
    assert server.post(form, kind=FORM) == expected and expected[0] == 200
    form = make_form(("file", photo()))
    assert server.post(form, "mode=cutout&size=30", kind=FORM) == expected


@pytest.mark.parametrize(
    ("fields", "query", "status", "words"),
    [
        ([], "", 422, "file: missing from the form"),
        ([("image", photo())], "", 422, "image: send the image in field 'file'"),
        ([("file", "a.png")], "", 422, "file: send the image"),
        ([("file", photo()), ("file", photo())], "", 409, "file: given twice"),
        ([("file", photo()), ("mode", "mask")], "mode=mask", 409, "mode: given twice"),
        ([("file", photo()), ("tresh", "1")], "", 422, "tresh"),
        ([("file", photo()), ("size", "much")], "", 422, "size"),
        ([("file", b"0" * 1_000_001)], "", 413, "more than 1 MB"),
        ([("file", b"0" * 3_000_000)], "", 413, "more than 1 MB"),
        ([("file", b"")], "", 400, "the image is empty"),
        ([("file", photo()[:300])], "", 400, "cannot be read"),
    ],
)
def test_forms_that_are_refused(server, fields, query, status, words):
    found, answer = server.post(make_form(*fields), query, FORM)
    assert found == status and words in json.loads(answer)["error"]


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 415),
        ("text/plain", 415),
        ("multipart/mixed; boundary=a", 415),
        ("multipart/form-data", 400),  # without a boundary
        ("image/heic", 200),  # what it is, the content says
        ("application/octet-stream", 200),
        ("application/x-www-form-urlencoded", 200),  # curl's --data-binary
    ],
)
def test_kinds_of_bodies(server, kind, status):
    found, answer = server.post(photo(), kind=kind)
    assert found == status and (status == 200 or json.loads(answer)["error"])


@pytest.mark.parametrize(
    ("method", "route", "status", "allowed"),
    [
        ("GET", "predict", 405, "POST"),
        ("PUT", "predict", 405, "POST"),
        ("OPTIONS", "predict", 405, "POST"),
        ("DELETE", "predict", 405, "POST"),
        ("POST", "openapi.json", 405, "GET, HEAD"),
        ("GET", "", 404, None),
        ("GET", "predict/", 404, None),
        ("POST", "other", 404, None),
        ("GET", "%00", 404, None),
    ],
)
def test_errors_have_one_form(server, method, route, status, allowed):
    found, headers, body = server.ask(method, f"/api/{route}")
    assert found == status and headers["Allow"] == allowed
    assert headers.get_content_type() == "application/json" and list(json.loads(body)) == ["error"]


def test_health(server):
    status, _, body = server.ask("GET", "/api/health")
    told = json.loads(body)
    assert status == 200 and told["status"] == "ok" and told["device"] == "cpu"
    assert (told["network"], told["networks"]) == ("net", ["net", "u2net_lite"])
    assert server.ask("HEAD", "/api/health")[0] == 200


def test_milliseconds_and_frames(server):
    file = io.BytesIO()
    scenes = [Image.open(io.BytesIO(photo(seed))).convert("RGB") for seed in range(3)]
    scenes[0].save(file, "GIF", save_all=True, append_images=scenes[1:])
    for body, frames in ((photo(), 1), (file.getvalue(), 3)):
        status, headers, _ = server.ask("POST", "/api/predict", body)
        assert status == 200 and int(headers["X-Milliseconds"]) >= 0
        assert int(headers["X-Frames"]) == frames


def test_what_is_not_http(server):
    """It is answered as all errors are; a wish for a WebSocket as any request, without a word."""
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as client:
        client.sendall(b"no request\r\n\r\n")
        head, body = client.makefile("rb").read().split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ") and "invalid HTTP" in json.loads(body)["error"]
    headers = {"Connection": "Upgrade", "Upgrade": "websocket"}
    assert server.ask("GET", "/api/health", headers=headers)[0] == 200
    assert "uvicorn[standard]" not in server.log.read_text()


@pytest.mark.parametrize(("origin", "status"), [(ORIGIN, 200), ("https://other.example", 403)])
def test_pages_of_other_origins(server, origin, status):
    asked = {"Access-Control-Request-Method": "POST", "Origin": origin}
    found, headers, body = server.ask("OPTIONS", "/api/predict", headers=asked)
    allowed = headers["Access-Control-Allow-Origin"]
    assert found == status and allowed == (origin if status == 200 else None)
    assert status == 200 or json.loads(body)["error"] == f"pages from {origin} may not use this API"
    for content in (photo(), b"", b"0" * 3_000_000):  # errors too can be read
        _, headers, _ = server.ask("POST", "/api/predict", content, {"Origin": origin})
        assert headers["Access-Control-Allow-Origin"] == allowed


def test_document(server):
    """It says how to send an image, which values there are, and what errors look like."""
    document = json.loads(server.ask("GET", "/api/openapi.json")[2])
    route = document["paths"]["/api/predict"]["post"]
    content = route["requestBody"]["content"]
    assert "X-Frames" in route["responses"]["200"]["headers"]
    assert content["image/*"]["schema"]["format"] == "binary" and "`file`" in route["description"]
    parameters = {one["name"]: one["schema"] for one in route["parameters"]}
    assert parameters["mode"]["enum"] == list(MODES)
    assert parameters["weights"]["enum"] == ["net", "u2net_lite"]
    assert parameters["threshold"]["maximum"] == 1 and parameters["size"]["minimum"] == 1
    reference = route["responses"]["422"]["content"]["application/json"]["schema"]["$ref"]
    problem = document["components"]["schemas"][reference.rpartition("/")[2]]
    assert list(problem["properties"]) == ["error"]


def test_schemathesis_finds_no_fault(server, tmp_path):
    pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    command = [sys.executable, "-c", "from schemathesis.cli import schemathesis as st; st()", "run"]
    command += [f"{server.url}/api/openapi.json", "--max-examples", "20", "--seed", "1"]
    # Where one request hangs, all may: the first that do are enough.
    command += ["--request-timeout", "120", "--max-failures", "3", "--no-color"]
    # It leaves a cache where it runs.
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr
