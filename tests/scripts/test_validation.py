"""validation.py: sets and sources, files, what does not match, and the semantic measures."""

import csv
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers.data import ROOT, make_pairs, make_scene, save_image, truncate_file
from helpers.processes import ranks
from PIL import Image

import predict
import validation
from src import UserError, build_model, save_model
from train_utils.data.pairs import Pair
from train_utils.metrics import plots
from train_utils.metrics.maps import MapDataset, Maps, read_map
from train_utils.metrics.score import unique_labels

PLAIN = ["--device", "cpu", "--amp", "off", "--workers", "0"]


@pytest.fixture(scope="module")
def two_sets(tmp_path_factory):
    """Two small sets, called one and two."""
    root = tmp_path_factory.mktemp("sets")
    for name, stems in (("one", "abc"), ("two", "defg")):
        make_pairs(root / name / "images", root / name / "masks", stems)
    return root


@pytest.fixture(scope="module")
def maps(two_sets, weights, tmp_path_factory):
    """What predict.py makes of both."""
    folder = tmp_path_factory.mktemp("maps")
    for name in ("one", "two"):
        argv = [str(two_sets / name / "images"), "--weights", str(weights), "--img-size", "64"]
        assert predict.main([*argv, *PLAIN[:-2], "--output", str(folder / name)]) == 0
    return folder


def rows_of(path):
    found = json.loads(path.read_text())
    return found if isinstance(found, list) else [found]


def test_stored_maps_score_as_the_network(call, two_sets, maps, weights, tmp_path):
    """Every measure of two sets by both ways, in one table; files that hold what it says."""
    data = [two_sets / "one", two_sets / "two"]
    out = {name: tmp_path / name for name in ("s.json", "s.csv", "s.png", "w.png")}
    status, said, err = call(
        validation.main, "--weights", weights, "--pred-dir", maps, "--data-path", *data,
        "--img-size", 64, "--metrics", "all", "--no-normalize", "--json", out["s.json"],
        "--csv", out["s.csv"], "--plot", out["s.png"], "--worst", 2, "--worst-file", out["w.png"],
        *PLAIN,
    )  # fmt: skip
    assert status == 0, err
    assert "lite: maps as they are, network at 64² in float32" in said  # the others by no network
    assert f"\n{maps.name}: maps as they are\n" in said
    table = [line for line in said.splitlines() if line.startswith("| ")]
    assert len(table) == 6 and len({len(line) for line in table}) == 1
    heads = ["set", "maps", "images", "maxF", "MAE", "wF", "relaxF", "S"]
    assert [cell.strip() for cell in table[0].split("|")[1:9]] == heads
    rows = rows_of(out["s.json"])
    assert [(row["data"], "weights" in row) for row in rows] == [
        ("one", True), ("one", False), ("two", True), ("two", False)
    ]  # fmt: skip
    for network, stored in (rows[:2], rows[2:]):
        assert network["images"] == stored["images"] == {"one": 3, "two": 4}[network["data"]]
        assert network["normalize"] is stored["normalize"] is False
        for name in ("mae", "max_f", "weighted_f", "s_measure", "relaxed_boundary_f", "mean_e"):
            assert stored[name] == pytest.approx(network[name], abs=1e-6), name
    assert f"{rows[0]['mae']:.3f}" in table[2]
    with out["s.csv"].open(newline="") as file:
        pictures = list(csv.DictReader(file))
    assert len(pictures) == 14 and {row["normalize"] for row in pictures} == {"False"}
    one = [float(row["mae"]) for row in pictures if row["set"] == "one"]
    assert np.mean(one[:3]) == pytest.approx(rows[0]["mae"], abs=1e-6)
    for name in ("s.png", "w-one-lite.png", f"w-two-{maps.name}.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 200


def test_a_single_result_is_a_plain_object(call, two_sets, weights, tmp_path):
    path = tmp_path / "s.json"
    argv = ["--weights", weights, "--data-path", two_sets / "one", "--img-size", 64, *PLAIN]
    status, said, _ = call(validation.main, *argv, "--json", path)
    row = json.loads(path.read_text())
    assert status == 0 and row["img_size"] == 64 and "weighted_f" not in row
    assert "stretched" in said and "64² in float32" in said and "wF" not in said


def test_what_does_not_match_is_listed(call, two_sets, maps, tmp_path):
    """The rest is scored, and the exit status tells."""
    folder = tmp_path / "maps"
    for path in (maps / "one").iterdir():
        if path.stem != "b":
            save_image(folder / path.name, Image.open(path).resize((30, 20)))
    save_image(folder / "stranger.png", make_scene()[1])
    argv = ["--pred-dir", folder, "--data-path", two_sets / "one", "--metrics", "all", *PLAIN]
    status, said, _ = call(validation.main, *argv)
    assert status == 2
    assert "no map for 1 image: b" in said and "no mask for 1 map: stranger.png" in said
    assert "2 maps resized" in said
    assert said.splitlines()[-1].split("|")[3].strip() == "2"


def test_a_map_without_a_header(call, two_sets, maps, tmp_path):
    """Costs itself alone too."""
    folder = tmp_path / "maps"
    shutil.copytree(maps / "one", folder)
    (folder / "b.png").write_bytes(b"")
    argv = ["--pred-dir", folder, "--data-path", two_sets / "one", *PLAIN]
    status, said, err = call(validation.main, *argv)
    assert status == 2 and "b.png" in err
    assert said.splitlines()[-1].split("|")[3].strip() == "2"


def test_a_torn_file_costs_itself_alone(call, two_sets, maps, weights, tmp_path):
    """A map, and a picture: named, left out, and all the rest is scored and written."""
    folder = tmp_path / "maps"
    for path in (maps / "two").iterdir():
        save_image(folder / path.name, Image.open(path))
    truncate_file(folder / "f.png")
    json_file = tmp_path / "s.json"
    argv = [
        "--pred-dir",
        folder,
        maps,
        "--data-path",
        two_sets / "two",
        "--json",
        json_file,
        *PLAIN,
    ]
    status, said, err = call(validation.main, *argv, "--csv", tmp_path / "s.csv")
    first, second = rows_of(json_file)
    assert status == 2 and "f.png" in err and "Traceback" not in err
    assert (first["images"], second["images"]) == (3, 4) and first["unreadable"] == ["f"]
    assert len(said.splitlines()[-1]) > 20 and len((tmp_path / "s.csv").read_text().split()) == 8
    make_pairs(tmp_path / "images", tmp_path / "masks", "abc")
    truncate_file(tmp_path / "images/b.jpg")
    argv = ["--weights", weights, "--img-size", 32, "--data-path", tmp_path, *PLAIN]
    status, _, err = call(validation.main, *argv, "--json", json_file)
    assert status == 2 and "b.jpg" in err and rows_of(json_file)[0]["images"] == 2


def test_ranks_with_maps_that_do_not_match(two_sets, maps, tmp_path):
    """torchrun ends all processes once one has left with 2: rank 0 must have written by then, even
    where all of its own maps are torn."""
    folder = tmp_path / "maps"
    for path in (maps / "two").iterdir():
        if path.stem != "e":
            save_image(folder / path.name, Image.open(path))
    truncate_file(folder / "d.png")
    argv = ["--pred-dir", str(folder), "--data-path", str(two_sets / "two"), *PLAIN]
    argv += ["--metrics", "all", "--worst", "3"]
    results = []
    for world in (1, 3):
        out = tmp_path / str(world)
        files = ["--json", str(out / "s.json"), "--worst-file", str(out / "w.png")]
        told = ranks(world, validation.main, [*argv, *files], group=False)
        assert [result for result, *_ in told] == [2] * world
        assert (out / "w.png").stat().st_size > 5000
        results.append(json.loads((out / "s.json").read_text()))
    assert (results[1]["missing"], results[1]["unreadable"]) == (["e"], ["d"])
    numbers = [{k: v for k, v in r.items() if isinstance(v, float)} for r in results]
    assert len(numbers[0]) > 10 and numbers[0] == pytest.approx(numbers[1], abs=1e-6)


def test_flags_of_no_use(call, two_sets, maps):
    argv = ["--pred-dir", maps / "one", "--data-path", two_sets / "one", *PLAIN]
    for flags in (["--worst-file", "w.png"], ["--img-size", 64]):
        status, _, told = call(validation.main, *argv, *flags)
        assert status == 2 and told.startswith(f"error: {flags[0]}"), told


def test_figures_of_any_label_are_closed(call, two_sets, maps, tmp_path):
    """matplotlib's legends leave out what begins with an underscore."""
    for name in ("_first", "second"):
        shutil.copytree(maps / "one", tmp_path / name)
    argv = ["--pred-dir", tmp_path / "_first", tmp_path / "second", "--data-path"]
    argv += [two_sets / "one", *PLAIN, "--plot", tmp_path / "p.svg"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(plots.pyplot().rcParams, "svg.fonttype", "none")
        assert call(validation.main, *argv)[0] == 0
    assert {"first", "second"} <= set(
        re.findall(r"_?(\w+) \(max", (tmp_path / "p.svg").read_text())
    )
    with pytest.raises(ValueError, match="broken"), plots._figure(tmp_path / "q.png", 1, 1, (1, 1)):
        raise ValueError("broken")
    assert not plots.pyplot().get_fignums()


def test_sheets_have_names_of_their_own(two_sets, maps, tmp_path):
    """Sets of one name, the same one twice, and a-b of c beside a of b-c."""
    for place in ("a", "b", "a-b"):
        shutil.copytree(two_sets / "one", tmp_path / place / "one")
    sets = [tmp_path / "a/one", tmp_path / "b/one", tmp_path / "a/one"]
    argv = ["--pred-dir", maps / "one", "--data-path", *sets, "--worst", 1, *PLAIN]
    assert validation.main([*map(str, argv), "--worst-file", str(tmp_path / "w/w.png")]) == 0
    assert len(list((tmp_path / "w").iterdir())) == 3


def test_sheet_of_the_worst(call, two_sets, tmp_path, monkeypatch):
    """The highest MAE first."""
    captions = []
    monkeypatch.setattr(
        plots, "draw_sheet", lambda path, rows, *_: captions.extend(row[0] for row in rows)
    )
    for name, wrong in (("d", 10), ("e", 30), ("f", 0), ("g", 20)):
        with Image.open(two_sets / f"two/masks/{name}.png") as mask:
            found = np.array(mask)
        found[:wrong] = 255 - found[:wrong]
        save_image(tmp_path / f"{name}.png", found)
    argv = ["--pred-dir", tmp_path, "--data-path", two_sets / "two", "--worst", 3, *PLAIN]
    assert call(validation.main, *argv, "--worst-file", tmp_path / "w/w.png")[0] == 0
    assert [text[:11] for text in captions] == ["e: mae 0.75", "g: mae 0.50", "d: mae 0.25"]


def test_outputs_are_tried_first(call, two_sets, maps, tmp_path):
    (tmp_path / "file").write_text("")
    argv = ["--pred-dir", maps, "--data-path", two_sets / "one", *PLAIN, "--csv"]
    status, said, err = call(validation.main, *argv, tmp_path / "file/x.csv")
    assert status == 2 and "x.csv" in err and "|" not in said


def test_a_network_of_several_maps_is_no_saliency(call, two_sets, tmp_path):
    save_model(build_model("u2net_lite", out_ch=2), tmp_path / "net.pt")
    argv = ["--weights", tmp_path / "net.pt", "--data-path", two_sets / "one", *PLAIN]
    status, _, err = call(validation.main, *argv)
    assert status == 2 and "--metrics semantic --num-classes 2" in err


def test_how_maps_are_read(tmp_path):
    """Grey of any depth; the alpha of a cut-out."""
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert (read_map(save_image(tmp_path / "l.png", grey)) == grey).all()
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert (read_map(save_image(tmp_path / "16.png", deep)) == grey).all()
    wide = Image.fromarray(grey.astype(np.uint16))  # levels of 8 bits all the same
    assert (read_map(save_image(tmp_path / "wide.png", wide)) == grey).all()
    cutout = Image.fromarray(np.full((16, 16, 3), 200, np.uint8))
    cutout.putalpha(Image.fromarray(grey))
    assert (read_map(save_image(tmp_path / "a.png", cutout)) == grey).all()
    photo = np.full((3, 4, 3), (200, 60, 20), np.uint8)
    with pytest.raises(UserError, match="a colour image, not a map"):
        read_map(save_image(tmp_path / "c.png", photo))
    all_object = np.dstack([photo, np.full((3, 4), 255, np.uint8)])
    assert (read_map(save_image(tmp_path / "d.png", all_object)) == 255).all()


def test_maps_of_another_size_are_rounded(tmp_path):
    path = save_image(tmp_path / "map.png", np.array([[0, 11]], np.uint8))
    mask = save_image(tmp_path / "mask.png", np.array([[0, 0, 255, 255]], np.uint8))
    levels, _, index = MapDataset(Maps(tmp_path, [None, path]), [Pair(mask, mask)] * 2)[1]
    assert levels.tolist() == [[0, 3, 8, 11]] and index == 1  # 2.75 and 8.25


def test_labels(tmp_path):
    """Enough of the path to tell them apart; a folder's dot is no suffix."""
    for name in ("a.v1", "a.v2"):
        (tmp_path / name).mkdir()
    assert unique_labels([tmp_path / "a.v1", tmp_path / "a.v2"]) == ["a.v1", "a.v2"]
    weights = [tmp_path / "x/best.pt", tmp_path / "y/best.pt"]
    assert unique_labels(weights) == ["x/best", "y/best"]
    assert unique_labels(weights[:1]) == ["best"]


@pytest.mark.parametrize("fault", ["nowhere", "empty", "others", "doubled"])
def test_unusable_map_folders(call, two_sets, maps, tmp_path, fault):
    folder = tmp_path / "maps"
    if fault != "nowhere":
        folder.mkdir()
    if fault == "others":
        save_image(folder / "x.png", make_scene()[1])
    if fault == "doubled":
        save_image(folder / "a.png", make_scene()[1])
        save_image(folder / "a.jpg", make_scene()[1])
    status, _, err = call(
        validation.main, "--pred-dir", folder, "--data-path", two_sets / "one", *PLAIN
    )
    assert status == 2 and str(folder) in err and "Traceback" not in err


def test_maps_of_0_and_1(call, two_sets):
    """As masks may be, maps may too, or just below and above a half: the masks are perfect."""
    folder = two_sets / "ones"
    for path in (two_sets / "one/masks").iterdir():
        low = 127 if path.stem == "b" else 0
        save_image(folder / path.name, np.array(Image.open(path)) // 255 + np.uint8(low))
    argv = ["--pred-dir", folder, "--data-path", two_sets / "one", *PLAIN, "--metrics", "semantic"]
    status, said, _ = call(validation.main, *argv)
    assert status == 0 and "background 1.000, object 1.000" in said


def test_binary_masks(call, two_sets, maps):
    """Object and background of saliency data, thresholded at a half."""
    status, said, err = call(
        validation.main, "--pred-dir", maps, "--data-path", two_sets / "one", *PLAIN,
        "--metrics", "semantic",
    )  # fmt: skip
    assert status == 0 and "background" in said and "mIoU" in said, err


def test_help_imports_what_it_needs():
    """Neither what draws nor what augments or measures, which take seconds."""
    code = (
        "import sys, validation\n"
        "try: validation.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(*{'matplotlib', 'cv2', 'torchvision'} & sys.modules.keys(), 'done')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "done", done.stderr


def test_advice_names_flags(call, folders):
    """Of this script, though the library names parameters."""
    make_pairs(*folders, "abc")
    (folders[0] / "a.jpg").write_text("")
    save_image(folders[1] / "b.png", np.full((40, 48), 2, np.uint8))
    argv = ["--pred-dir", folders[1], "--data-path", folders[0].parent, *PLAIN]
    status, _, err = call(validation.main, *argv)
    assert status == 2 and "for class indices pass --num-classes 3" in err
    assert err.splitlines()[-1] == "Fix these files, or pass --skip-invalid to leave them out"
