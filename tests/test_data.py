"""my_dataset.py, transforms.py and the loaders: layouts, faults by name, masks, augmentation."""

import random
import warnings

import numpy as np
import pytest
import torch
from conftest import (
    MASKS,
    OBJECT,
    RAINBOW,
    RED1,
    levels,
    make_duts,
    make_pairs,
    save,
    scene,
    spoil,
    tear,
)
from PIL import Image, ImageOps

from my_dataset import Pair, SegmentationDataset, find_pairs, load_pair, read_mask
from src import UserError
from train_utils import loaders
from transforms import EvalPreset, TrainPreset


def stems(found):
    return {pair.name for pair in found.pairs}


def split_stems(*args, **options):
    return {s: stems(find_pairs(*args, split=s, **options)) for s in ("train", "test", "all")}


def faults_of(*args, **options):
    with pytest.raises(UserError) as error:
        find_pairs(*args, **options)
    return str(error.value)


def test_duts_layout(duts):
    """Without a split, what there is to score is DUTS-TE."""
    found = split_stems(duts)
    assert found["train"] == {f"tr{i}" for i in range(4)}
    assert found["test"] == {f"te{i}" for i in range(3)} == stems(find_pairs(duts))
    assert found["all"] == found["train"] | found["test"]


def test_half_of_duts(tmp_path):
    """DUTS-TE alone is scored whole and never trained on; DUTS-TR alone is split."""
    root = make_duts(tmp_path, train=0, test=30)
    assert len(find_pairs(root).pairs) == len(find_pairs(root, "test").pairs) == 30
    assert "DUTS-TR" in faults_of(root, "train")
    found = split_stems(make_duts(tmp_path / "other", train=30, test=0))
    assert found["test"] and found["train"] == found["all"] - found["test"]


def test_lists_choose_the_splits(tmp_path, folders):
    """A split without its list is what the other list leaves; blank lines mean nothing."""
    make_pairs(*folders, "abcde")
    (tmp_path / "test.txt").write_text("d\n\n  b \n")
    assert split_stems(tmp_path) == {"train": set("ace"), "test": set("bd"), "all": set("abcde")}
    (tmp_path / "train.txt").write_text("\ufeffa\r\nc\r\n", "utf-8")  # as Windows' Notepad saves
    assert split_stems(tmp_path)["train"] == set("ac")
    assert stems(find_pairs(tmp_path)) == set("abcde")


def test_two_folders_anywhere(tmp_path):
    make_pairs(tmp_path / "x", tmp_path / "y" / "z", "ab")
    found = find_pairs(image_dir=tmp_path / "x", mask_dir=tmp_path / "y" / "z")
    assert stems(found) == set("ab")
    assert all(pair.mask.parent.name == "z" for pair in found.pairs)
    for half in ({"image_dir": tmp_path / "x"}, {"mask_dir": tmp_path / "x"}):
        assert "--mask-dir" in faults_of(**half)


def test_hold_out_is_disjoint_complete_and_stable(tmp_path, folders):
    make_pairs(*folders, [f"p{i:02d}" for i in range(40)])
    before = split_stems(tmp_path)
    assert before["test"] == {"p25", "p26", "p27"}
    assert before["train"] == before["all"] - before["test"]
    make_pairs(*folders, [f"q{i:02d}" for i in range(20)])
    after = split_stems(tmp_path)
    assert {s for s in after["test"] if s[0] == "p"} == before["test"]
    assert after["train"] | after["test"] == after["all"] and not after["train"] & after["test"]


def test_set_too_small_to_hold_out_says_what_to_do(tmp_path, folders):
    """Of three pictures at least one is held out, or the message tells how to choose one."""
    make_pairs(*folders, "xyz")
    try:
        assert 0 < len(find_pairs(tmp_path, "test").pairs) < 3
    except UserError as error:
        assert "test.txt" in str(error)


@pytest.mark.parametrize("suffix", [".JPG", ".jpeg", ".Png", ".bmp", ".TIF", ".tiff", ".WebP"])
def test_suffixes_and_letter_case(folders, suffix):
    picture, mask = scene()
    save(folders[0] / f"a.b{suffix}", picture)
    save(folders[1] / "a.b.PNG", mask)
    (found,) = find_pairs(folders[0].parent).pairs
    assert found.name == "a.b" and load_pair(found)[1].sum() == (mask > 0).sum()


def test_all_faults_together_by_name(tmp_path, folders):
    named = spoil(*folders)
    report = faults_of(tmp_path)
    assert [name for name in named if name not in report] == []
    assert "--skip-invalid" in report and "s1" not in report
    assert report.count("twice:") == 1


def test_skip_invalid_leaves_them_out_and_counts(tmp_path, folders):
    """Torn pixels behind a sound header, and masks of odd values, are found too."""
    spoil(*folders)
    make_pairs(*folders, ["torn", "tornmask"])
    tear(folders[0] / "torn.jpg")
    tear(folders[1] / "tornmask.png", 0.7)
    found = find_pairs(tmp_path, skip_invalid=True)
    assert stems(found) == {"s0", "s1", "s2", "s3"}
    assert any("8" in note and "left out" in note for note in found.notes), found.notes
    for name in ("s0", "s1", "s2", "s3"):
        (folders[0] / f"{name}.jpg").write_bytes(b"")
    assert "s3.jpg" in faults_of(tmp_path, skip_invalid=True)  # nothing is left


@pytest.mark.parametrize("state", ["empty", "missing"])
def test_folders_empty_or_missing_are_both_named(tmp_path, state):
    if state == "empty":
        for name in ("pics", "segs"):
            (tmp_path / name).mkdir()
    report = faults_of(image_dir=tmp_path / "pics", mask_dir=tmp_path / "segs")
    assert "pics" in report and "segs" in report


def test_no_data_set(tmp_path):
    assert "no-such-place" in faults_of(tmp_path / "no-such-place")
    assert "DUTS-TR" in faults_of(tmp_path) and "--data-path" in faults_of()


def test_list_naming_an_absent_picture(tmp_path, folders):
    """Not even when the absent stem is part of another fault's text."""
    make_pairs(*folders, ["first", "second"])
    (folders[1] / "second.png").unlink()
    (tmp_path / "train.txt").write_text("first\nsecond\nsec\n")
    report = faults_of(tmp_path, "train")
    assert "lists sec," in report and "lists second" not in report and "second.jpg" in report


def test_list_that_is_no_text(tmp_path, folders):
    make_pairs(*folders, "ab")
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe\x00a\n\xe4")
    assert "train.txt" in faults_of(tmp_path, "train")


def test_smaller_mask_of_same_aspect(tmp_path, folders):
    """Scaled and counted, without a warning from the conversion to a tensor."""
    make_pairs(*folders, "abc")
    for stem in "ab":
        mask = Image.open(folders[1] / f"{stem}.png")
        save(folders[1] / f"{stem}.png", mask.resize((24, 20), Image.Resampling.NEAREST))
    found = find_pairs(tmp_path)
    assert any(note.startswith("2 masks") for note in found.notes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed, pair in enumerate(sorted(found.pairs, key=lambda pair: pair.name)):
            picture, mask = load_pair(pair)
            assert tuple(mask.shape[1:]) == ((20, 24) if pair.rescaled else (40, 48))
            assert EvalPreset(32)(picture, mask)[1] is mask  # scored at its own size
            bright = TrainPreset(48, 48)(picture, mask)
            shown = bright[0].float().mean(0) > 120
            assert (shown != bright[1][0].bool()).float().mean() < 0.08, seed


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 6, 8])
def test_exif_orientation(tmp_path, folders, suffix, orientation):
    """The picture is turned, its upright mask fits, and the header check agrees."""
    picture = Image.fromarray(scene()[0])
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if suffix == "jpg" else {"lossless": True} if suffix == "webp" else {}
    path = save(folders[0] / f"a.{suffix}", picture, exif=exif, **options)
    plain = save(tmp_path / f"plain.{suffix}", picture, **options)
    turned = Image.open(plain).convert("RGB")
    turned.getexif()[0x0112] = orientation
    turned = ImageOps.exif_transpose(turned)
    save(folders[1] / "a.png", Image.new("L", turned.size, 255))
    (pair,) = find_pairs(tmp_path).pairs
    assert pair == Pair(path, folders[1] / "a.png")
    assert np.array_equal(load_pair(pair)[0].permute(1, 2, 0).numpy(), np.asarray(turned))


def test_broken_exif_is_no_crash(tmp_path, folders):
    """A camera's garbled block costs at most that picture, by name."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(folders[0] / "a.webp", scene()[0], exif=exif)
    save(folders[1] / "a.png", scene()[1])
    path.write_bytes(path.read_bytes().replace(b"MM\0*", b"MM\xa2*").replace(b"II*\0", b"II*\xa2"))
    try:
        load_pair(find_pairs(tmp_path).pairs[0])
    except UserError as error:
        assert "a.webp" in str(error)


@pytest.mark.parametrize("kind", MASKS)
def test_mask_kinds(tmp_path, kind):
    mask = read_mask(save(tmp_path / "mask.png", MASKS[kind]))
    assert mask.dtype == np.uint8 and np.array_equal(mask, OBJECT)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_mask(tmp_path, mode):
    """JPEG's noise around edges is neither object nor a reason to refuse."""
    mask = Image.fromarray(np.kron(levels(0, 255), np.ones((4, 4), np.uint8))).convert(mode)
    read = read_mask(save(tmp_path / "mask.jpg", mask, quality=60))
    assert (read != np.kron(OBJECT, np.ones((4, 4)))).mean() < 0.01


@pytest.mark.parametrize(
    "content",
    [RAINBOW, levels(0, 38), levels(0, 127), levels(2, 5), levels(0, 300, np.uint16), RED1 * 7],
    ids=["coloured", "0/38", "0/127", "2/5", "dark 16 bit", "class 7 in red"],
)
def test_refused_masks(tmp_path, content):
    """What would silently become an empty or senseless mask is refused, and named."""
    with pytest.raises(UserError, match=r"mask\.png"):
        read_mask(save(tmp_path / "mask.png", content))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
def test_empty_mask_stays_empty(tmp_path, mode):
    assert not read_mask(save(tmp_path / "mask.png", Image.new(mode, (9, 7)))).any()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    make_pairs(root / "images", root / "masks", [str(i) for i in range(7)])
    return find_pairs(root).pairs


def test_joint_augmentation_keeps_mask_on_its_object():
    """Drawn into the picture, the mask must come out where the picture shows it.

    The large picture tells sampling apart: nearest neighbour that takes each cell's corner in
    place of its middle shifts the mask by almost half a pixel.
    """
    mask = np.zeros((1200, 1600), np.uint8)
    mask[317:903, 411:1189] = 1
    picture = torch.from_numpy(np.repeat(mask[None] * 255, 3, axis=0))
    preset, centre = TrainPreset(64, 56), torch.arange(56.0)
    seen, offsets = set(), []
    for seed in range(40):
        torch.manual_seed(seed)
        small, cut = preset(picture, torch.from_numpy(mask)[None])
        shown = small[0] / 255.0
        assert ((shown > 0.5) != cut[0].bool()).float().mean() < 0.03
        middles = [(m.float().sum(1) @ centre) / m.sum() for m in (shown, cut[0])]
        offsets.append(middles[1] - middles[0])  # of the rows, which no flip turns round
        seen.add(tuple(np.argwhere(cut[0].numpy())[0]))
    assert len(seen) > 4  # it does move
    assert abs(sum(offsets) / len(offsets)) < 0.15


def test_items_and_batches(pairs):
    """uint8 until the device, {0, 1}, of the size asked for."""
    data = SegmentationDataset(pairs, TrainPreset(40, 32))
    picture, mask, index = data[3]
    assert type(picture) is type(mask) is torch.Tensor and index == 3 and len(data) == 7
    assert (picture.dtype, picture.shape) == (torch.uint8, (3, 32, 32))
    assert (mask.dtype, mask.shape) == (torch.uint8, (1, 32, 32)) and set(
        mask.unique().tolist()
    ) <= {0, 1}
    pictures, masks, indices = next(iter(loaders.train_loader(data, 3, 0, 0)))
    assert (pictures.shape, masks.shape) == ((3, 3, 32, 32), (3, 1, 32, 32)) and len(indices) == 3


def run_of_batches(pairs, workers, seed=5, epochs=2):
    loader = loaders.train_loader(
        SegmentationDataset(pairs, TrainPreset(40, 32), seed), 2, workers, seed
    )
    batches = []
    for epoch in range(epochs):
        loader.batch_sampler.epoch = epoch
        batches += [tuple(part.clone() for part in batch) for batch in loader]
    return batches


def test_augmentation_depends_on_seed_epoch_and_index_alone(pairs):
    """Bit-equal with any number of workers and any state of the generators."""
    alone = run_of_batches(pairs, 0)
    torch.manual_seed(99)
    for one, other in zip(alone, run_of_batches(pairs, 2), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    data, same, reseeded = (SegmentationDataset(pairs, TrainPreset(40, 24), s) for s in (5, 5, 6))
    keys = [(epoch, 1) for epoch in range(4)]
    crops = [data[key][0] for key in keys]
    assert all(torch.equal(crop, same[key][0]) for crop, key in zip(crops, keys, strict=True))
    assert not all(torch.equal(crop, crops[0]) for crop in crops)
    assert not all(torch.equal(c, reseeded[key][0]) for c, key in zip(crops, keys, strict=True))


def test_items_leave_global_generators_alone(pairs):
    def states():
        return torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()

    before = states()
    SegmentationDataset(pairs, TrainPreset(40, 32))[(2, 1)]
    assert states() == before


def order(monkeypatch, epoch, rank=0, world=1, length=23, batch=3, seed=1, start=0):
    monkeypatch.setattr(loaders, "rank", lambda: rank)
    monkeypatch.setattr(loaders, "world_size", lambda: world)
    sampler = loaders.EpochSampler(length, batch, seed)
    sampler.epoch, sampler.start = epoch, start
    batches = list(sampler)
    assert len(batches) == len(sampler) - start and all(len(b) == batch for b in batches)
    assert {e for b in batches for e, _ in b} == {epoch}
    return [index for b in batches for _, index in b]


def test_sampler_order(monkeypatch):
    whole = order(monkeypatch, 4)
    assert len(set(whole)) == len(whole) == 21 and whole != sorted(whole)
    assert whole == order(monkeypatch, 4) and whole[6:] == order(monkeypatch, 4, start=2)
    assert whole != order(monkeypatch, 5) and whole != order(monkeypatch, 4, seed=2)
    shares = [order(monkeypatch, 4, rank, world=3) for rank in range(3)]
    assert len(set().union(*shares)) == sum(map(len, shares)) == 18
    assert set(order(monkeypatch, 0, length=2, batch=5)) == {0, 1}


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 2), (3, 0)])
def test_eval_loader_gives_each_picture_once(pairs, monkeypatch, world, workers):
    monkeypatch.setattr(loaders, "world_size", lambda: world)
    seen = []
    for rank in range(world):
        monkeypatch.setattr(loaders, "rank", lambda rank=rank: rank)
        data = SegmentationDataset(pairs, EvalPreset(36))
        for pictures, masks, indices in loaders.eval_loader(data, 3, workers):
            assert pictures.shape == (len(indices), 3, 36, 36) and pictures.dtype == torch.uint8
            for mask, index in zip(masks, indices, strict=True):
                assert torch.equal(mask, load_pair(pairs[index])[1])
            seen += indices
    assert sorted(seen) == list(range(len(pairs)))
