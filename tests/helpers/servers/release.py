"""A release of published weights, on a server of our own that may answer in bad ways."""

import hashlib
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import onnx

from src.export.onnx import export_onnx
from src.weights import named


class Release:
    """``content`` under every name, in the ``way`` asked for; ``requests`` counts."""

    def __init__(self, content):
        self.content, self.way, self.requests = content, "right", []

    def answer(self, handler):
        """Answer one request."""
        self.requests.append(handler.path)
        if self.way == "404":
            return handler.send_error(404)
        body = {"torn": self.content[:-9], "wrong": b"<html>sign in</html>"}.get(
            self.way, self.content
        )
        handler.send_response(200)
        handler.send_header("Content-Length", "abc" if self.way == "no length" else str(len(body)))
        handler.end_headers()
        if self.way in ("vanishing", "hanging"):
            handler.wfile.write(body[: len(body) // 2])
            time.sleep(2 if self.way == "hanging" else 0)
            return handler.wfile.flush()  # the connection is closed, half of the body is missing
        if self.way == "slow":
            for start in range(0, len(body), len(body) // 5):
                handler.wfile.write(body[start : start + len(body) // 5])
                time.sleep(0.1)
            return None
        return handler.wfile.write(body)


@contextmanager
def serve(content):
    """A :class:`Release` and its address."""
    release = Release(content)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            release.answer(self)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield release, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def publish(monkeypatch, name, content):
    """Let a name stand for this content."""
    entry = replace(named.PUBLISHED[name], md5=hashlib.md5(content).hexdigest())
    monkeypatch.setitem(named.PUBLISHED, name, entry)
    return entry


def as_published(model, path, size):
    """An ONNX file in the form of the release: of one size, with outputs by number, without
    metadata; of classes as logits."""
    model.img_size = size
    export_onnx(model, path, sides=True, static=True)
    file = onnx.load(path)
    del file.metadata_props[:]
    graph, names = file.graph, {}
    outputs = {value.name: value for value in graph.output}
    for node in [node for node in graph.node if node.op_type == "Softmax"]:  # theirs are logits
        outputs[node.output[0]].name = node.input[0]
        graph.node.remove(node)
    names[graph.input[0].name] = "input.1"
    names |= {value.name: str(1959 + i) for i, value in enumerate(graph.output)}
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [names.get(name, name) for name in values]
    for value in (*graph.input, *graph.output):
        value.name = names[value.name]
    del graph.value_info[:]
    onnx.save(file, path)
    return path.read_bytes()
