"""Files written whole or not at all: their names and rights."""

import os
import stat

import pytest

from src.files import atomic_path


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


@pytest.mark.parametrize("letter", ["a", "\u6c34"])
def test_names_as_long_as_systems_allow(tmp_path, letter):
    name = letter * (251 // len(letter.encode())) + ".png"
    with atomic_path(tmp_path / name) as temporary:
        temporary.write_bytes(b"x")
    assert [path.name for path in tmp_path.iterdir()] == [name]
