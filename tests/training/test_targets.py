"""Targets that a teacher's maps are part of, against losses of torch on targets mixed by hand."""

import pytest
import torch
import torch.nn.functional as F
from helpers.data import make_varied_network

from src import UserError
from train_utils.training.losses import DeepSupervision
from train_utils.training.supervision import Teacher, check_maps, unlabelled_pairs

torch.manual_seed(0)
LOGITS = torch.randn(3, 1, 9, 7)
MASK = torch.randint(0, 2, (3, 1, 9, 7), dtype=torch.uint8)
MAPS = torch.rand(3, 1, 9, 7)
SHARE = torch.tensor([0.0, 0.25, 1.0]).view(3, 1, 1, 1)


def test_one_map():
    mixed = MASK * (1 - SHARE) + MAPS * SHARE
    total, terms = DeepSupervision()([LOGITS], MASK, (MAPS, SHARE))
    expected = F.binary_cross_entropy_with_logits(LOGITS, mixed)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(terms, expected[None])


def test_masks_of_levels():
    levels = MASK * 51
    total = DeepSupervision(soft=True)([LOGITS], levels, (MAPS, SHARE))[0]
    mixed = MASK * 0.2 * (1 - SHARE) + MAPS * SHARE
    torch.testing.assert_close(total, F.binary_cross_entropy_with_logits(LOGITS, mixed))


def test_a_share_of_1_forgets_the_mask():
    """Also its ignored pixels: of images without masks, all of them count."""
    logits, maps = torch.randn(2, 4, 9, 7), torch.randn(2, 4, 9, 7).softmax(1)
    mask = torch.randint(0, 5, (2, 1, 9, 7), dtype=torch.uint8)
    loss = DeepSupervision(classes=4, ignore_index=4)
    total = loss([logits], mask, (maps, torch.ones(2, 1, 1, 1)))[0]
    torch.testing.assert_close(total, F.cross_entropy(logits, maps))


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5, 4.0]])
def test_classes(weights):
    """Ignored pixels stay so where the mask has a part."""
    logits, maps = torch.randn(2, 4, 9, 7), torch.randn(2, 4, 9, 7).softmax(1)
    mask = torch.randint(0, 5, (2, 1, 9, 7), dtype=torch.uint8)
    share = torch.full((2, 1, 1, 1), 0.3)
    loss = DeepSupervision(classes=4, ignore_index=4, class_weights=weights)
    total = loss([logits], mask, (maps, share))[0]
    counts = mask[:, 0] != 4
    hot = F.one_hot((mask[:, 0] * counts).long(), 4).permute(0, 3, 1, 2)
    mixed = (0.7 * hot + 0.3 * maps).permute(0, 2, 3, 1)[counts]
    pixels = -(mixed * logits.log_softmax(1).permute(0, 2, 3, 1)[counts]).sum(1)
    scale = (mixed * torch.tensor(weights or [1.0] * 4)).sum(1)
    torch.testing.assert_close(total, (pixels * scale).sum() / scale.sum())


def test_all_of_the_mask_is_the_mask_alone():
    for loss in ("bce", "bce+iou+ssim", "dice"):
        plain = DeepSupervision(loss=loss)([LOGITS], MASK)[0]
        mixed = DeepSupervision(loss=loss)([LOGITS], MASK, (MAPS, SHARE * 0))[0]
        torch.testing.assert_close(mixed, plain)


def test_it_sees_crops_by_its_own_preprocessing():
    network = make_varied_network("isnet_lite")  # mean .5, std 1
    network.img_size = 64
    teacher = Teacher(network, 0.25, torch.device("cpu"), torch.float32)
    teacher.labelled = 2
    images = torch.randint(0, 256, (3, 3, 48, 48), dtype=torch.uint8)
    maps, share = teacher(images, torch.tensor([1, 2, 0]))
    assert share.flatten().tolist() == [0.25, 1.0, 0.25]
    larger = F.interpolate(images, (64, 64), mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = network.eval()(larger / 255 - 0.5)
    expected = F.interpolate(expected, (48, 48), mode="bilinear", antialias=True)
    assert expected.std() > 0.01
    torch.testing.assert_close(maps, expected, rtol=0, atol=1e-4)
    assert not maps.requires_grad and not maps.is_inference()


def test_another_task_is_refused():
    two = make_varied_network(out_ch=2, activation="softmax")
    check_maps(two, 2, "its")
    with pytest.raises(UserError, match="gives 2 maps with softmax; expected 3 channels and 1 map"):
        check_maps(two, 1, "its")
    with pytest.raises(UserError, match="takes 1 channel and"):
        check_maps(make_varied_network("u2net_lite", stem=None, in_ch=1), 1, "its")


def test_images_without_masks(tmp_path, duts):
    images = sorted((duts / "DUTS-TR/DUTS-TR-Image").iterdir())
    folder = tmp_path / "more/inner"
    (tmp_path / "more/.hidden").mkdir(parents=True)
    folder.mkdir()
    for number, image in enumerate(images):
        (folder / image.name).write_bytes(image.read_bytes())
        (tmp_path / "more" / f"{number}.jpg").symlink_to(image)
        (tmp_path / "more/.hidden" / image.name).write_bytes(image.read_bytes())
    (folder / "torn.jpg").write_bytes(images[0].read_bytes()[:300])
    known = {(image.stat().st_dev, image.stat().st_ino) for image in images[1:]}
    pairs, notes = unlabelled_pairs([tmp_path / "more"], known, skip_invalid=True)
    names = [str(pair.image.relative_to(tmp_path / "more")) for pair in pairs]
    assert names == ["0.jpg", *(f"inner/{image.name}" for image in images)]
    assert "3 of its images are trained on with masks, or held out" in notes[0]
    assert "1 file cannot be read, left out" in notes[1] and "torn.jpg" in notes[1]
    assert pairs[0].read(pairs[0].mask).shape == (40, 48) and not pairs[0].read(pairs[0].mask).any()
    with pytest.raises(UserError, match="no images without masks"):
        unlabelled_pairs([duts / "DUTS-TR/DUTS-TR-Image"], {*known, *map(_id, images)}, False)


def _id(path):
    return path.stat().st_dev, path.stat().st_ino
