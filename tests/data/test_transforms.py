"""The strong preset and pasting: what varies, and that picture and mask stay together."""

import numpy as np
import pytest
import torch
from helpers.data import save_image

from my_dataset import SegmentationDataset, find_pairs
from train_utils.data import transforms
from transforms import TrainPreset, paste


@pytest.fixture
def pair():
    """A picture that is bright where its mask is, and nowhere else."""
    mask = torch.zeros(1, 60, 80, dtype=torch.uint8)
    mask[:, 15:45, 20:60] = 1
    return mask.expand(3, -1, -1) * 255, mask


def test_strong_keeps_picture_and_mask_together(pair):
    torch.manual_seed(0)
    preset = TrainPreset(72, 64, augment="strong")
    sizes = set()
    for _ in range(60):
        picture, mask = preset(*pair)
        assert picture.shape == (3, 64, 64) and picture.dtype == torch.uint8
        assert mask.shape == (1, 64, 64) and set(mask.unique().tolist()) <= {0, 1}
        inside, outside = (picture.float().mean(0)[(mask[0] == k)] for k in (1, 0))
        if len(inside) and len(outside):
            assert inside.mean() - outside.mean() > 60
        sizes.add(int(mask.sum()))
    assert len(sizes) > 20, "crops vary in scale and aspect"


def test_strong_gives_the_whole_picture_too(pair):
    """As scoring sees it, where the object lies within its surroundings."""
    torch.manual_seed(0)
    preset = TrainPreset(72, 64, augment="strong")
    whole = pair[1].float().mean().item()
    shares = np.array([preset(*pair)[1].float().mean().item() for _ in range(100)])
    assert 0.15 < (np.abs(shares - whole) < 0.005).mean() < 0.6


def test_paste(pair):
    """The object's pixels, the rest of what was there, and both masks."""
    picture, mask = pair
    there = torch.full_like(picture, 100)
    mask_there = torch.zeros_like(mask)
    mask_there[:, 50:55, 2:9] = 1
    mixed, both = paste(picture, mask, there, mask_there)
    assert (mixed[:, 20:40, 25:55] == 255).all() and (mixed[:, :12] == 100).all()
    assert torch.equal(both, mask | mask_there) and mixed.dtype == torch.uint8


def test_half_are_mirrored_with_their_masks():
    picture = torch.arange(0, 256, 4, dtype=torch.uint8).expand(3, 64, 64)
    mask = (picture[:1] > 150).to(torch.uint8)
    preset, mirrored = TrainPreset(64, 64), []
    for seed in range(100):
        torch.manual_seed(seed)
        found, mask_found = preset(picture, mask)
        mirrored.append(torch.equal(found, picture.flip(-1)))
        assert mirrored[-1] or torch.equal(found, picture)
        assert torch.equal(mask_found, mask.flip(-1) if mirrored[-1] else mask)
    assert 30 < sum(mirrored) < 70


def test_strong_changes_colours():
    """Most pictures, some to grey, some by noise; nothing without it."""
    picture = torch.tensor([200, 120, 40], dtype=torch.uint8).view(3, 1, 1).expand(3, 32, 32)
    mask, changed = torch.zeros(1, 32, 32, dtype=torch.uint8), []
    for seed in range(100):
        torch.manual_seed(seed)
        found, _ = TrainPreset(32, 32, augment="strong")(picture, mask)
        grey, noisy = (found[0] == found[2]).all(), found.float().std((1, 2)).max() > 5
        changed.append([not torch.equal(found, picture), bool(grey), bool(noisy)])
        assert torch.equal(TrainPreset(32, 32)(picture, mask)[0], picture)
    changed, grey, noisy = np.mean(changed, axis=0)
    assert changed > 0.6 and 0.02 < grey < 0.3 and 0.03 < noisy < 0.4


@pytest.fixture
def bands(tmp_path):
    """Four pairs: number i is of grey 10 + 10·i, its object of 200 + 10·i, in rows 8 + 12·i on."""
    for i in range(4):
        mask = np.zeros((64, 64), np.uint8)
        mask[8 + 12 * i : 16 + 12 * i, 20:44] = 255
        picture = np.where(mask > 0, 200 + 10 * i, 10 + 10 * i).astype(np.uint8)
        save_image(tmp_path / f"images/{i}.png", np.repeat(picture[..., None], 3, axis=2))
        save_image(tmp_path / f"masks/{i}.png", mask)
    return find_pairs(tmp_path).pairs


def test_colour_alone_varies(pair):
    """Grey and brightness, and the crop of the plain preset: a bright object stays where it is."""
    plain, coloured = TrainPreset(40, 32), TrainPreset(40, 32, augment="colour")
    seen = set()
    for seed in range(40):
        torch.manual_seed(seed)
        image, mask = plain(pair[0] // 2, pair[1])
        torch.manual_seed(seed)
        other, same = coloured(pair[0] // 2, pair[1])
        assert torch.equal(mask, same) and (other.amax(0) > 20)[mask[0] == 1].all()
        assert other.shape == image.shape and coloured.paste == 0
        seen.add(torch.equal(image, other))
    assert seen == {True, False}, "three in ten stay as they are, but for grey"


def test_items_get_objects_of_others(bands):
    """Onto their own picture, which stays around them, and both objects are in the mask."""
    preset, met = TrainPreset(64, 64), set()
    preset.paste = 1.0
    data = SegmentationDataset(bands, preset)
    for epoch in range(8):
        for i in range(4):
            picture, mask, _ = data[epoch, i]
            there = {j for j in range(4) if mask[0, 12 + 12 * j, 32]}
            assert i in there and len(there) < 3 and mask.sum() == len(there) * 8 * 24
            assert all((picture[:, 12 + 12 * j, 32] == 200 + 10 * j).all() for j in there)
            assert (picture[:, 0, 0] == 10 + 10 * i).all(), "the item's own picture lies below"
            met |= {(i, j) for j in there}
    assert len(met) > 12
    for donors in ([2], []):
        data = SegmentationDataset(bands, preset, donors=donors)
        rows = {j for epoch in range(8) for j in range(4) if data[epoch, 0][1][0, 12 + 12 * j, 32]}
        assert rows == {0, *donors}


def test_how_often_strong_pastes(bands, monkeypatch):
    pasted = []
    monkeypatch.setattr(transforms, "paste", lambda *parts: pasted.append(None) or parts[2:4])
    preset = TrainPreset(16, 16, augment="strong")
    data = SegmentationDataset(bands, preset)
    for epoch in range(60):
        for i in range(4):
            data[epoch, i]
    assert 0.08 < preset.paste < 0.4 and abs(len(pasted) / 240 - preset.paste) < 0.08
    assert TrainPreset(16, 16).paste == TrainPreset(16, 16, "strong", classes=True).paste == 0
