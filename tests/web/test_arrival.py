"""Bodies of requests, part by part, without a server."""

import asyncio
import json

import pytest

from web import arrival
from web.arrival import Arrivals

NEVER = object()  # a part that does not come


class Sender:
    """A request's parts, and what is answered."""

    def __init__(self, *parts, length=None, headers=()):
        self.messages = []
        for i, part in enumerate(parts):
            more = i + 1 < len(parts)
            self.messages.append({"type": "http.request", "body": part, "more_body": more})
        announced = [] if length is None else [(b"content-length", str(length).encode())]
        self.scope = {"type": "http", "headers": [*announced, *headers]}
        self.status, self.body = None, b""

    async def receive(self):
        if not self.messages:
            return {"type": "http.disconnect"}
        message = self.messages.pop(0)
        if message["body"] is NEVER:
            await asyncio.Event().wait()
        return message

    async def send(self, message):
        self.status = message.get("status", self.status)
        self.body += message.get("body", b"")

    @property
    def error(self):
        return json.loads(self.body)["error"]


async def echo(scope, receive, send):
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": body})


def ask(*senders, app=echo, limit=1000, budget=10_000):
    arrivals = Arrivals(app, limit, budget, "full")

    async def all_at_once():
        answers = (arrivals(s.scope, s.receive, s.send) for s in senders)
        await asyncio.gather(*answers)

    asyncio.run(all_at_once())
    assert arrivals.held == 0
    return senders


@pytest.mark.parametrize("size", [0, 1, 70_000, 65_536, 3_000_000])
def test_the_application_sees_what_was_sent(size):
    body = bytes(i % 251 for i in range(1000)) * (size // 1000 + 1)
    parts = [body[i : min(i + 50_000, size)] for i in range(0, size or 1, 50_000)]
    (sender,) = ask(Sender(*parts), limit=size, budget=size)
    assert sender.status == 200 and sender.body == body[:size]


@pytest.mark.parametrize("parts", [(NEVER, b""), (b"1", NEVER, b"")])
def test_senders_that_never_finish(monkeypatch, parts):
    """Those who do are answered meanwhile."""
    monkeypatch.setattr(arrival, "WINDOW", 0.1)
    slow = [Sender(*parts, length=900) for _ in range(64)]
    *slow, sound = ask(*slow, Sender(b"1", b"2"))
    assert (sound.status, sound.body) == (200, b"12")
    assert {sender.status for sender in slow} == {408} and "too slow" in slow[0].error


def test_what_is_too_long():
    senders = ask(
        Sender(b"1" * 1001),
        Sender(b"1" * 600, b"1" * 600),  # in chunks, without a length
        Sender(b"1" * 600, b"1" * 600, b"1", length=1201),
        Sender(*[b"1" * 600] * 1000),
    )
    assert [sender.status for sender in senders] == [413] * 4
    assert not senders[2].messages  # browsers read no answer before they have sent all
    assert len(senders[3].messages) == 996  # but there is an end to that


def test_who_asks_before_sending_is_told_at_once():
    sender = Sender(b"1" * 1001, length=1001, headers=[(b"expect", b"100-continue")])
    ask(sender)
    assert sender.status == 413 and len(sender.messages) == 1


def test_there_is_room_for_so_much():
    """Bodies count until they are answered; those that are announced do not."""
    done = asyncio.Event()

    async def wait(scope, receive, send):
        done.set()
        await asyncio.sleep(0.1)
        await echo(scope, receive, send)

    class Late(Sender):
        async def receive(self):
            await done.wait()
            return await super().receive()

    first, second = ask(Sender(b"1" * 600), Late(b"1" * 600), app=wait, budget=1000)
    assert first.status == 200 and second.status == 503 and second.error == "full"
    both = ask(Sender(b"1" * 600), Late(b"1" * 400), app=wait, budget=1000)
    assert [sender.status for sender in both] == [200, 200]


def test_who_is_gone_gets_no_answer():
    called = []

    async def app(*_):
        called.append(1)

    sender = Sender(b"1", b"2")
    sender.messages.pop()
    ask(sender, app=app)
    assert sender.status is None and not called
