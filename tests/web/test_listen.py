"""The server's port, its connections, and its end."""

import asyncio
import json
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from argparse import ArgumentTypeError
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.processes import PATIENCE
from helpers.servers.app import photo

import app as script
from app import parse_origin
from src import UserError
from web import listen
from web.api import build_api
from web.listen import address_of, bind, make_server, serve
from web.networks import name_weights


@pytest.mark.parametrize("port", [99999, 65536, -1, "http"])
def test_ports_that_there_are_not(call, port):
    status, _, told = call(script.main, f"--port={port}")
    assert status == 2 and "--port" in told and "65535" in told and told.count("\n") == 1


def test_a_port_that_is_taken(call):
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        status, out, told = call(script.main, "--port", port)
    assert status == 2 and told.count("\n") == 1 and f"--port {port}: in use" in told
    assert not out  # no address that is not ours


def test_port_0_is_a_free_one():
    with bind("localhost", 0) as listener:
        address = address_of(listener, "localhost")
        assert address.rpartition(":")[2] == str(listener.getsockname()[1]) != "0"
        socket.create_connection(listener.getsockname()[:2]).close()


@pytest.mark.parametrize("host", ["no.such.name.invalid", "192.0.2.1", "a" * 70, "a\0"])
def test_hosts_that_are_not_here(host):
    with pytest.raises(UserError) as error:
        bind(host, 0)
    assert error.value.parameter == "host"


def test_origins():
    assert parse_origin("https://Example.com:443") == "https://example.com"
    assert parse_origin("http://localhost:3000") == "http://localhost:3000"
    assert [parse_origin(text) for text in ("*", "null")] == ["*", "null"]
    for wrong in ("example.com", "https://example.com/", "https://", "http://a b"):
        with pytest.raises(ArgumentTypeError, match="not an origin"):
            parse_origin(wrong)


@pytest.fixture
def two_runs(tmp_path):
    """Files that runs have left, by one name."""
    paths = [tmp_path / name for name in ("a/best.pt", "b/best.pt", "b/best.onnx", "u2netp.pth")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return paths


def test_names_of_weights(two_runs):
    """Short, and never where they lie; weights known by name keep it."""
    a, b, onnx, u2netp = two_runs
    assert list(name_weights([a, u2netp])) == ["best", "u2netp"]
    assert list(name_weights([a, b])) == ["a/best", "b/best"]
    named = name_weights([Path("u2netp"), u2netp, a, b, onnx])
    names = ["u2netp", f"{a.parent.parent.name}/u2netp", "a/best", "best.pt", "best.onnx"]
    assert list(named) == [*names[:3], "b/best.pt", "best.onnx"]
    assert list(named.values()) == [Path("u2netp"), u2netp, a, b, onnx]


def test_weights_that_are_given_twice(two_runs, capsys):
    a, b, *_ = two_runs
    assert script._drop_doubles([a, Path(str(a)), b]) == [a, b]
    assert capsys.readouterr().err == f"{a}: given twice; loaded once\n"


@contextmanager
def running(app, monkeypatch, farewell=PATIENCE):  # whoever needs that fails the test
    """A server in a thread; its windows are short."""
    monkeypatch.setattr(listen, "WINDOW", 0.2)
    monkeypatch.setattr(listen, "_FAREWELL", farewell)
    listener = bind("127.0.0.1", 0)
    server = make_server(app)
    server.config.lifespan = "off"
    thread = threading.Thread(target=serve, args=(server, listener))
    thread.start()
    try:
        yield listener.getsockname(), server
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()


async def respond(send, body, more=False):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body, "more_body": more})


def test_connections_on_which_nothing_goes_on(monkeypatch):
    async def slow(scope, receive, send):
        await asyncio.sleep(2)  # many windows; an answer may take its time
        await respond(send, b"done")

    with running(slow, monkeypatch) as (address, _):
        silent = [socket.create_connection(address) for _ in range(3)]
        silent[1].sendall(b"G")
        silent[2].sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX")
        with urllib.request.urlopen(f"http://127.0.0.1:{address[1]}/") as answer:
            assert answer.read() == b"done"
        for connection in silent:
            with connection:
                assert _is_closed(connection)


def _is_closed(connection):
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_who_does_not_read_is_sent_away(monkeypatch):
    size = 50_000_000

    async def large(scope, receive, send):
        await respond(send, bytes(size))

    with running(large, monkeypatch) as (address, server):
        with socket.create_connection(address) as reader:
            reader.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert reader.recv(1) == b"H"
            deadline = time.monotonic() + PATIENCE
            while server.server_state.connections:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        with urllib.request.urlopen(f"http://127.0.0.1:{address[1]}/") as answer:
            assert len(answer.read()) == size  # who reads gets all


def test_an_open_page_does_not_hold_up_the_end(monkeypatch):
    """Its stream of events ends with the server."""

    async def events(scope, receive, send):
        await respond(send, b"first", more=True)
        while (await receive())["type"] != "http.disconnect":
            pass

    with running(events, monkeypatch) as (address, _):
        page = socket.create_connection(address)
        page.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert page.recv(1) == b"H"
    page.close()


def test_what_is_under_way_when_the_server_is_stopped(monkeypatch, capsys):
    """A request is answered with an error, a download cut off: no traceback, no wait for either."""
    networks = Slow()
    api = build_api(networks, 1_000_000, 2)

    async def both(scope, receive, send):
        if scope["method"] == "POST":
            return await api(scope, receive, send)
        await respond(send, bytes(50_000_000), more=True)
        await send({"type": "http.response.body"})

    with ThreadPoolExecutor(1) as pool, running(both, monkeypatch, 0.5) as (address, server):
        monkeypatch.setattr(listen, "WINDOW", PATIENCE)  # of the connections from now on
        reader = socket.create_connection(address)
        reader.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert reader.recv(1) == b"H"
        asked = pool.submit(post_photo, f"http://127.0.0.1:{address[1]}/api/predict")
        assert networks.asked.wait(PATIENCE)
        server.should_exit = True
        assert asked.result(PATIENCE) == (503, "the server is shutting down; try again later")
    assert not networks.word.is_set()  # it has ended, though this still computes
    networks.word.set()
    reader.close()
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "Cancel 1 running task(s)" in told


def post_photo(url):
    """Status and text of the error."""
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(url, photo(), timeout=PATIENCE)
    return error.value.code, json.load(error.value)["error"]


class Slow:
    """Networks that wait for a word."""

    names = ("slow",)

    def __init__(self):
        self.asked, self.word = threading.Event(), threading.Event()

    def result(self, image, *_):
        self.asked.set()
        self.word.wait(PATIENCE)
        return image


def test_more_than_may_wait_are_told_so(monkeypatch):
    """As many as may wait beside the one that is computed are answered; the next is refused, and
    later all is as before."""
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    networks, statuses = Slow(), []
    api = build_api(networks, 1_000_000, 2)

    async def post():
        answer = []
        message = {"type": "http.request", "body": photo(), "more_body": False}
        path = {"path": "/api/predict", "raw_path": b"/api/predict", "query_string": b""}
        scope = {"type": "http", "method": "POST", "headers": [], "root_path": "", **path}

        async def receive():
            return message

        async def send(part):
            answer.append(part)

        await api(scope, receive, send)
        statuses.append(answer[0]["status"])
        return b"".join(part.get("body", b"") for part in answer)

    async def all_at_once():
        posts = [asyncio.create_task(post()) for _ in range(4)]
        (refused,), waiting = await asyncio.wait(posts, return_when=asyncio.FIRST_COMPLETED)
        assert "try again" in json.loads(refused.result())["error"] and statuses == [503]
        networks.word.set()
        await asyncio.gather(*waiting)
        await post()

    asyncio.run(all_at_once())
    assert statuses == [503, 200, 200, 200, 200]


def test_help_needs_no_extra(monkeypatch, call):
    """Nor do wrong flags; to serve does, and says what to install."""
    monkeypatch.setattr("train_utils.cli.find_spec", lambda name: None)
    with monkeypatch.context() as hidden:
        for name in ("gradio", "fastapi", "starlette", "uvicorn"):
            hidden.setitem(sys.modules, name, None)  # importing it fails
        status, out, _ = call(script.main, "--help")
        assert status == 0 and "--max-waiting" in out
        status, _, told = call(script.main)
    assert status == 2 and "needs gradio: pip install" in told and told.count("\n") == 1
