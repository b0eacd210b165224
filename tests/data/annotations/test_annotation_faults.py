"""What is wrong with annotations is named, all of it together; --skip-invalid goes on."""

import json
import sys

import numpy as np
import pytest
from helpers.annotations import annotate, coco, labelme, outlines, write
from helpers.data import make_pairs, make_scene, save_image

import draw_masks
import train
import validation
from my_dataset import find_pairs, find_splits
from src import UserError
from train_utils.data.masks import mask_reader

STEMS = [*(f"p{i}" for i in range(10)), *(f"q{i}" for i in range(6))]


@pytest.fixture
def png_set(tmp_path):
    make_pairs(tmp_path / "png/images", tmp_path / "png/masks", STEMS)
    return tmp_path / "png"


@pytest.fixture
def faulty_coco(png_set, tmp_path):
    """A fault in each of seven images; the others are sound."""
    file = annotate(png_set, tmp_path / "set", "rle") / "annotations/instances_default.json"
    data = json.loads(file.read_text())
    one = data["annotations"]
    one[0]["segmentation"] = [[1, 2, 3, 4]]
    one[1]["category_id"] = 77
    data["images"][2]["file_name"] = "gone.jpg"
    data["images"].append({**data["images"][3], "id": 99})
    one[4]["segmentation"]["size"] = [48, 40]
    one[5]["segmentation"]["counts"] = [5, 7]
    one[6]["segmentation"] = [[0, 0, 5, "x", 9, 9]]
    one.append({**one[7], "id": 50, "image_id": 1234})
    file.write_text(json.dumps(data))
    return tmp_path / "set"


NAMED = [
    "p0.jpg: annotation 1: a polygon of 2 points, expected 3 or more",
    "p1.jpg: annotation 2: the category 77, which is unknown (known: 1 thing)",
    "names gone.jpg, which does not exist",
    "p3.jpg: two annotations of one image: listed 2 times in",
    "p4.jpg: annotation 5: an RLE of the wrong size: 40×48, its image is 48×40",
    "p5.jpg: annotation 6: an RLE of 12 pixels, expected 1920",
    "p6.jpg: annotation 7: coordinates that are not numbers",
    "1 annotation refers to images that it does not list: id 1234",
]


def test_all_faults_are_named_together(faulty_coco, call, tmp_path, weights):
    for main, more in ((train.main, []), (validation.main, ["--weights", weights])):
        status, _, err = call(main, "--data-path", faulty_coco, *more)
        assert status == 2 and "--skip-invalid" in err and "Traceback" not in err
        assert [text for text in NAMED if text not in err] == []
    scored = ["--weights", weights, "--device", "cpu", "--img-size", 32, "--workers", 0]
    argv = [*scored, "--json", tmp_path / "s.json", "--skip-invalid"]
    status, out, err = call(validation.main, "--data-path", faulty_coco, *argv)
    assert status == 0, err
    assert [text for text in NAMED if text not in out] == []
    assert json.loads((tmp_path / "s.json").read_text())["images"] == 9
    argv = ["--model", "u2net_lite", "--device", "cpu", "--epochs", 1, "--batch-size", 4]
    argv += ["--img-size", 32, "--crop-size", 32, "--workers", 0, "--output-dir", tmp_path / "run"]
    status, out, err = call(train.main, "--data-path", faulty_coco, *argv, "--skip-invalid")
    assert status == 0, err
    assert out.count("left out:") == 1 and f"{len(NAMED)} faults, left out:" in out
    assert "9 images annotated in COCO's format" in out


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"images": [], "annotations": []}', "{ no"])
@pytest.mark.parametrize("named", [False, True])
def test_an_empty_json(tmp_path, text, named):
    save_image(tmp_path / "images/a.jpg", make_scene()[0])
    file = write(text, tmp_path / "annotations/a.json")
    with pytest.raises(UserError, match=r"a\.json: (empty|not readable as json)"):
        find_pairs(tmp_path, annotations=file if named else None)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"images": [{"file_name": "a.jpg"}], "annotations": {}}, "its annotations are not a list"),
        (labelme("a.jpg", make_scene()[1]) | {"shapes": {}}, "whose shapes are not a list"),
        ([1], "neither COCO nor LabelMe json"),
    ],
)
@pytest.mark.parametrize("folders", [("", ""), ("images", "annotations")])
def test_a_json_that_is_not_understood_is_named(tmp_path, data, said, folders):
    save_image(tmp_path / folders[0] / "a.jpg", make_scene()[0])
    file = write(data, tmp_path / folders[1] / "a.json")
    for given in (None, file):
        with pytest.raises(UserError) as error:
            find_pairs(tmp_path, annotations=given)
        assert f"{file}: " in str(error.value) and said in str(error.value)


def test_a_list_of_what_is_not_annotated(tmp_path):
    for name in ("p01", "p02"):
        save_image(tmp_path / f"images/{name}.jpg", make_scene()[0])
    write(coco({"p01.jpg": make_scene()[1]}), tmp_path / "a.json")
    write("p01\nimages/p02.jpg\np03\n", tmp_path / "test.txt")
    with pytest.raises(UserError) as error:
        find_pairs(tmp_path, "test")
    assert "test.txt: lists p02, which is not annotated" in str(error.value)
    assert "test.txt: lists p03, which has no image" in str(error.value)


def test_faults_of_labelme(tmp_path):
    """Two files for an image, a polygon of two points, an image that is not there, torn masks."""
    image, mask = make_scene()
    for name in "abcde":
        save_image(tmp_path / f"{name}.jpg", image)
        write(labelme(f"{name}.jpg", mask), tmp_path / f"{name}.json")
    write(labelme("a.jpg", mask), tmp_path / "again.json")
    write(labelme("gone.jpg", mask), tmp_path / "lost.json")
    data = labelme("b.jpg", mask)
    data["shapes"][0]["points"] = [[1, 1], [2, 2]]
    write(data, tmp_path / "b.json")
    data = labelme("c.jpg", mask, "embedded")
    data["shapes"][0]["mask"] = "bm9uZQ=="
    write(data, tmp_path / "c.json")
    data = labelme("d.jpg", mask)
    data["shapes"][0]["shape_type"] = "star"
    write(data, tmp_path / "d.json")
    with pytest.raises(UserError) as error:
        find_pairs(tmp_path)
    report = str(error.value)
    for text in (
        "two annotations of one image",
        "lost.json: names gone.jpg, which does not exist",
        "b.json: shape 1: a polygon of 2 points",
        "c.json: shape 1: an embedded mask that is not a valid PNG",
        "d.json: shape 1: an unknown shape type, star",
    ):
        assert text in report
    assert [pair.name for pair in find_pairs(tmp_path, skip_invalid=True).pairs] == ["e"]


def test_faults_of_yolo(tmp_path):
    image, mask = make_scene()
    (line,) = outlines(mask)
    sound = "0 " + " ".join(map(str, (line / (48, 40)).ravel())) + "\n"
    texts = {
        "a": sound,
        "b": sound + "0 .1 .1 .5 .5\n",
        "c": "0 1 2 30 4 5 6\n",
        "d": "0 .1 .2 .3 x",
    }
    texts |= {"e": sound.replace("0 ", "7 ", 1), "gone": sound}
    for name, text in texts.items():
        if name != "gone":
            save_image(tmp_path / f"images/{name}.jpg", image)
        write(text, tmp_path / f"labels/{name}.txt")
    write("names: [thing]\n", tmp_path / "data.yaml")
    with pytest.raises(UserError) as error:
        find_pairs(tmp_path)
    report = str(error.value)
    for text in (
        "b.txt: line 2: a box, where other lines are polygons",
        "c.txt: line 1: coordinates outside 0 to 1, expected fractions of the image's size",
        "e.txt: line 1: the class 7, which is unknown: the names end at 0",
        "gone.txt: names gone, which does not exist",
    ):
        assert text in report


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"0 0.5 0.5\n", "line 1: a polygon of 1 point, expected 3 or more"),
        (b"\n0 nan 0.1 0.5 0.1 0.5 0.5\n", "line 2: coordinates that are not finite"),
        (b"cat 0.1 0.1 0.5 0.1 0.5 0.5\n", "line 1: the class cat, expected a number from 0"),
        ("0 0.1\n".encode("utf-16"), "cannot be read (not UTF-8)"),
    ],
)
@pytest.mark.parametrize("all_of_them", [False, True])
def test_a_yolo_file_is_one_whatever_its_first_line(tmp_path, text, fault, all_of_them):
    """Else the image would be one without objects; a text of another name is no label file."""
    for name in "ab":
        save_image(tmp_path / f"images/{name}.jpg", make_scene()[0])
    write("0 .1 .1 .5 .1 .5 .5\n", tmp_path / "labels/b.txt")
    write("from a tool", tmp_path / "labels/README.txt")
    for name in "ab" if all_of_them else "a":
        (tmp_path / f"labels/{name}.txt").write_bytes(text)
    if all_of_them:
        fault = fault.replace("a polygon of 1 point, expected 3 or more", "2 numbers, expected 4")
    with pytest.raises(UserError) as error:
        find_pairs(tmp_path)
    assert f"a.txt: {fault}" in str(error.value) and "README" not in str(error.value)


def test_a_faulty_line_among_boxes_leaves_them_boxes(tmp_path):
    for name in "ab":
        save_image(tmp_path / f"images/{name}.jpg", make_scene()[0])
    write("0 .5 .5 .2 .2\n", tmp_path / "labels/a.txt")
    write("\ufeff0 .5 .5 .2\n", tmp_path / "labels/b.txt")
    found = find_pairs(tmp_path, skip_invalid=True)
    assert [pair.name for pair in found.pairs] == ["a"]
    assert any("b.txt: line 1: 3 numbers, expected 4" in note for note in found.notes)


def test_texts_beside_annotations_are_no_labels(tmp_path):
    """Captions, of images that json or other files annotate."""
    image, mask = make_scene()
    save_image(tmp_path / "images/a.jpg", image)
    write("a cup on a table", tmp_path / "images/a.txt")
    for form in ("json", "yolo"):
        data = coco({"a.jpg": mask}) if form == "json" else "0 .1 .1 .5 .1 .5 .5\n"
        file = write(data, tmp_path / ("a.json" if form == "json" else "labels/a.txt"))
        assert find_pairs(tmp_path).pairs[0].load_mask().any()
        file.unlink()


def test_images_without_a_yolo_file_show_nothing(tmp_path):
    image, mask = make_scene()
    (line,) = outlines(mask)
    for name in "ab":
        save_image(tmp_path / f"images/{name}.jpg", image)
    write("0 " + " ".join(map(str, (line / (48, 40)).ravel())), tmp_path / "labels/a.txt")
    found = find_pairs(tmp_path)
    assert [int(pair.load_mask().sum()) for pair in found.pairs] == [mask.sum() // 255, 0]
    assert any("1 image without a label file" in note for note in found.notes)


def test_categories_that_the_user_does_not_name(tmp_path, call):
    save_image(tmp_path / "images/a.jpg", make_scene()[0])
    data = coco({"a.jpg": make_scene()[1]}, names=("cat", "dog"))
    file = write(data, tmp_path / "a.json")
    read = mask_reader(2, names=("dog",))
    with pytest.raises(UserError, match="the category 'cat', which is unknown"):
        find_pairs(tmp_path, read=read)
    (pair,) = find_pairs(tmp_path, read=mask_reader(3, names=("dog", "cat"))).pairs
    assert set(np.unique(pair.load_mask())) == {0, 2}
    with pytest.raises(UserError, match=r"2 names for 7 classes.*num_classes 3"):
        find_pairs(tmp_path, read=mask_reader(7))
    argv = ["--annotations", file, file, "--data-path", tmp_path]
    status, _, err = call(train.main, *argv)
    assert status == 2 and "--annotations" in err and len(err.splitlines()) == 1


def test_a_category_unknown_in_many_images_is_told_once(tmp_path, png_set):
    """With the count, and the first ten; of those left out, all. So are classes without objects."""
    root = annotate(png_set, tmp_path / "set", "rle")
    file = root / "annotations/instances_default.json"
    data = json.loads(file.read_text())
    data["categories"] = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    for one in data["annotations"][-4:]:
        one["category_id"] = 2
    file.write_text(json.dumps(data))
    with pytest.raises(UserError) as error:
        find_pairs(root, read=mask_reader(2, names=("dog",)))
    said = str(error.value)
    assert said.count("'cat', which is unknown") == 1 and "12 faults in the data" in said
    assert f"12 files: the category 'cat', which is unknown (dog) (in {file})" in said
    assert f"in {root / 'images'}: p0.jpg, p1.jpg" in said and " and 2 more" in said
    found = find_pairs(root, read=mask_reader(2, names=("dog",)), skip_invalid=True)
    (note,) = (note for note in found.notes if "left out" in note)
    assert len(found.pairs) == 4 and note.startswith("12 faults, left out:")
    assert all(f"{pair}.jpg" in note for pair in STEMS[:12]) and "more" not in note
    found = find_pairs(root, read=mask_reader(5, names=("cow", "dog", "cat", "hen")))
    assert "2 classes occur in no annotation: cow, hen" in found.notes


def test_faults_of_the_whole_set_are_listed_once(faulty_coco):
    """Not for each split anew."""
    found = find_splits(faulty_coco, skip_invalid=True)
    said = "\n".join(note for split in found for note in split.notes)
    assert [text for text in NAMED if said.count(text) != 1] == []
    assert "(in " not in said[said.index("listed 2 times") :].splitlines()[0]


def test_labelme_images_by_the_name_of_the_json(tmp_path):
    """Where the image has got another name; what is in the json alone is named as that."""
    image, mask = make_scene()
    save_image(tmp_path / "a.jpg", image)
    write(labelme("IMG_2041.jpg", mask), tmp_path / "a.json")
    (pair,) = (found := find_pairs(tmp_path)).pairs
    assert pair.image == tmp_path / "a.jpg" and np.array_equal(pair.load_mask(), mask > 0)
    (note,) = (note for note in found.notes if "IMG_2041" in note)
    assert (
        note.startswith("1 image found by the name of the annotation") and "a.jpg is used" in note
    )
    write(labelme("b.jpg", mask) | {"imageData": "/9j/4AAQ"}, tmp_path / "b.json")
    with pytest.raises(
        UserError, match=r"names b.jpg, which does not exist \(the json holds the image"
    ):
        find_pairs(tmp_path)
    assert len(find_pairs(tmp_path, skip_invalid=True).pairs) == 1


def test_names_that_are_there_twice(tmp_path, call):
    """By the flag, in a list of names, in a data.yaml."""
    save_image(tmp_path / "images/a.jpg", make_scene()[0])
    write("0 .1 .1 .5 .1 .5 .5\n", tmp_path / "labels/a.txt")
    for main in (train.main, draw_masks.main):
        more = ["--output", tmp_path / "out"] if main is draw_masks.main else []
        status, _, err = call(main, "--data-path", tmp_path, "--classes", "cat", "a", "a", *more)
        assert status == 2 and "--classes: the name a occurs twice" in err, err
    for name, text in (("classes.txt", "a\nb\na"), ("data.yaml", "names: [a, b, a]")):
        file = write(text, tmp_path / name)
        with pytest.raises(UserError, match=rf"{name}.*: the name a occurs twice"):
            find_pairs(tmp_path)
        file.unlink()


def test_without_pycocotools(tmp_path, monkeypatch):
    """Polygons say what to install; RLE does without."""
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    save_image(tmp_path / "images/a.jpg", make_scene()[0])
    for form in ("rle", "polygons"):
        write(coco({"a.jpg": make_scene()[1]}, form), tmp_path / "a.json")
        if form == "rle":
            assert find_pairs(tmp_path).pairs[0].load_mask().any()
        else:
            with pytest.raises(UserError, match="pip install"):
                find_pairs(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.xml", "export the annotations as COCO"),
        ("a.zip", "unpack it"),
        ("none.json", "no such file or folder"),
        ("b.json", "Supervisely's own json"),
    ],
)
def test_files_of_other_kinds(tmp_path, call, name, text):
    if name != "none.json":
        write('{"objects": [], "size": {}}', tmp_path / name)
    status, _, err = call(train.main, "--annotations", tmp_path / name)
    assert status == 2 and text in err and "Traceback" not in err
