"""Files written whole or not at all: their names and rights."""

import errno
import os
import stat

import pytest
import torch
from safetensors import SafetensorError

from src import UserError
from src.files import atomic_path, clear_temporary
from src.weights import storage


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_rights_are_those_of_any_file(tmp_path, umask, monkeypatch):
    """Without asking for the umask, which is to set it, for all threads of the process."""
    before = os.umask(umask)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", None)
            with atomic_path(tmp_path / "a") as temporary:
                temporary.write_bytes(b"x")
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask
    finally:
        os.umask(before)


def test_rights_of_safetensors(tmp_path):
    """Its own writer makes files for their owner alone."""
    storage.save_state({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    (tmp_path / "b").touch()
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_a_full_disk_is_told_of_the_file(tmp_path):
    """And not of the temporary one, or of none."""
    path = tmp_path / "a.png"
    for name in (None, "temporary"):
        with pytest.raises(OSError, match="No space") as told, atomic_path(path) as temporary:
            raise OSError(errno.ENOSPC, "No space left", name and str(temporary))
        assert told.value.filename == str(path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("letter", ["a", "\u6c34"])
def test_names_as_long_as_systems_allow(tmp_path, letter):
    name = letter * (251 // len(letter.encode())) + ".png"
    with atomic_path(tmp_path / name) as temporary:
        temporary.write_bytes(b"x")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with pytest.raises(UserError, match="too long"), atomic_path(tmp_path / f"{name}.longer"):
        raise AssertionError("it would be work in vain")


def test_only_what_was_left_by_writers_is_cleared(tmp_path):
    left, other = tmp_path / ".last.pt.0123abcd.tmp", tmp_path / ".mine.tmp"
    deep = tmp_path / "run/.last.pt.0123abcd.tmp"  # another run, below, may be writing it
    deep.parent.mkdir()
    for path in (left, other, deep):
        path.touch()
    clear_temporary(tmp_path)
    assert not left.exists() and other.exists() and deep.exists()


def test_a_full_disk(tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(storage, "save_file", full)
    with pytest.raises(UserError, match=r"w\.safetensors: cannot be written"):
        storage.save_state({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())
