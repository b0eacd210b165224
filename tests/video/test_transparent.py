"""Cut-outs as videos: alpha and colours are read back."""

import numpy as np
import pytest
from clips import av, make_video, read, read_alpha

import predict
from src.pictures.images import open_image
from src.pictures.plan import plan_videos


@pytest.fixture
def run(weights, call):
    return lambda *argv: call(
        predict.main, *argv, "--weights", weights, "--img-size", 32, "--device", "cpu"
    )


@pytest.mark.parametrize("side", [64, 47])
@pytest.mark.parametrize(
    ("name", "codec", "sound"), [("a.webm", "vp9", "libopus"), ("a.mov", "prores", "aac")]
)
def test_alpha_is_that_of_the_frames(run, tmp_path, name, codec, sound, side):
    """As --frames writes them, at odd sizes too, with the sound."""
    source = make_video(tmp_path / "a.mkv", times=range(4), sound=sound)
    style = ("--mode", "cutout", "--threshold", 0.45, "--size", side)
    status, _, err = run(source, *style, "--output", tmp_path / name)
    assert status == 0, err
    assert run(source, *style, "--frames", "--output", tmp_path)[0] == 0
    frames = read_alpha(tmp_path / name)
    assert len(frames) == 4
    with av.open(str(tmp_path / name)) as video:
        assert video.streams.video[0].codec_context.name == codec and video.streams.audio
    for number, found in enumerate(frames, 1):
        expected = np.asarray(open_image(tmp_path / f"a/{number:06}.png"), int)
        assert found.shape == expected.shape and max(found.shape) == side
        apart = np.abs(found - expected)
        inside = expected[..., 3] == 255
        assert apart[..., 3].mean() < 3 and inside.any() and not inside.all()
        assert apart[inside][:, :3].mean() < 12


def test_times_are_kept(run, tmp_path):
    source = make_video(tmp_path / "a.mov", times=(0, 1, 2, 5, 6, 11))
    assert run(source, "--mode", "cutout", "--output", tmp_path / "out")[0] == 0
    times, _, sound = read(tmp_path / "out/a.mov")
    expected = read(source)
    assert times == pytest.approx(expected[0], abs=0.002) and sound == expected[2] and sound


def test_which_video_a_cutout_becomes(tmp_path):
    """One that holds alpha, and the sound of most."""
    for name, result in (("a.mp4", "a.mov"), ("b.webm", "b.webm"), ("c.avi", "c.mov")):
        (tmp_path / name).touch()
        (job,) = plan_videos([tmp_path / name], tmp_path / "out", transparent=True)
        assert job.target == tmp_path / "out" / result


def test_sound_that_does_not_fit(run, tmp_path):
    for sound, target, other in (("aac", "out.webm", ".mov"), ("libopus", "out.mov", ".webm")):
        source = make_video(tmp_path / "a.mkv", sound=sound)
        status, _, err = run(source, "--mode", "cutout", "--output", tmp_path / target)
        assert status == 2 and f"cannot hold the video's sound ({sound.removeprefix('lib')})" in err
        assert f"choose another container, such as {other}" in err
        assert not list(tmp_path.glob("*out*"))
