"""Cut-outs as videos: alpha and colours are read back."""

import numpy as np
import pytest
from clips import av, make_video, read, read_alpha
from PIL import Image

import predict
from src.pictures.plan import plan_videos


@pytest.fixture
def run(weights, call):
    return lambda *argv: call(
        predict.main, *argv, "--weights", weights, "--img-size", 32, "--device", "cpu"
    )


@pytest.mark.parametrize("size", [(64, 48), (47, 35)])
@pytest.mark.parametrize(
    ("name", "codec", "sound"), [("a.webm", "vp9", "libopus"), ("a.mov", "prores", "aac")]
)
def test_alpha_is_read_back(run, tmp_path, monkeypatch, name, codec, sound, size):
    """From 0 to 255, at odd sizes too, with colours and sound; straight, not multiplied in."""
    ramp = Image.linear_gradient("L").resize(size)

    def cutout(image, saliency, style):
        result = image.resize(size)
        result.putalpha(ramp)
        made.append(np.asarray(result, int))
        return result

    made = []
    monkeypatch.setattr("src.video.convert.render", cutout)
    source = make_video(tmp_path / "a.mkv", times=range(4), sound=sound)
    status, _, err = run(source, "--mode", "cutout", "--output", tmp_path / name)
    assert status == 0, err
    found = read_alpha(tmp_path / name)
    with av.open(str(tmp_path / name)) as video:
        assert video.streams.video[0].codec_context.name == codec and video.streams.audio
    assert len(found) == len(made) == 4
    for frame in found:  # several threads make them, in any order
        assert frame.shape == made[0].shape
        apart, expected = min(
            ((np.abs(frame - one), one) for one in made), key=lambda x: x[0].sum()
        )
        assert apart[..., 3].max() < 16 and apart[..., 3].mean() < 3
        assert expected[..., 3].min() < 5 and expected[..., 3].max() > 250
        assert apart[..., :3].mean() < 14


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
