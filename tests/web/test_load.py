"""A running server with many requests, and with senders that never finish."""

import io
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest
from helpers.data import make_scene
from helpers.processes import PATIENCE
from helpers.servers.app import WAITING, photo
from PIL import Image


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


def test_three_hundred_in_a_row(server):
    """What one of them took is free again: one image is of 900 kB."""
    file = io.BytesIO()
    Image.fromarray(make_scene(7)[0]).resize((600, 500)).save(file, "JPEG")
    for count in range(300):
        if count == 50:
            before = server.memory()
        assert server.post(file.getvalue(), "size=50")[0] == 200
    assert server.memory() < before + 60


HEADS = {  # requests that begin and never end
    "api": b"POST /api/predict HTTP/1.1\r\nHost: a\r\nContent-Length: 900000\r\n\r\n1",
    "page": b"POST /gradio_api/upload HTTP/1.1\r\nHost: a\r\nContent-Length: 20000000\r\n"
    b"Content-Type: multipart/form-data; boundary=a\r\n\r\n" + 2300 * b"1",
    "event": b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{",
    "head": b"P",
}


@contextmanager
def slow_senders(server, head, count):
    with ExitStack() as stack:
        senders = []
        for _ in range(count):
            sender = socket.create_connection(("127.0.0.1", server.port), PATIENCE)
            senders.append(stack.enter_context(sender))
            sender.sendall(head)
        yield senders


@pytest.mark.parametrize("kind", HEADS)
def test_slow_senders_take_no_turn(server, kind):
    """More of them than may wait, or than the folder has room for by what they announce."""
    form = b'--a\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    form += photo() + b"\r\n--a--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=a"}
    with slow_senders(server, HEADS[kind], WAITING + 14):
        assert server.post(photo())[0] == 200
        assert server.ask("POST", "/gradio_api/upload", form, headers)[0] == 200


def test_slow_senders_are_sent_away(server):
    with ExitStack() as stack:  # all at once, as each takes a window of 10 s
        senders = {
            kind: stack.enter_context(slow_senders(server, head, 1))[0]
            for kind, head in HEADS.items()
        }
        for kind, sender in senders.items():
            answer = b""
            while part := sender.recv(4096):
                answer += part
            assert not answer if kind == "head" else b" 408 " in answer and b"too slow" in answer
