"""Annotations drawn as masks, against the tools that write them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.annotations import FORMATS, annotate, coco, coco_segmentation, labelme, runs, write
from helpers.data import make_pairs, make_scene, save_image
from helpers.runs import rows, run
from PIL import Image
from pycocotools import mask as coder
from pycocotools.coco import COCO

import validation
from my_dataset import SegmentationDataset, find_pairs, find_splits
from src import UserError
from train_utils.data.annotations.draw import ShapeError, decode_counts
from train_utils.data.masks import mask_reader
from train_utils.data.splits import find_training_data
from transforms import TrainPreset

SAMPLES = Path(__file__).parent / "samples"
STEMS = [f"p{i}" for i in range(12)]


@pytest.fixture(scope="module")
def png_set(tmp_path_factory):
    root = tmp_path_factory.mktemp("png")
    make_pairs(root / "images", root / "masks", STEMS)
    return root


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_masks_of_the_png_files(png_set, tmp_path, form):
    found = find_splits(annotate(png_set, tmp_path / "set", form))
    expected = find_splits(png_set)
    for split, own in zip(expected, found, strict=True):
        assert [pair.name for pair in own.pairs] == [pair.name for pair in split.pairs]
        for pair, other in zip(own.pairs, split.pairs, strict=True):
            assert np.array_equal(pair.load_mask(), other.load_mask())


def test_two_epochs_have_the_same_losses(png_set, tmp_path):
    """From whatever the masks are drawn; another process draws too."""
    losses, forms = {}, ("rle", "yolo")
    for form in ("png", *forms):
        root = png_set if form == "png" else annotate(png_set, tmp_path / form, form)
        more = ["--workers", "1"] if form == "rle" else []
        assert run(root, tmp_path / f"run-{form}", "--epochs", "2", *more) == 0
        losses[form] = [float(row["loss"]) for row in rows(tmp_path / f"run-{form}")]
    for form in forms:
        assert losses[form] == pytest.approx(losses["png"], abs=1e-6), form


@pytest.mark.parametrize("kind", [str, float])
def test_coco_ids_of_another_type(tmp_path, kind):
    """As tools that write tables turn 7 into "7" or 7.0; such images had empty masks."""
    image, mask = make_scene()
    save_image(tmp_path / "images/a.jpg", image)
    data = coco({"a.jpg": mask})
    data["annotations"][0]["image_id"] = kind(data["images"][0]["id"])
    write(data, tmp_path / "a.json")
    (pair,) = find_pairs(tmp_path, "all").pairs
    assert np.array_equal(pair.load_mask(), mask > 0)


def random_polygon(rng, size):
    return (rng.random((int(rng.integers(3, 9)), 2)) * size).ravel().round(2).tolist()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools'
def test_coco_as_pycocotools_draws_it(tmp_path):
    """Polygons in parts, over the edge too, RLE of both kinds, crowds, holes."""
    rng = np.random.default_rng(0)
    save_image(tmp_path / "images/a.jpg", make_scene()[0])
    ring = np.zeros((40, 48), np.uint8)
    ring[5:30, 8:33] = 1
    ring[12:20, 15:22] = 0
    found = [[random_polygon(rng, (60, 50)) for _ in range(n)] for n in (1, 2, 3)]
    found += [coco_segmentation(ring, "rle"), coco_segmentation(1 - ring, "runs")]
    for form, several in [(one, False) for one in found] + [(found[:4], True)]:
        data = coco({"a.jpg": ring})
        forms = form if several else [form]
        data["annotations"] = [
            {"id": i, "image_id": 1, "category_id": 1, "segmentation": one, "iscrowd": i % 2}
            for i, one in enumerate(forms)
        ]
        file = write(data, tmp_path / "a.json")
        tool = COCO(file)
        expected = np.maximum.reduce([tool.annToMask(one) for one in tool.anns.values()])
        (pair,) = find_pairs(tmp_path).pairs
        assert np.array_equal(pair.load_mask(), expected)


def test_runs_as_pycocotools_encodes_them():
    rng = np.random.default_rng(1)
    for shape in ((1, 1), (37, 50), (3, 400)):
        for share in (0, 0.01, 0.5, 1):
            mask = (rng.random(shape) < share).astype(np.uint8)
            text = coder.encode(np.asfortranarray(mask))["counts"]
            assert decode_counts(text).tolist() == (runs(mask) if mask.any() else [mask.size])
    for text in (b"P", b"\x00", b"p" * 20 + b"0", b"~"):
        with pytest.raises(ShapeError):
            decode_counts(text)


def test_labelme_as_it_draws_its_own_file(tmp_path):
    """``samples/labelme.json`` is of labelme 6.3.1's writer, the PNG of its ``shapes_to_label``."""
    shutil.copy(SAMPLES / "labelme.json", tmp_path / "a.json")
    save_image(tmp_path / "a.jpg", make_scene()[0])
    expected = np.asarray(Image.open(SAMPLES / "labelme.png"))
    found = find_pairs(tmp_path)
    assert np.array_equal(found.pairs[0].load_mask(), expected > 0)
    (note,) = (note for note in found.notes if "left out" in note)
    assert all(kind in note for kind in ("1 line shape", "1 point shape", "1 linestrip shape"))
    read = mask_reader(4, names=("cat", "dog", "cup"))
    found = find_pairs(tmp_path, read=read)
    assert np.array_equal(found.pairs[0].load_mask(), expected)
    assert found.class_names == ("background", "cat", "dog", "cup")


def test_boxes_alone_are_drawn_and_said(tmp_path):
    save_image(tmp_path / "images/a.jpg", make_scene()[0])
    data = coco({"a.jpg": make_scene()[1]})
    data["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 6, 10, 8]}]
    write(data, tmp_path / "a.json")
    expected = np.zeros((40, 48), np.uint8)
    expected[6:14, 4:14] = 1
    found = find_pairs(tmp_path)
    assert np.array_equal(found.pairs[0].load_mask(), expected)
    assert "1 object is only a box: drawn as a filled rectangle" in found.notes
    (tmp_path / "a.json").unlink()
    write(f"0 {9 / 48} {10 / 40} {10 / 48} {8 / 40}\n", tmp_path / "labels/a.txt")
    assert np.array_equal(find_pairs(tmp_path).pairs[0].load_mask(), expected)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_coordinates_belong_to_the_upright_image(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image, mask = make_scene()
    save_image(tmp_path / "images/a.jpg", image, exif=exif)
    upright = np.zeros((48, 40) if orientation > 4 else (40, 48), np.uint8)
    upright[3:20, 5:25] = 1
    file = write(coco({"a.jpg": upright}), tmp_path / "a.json")
    (pair,) = find_pairs(tmp_path).pairs
    assert np.array_equal(pair.load_mask(), upright) and not pair.rescaled
    if orientation > 4:  # of a tool that does not turn images
        write(coco({"a.jpg": mask}), file)
        with pytest.raises(UserError, match="40×48 when upright, 48×40 in"):
            find_pairs(tmp_path)


@pytest.mark.parametrize("place", ["other", "."])
@pytest.mark.parametrize("form", ["rle", "labelme"])
def test_annotations_that_lie_elsewhere(png_set, tmp_path, monkeypatch, place, form):
    """In another set of images of the same names, or in the folder above both."""
    monkeypatch.chdir(tmp_path)
    for name in ("own", "other"):
        make_pairs(Path(name) / "images", Path("masks"), STEMS)
    made = annotate(png_set, tmp_path / "made", form)
    if form == "rle":
        file = Path(place, "labels.json")
        shutil.copy(made / "annotations/instances_default.json", file)
    else:
        file = Path(place, "labels")
        shutil.copytree(made / "labels", file)
    for folders in ({"data_path": "own"}, {"image_dir": "own/images"}):
        found = find_pairs(annotations=file, **folders)
        assert {pair.image.parent for pair in found.pairs} == {Path("own/images")}
        assert len(found.pairs) == len(STEMS)


def test_splits_by_the_names_of_files_and_folders(tmp_path, png_set):
    """As COCO, Ultralytics and Roboflow lay sets out."""
    for part, stems in (("train2017", STEMS[:6]), ("val2017", STEMS[6:9])):
        make_pairs(tmp_path / "coco" / part, tmp_path / "masks", stems)
        masks = {f"{s}.jpg": np.asarray(Image.open(tmp_path / f"masks/{s}.png")) for s in stems}
        write(coco(masks), tmp_path / f"coco/annotations/instances_{part}.json")
        captions = {"images": coco(masks)["images"], "annotations": [{"id": 1, "caption": "a"}]}
        write(captions, tmp_path / f"coco/annotations/captions_{part}.json")
    (train,), val = find_training_data([tmp_path / "coco"])
    assert [pair.name for pair in train.pairs] == STEMS[:6]
    assert val.split == "val" and [pair.name for pair in val.pairs] == STEMS[6:9]
    assert sum("not used (captions)" in note for note in val.notes) == 2
    yolo = annotate(png_set, tmp_path / "flat", "yolo")
    for i, stem in enumerate(STEMS):
        part = ("train", "valid", "test")[i % 3]
        for kind, suffix in (("images", "jpg"), ("labels", "txt")):
            place = tmp_path / "yolo" / part / kind
            place.mkdir(parents=True, exist_ok=True)
            shutil.move(yolo / kind / f"{stem}.{suffix}", place)
    write("names: {0: thing}\n", tmp_path / "yolo/data.yaml")
    for i, split in enumerate(("train", "val", "test")):
        assert [p.name for p in find_pairs(tmp_path / "yolo", split).pairs] == sorted(STEMS[i::3])


def test_the_file_alone(tmp_path, png_set):
    """Images are found beside it, or where they are said to be."""
    root = annotate(png_set, tmp_path / "set", "rle")
    file = root / "annotations/instances_default.json"
    assert len(find_pairs(annotations=file).pairs) == 12
    shutil.move(root / "images", tmp_path / "elsewhere")
    found = find_pairs(annotations=file, image_dir=tmp_path / "elsewhere")
    assert len(found.pairs) == 12
    with pytest.raises(UserError, match="12 faults"):
        find_pairs(annotations=file)


def test_masks_and_annotations_together(tmp_path, png_set):
    """Mask files are used, unless the annotations are named."""
    root = annotate(png_set, tmp_path / "set", "polygons")
    shutil.copytree(png_set / "masks", root / "masks")
    assert not find_pairs(root).pairs[0].is_drawn
    assert find_pairs(root, annotations=root / "annotations").pairs[0].is_drawn


def test_sets_of_different_kinds_in_a_run(tmp_path, png_set, capsys):
    """PNG, COCO and YOLO; ``auto`` and a file for each."""
    other = annotate(png_set, tmp_path / "coco", "rle")
    third = annotate(png_set, tmp_path / "yolo", "yolo")
    for root in (other, third):
        for path in sorted(root.rglob("p*.*")):
            path.rename(path.with_name(f"{root.name}-{path.name}"))
    file = other / "annotations/instances_default.json"
    file.write_text(file.read_text().replace('"p', '"coco-p'))
    flags = ["--annotations", "auto", file, third / "labels", "--epochs", "1"]
    sets = ["--data-path", png_set, other, third]
    assert run(png_set, tmp_path / "run", *map(str, [*sets, *flags])) == 0
    said = capsys.readouterr().out  # one image in ten of each set is held out: 1, 1 and 2
    assert "32 images to train" in said and "1 image to select the best weights by" in said


def test_soft_sets_take_drawn_masks_as_white(tmp_path, png_set):
    root = annotate(png_set, tmp_path / "set", "rle")
    found = find_pairs(root, read=mask_reader(None, kind="soft"))
    assert set(np.unique(found.pairs[0].load_mask())) == {0, 255}
    data = SegmentationDataset(found.pairs, TrainPreset(32, 32, soft=True))
    assert data[0][1].max() > 200


def test_classes_are_scored_by_name(tmp_path, call):
    """Of a COCO json and maps of indices; the names are in the table."""
    save_image(tmp_path / "images/a.jpg", make_scene()[0])
    mask = make_scene()[1]
    file = write(coco({"a.jpg": mask}, names=("cat", "dog")), tmp_path / "a.json")
    save_image(tmp_path / "maps/a.png", mask // 255)
    argv = ["--annotations", file, "--pred-dir", tmp_path / "maps", "--metrics", "semantic"]
    options = ["--device", "cpu", "--workers", 0, "--json", tmp_path / "s.json"]
    status, said, err = call(validation.main, *argv, *options, "--classes", "cat", "dog")
    assert status == 0 and "background 1.000, cat 1.000" in said, err
    row = json.loads((tmp_path / "s.json").read_text())
    assert row["num_classes"] == 3 and row["class_iou"] == [1.0, 1.0, None]
    status, _, err = call(validation.main, *argv, *options[:-1], file, "--classes", "cat", "dog")
    assert status == 2 and "would overwrite an input" in err


@pytest.mark.parametrize("kind", ["polygon", "rectangle", "circle", "box"])
def test_a_shape_wholly_outside(tmp_path, kind):
    """It would draw nothing: an empty mask without a word."""
    image, mask = make_scene()
    save_image(tmp_path / "a.jpg", image)
    if kind == "box":
        data = coco({"a.jpg": mask})
        data["annotations"][0] |= {"segmentation": [], "bbox": [-20, 5, 12, 9]}
    else:
        data = labelme("a.jpg", mask)
        points = [[-20, -9], [-12, -9], [-12, -1]]
        data["shapes"][0] |= {
            "shape_type": kind,
            "points": points if kind == "polygon" else points[::2],
        }
    write(data, tmp_path / "a.json")
    with pytest.raises(UserError) as error:
        find_pairs(tmp_path)
    assert "a shape wholly outside the image" in error.value.describe()


def test_a_shape_without_a_label(tmp_path):
    image, mask = make_scene()
    save_image(tmp_path / "a.jpg", image)
    data = labelme("a.jpg", mask)
    data["shapes"][0]["label"] = ""
    write(data, tmp_path / "a.json")
    with pytest.raises(UserError) as error:
        find_pairs(tmp_path)
    assert "shape 1: a shape without a label" in error.value.describe()
