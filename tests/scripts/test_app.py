"""The API of a running server, and what its page's routes and events let through."""

import io
import json
import socket
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
from helpers.data import make_scene, save_image
from helpers.processes import PATIENCE
from helpers.server import WAITING, photo, serving
from PIL import Image

from src import Predictor
from src.pictures.render import Style, render

pytest.importorskip("gradio", reason="gradio is not installed")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("app")) as server:
        yield server


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
    }.items():
        status, body = server.post(photo(), query)
        assert status == 200, body
        found, expected = Image.open(io.BytesIO(body)), render(picture, saliency, style)
        assert found.mode == expected.mode and np.array_equal(found, expected)
    other = server.post(photo(), "weights=u2net_lite")[1]
    assert other != server.post(photo(), "weights=net")[1]


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
        (b"", "", 400, "not an image"),
        (photo()[:300], "", 400, "cannot be read"),
        (b"0" * 1_000_001, "", 413, "more than 1 MB"),
        ("large", "", 400, "more than 2 million pixels"),
        (photo(), "mode=magic", 400, "mode magic"),
        (photo(), "threshold=7", 400, "threshold"),
        (photo(), "mode=background&background=/etc/passwd", 400, "neither a colour"),
        (photo(), "mode=background&background=http://127.0.0.1/a.png", 400, "neither a colour"),
        (photo(), "background=blur", 400, "mode=background"),
        (photo(), "weights=../net.pt", 400, "choose one of net, u2net_lite"),
        (photo(), "format=exe", 400, "format=exe"),
        (photo(), "format=jpg&mode=cutout", 400, "format=jpg"),
        (photo(), "size=0", 400, "size=0"),
        (photo(), "size=much", 422, "size"),
        (photo(), "tresh=0.5", 422, "tresh"),
    ],
)
def test_what_is_refused(server, body, query, status, words):
    if body == "large":
        file = io.BytesIO()
        Image.new("L", (2001, 1000)).save(file, "PNG")
        body = file.getvalue()
    found, answer = server.post(body, query)
    assert found == status and words in json.dumps(json.loads(answer), ensure_ascii=False)


@pytest.mark.parametrize(
    "route",
    [
        "/gradio_api/file=http://93.184.216.34/a.png",
        "/gradio_api/file/http://93.184.216.34/a.png",
        "/gradio_api/file%2Fhttp%3A%2F%2F93.184.216.34%2Fa.png",
        "/gradio_api/proxy=http://93.184.216.34/a.png",
        "/static/http://93.184.216.34/a.png",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=etc/passwd",
        "/gradio_api/file=CACHE/../../net.pt",
        "/gradio_api/runs",  # a history that could be kept elsewhere
        "/gradio_api/run-history/buckets",
        "/gradio_api/call/v2/predict",
        "/monitoring",
    ],
)
def test_no_address_and_no_path_is_opened_by_routes(server, route):
    (cache,) = server.temporary.glob("u2net-*")
    with pytest.raises(urllib.error.HTTPError) as answer:
        urllib.request.urlopen(server.url + route.replace("CACHE", str(cache)))
    assert answer.value.code == 404 and "no such page" in answer.value.read().decode()
    assert "OPENS" not in server.log.read_text()


def test_no_address_and_no_path_is_opened_by_events(server, tmp_path):
    """At no input of any event, also where no file belongs; a picture of this machine neither."""
    (cache,) = server.temporary.glob("u2net-*")
    named = (
        "http://93.184.216.34/secret",
        f"http://93.184.216.34/{'../' * 9}{cache}/secret",
        f"{cache}/../../secret",
        str(cache),
        "secret",
        str(save_image(tmp_path / "private.png", make_scene()[0])),
    )
    with urllib.request.urlopen(f"{server.url}/config") as answer:
        events = json.load(answer)["dependencies"]
    predict = [[], "net", "mask", "colour", "#30a030", None, False, 0.5, False, False, False]
    sound = {len(predict): predict, 1: ["mask"]}  # by the number of an event's inputs
    for event in events:
        for place in range(len(event["inputs"])):
            for path in named:
                file = {"path": path, "meta": {"_type": "gradio.FileData"}}
                data = list(sound[len(event["inputs"])])
                data[place] = [file] if data[place] == [] else file
                said = _call(server, event["id"], data)
                assert not said["success"] and "was uploaded" in said["output"]["error"], (
                    place,
                    said,
                )
        assert not _call(server, event["id"], [{"deep": [file]}, *data[1:]])["success"]
    assert len(events) == 2 and "OPENS" not in server.log.read_text()


def _call(server, event, data):
    """The queue's last word on what the page sends for an event."""
    body = {"data": data, "fn_index": event, "session_hash": "a"}
    _json(f"{server.url}/gradio_api/queue/join", body)
    with urllib.request.urlopen(f"{server.url}/gradio_api/queue/data?session_hash=a") as events:
        for line in events:
            event = json.loads(line[6:]) if line.startswith(b"data: ") else {}
            if event.get("msg") == "process_completed":
                return event


def _json(url, body):
    content = json.dumps(body).encode()
    request = urllib.request.Request(url, content, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def test_a_form_is_told_what_to_send(server):
    form = b'--a\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
    request = urllib.request.Request(
        f"{server.url}/api/predict",
        form + photo() + b"\r\n--a--\r\n",
        {"Content-Type": "multipart/form-data; boundary=a"},
    )
    with pytest.raises(urllib.error.HTTPError) as answer:
        urllib.request.urlopen(request)
    assert answer.value.code == 415 and "as the body" in answer.value.read().decode()


def test_what_uploads_take_is_bounded(server):
    """A request holds as many pictures as one go takes, and the folder ten of these."""
    (cache,) = server.temporary.glob("u2net-*")

    def upload(megabytes):
        part = b'--a\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        parts = part + b"0" * 900_000 + b"\r\n"
        request = urllib.request.Request(
            f"{server.url}/gradio_api/upload",
            parts * megabytes + b"--a--\r\n",
            {"Content-Type": "multipart/form-data; boundary=a"},
        )
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    assert upload(2) == 200
    assert upload(23) == 413
    large = cache / "large"
    with large.open("wb") as file:
        file.truncate(199_000_000)
    assert upload(2) == 503
    large.unlink()
    assert upload(2) == 200


def test_fifty_at_once(server):
    """Each gets its own answer; memory doesn't grow with how many wait."""
    bodies = [_smooth(seed) for seed in range(50)]
    alone = [server.post(body)[1] for body in bodies[:4]]
    before = server.memory()
    with ThreadPoolExecutor(50) as pool:
        found = list(pool.map(server.post, bodies))
    assert [status for status, _ in found] == [200] * 50
    sizes = [Image.open(io.BytesIO(body)).size for _, body in found]
    assert sizes == [(1400, 1000 + seed) for seed in range(50)]
    assert [body for _, body in found[:4]] == alone
    assert server.memory() < before + 400


def _smooth(seed):
    """A picture of 1.4 megapixels in a small file."""
    file = io.BytesIO()
    Image.fromarray(make_scene(seed)[0]).resize((1400, 1000 + seed)).save(file, "JPEG")
    return file.getvalue()


@contextmanager
def slow_senders(server, count):
    """Connections on which a picture begins to arrive and never ends."""
    with ExitStack() as stack:
        senders = []
        for _ in range(count):
            sender = socket.create_connection(("127.0.0.1", server.port))
            senders.append(stack.enter_context(sender))
            sender.sendall(b"POST /api/predict HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n1")
        yield senders


def test_more_than_may_wait_are_told_so(server):
    """Senders that never finish take up all places; once they are gone, all is as before."""
    with slow_senders(server, WAITING):
        status, body = _until(lambda: server.post(photo()), 503)
        assert status == 503 and "come back" in body.decode()
    assert _until(lambda: server.post(photo()), 200)[0] == 200


def test_slow_senders_take_no_turn(server):
    """A picture that is there passes all that are still arriving."""
    with slow_senders(server, 8) as senders:
        assert server.post(photo())[0] == 200
        for sender in senders:
            sender.setblocking(False)
            with pytest.raises(BlockingIOError):  # neither an answer yet nor an end
                sender.recv(1)


def _until(ask, status):
    """The answer, asked for again for a while if it is another one."""
    for _ in range(10 * PATIENCE):
        answer = ask()
        if answer[0] == status:
            break
        time.sleep(0.1)
    return answer
