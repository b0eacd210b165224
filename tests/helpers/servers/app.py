"""app.py as a process that tests send requests to."""

import io
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image

from helpers.data import ROOT, make_scene
from helpers.processes import PATIENCE
from src import build_model, save_model

WAITING = 50
ORIGIN = "https://example.com"
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
        torch.manual_seed(5)
        self.weights = root / "net.pt"
        save_model(build_model("u2net_lite"), self.weights)
        self.temporary = root / "tmp"
        self.temporary.mkdir()
        self.log = root / "log.txt"
        argv = ["--weights", self.weights, ROOT / "weights/u2net_lite.safetensors"]
        argv += ["--img-size", 64, "--amp", "off", "--device", "cpu", "--port", 0, *flags]
        environment = {**os.environ, "TMPDIR": str(self.temporary)}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SPIED, *map(str, argv)],
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        for _ in range(10 * PATIENCE):
            told = re.search(
                r"^(http://\S+:(\d+))  \(API: /api/docs\)$", self.log.read_text(), re.M
            )
            if told:
                self.url, self.port = told[1], int(told[2])
                return
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)
        raise TimeoutError(self.log.read_text())

    def post(self, body, query="", kind="application/x-www-form-urlencoded"):
        """Status and body of the API's answer."""
        headers = {"Content-Type": kind}
        status, _, answer = self.ask("POST", f"/api/predict?{query}", body, headers)
        return status, answer

    def ask(self, method, path, body=None, headers=None):
        """Status, headers and body of any answer."""
        request = urllib.request.Request(self.url + path, body, headers or {}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()

    def memory(self):
        """Of the process at its highest, in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    def stop(self):
        self.process.terminate()
        self.process.wait(PATIENCE)


@contextmanager
def serving(root):
    """A server with small limits, and nothing of it left behind."""
    flags = ["--max-megabytes", 1, "--max-megapixels", 2, "--max-waiting", WAITING]
    flags += ["--cors", ORIGIN]
    server = Server(root, *flags)
    try:
        yield server
    finally:
        server.stop()
    assert not list(server.temporary.glob("u2net-*"))


def photo(seed=0, width=60, height=40):
    file = io.BytesIO()
    Image.fromarray(make_scene(seed, width, height)[0]).save(file, "PNG")
    return file.getvalue()
