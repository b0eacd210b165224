"""Runs of very many images, and of a share of them."""

import csv
import os
import pickle
from pathlib import Path

import pytest
from helpers.data import make_scene, save_image
from PIL import Image

from src import UserError
from src.pictures.plan import Job, Jobs, check_targets, plan_images
from train_utils.shares import Share


@pytest.fixture
def album(tmp_path):
    for seed in range(12):
        save_image(tmp_path / f"album/{seed % 3}/{seed}.png", make_scene(seed)[0])
    return tmp_path / "album"


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.png")}


def test_jobs_are_kept_as_they_are():
    """In their order, whatever their names, across folders and in parts."""
    odd = ["a\nb.jpg", " .jpg", "é.jpg", os.fsdecode(b"caf\xe9.jpg"), "x" * 250 + ".jpg"]
    jobs = [
        Job(Path(folder, name), Path("out", name)) for folder in ("", "/", "a/b") for name in odd
    ]
    jobs += [Job(Path(f"many/{n}.jpg"), Path(f"out/many/{n}.png")) for n in range(12_000)]
    packed = Jobs(iter(jobs))
    assert list(packed) == list(pickle.loads(pickle.dumps(packed))) == jobs and len(packed) == len(
        jobs
    )
    for count in (1, 3, 7):
        shares = [packed.share(number, count) for number in range(count)]
        assert [list(share) for share in shares] == [jobs[n::count] for n in range(count)]
    assert list(packed.only(lambda folder, name: folder == "a/b")) == jobs[10:15]
    assert not list(Jobs().share(1, 2)) and not len(Jobs())


def test_a_million_names_take_some_megabytes():
    """As they are held, and as they go to other ranks."""
    jobs = Jobs(
        Job(Path(f"in/image_{n:07}.jpg"), Path(f"out/image_{n:07}.png")) for n in range(50_000)
    )
    assert len(pickle.dumps(jobs)) < 10 * len(jobs)  # 65 bytes a job are in their names alone


@pytest.mark.parametrize("count", [3])
def test_shares_are_one_run(run, album, tmp_path, count):
    """Each image is in one share, and looks as in a run of all."""
    argv = (album, "--recursive", "--output")
    assert run(*argv, tmp_path / "all")[0] == 0
    numbers = []
    for number in range(1, count + 1):
        status, said, _ = run(*argv, tmp_path / "shares", "--share", f"{number}/{count}")
        assert status == 0 and f"(share {number}/{count} of 12) written to" in said
        done, of, planned = said.split()[:3]
        assert done == planned and of == "of"
        numbers.append(int(done))
    assert sum(numbers) == 12 and max(numbers) < 12
    assert content(tmp_path / "shares") == content(tmp_path / "all")


def test_shares_do_not_depend_on_other_images(album, tmp_path):
    """The images that one begins with may not be those that another finds."""
    jobs = plan_images([album], tmp_path / "out", recursive=True)
    before = [set(Share(n, 3).pick(jobs)) for n in (1, 2, 3)]
    assert set.union(*before) == set(jobs) and sum(map(len, before)) == len(jobs)
    (album / "0/0.png").unlink()
    save_image(album / "0/00.png", make_scene()[0])
    later = plan_images([album], tmp_path / "out", recursive=True)
    for n, share in enumerate(before, 1):
        assert set(Share(n, 3).pick(later)) & set(jobs) == share & set(later)


def test_boxes_of_shares(run, album, tmp_path):
    """Each share has a file of its own, and together they are that of one run."""
    argv = (album, "--recursive", "--output", tmp_path / "out", "--boxes")
    assert run(*argv, tmp_path / "all.csv")[0] == 0
    rows = set()
    for n in (1, 2):
        assert run(*argv, tmp_path / f"boxes-0{n}.csv", "--share", f"{n}/2")[0] == 0
        with open(tmp_path / f"boxes-0{n}.csv", newline="") as file:
            rows |= {tuple(row) for row in csv.reader(file)}
    with open(tmp_path / "all.csv", newline="") as file:
        assert rows == {tuple(row) for row in csv.reader(file)}
    for name in ("boxes.csv", "boxes-12.csv"):
        status, _, err = run(*argv, tmp_path / name, "--share", "2/2")
        assert status == 2 and "name it after its number" in err and not (tmp_path / name).exists()


@pytest.mark.parametrize("share", ["0/2", "3/2", "1", "a/b", "-1/2", "1/0"])
def test_shares_that_are_none(run, album, share):
    status, _, err = run(album, f"--share={share}")
    assert status == 2 and "--share" in err and "1/8, 2/8" in err and err.count("\n") == 1


def test_a_pipe_has_no_shares(run):
    status, _, err = run("-", "--share", "1/2")
    assert status == 2 and "--share go with folders" in err


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_results_that_are_images_of_other_folders(album, tmp_path, link):
    """Are found among all others that are there."""
    out = tmp_path / "out"
    jobs = plan_images([album], out, recursive=True)
    for job in jobs:
        save_image(job.target, Image.new("L", (2, 2)))
    assert len(plan_images([album], out, recursive=True)) == 12
    (out / "1/4.png").unlink()
    link(album / "2/5.png", out / "1/4.png")
    with pytest.raises(UserError, match=r"out/1/4\.png would overwrite an image"):
        plan_images([album], out, recursive=True)


def test_names_are_told_apart_across_inputs(tmp_path):
    """Results of several folders lie in one."""
    for name in ("one/a.jpg", "one/b.jpg", "two/a.png", "two/c.jpg"):
        save_image(tmp_path / name, make_scene()[0])
    folders = [tmp_path / "one", tmp_path / "two", tmp_path / "one/../one", tmp_path / "two/c.jpg"]
    names = [job.target.name for job in plan_images(folders, tmp_path / "out")]
    assert names == ["a.jpg.png", "b.png", "a.png.png", "c.png"]


def test_results_that_cannot_be_written_are_found_in_any_folder(album, tmp_path):
    jobs = plan_images([album], tmp_path / "out", recursive=True)
    check_targets(jobs, [])
    (tmp_path / "out/2/8.png").mkdir(parents=True)
    with pytest.raises(UserError, match=r"8\.png: is a folder"):
        check_targets(jobs, [])
    check_targets(jobs, [], done=lambda job: job.target.exists())
    save_image(album / f"0/{'é' * 124}.png", make_scene()[0])  # 252 bytes, as many as are allowed
    save_image(album / f"0/{'x' * 130}.png", make_scene()[0])
    jobs = plan_images([album], tmp_path / "other", "_mask", recursive=True)
    with pytest.raises(UserError, match="too long"):
        check_targets(jobs, [])
