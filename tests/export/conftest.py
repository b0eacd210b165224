"""Fixtures of the tests of exports."""

import sys

import pytest

import export


@pytest.fixture
def nothing_there(tmp_path, monkeypatch):
    """In an empty folder, without any converter, and without weights that could be loaded."""
    for package in ("coremltools", "litert_torch", "onnxscript"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(export, "load_model", lambda *_: pytest.fail("weights were loaded"))
    monkeypatch.chdir(tmp_path)
