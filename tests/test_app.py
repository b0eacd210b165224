"""Page and API of one server: in a browser without a screen, and by plain requests."""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, save, scene, tear
from PIL import Image
from processes import PATIENCE

from src import Predictor, build_model, save_model
from src.results import Style, render

pytest.importorskip("gradio", reason="gradio is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WAITING = 50
# app.py, but what Gradio would download or copy into its folder is only told, in the log; so is
# every connection that it opens.
SPIED = """
import runpy, sys
from gradio import processing_utils

def connects(event, args):
    if event == "socket.connect":
        print("OPENS", args[1], flush=True)

sys.addaudithook(connects)

def told(path, *_, **__):
    print("OPENS", path, flush=True)
    raise OSError("by a test")

processing_utils.async_ssrf_protected_download = processing_utils.save_file_to_cache = told
runpy.run_path("app.py", run_name="__main__")
"""


class Server:
    """app.py as a process of its own, on a free port."""

    def __init__(self, root, *flags):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        torch.manual_seed(5)
        self.weights = root / "net.pt"
        save_model(build_model("u2net_lite"), self.weights)
        self.temporary = root / "tmp"
        self.temporary.mkdir()
        self.log = root / "log.txt"
        argv = ["--weights", self.weights, ROOT / "weights/u2net_lite.safetensors"]
        argv += ["--img-size", 64, "--amp", "off", "--device", "cpu", "--port", self.port, *flags]
        self.process = subprocess.Popen(
            [sys.executable, "-c", SPIED, *map(str, argv)], cwd=ROOT, stdout=self.log.open("w"),
            stderr=subprocess.STDOUT, env={**os.environ, "TMPDIR": str(self.temporary)},
        )  # fmt: skip
        for _ in range(10 * PATIENCE):
            with socket.socket() as there:
                if there.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)
        raise TimeoutError(self.log.read_text())

    def post(self, body, query=""):
        """Status and body of the API's answer."""
        request = urllib.request.Request(f"{self.url}/api/predict?{query}", body, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def memory(self):
        """Of the process at its highest, in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    def stop(self):
        self.process.terminate()
        self.process.wait(PATIENCE)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    flags = ["--max-megabytes", 1, "--max-megapixels", 2, "--max-waiting", WAITING]
    server = Server(tmp_path_factory.mktemp("app"), *flags)
    yield server
    server.stop()
    assert not list(server.temporary.glob("u2net-*"))  # nothing stays behind


def photo(seed=0, width=60, height=40):
    file = io.BytesIO()
    Image.fromarray(scene(seed, width, height)[0]).save(file, "PNG")
    return file.getvalue()


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
        (b"no picture", "", 400, "not a picture"),
        (b"", "", 400, "not a picture"),
        (photo()[:300], "", 400, "cannot be read"),
        (b"0" * 1_000_001, "", 413, "more than 1 MB"),
        ("large", "", 400, "more than 2 million pixels"),
        (photo(), "mode=magic", 400, "mode magic"),
        (photo(), "threshold=7", 400, "threshold"),
        (photo(), "background=/etc/passwd", 400, "background"),
        (photo(), "background=http://127.0.0.1/a.png", 400, "background"),
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
        str(save(tmp_path / "private.png", scene()[0])),
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
    Image.fromarray(scene(seed)[0]).resize((1400, 1000 + seed)).save(file, "JPEG")
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


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(server, browser):
    page = browser.new_page()
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(server.url)
    page.get_by_role("button", name="Predict").wait_for()
    yield page
    page.close()


def test_a_real_upload(server, page, tmp_path):
    """The pixels of the page's result are those of the library."""
    paths = [save(tmp_path / f"photo{seed}.png", scene(seed, 90, 70)[0]) for seed in range(2)]
    page.locator("input[type=file]").first.set_input_files(paths)
    page.get_by_text("photo1").wait_for()
    page.get_by_role("button", name="Predict").click()
    shown = page.locator("button[aria-label^=Thumbnail] img")
    shown.nth(1).wait_for()
    predictor = Predictor(server.weights, 64, "cpu", "off")
    for i, path in enumerate(paths):
        body = page.request.get(shown.nth(i).get_attribute("src")).body()
        picture = Image.open(path)
        expected = render(picture, predictor.map(picture), Style("cutout", refine=True))
        found = Image.open(io.BytesIO(body))
        assert (found.format, found.mode) == ("PNG", "RGBA") and np.array_equal(found, expected)


def test_uploads_that_are_no_use(server, page, tmp_path):
    """A large and a torn one: each is named, with what is wrong."""
    large = tmp_path / "large.jpg"
    large.write_bytes(b"0" * 1_500_000)
    page.locator("input[type=file]").first.set_input_files(large)
    page.get_by_text("exceed the maximum allowed size").wait_for()
    torn = tear(save(tmp_path / "torn.jpg", scene(0, 200, 200)[0]))
    page.reload()
    page.locator("input[type=file]").first.set_input_files(torn)
    page.locator("a", has_text="KB").or_(page.get_by_text("torn")).first.wait_for()
    page.get_by_role("button", name="Predict").click()
    said = page.get_by_text("torn.jpg: cannot be read").first
    said.wait_for()
    assert str(server.temporary) not in said.text_content()  # where it lies here is nobody's matter
