"""Videos, made where they are needed."""

import socket
from fractions import Fraction
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from clips import make_video, read
from helpers.data import make_scene, truncate_file
from helpers.processes import ranks
from PIL import Image

import predict
import src.video.convert
from src import UserError
from src.pictures.images import open_image
from src.pictures.plan import plan_videos
from train_utils.distributed import launched_rank

av = pytest.importorskip("av", reason="PyAV is not installed")


@pytest.fixture
def run(weights, call):
    return lambda *argv: call(
        predict.main, *argv, "--weights", weights, "--img-size", 32, "--device", "cpu"
    )


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_times_and_sound_are_kept(run, tmp_path, suffix):
    """A video of varying rate too."""
    source = make_video(tmp_path / f"a{suffix}", times=(0, 1, 2, 5, 6, 11))
    status, _, err = run(source, "--output", tmp_path / "out")
    assert status == 0, err
    times, frames, sound = read(tmp_path / f"out/a{suffix}")
    expected = read(source)
    assert times == pytest.approx(expected[0], abs=0.002)
    assert frames[0].shape == (48, 64, 3) and sound == expected[2] and sound


def test_colours_and_masks(run, tmp_path):
    """Where a threshold leaves no object, the background's colour; else what the picture gives."""
    source = make_video(tmp_path / "a.mp4", sound=None)
    argv = (source, "--mode", "background", "--background", "#20a040", "--output")
    assert run(*argv, tmp_path / "b.mp4", "--threshold", 1)[0] == 0
    assert np.abs(np.array(read(tmp_path / "b.mp4")[1], int) - (32, 160, 64)).max() <= 4
    assert run(*argv, tmp_path / "c.mp4", "--threshold", 0)[0] == 0
    kept, original = (np.array(read(path)[1], float) for path in (tmp_path / "c.mp4", source))
    assert kept.shape == original.shape and np.abs(kept - original).mean() < 12


def test_interrupted_frames_are_gone_on_with(run, tmp_path, monkeypatch):
    """A folder has its name once the last frame is in it; --skip-existing takes no other for
    done."""
    source = make_video(tmp_path / "a.mp4")
    argv = (source, "--frames", "--skip-existing", "--output", tmp_path / "out")
    write, some = src.video.convert.encode, iter(range(3))

    def fails(*args):
        if next(some, None) is None:
            raise UserError("the disk is full")
        write(*args)

    monkeypatch.setattr(src.video.convert, "encode", fails)
    assert run(*argv)[0] == 2 and not (tmp_path / "out/a").exists()
    monkeypatch.undo()
    assert run(*argv)[0] == 0 and len(list((tmp_path / "out/a").iterdir())) == 8
    assert "1 already existed" in run(*argv)[1]
    (tmp_path / "out/a/000003.png").unlink()
    assert "1 of 1 videos" in run(*argv)[1] and len(list((tmp_path / "out/a").iterdir())) == 8
    for frame in (tmp_path / "out/a").iterdir():
        frame.unlink()
    assert "1 of 1 videos" in run(*argv)[1]  # an empty folder is no result


def frame_names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_frames_of_a_longer_video_do_not_join(run, tmp_path, monkeypatch):
    """They are removed, and it is said; until the new ones are complete, nothing changes."""
    out = tmp_path / "out"
    argv = (tmp_path / "a.mp4", "--frames", "--output", out)
    make_video(tmp_path / "a.mp4")
    assert run(*argv)[0] == 0
    assert run(*argv, "--format", "webp")[0] == 0  # frames in another format are of use beside
    for name in ("notes.txt", "cover.png", "0009.png"):
        (out / "a" / name).write_text("mine")
    make_video(tmp_path / "a.mp4", times=range(3))
    before = {path: path.read_bytes() for path in (out / "a").iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(src.video.convert, "encode", Mock(side_effect=UserError("disk is full")))
        assert run(*argv)[0] == 2
    assert {path: path.read_bytes() for path in (out / "a").iterdir()} == before
    status, _, err = run(*argv)
    png = [f"{i:06}.png" for i in (1, 2, 3)]
    webp = [f"{i:06}.webp" for i in range(1, 9)]
    assert status == 0 and frame_names(out / "a") == sorted(
        [*png, *webp, "0009.png", "cover.png", "notes.txt"]
    )
    assert f"{out / 'a'}: removed 5 earlier frames, as this video has 3" in err
    assert "earlier frames in other formats too (webp)" in err
    assert frame_names(out) == ["a"]


def test_frames_of_a_killed_run_do_not_join(run, tmp_path):
    source = make_video(tmp_path / "a.mp4", times=range(3))
    part = tmp_path / "out/a.part"
    part.mkdir(parents=True)
    for name in ("000002.png", "000007.png", ".000008.png.0123abcd.tmp"):
        (part / name).write_text("of another video")
    status, _, err = run(source, "--frames", "--output", tmp_path / "out")
    assert status == 0 and "removed 1 earlier frame," in err
    assert frame_names(tmp_path / "out/a") == [f"{i:06}.png" for i in (1, 2, 3)]
    assert open_image(tmp_path / "out/a/000002.png").size == (64, 48)


def test_a_file_in_the_place_of_frames(run, tmp_path):
    source = make_video(tmp_path / "a.mp4")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a").write_text("mine")
    status, _, err = run(source, "--frames", "--output", tmp_path / "out")
    assert status == 2 and str(tmp_path / "out/a") in err and "Traceback" not in err
    assert (tmp_path / "out/a").read_text() == "mine"


@pytest.fixture
def server():
    """Its port, and who has connected."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0)

        def connected():
            try:
                listening.accept()[0].close()
            except BlockingIOError:
                return False
            return True

        yield listening.getsockname()[1], connected


NAMES = ["12:30.mp4", "pipe:0.mp4", "file:b.mp4", "concat:a.mp4|b.mp4", "subfile,,start,0:b.mkv"]


@pytest.mark.parametrize("name", [*NAMES, "http:/127.0.0.1:{port}/a.mp4", "crypto:a%03d.mov"])
def test_names_that_look_like_addresses(run, tmp_path, monkeypatch, server, name):
    """They are files like any other, as input and as output, relative or not."""
    port, connected = server
    monkeypatch.chdir(tmp_path)
    source = Path(name.format(port=port))
    source.parent.mkdir(parents=True, exist_ok=True)
    made = make_video(tmp_path / f"made{source.suffix}")
    made.rename(source)
    target = "out" / source
    for output in (target, target.parent / f"{target.stem}{target.suffix}"):
        assert run(source, "--output", output)[0] == 0
        with target.open("rb") as file, av.open(file) as video:
            assert len(list(video.decode(video=0))) == 8
        target.unlink()
    status, _, err = run(source, "--output", source.with_stem(f"{source.stem}-b"))
    assert status == 0 and source.with_stem(f"{source.stem}-b").stat().st_size, err
    assert run(source, "--frames", "--output", "frames")[0] == 0
    assert len(frame_names(Path("frames") / source.stem)) == 8
    assert not connected()


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\n{there}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile {there}\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "address": "{there}\n",
}


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_playlists_lead_nowhere(run, tmp_path, server, kind, suffix):
    """A file that is called a video, and holds the place of another."""
    port, connected = server
    other = make_video(tmp_path / "other.ts", sound=None)
    for there in (f"http://127.0.0.1:{port}/a.ts", f"tcp://127.0.0.1:{port}", other, "other.ts"):
        source = tmp_path / f"a.{suffix}"
        source.write_text(PLAYLISTS[kind].format(there=there, port=port))
        status, _, err = run(source, "--output", tmp_path / "out.mp4")
        assert status == 2 and f"{source}: cannot be read as a video" in err
        assert "Traceback" not in err and not (tmp_path / "out.mp4").exists()
    assert not connected()


def test_frames(run, tmp_path):
    source = make_video(tmp_path / "a.mp4")
    status, *_ = run(source, "--frames", "--mode", "cutout", "--output", tmp_path / "out")
    written = sorted((tmp_path / "out/a").iterdir())
    assert status == 0 and [p.name for p in written] == [f"{i:06}.png" for i in range(1, 9)]
    with Image.open(written[0]) as image:
        assert image.mode == "RGBA"


def test_odd_sizes_and_size(run, tmp_path):
    source = make_video(tmp_path / "a.mp4", size=(90, 66))
    assert run(source, "--size", 45, "--output", tmp_path / "b.mp4")[0] == 0
    assert read(tmp_path / "b.mp4")[1][0].shape == (33, 45, 3)


def test_narrow_pixels(run, tmp_path):
    """A video keeps the shape of its pixels; its picture stays the first stream."""
    make_video(tmp_path / "a.mkv", aspect=Fraction(16, 11))
    assert run(tmp_path / "a.mkv", "--mode", "overlay", "--output", tmp_path / "b.mkv")[0] == 0
    with av.open(str(tmp_path / "b.mkv")) as video:
        assert video.streams[0].type == "video" and len(video.streams) == 2
        assert video.streams.video[0].sample_aspect_ratio == Fraction(16, 11)


def test_turned_by_a_telephone(run, tmp_path):
    """The matrix in the video's header says how it is to be seen."""
    source = make_video(tmp_path / "a.mp4", sound=None)
    content = bytearray(source.read_bytes())
    place = content.index(b"tkhd") + 4 + 40  # the 3×3 matrix of ISO 14496-12, 8.3.2
    one = (1 << 16).to_bytes(4, "big")
    zero, minus = bytes(4), (-(1 << 16)).to_bytes(4, "big", signed=True)
    content[place : place + 36] = (
        zero + one + zero + minus + zero * 4 + (1 << 30).to_bytes(4, "big")
    )
    source.write_bytes(content)
    argv = (source, "--mode", "background", "--threshold", 0, "--frames", "--output", tmp_path)
    assert run(*argv)[0] == 0
    found = np.array(open_image(tmp_path / "a/000001.png"), float)
    upright = np.rot90(make_scene(0, 64, 48)[0], -1)
    assert found.shape == upright.shape and np.abs(found - upright).mean() < 30
    assert np.abs(found - upright[::-1, ::-1]).mean() > 40


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ("--mode cutout --output {out}.mp4", "holds no transparency; name a .webm or .mov file"),
        ("--crop --output {out}.mp4", "--crop"),
        ("--output {video}", "overwrite"),
        ("--output {out}.png", "name a folder, or a video (.m4v, .mkv, .mov, .mp4, .webm)"),
        ("--output {out}.avi", "name a folder, or a video (.m4v, .mkv, .mov, .mp4, .webm)"),
        ("--output {out}.mp4 --frames", "name a folder\n"),
        ("--output {out} --recursive", "--recursive goes with folders of images"),
        ("--output {out} --format webp", "--format goes with --frames"),
        ("{photo}", "separate runs"),
        ("--output {out}.webm", "sound"),
        ("--output -", "name a video"),
    ],
)
def test_what_the_user_must_fix(run, tmp_path, flags, word):
    video = make_video(tmp_path / "a.mp4")
    flags = flags.format(out=tmp_path / "out", video=video, photo=tmp_path / "a.png").split()
    status, _, err = run(video, *flags)
    assert status == 2 and word in err and "Traceback" not in err
    assert not list(tmp_path.glob("*out*")) and not list(tmp_path.glob(".*"))


def test_torn_and_empty_videos(run, tmp_path):
    """The sound ones are written, the others named."""
    videos = [make_video(tmp_path / f"{name}.mkv") for name in "ab"]
    truncate_file(videos[0], 0.05)
    (tmp_path / "c.mp4").write_text("no video")
    long = make_video(tmp_path / f"{'l' * 240}.mkv")
    argv = (*videos, tmp_path / "c.mp4", "--suffix", "_of_a_long_name", "--output", tmp_path / "o")
    status, _, err = run(long, *argv)
    assert status == 2 and "too long" in err and not (tmp_path / "o").exists()  # told at once
    status, said, err = run(*argv)
    assert status == 2 and "1 of 3" in said
    assert (tmp_path / "o/b_of_a_long_name.mkv").exists()
    assert str(videos[0]) in err and "c.mp4" in err and "Traceback" not in err


def test_avi_becomes_mp4(tmp_path):
    (tmp_path / "a.AVI").touch()
    (job,) = plan_videos([tmp_path / "a.AVI"], tmp_path / "out", "", False)
    assert job.target == tmp_path / "out/a.mp4"


def predict_unplanned(argv):
    """The second rank takes the first one's list."""
    if launched_rank():
        predict.plan_videos = None
    return predict.main(argv)


def test_ranks_share_videos(tmp_path, weights):
    videos = [str(make_video(tmp_path / f"{name}.mp4")) for name in "ab"]
    argv = [*videos, "--output", str(tmp_path / "out"), "--weights", str(weights)]
    argv += ["--img-size", "32", "--device", "cpu"]
    told = ranks(2, predict_unplanned, argv, group=False)
    assert [status for _, status, _ in told] == [0, 0], told
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.mp4", "b.mp4"]


def test_a_fault_in_writing_is_the_results(run, tmp_path, monkeypatch):
    """And no fault of the video that is read."""
    source = make_video(tmp_path / "a.mp4", sound=None)

    def refuse(self, packet):
        raise av.error.ExternalError(1, "no room")

    monkeypatch.setattr(src.video.convert, "Writer", type("W", (src.video.convert.Writer,), {}))
    monkeypatch.setattr(av.container.OutputContainer, "mux", refuse, raising=True)
    status, _, told = run(source, "--output", tmp_path / "b.mp4")
    assert status == 2 and "b.mp4: cannot be written as a video (no room)" in told
