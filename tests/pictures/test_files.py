"""Files written whole or not at all, and onto no input: their names, rights and kinds."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.data import ROOT
from safetensors import SafetensorError
from safetensors.torch import load

from src import UserError
from src.files import (
    atomic_path,
    check_outputs,
    check_writable,
    clear_temporary,
    find_overwritten,
    save_json,
    save_torch,
)
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


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_a_file_keeps_its_rights(tmp_path, mode, monkeypatch):
    """And meanwhile nobody else reads the new content."""
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    path.chmod(mode)
    monkeypatch.setattr(os, "access", lambda *_: True)
    with atomic_path(path) as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
        temporary.write_bytes(b"new")
    assert stat.S_IMODE(path.stat().st_mode) == mode and path.read_bytes() == b"new"


def test_a_read_only_file_is_not_replaced(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match=r"a\.png: cannot be written \(it is read-only\)"):
        check_writable(path)
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_written_through(tmp_path, exists):
    target, link = tmp_path / "there/a.json", tmp_path / "links/a.json"
    for path in (target, link):
        path.parent.mkdir()
    link.symlink_to("../there/a.json")
    if exists:
        target.write_text("old")
    check_writable(link)
    assert target.exists() == exists
    save_json(1, link)
    assert link.is_symlink() and target.read_text() == "1\n" and not target.is_symlink()
    round_and_round = tmp_path / "loop"
    round_and_round.symlink_to("loop")
    with pytest.raises(UserError, match="loop: cannot be written"):
        check_writable(round_and_round)


def test_devices_and_pipes_stay(tmp_path):
    """They get the content of every writer, safetensors' too, which makes files of its own."""
    fifo = tmp_path / "pipe.safetensors"
    os.mkfifo(fifo)
    check_writable(fifo)  # waits for no reader
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        storage.save_state({"a": torch.ones(2)}, fifo)
        content = os.read(reader, 10_000)
    finally:
        os.close(reader)
    assert torch.equal(load(content)["a"], torch.ones(2))
    assert stat.S_ISFIFO(fifo.stat().st_mode) and os.listdir(tmp_path) == [fifo.name]
    for write in (lambda: save_json(1, "/dev/null"), lambda: save_torch({}, "/dev/null")):
        write()
        assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output_by_name(tmp_path, name):
    """A file that it leads to is neither replaced nor cut to nothing."""
    if not os.path.exists(name):
        pytest.skip(f"no {name} on this system")
    script = "import sys; from src.files import *; print(1); check_writable(sys.argv[1]); "
    script += "save_json(2, sys.argv[1]); print(3)"
    with (tmp_path / "out").open("w") as out:
        out.write("0\n")
        out.flush()
        subprocess.run([sys.executable, "-c", script, name], cwd=ROOT, stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "0\n1\n2\n3\n"


def test_a_mount_point_is_written_in_place(tmp_path, monkeypatch):
    """As a container has it of a single file."""

    def busy(*_):
        raise OSError(errno.EBUSY, "Device or resource busy")

    (tmp_path / "a.json").write_text("old")
    before = (tmp_path / "a.json").stat().st_ino
    monkeypatch.setattr(Path, "replace", busy)
    save_json(1, tmp_path / "a.json")
    assert (tmp_path / "a.json").read_text() == "1\n"
    assert os.listdir(tmp_path) == ["a.json"] and (tmp_path / "a.json").stat().st_ino == before


def test_what_cannot_be_written_is_said_at_once(tmp_path):
    (tmp_path / "file").touch()
    for path, words in (
        (tmp_path / "file/a.png", "Not a directory"),
        (tmp_path / "/".join(["x" * 200] * 25) / "a.png", "File name too long"),
        (tmp_path / ("x" * 256), "the name is too long"),
        ("/proc/none/a.png", r"cannot be written \(No such file"),
        ("a\0b", "cannot be written"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(UserError, match=words):
            check_writable(path)
    check_writable(tmp_path / "new/er/a.png")
    assert os.listdir(tmp_path) == ["file"]


def link(kind, target, path):
    """The same file by another name."""
    (os.symlink if kind == "symbolic" else os.link)(target, path)
    return path


@pytest.mark.parametrize("kind", ["same", "dotted", "symbolic", "hard"])
def test_no_output_is_an_input(tmp_path, kind):
    source = tmp_path / "data/a.png"
    source.parent.mkdir()
    source.touch()
    other = {"same": source, "dotted": tmp_path / "data/../data/a.png"}.get(kind)
    other = other or link(kind, source, tmp_path / "b.png")
    for inputs in ([source], [source.parent], iter(["no such", source])):
        assert find_overwritten([tmp_path / "new.png", other], inputs)[0] == other
    with pytest.raises(UserError, match=r"worst_file .*: would overwrite an input of this run"):
        check_outputs({"json": None, "worst_file": [tmp_path / "new.png", other]}, [source])
    check_outputs({"json": tmp_path / "c.json", "csv": "/dev/null", "plot": "/dev/null"}, [source])


def test_no_two_outputs_are_one(tmp_path):
    (tmp_path / "a").touch()
    link("symbolic", tmp_path / "a", tmp_path / "b")
    with pytest.raises(UserError, match="two results in one file; name another, as json"):
        check_outputs({"json": tmp_path / "a", "csv": tmp_path / "b"})
