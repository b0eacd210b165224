"""The strong preset and pasting: what varies, and that picture and mask stay together."""

import numpy as np
import pytest
import torch

from my_dataset import SegmentationDataset, find_pairs
from train_utils import synthetic
from transforms import TrainPreset, paste


@pytest.fixture
def pair():
    """A picture that is bright where its mask is, and nowhere else."""
    mask = torch.zeros(1, 60, 80, dtype=torch.uint8)
    mask[:, 15:45, 20:60] = 1
    return mask.expand(3, -1, -1) * 255, mask


def test_strong_keeps_picture_and_mask_together(pair):
    torch.manual_seed(0)
    preset = TrainPreset(72, 64, strong=True)
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
    preset = TrainPreset(72, 64, strong=True)
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


def test_pasted_objects_appear_in_items(tmp_path):
    """About one item in seven has more object than its own."""
    synthetic.write_dataset(tmp_path, train=6, test=1, size=64, seed=0)
    pairs = find_pairs(tmp_path, "train").pairs
    plain, strong = TrainPreset(64, 64), TrainPreset(64, 64, strong=True)
    strong.paste = 1.0
    own = SegmentationDataset(pairs, plain)
    pasted = SegmentationDataset(pairs, strong)
    share = [np.mean([data[e, i][1].float().mean().item() for e in range(5) for i in range(6)])
             for data in (own, pasted)]  # fmt: skip
    assert share[1] > 1.2 * share[0]
