"""What the routes and events of a running server's page let through."""

import json
import urllib.error
import urllib.request

import pytest
from helpers.data import make_scene, save_image


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
        "/%00",
        "/static/%00",
        "/assets/a%00b.js",
        "/gradio_api/file=%00",
        "/gradio_api/file=CACHE/%00",
        "/gradio_api/heartbeat/a%0a",
        f"/static/{256 * 'a'}",
        f"/static/{200 * '%C3%A9'}",
        f"/static/{2000 * 'a/'}",
        f"/gradio_api/file=CACHE/{256 * 'a'}",
        "/apis",
    ],
)
def test_no_address_and_no_path_is_opened_by_routes(server, route):
    (cache,) = server.temporary.glob("u2net-*")
    with pytest.raises(urllib.error.HTTPError) as answer:
        urllib.request.urlopen(server.url + route.replace("CACHE", str(cache)))
    assert answer.value.code == 404 and "not found" in answer.value.read().decode()
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
        f"{cache}/\0",
        f"{cache}/\ud800",
        f"{cache}/{256 * 'a'}",
    )
    with urllib.request.urlopen(f"{server.url}/config") as answer:
        events = json.load(answer)["dependencies"]
    predict = [[], "net", "mask", "colour", "#30a030", None, False, 0.5, False, False, False]
    sound = {len(predict): predict, 2: ["mask", False]}  # by the number of an event's inputs
    for event in events:
        for place in range(len(event["inputs"])):
            for path in named:
                file = {"path": path, "meta": {"_type": "gradio.FileData"}}
                data = list(sound[len(event["inputs"])])
                data[place] = [file] if data[place] == [] else file
                said = _call(server, event["id"], data)
                assert not said["success"] and "Only uploaded files" in said["output"]["error"], (
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
    assert not list(cache.glob("tmp*"))  # nothing torn is left behind
    large = cache / "large"
    with large.open("wb") as file:
        file.truncate(199_000_000)
    assert upload(2) == 503
    large.unlink()
    assert upload(2) == 200
