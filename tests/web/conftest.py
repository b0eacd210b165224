"""One server for all tests of the page and the API."""

import pytest
from helpers.server import serving

pytest.importorskip("gradio", reason="gradio is not installed")


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("app")) as server:
        yield server
