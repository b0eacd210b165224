"""The page that computes in the browser: built once, served with and without its headers."""

import contextlib
import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading

import pytest
import uvicorn
from filelock import FileLock

from helpers.data import ROOT
from web.listen import bind
from web.static import BrowserPage

SOURCE = ROOT / "web/browser"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def build_page(tmp_path_factory):
    """The folder of the page; all processes of a test run share it, and what the build printed."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    page = base / "browser-page"
    with FileLock(base / "browser-page.lock"):
        if not (base / "browser-page.txt").exists():
            install_runtime()
            command = [sys.executable, SOURCE / "build.py", "--output", page]
            built = subprocess.run(command, capture_output=True, text=True)
            assert built.returncode == 0, built.stderr
            (base / "browser-page.txt").write_text(built.stdout)
    return page, (base / "browser-page.txt").read_text()


def install_runtime():
    """``npm ci``, unless what it installs is there."""
    if not (shutil.which("npm") and shutil.which("node")):
        pytest.skip("node and npm are not installed")
    wanted = json.loads((SOURCE / "package.json").read_text())["dependencies"]["onnxruntime-web"]
    found = SOURCE / "node_modules/onnxruntime-web/package.json"
    if found.exists() and json.loads(found.read_text())["version"] == wanted:
        return
    command = ["npm", "ci", "--prefix", str(SOURCE), "--ignore-scripts", "--no-audit", "--no-fund"]
    installed = subprocess.run(command, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"npm ci does not work here: {installed.stderr.strip().splitlines()[-1]}")


@contextlib.contextmanager
def serving_page(folder):
    """As ``app.py --browser`` serves it: its address."""
    with bind("127.0.0.1", 0) as listener:
        config = uvicorn.Config(
            BrowserPage(folder), ws="none", log_level="warning", timeout_graceful_shutdown=5
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


class Plain(http.server.SimpleHTTPRequestHandler):
    """A host that knows nothing of the page's headers."""

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving_plainly(folder):
    """By Python's own server, below a path as many hosts have it: an address, and an end."""
    handler = functools.partial(Plain, directory=folder.parent)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def stop():
        server.shutdown()
        server.server_close()
        thread.join()

    try:
        yield f"http://127.0.0.1:{server.server_port}/{folder.name}/", stop
    finally:
        if thread.is_alive():
            stop()
