"""Batches: repeatable whatever the workers, and each picture once where it is scored."""

import random
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.data import make_pairs, truncate_file

from my_dataset import Pair, SegmentationDataset, find_pairs, load_pair
from src import UserError
from train_utils import cli
from train_utils.data import loaders
from train_utils.data.masks import mask_reader
from transforms import EvalPreset, Growing, TrainPreset, Varying


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    make_pairs(root / "images", root / "masks", [str(i) for i in range(7)])
    return find_pairs(root).pairs


def test_items_and_batches(pairs):
    """uint8 until the device, {0, 1}, of the size asked for."""
    data = SegmentationDataset(pairs, TrainPreset(40, 32))
    picture, mask, index = data[3]
    assert type(picture) is type(mask) is torch.Tensor and index == 3 and len(data) == 7
    assert (picture.dtype, picture.shape) == (torch.uint8, (3, 32, 32))
    assert (mask.dtype, mask.shape) == (torch.uint8, (1, 32, 32)) and set(
        mask.unique().tolist()
    ) <= {0, 1}
    pictures, masks, indices = next(
        iter(loaders.train_loader(data, loaders.EpochSampler([7], 3, 0), 0))
    )
    assert (pictures.shape, masks.shape) == ((3, 3, 32, 32), (3, 1, 32, 32)) and len(indices) == 3


def run_of_batches(pairs, workers, seed=5, epochs=2, preset=None):
    data = SegmentationDataset(pairs, preset or TrainPreset(40, 32), seed)
    loader = loaders.train_loader(data, loaders.EpochSampler([len(pairs)], 2, seed), workers)
    batches = []
    for epoch in range(epochs):
        loader.sampler.epoch = epoch
        batches += [tuple(part.clone() for part in batch) for batch in loader]
    return batches


@pytest.mark.parametrize("augment", ["basic", "colour", "strong"])
def test_augmentation_depends_on_seed_epoch_and_index_alone(pairs, augment):
    """Bit-equal with any number of workers and any state of the generators."""
    preset = TrainPreset(40, 32, augment)
    alone = run_of_batches(pairs, 0, preset=preset)
    torch.manual_seed(99)
    for one, other in zip(alone, run_of_batches(pairs, 2, preset=preset), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    data, same, reseeded = (SegmentationDataset(pairs, TrainPreset(40, 24), s) for s in (5, 5, 6))
    keys = [(epoch, 1) for epoch in range(4)]
    crops = [data[key][0] for key in keys]
    assert all(torch.equal(crop, same[key][0]) for crop, key in zip(crops, keys, strict=True))
    assert not all(torch.equal(crop, crops[0]) for crop in crops)
    assert not all(torch.equal(c, reseeded[key][0]) for c, key in zip(crops, keys, strict=True))
    one_file = SegmentationDataset(pairs[1:2] * 6, TrainPreset(40, 24), 5)
    assert len({one_file[0, index][0].numpy().tobytes() for index in range(6)}) > 3


def test_items_leave_global_generators_alone(pairs):
    def states():
        return torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()

    before = states()
    SegmentationDataset(pairs, TrainPreset(40, 32))[(2, 1)]
    assert states() == before


def order(monkeypatch, epoch, rank=0, world=1, length=23, batch=3, seed=1, start=0):
    monkeypatch.setattr(loaders, "rank", lambda: rank)
    monkeypatch.setattr(loaders, "world_size", lambda: world)
    sampler = loaders.EpochSampler([length], batch, seed)
    sampler.epoch, sampler.start = epoch, start
    batches = list(sampler)
    assert len(batches) == len(sampler) - start and all(len(b) == batch for b in batches)
    for number, batch in enumerate(batches, start):
        assert {key[::2] for key in batch} == {(epoch, number)}
    return [index for b in batches for _, index, *_ in b]


def test_sampler_order(monkeypatch):
    whole = order(monkeypatch, 4)
    assert len(set(whole)) == len(whole) == 21 and whole != sorted(whole)
    assert whole == order(monkeypatch, 4) and whole[6:] == order(monkeypatch, 4, start=2)
    assert whole != order(monkeypatch, 5) and whole != order(monkeypatch, 4, seed=2)
    assert whole != order(monkeypatch, 5, seed=0), "another seed is not another epoch"
    shares = [order(monkeypatch, 4, rank, world=3) for rank in range(3)]
    assert len(set().union(*shares)) == sum(map(len, shares)) == 18
    assert set(order(monkeypatch, 0, length=2, batch=5)) == {0, 1}


@pytest.mark.parametrize(("length", "world"), [(2, 2), (3, 2), (4, 3), (5, 4)])
def test_no_batch_holds_an_image_twice(monkeypatch, length, world):
    """Where ranks take more than there is, either."""
    for batch in range(1, length + 1):
        for rank in range(world):
            taken = order(monkeypatch, 1, rank, world, length, batch)
            for first in range(0, len(taken), batch):
                assert len({*taken[first : first + batch]}) == batch


def test_sets_and_their_shares():
    """Twice each picture of the first, every other one of the second, each epoch others; in one
    order, not set by set."""
    sampler = loaders.EpochSampler([4, 10, 3], 1, 0, [2, 0.5, 1])
    epochs = []
    for epoch in range(6):
        sampler.epoch = epoch
        epochs.append([batch[0][1] for batch in sampler])
    for taken in epochs:
        counts = np.bincount(taken, minlength=17)
        assert counts[:4].tolist() == [2] * 4 and counts[14:].tolist() == [1] * 3
        assert counts[4:14].sum() == 5 and counts[4:14].max() == 1
    assert len({tuple(sorted(taken)) for taken in epochs}) > 1
    assert {i for taken in epochs for i in taken} == set(range(17))
    sets = np.searchsorted([4, 14], epochs[0], side="right")  # 0 … 2
    assert (np.diff(sets) < 0).any(), "the sets do not follow one another"


def test_uses_of_an_image_are_augmented_anew(pairs):
    """Where an epoch takes it several times; the first use as in an epoch that takes it once."""
    data = SegmentationDataset(pairs, TrainPreset(40, 24), 5)
    for sampler in (loaders.EpochSampler([7], 21, 5, [3]), loaders.EpochSampler([7], 21, 5)):
        (keys,) = sampler
        assert sorted((index, use) for _, index, _, use in keys) == [
            (index, use) for index in range(7) for use in range(3)
        ]
        crops = {key[1::2]: data[key][0] for key in keys}
        assert len({crop.numpy().tobytes() for crop in crops.values()}) > 18
        assert all(torch.equal(crops[index, 0], data[0, index][0]) for index in range(7))


def test_replacements_come_from_the_same_set():
    """Then from others that the epoch takes from, as the set itself may hold no other."""
    sampler = loaders.EpochSampler([5, 1, 4], 2, 0, [0, 1, 1])
    assert sorted(sampler.replacements(3, 7, 0))[:1] == [5]
    (*own, other) = sampler.replacements(3, 7, 0)
    assert sorted(own) == [6, 7, 8, 9] and other == 5
    own, *others = sampler.replacements(3, 5, 0)
    assert own == 5 and sorted(others) == [6, 7, 8, 9]
    assert [*sampler.replacements(3, 7, 0)] == [*sampler.replacements(3, 7, 0)]
    assert len({tuple(sampler.replacements(3, 7, use)) for use in range(9)}) > 3


def test_growing(pairs):
    """The size holds from its epoch on, for training and for scoring."""
    grow = Growing([TrainPreset(40, 32), TrainPreset(60, 48)], [0, 3])
    data = SegmentationDataset(pairs, grow)
    assert [data[epoch, 0][0].shape[-1] for epoch in (0, 2, 3, 9)] == [32, 32, 48, 48]
    loader = loaders.eval_loader(
        SegmentationDataset(pairs, Growing([EvalPreset(40), EvalPreset(64)], [0, 3])), 2, 0
    )
    for epoch, side in ((0, 40), (4, 64)):
        loader.sampler.epoch = epoch
        assert next(iter(loader))[0].shape[-1] == side


def drawn_sizes(pairs, monkeypatch, workers=0, seed=5, rank=0, world=1, start=0, **options):
    """The side of each batch of three epochs; within a batch all images have one."""
    monkeypatch.setattr(loaders, "rank", lambda: rank)
    monkeypatch.setattr(loaders, "world_size", lambda: world)
    presets = [TrainPreset(side, side - 8, **options) for side in (32, 64, 96, 128)]
    data = SegmentationDataset(pairs * 6, Varying(presets, seed), seed)
    loader = loaders.train_loader(data, loaders.EpochSampler([42], 3, seed), workers, tolerant=True)
    epochs = []
    for loader.sampler.epoch in range(3):
        loader.sampler.start = start
        epochs.append([])
        for images, masks, indices in loader:
            side = images.shape[-1]
            assert images.shape == (3, 3, side, side) and masks.shape == (3, 1, side, side)
            assert len(indices) == 3
            epochs[-1].append(side)
    return epochs


def test_a_size_for_each_batch(pairs, monkeypatch):
    """Drawn from seed, epoch and number of the batch alone."""
    whole = drawn_sizes(pairs, monkeypatch)
    counts = {side: sum(sides.count(side) for sides in whole) for side in (24, 56, 88, 120)}
    assert sum(counts.values()) == 42 and min(counts.values()) >= 4, counts
    assert len({tuple(sides) for sides in whole}) == 3, "each epoch has other ones"
    assert whole == drawn_sizes(pairs, monkeypatch, workers=2)
    assert whole == drawn_sizes(pairs, monkeypatch, augment="strong"), "pasted objects fit too"
    assert whole != drawn_sizes(pairs, monkeypatch, seed=6)
    assert [sides[5:] for sides in whole] == drawn_sizes(pairs, monkeypatch, start=5)
    for rank in range(2):  # the steps of all ranks have one size
        part = drawn_sizes(pairs, monkeypatch, rank=rank, world=2)
        assert part == [sides[:7] for sides in whole]


def test_what_replaces_a_torn_image_has_its_batchs_size(torn, monkeypatch):
    assert drawn_sizes(torn, monkeypatch) == drawn_sizes(torn[:2] * 3 + torn[:1], monkeypatch)


def test_a_range_after_a_size(pairs):
    grow = Growing([TrainPreset(40, 32), Varying([TrainPreset(n, n) for n in (48, 64)])], [0, 2])
    data = SegmentationDataset(pairs, grow)
    sides = [[data[epoch, 0, batch][0].shape[-1] for batch in range(20)] for epoch in (1, 2)]
    assert set(sides[0]) == {32} and set(sides[1]) == {48, 64}


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


@pytest.fixture
def torn(pairs, tmp_path):
    """Seven pairs, of which number 2 has a truncated image."""
    pairs = list(pairs)
    image = tmp_path / "torn.jpg"
    image.write_bytes(pairs[2].image.read_bytes())
    pairs[2] = Pair(truncate_file(image), pairs[2].mask)
    return pairs


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_workers_arrive_as_they_were_raised(torn, workers):
    """With all that they carry, and without a traceback in their text."""
    data = SegmentationDataset(torn, TrainPreset(40, 32))
    with pytest.raises(UserError) as error:
        list(loaders.train_loader(data, loaders.EpochSampler([7], 7, 0), workers))
    assert str(error.value).startswith(str(torn[2].image)) and "\n" not in str(error.value)
    data = SegmentationDataset([replace(torn[0], read=mask_reader(200))], EvalPreset(36))
    with pytest.raises(UserError) as error:
        list(loaders.eval_loader(data, 2, workers))
    assert error.value.advice == "leave {num_classes} out"


@pytest.mark.parametrize("workers", [0, 1])
def test_tolerant_loaders_gather_errors(torn, workers):
    """Also where a whole batch cannot be loaded."""
    data = SegmentationDataset(torn, EvalPreset(36))
    loader = loaders.eval_loader(data, 1, workers, tolerant=True)
    assert [indices for *_, indices in loader] == [[i] for i in (0, 1, 3, 4, 5, 6)]
    assert [(index, type(error)) for index, error in loader.errors.items()] == [(2, UserError)]
    assert loader.dataset is data and len(loader) == 7 and loader.batch_size == 1


@pytest.mark.parametrize("error", [ConnectionResetError, EOFError])
def test_a_worker_that_dies_while_it_hands_over(pairs, error, monkeypatch, capsys):
    """Is told as one that dies at any other moment: status 1, what to do, no traceback."""

    def torn(_):
        raise error

    data = SegmentationDataset(pairs, EvalPreset(32))
    loader = loaders.eval_loader(data, 2, 0)
    monkeypatch.setattr(type(loader._batches), "__iter__", lambda _: map(torn, [0]))
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the tests' own process
    with pytest.raises(SystemExit) as left:
        cli.run(lambda: len(list(loader)))
    told = capsys.readouterr().err
    assert left.value.code == 1 and "--workers" in told and "--resume auto" in told
