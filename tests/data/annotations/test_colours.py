"""Masks that show classes in colours, read by a table."""

import numpy as np
import pytest
from helpers.data import make_pairs, make_palette_image, save_image
from helpers.runs import run

import train
from my_dataset import find_pairs
from src import UserError
from src.pictures.images import open_image
from train_utils.data.masks import mask_reader, read_table

VOC = {"background": (0, 0, 0), "aeroplane": (128, 0, 0), "bicycle": (0, 128, 0)}
TABLES = {
    "classes.txt": "{0} {1} {2} {3}",
    "labelmap.txt": "{0}:{1},{2},{3}::",
    "class_dict.csv": "{0},{1},{2},{3}",
}
INDICES = np.zeros((40, 48), np.uint8)
INDICES[5:20, 5:20] = 1
INDICES[15:30, 15:40] = 2


def table(form):
    head = {"labelmap.txt": "# label:color_rgb:parts:actions\n", "class_dict.csv": "name,r,g,b\n"}
    lines = [form_of(name, *colour, form) for name, colour in VOC.items()]
    return head.get(form, "") + "\n".join(lines)


def form_of(name, *rest):
    *colour, form = rest
    return TABLES[form].format(name, *colour)


@pytest.fixture
def coloured_set(folders):
    make_pairs(*folders, [f"p{i}" for i in range(6)])
    palette = np.array(list(VOC.values()), np.uint8)
    for i in range(6):
        save_image(folders[1] / f"p{i}.png", palette[INDICES])
    return folders[0].parent


@pytest.mark.parametrize("form", TABLES)
def test_a_table_beside_the_images(coloured_set, form, call):
    with pytest.raises(UserError, match="for classes in colours pass class_colours FILE"):
        find_pairs(coloured_set, read=mask_reader(3))
    (coloured_set / form).write_text(table(form))
    for pair in find_pairs(coloured_set, read=mask_reader(3)).pairs:
        assert np.array_equal(pair.load_mask(), INDICES)
    assert np.array_equal(find_pairs(coloured_set).pairs[0].load_mask(), INDICES > 0)


def test_grey_colours_of_a_table_are_no_levels_of_grey(coloured_set):
    for i in range(6):
        colours = np.array([(0, 0, 0), (70, 70, 70), (153, 153, 153)], np.uint8)
        save_image(coloured_set / f"masks/p{i}.png", colours[INDICES])
    lines = "background 0 0 0\nbuilding 70 70 70\npole 153 153 153"
    (coloured_set / "classes.txt").write_text(lines)
    found = find_pairs(coloured_set)
    assert np.array_equal(found.pairs[0].load_mask(), INDICES > 0)
    assert not [note for note in found.notes if "soft" in note]


def test_classes_that_occur_nowhere_are_named(coloured_set):
    """By the set's names, by the user's, and by number; one pixel in one mask is enough."""
    listed = VOC | {"cow": (9, 9, 9), "hen": (7, 7, 7)}
    lines = (f"{name} {red} {green} {blue}" for name, (red, green, blue) in listed.items())
    (coloured_set / "classes.txt").write_text("\n".join(lines))
    for names in ((), tuple(listed)):
        found = find_pairs(coloured_set, read=mask_reader(5, names=names))
        assert "2 classes occur in no mask: cow, hen" in found.notes
    last = coloured_set / "masks/p5.png"
    save_image(last, np.where(np.arange(48)[:, None] == 7, np.uint8([9, 9, 9]), open_image(last)))
    assert "1 class occurs in no mask: hen" in find_pairs(coloured_set, read=mask_reader(5)).notes
    (coloured_set / "classes.txt").unlink()
    for path in (coloured_set / "masks").iterdir():
        save_image(path, INDICES)
    found = find_pairs(coloured_set, read=mask_reader(4, ignore_index=255))
    assert "1 class occurs in no mask: 3" in found.notes
    assert not any("occur" in n for n in find_pairs(coloured_set, read=mask_reader(3)).notes)


@pytest.mark.parametrize(
    ("name", "classes", "colours"),
    [  # as the sets' own papers and tools list them
        ("voc", 21, {0: (0, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}),
        ("cityscapes", 19, {0: (128, 64, 128), 13: (0, 0, 142), 18: (119, 11, 32), 255: (0, 0, 0)}),
    ],
)
def test_colours_of_known_sets(coloured_set, call, name, classes, colours):
    """By name; void is ignored, which has to be said."""
    image = np.uint8(list(colours.values())).repeat(12, 0)[None].repeat(40, 0)
    for path in (coloured_set / "masks").iterdir():
        save_image(path, np.dstack([image, np.full((40, 48), 255, np.uint8)]))  # RGBA
    (pair, *_) = find_pairs(coloured_set, read=mask_reader(classes, 255, colours=name)).pairs
    assert np.array_equal(pair.load_mask(), np.uint8(list(colours)).repeat(12)[None].repeat(40, 0))
    argv = ["--data-path", coloured_set, "--num-classes", classes, "--class-colours", name]
    status, _, err = call(train.main, *argv)
    assert status == 2 and f"--class-colours {name}: its masks have pixels to ignore" in err
    status, _, err = call(train.main, *argv, "--num-classes", 9)
    assert status == 2 and f"--class-colours {name}: has {classes} classes" in err


def test_a_run_by_the_flag(coloured_set, tmp_path):
    file = tmp_path / "colours.txt"
    file.write_text(table("classes.txt"))
    flags = ["--num-classes", "3", "--class-colours", str(file), "--epochs", "1"]
    assert run(coloured_set, tmp_path / "run", *flags) == 0


def test_a_colour_that_is_not_in_the_table(coloured_set, call):
    (coloured_set / "classes.txt").write_text(table("classes.txt"))
    odd = np.array(list(VOC.values()), np.uint8)[INDICES]
    odd[2:4, 3:9] = (1, 2, 3)
    save_image(coloured_set / "masks/p4.png", odd)
    status, _, err = call(train.main, "--data-path", coloured_set, "--num-classes", 3)
    assert status == 2 and "p4.png: holds the colour (1, 2, 3), which is not in the table" in err
    assert "p3.png" not in err and "--class-colours" in err
    found = find_pairs(coloured_set, skip_invalid=True, read=mask_reader(3))
    assert [pair.name for pair in found.pairs] == ["p0", "p1", "p2", "p3", "p5"]


def test_void_and_palettes(coloured_set):
    """A palette's colours count, its own number of void stays; so does the table's void."""
    (coloured_set / "classes.txt").write_text(table("classes.txt") + "\nvoid 224 224 192\n")
    shuffled = [VOC["bicycle"], (0, 0, 0), VOC["aeroplane"], (224, 224, 192)]
    order = np.array([1, 2, 0], np.uint8)
    indices = order[INDICES]
    indices[:3] = 3
    save_image(coloured_set / "masks/p0.png", make_palette_image(shuffled, indices))
    found = find_pairs(coloured_set, read=mask_reader(3, 255))
    expected = INDICES.copy()
    expected[:3] = 255
    assert np.array_equal(found.pairs[0].load_mask(), expected)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a 1 2 3\nb 1 2 3", "line 2: the colour 1 2 3 occurs twice"),
        ("a 1 2 3\na 4 5 6", "line 2: the name a occurs twice"),
        ("# names\na\n\nb\na", "line 5: the name a occurs twice"),
        ("a 1 2 300", "colour levels go up to 255"),
        ("a\nb", "holds no colours"),
    ],
)
def test_faults_of_tables(tmp_path, text, problem):
    (tmp_path / "c.txt").write_text(text)
    with pytest.raises(UserError, match=problem):
        mask_reader(3, colours=tmp_path / "c.txt")


def test_lines_of_tables(tmp_path):
    (tmp_path / "c.txt").write_text("# note\n\nsky 1 2 3\n4 5 6 road sign\nplain name\n")
    found = read_table(tmp_path / "c.txt")
    assert found.names == ("sky", "road sign", "plain name")
    assert dict(found.colours) == {"sky": (1, 2, 3), "road sign": (4, 5, 6)}
