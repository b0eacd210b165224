"""Many images at a time: memory, batches, threads, and what goes wrong on the way."""

import errno
import io
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from helpers.data import ROOT, break_network, make_scene
from helpers.processes import PATIENCE
from PIL import Image

from src import Predictor, UserError, build_model
from src.inference.preprocess import resize_map
from src.inference.stream import stream


@pytest.mark.parametrize("size", [1000, 50_000_000])
def test_few_images_are_in_memory(weights, size):
    """However many there are; and of large ones, one."""
    predictor = Predictor(weights, 32, "cpu", "off")
    lock, inside, most = threading.Lock(), [0], [0]
    image = Image.fromarray(make_scene()[0])

    def load(item):
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        return image

    def finish(item, *_):
        with lock:
            inside[0] -= 1
        return item

    found = list(stream(predictor, iter(range(40)), load, finish, lambda item: size))
    assert sorted(found) == [(i, i) for i in range(40)]
    assert most[0] <= (2 * min(8, torch.get_num_threads()) + 2 if size < 1e6 else 1)


class FakeGPU:
    """A predictor that computes in batches; of an image's grey level it makes a map."""

    device = SimpleNamespace(type="cuda")
    size = SimpleNamespace(auto=False)
    look_closer = staticmethod(lambda image, saliency: saliency)
    resize = staticmethod(resize_map)

    def __init__(self, refused=()):
        self.sizes, self.refused = [], refused

    def prepare(self, image):
        return torch.tensor([[[image.getpixel((0, 0))]]])

    def maps(self, prepared):
        self.sizes.append(len(prepared))
        if set(prepared.flatten().tolist()) & set(self.refused):
            raise UserError("not finite")
        return prepared[:, 0] / 255


def grey(level):
    return Image.new("L", (level + 1, 2), level)


def shape_and_level(item, image, saliency):
    return saliency.shape, round(float(saliency.mean() * 255))


def test_batches_are_of_one_size():
    """On a GPU; each map goes to its own image, and the last batch is filled up."""
    predictor = FakeGPU()
    results = dict(stream(predictor, range(20), grey, shape_and_level))
    assert results == {i: ((2, i + 1), i) for i in range(20)}
    assert predictor.sizes == [8, 8, 8]


def test_batches_of_large_images_and_of_faulty_ones():
    """What cannot be filled up is begun as it is: nothing else makes room."""
    predictor = FakeGPU()

    def load(item):
        if item % 5 == 0:
            raise UserError("torn")
        return grey(item)

    sizes = {"pixels": lambda item: 20_000_000}
    results = dict(stream(predictor, range(20), load, shape_and_level, **sizes))
    assert {i for i, result in results.items() if isinstance(result, UserError)} == {0, 5, 10, 15}
    assert all(results[i] == ((2, i + 1), i) for i in range(20) if i % 5)
    assert set(predictor.sizes) == {8}


def test_a_fault_that_the_network_finds_is_its_images_alone():
    """In a batch on a GPU; the others of the batch are computed without it."""
    results = dict(stream(FakeGPU(refused=[3, 11]), range(20), grey, shape_and_level))
    faulty = {i: str(result) for i, result in results.items() if isinstance(result, UserError)}
    assert faulty == {3: "not finite", 11: "not finite"}
    assert all(results[i] == ((2, i + 1), i) for i in range(20) if i not in faulty)


def test_maps_that_are_not_finite_are_faults():
    """The network's own UserError is given back as those of the other steps are."""
    predictor = Predictor(break_network(build_model("u2net_lite")), 32, "cpu", "off")
    items = [0, 1, 2]
    results = dict(stream(predictor, items, grey, shape_and_level))
    assert {i: str(error) for i, error in results.items()} == dict.fromkeys(
        items, "the network gives values that are not finite"
    )
    assert all(isinstance(error, UserError) for error in results.values())


@pytest.mark.parametrize("make", [FakeGPU, Predictor], ids=["batches", "cores"])
def test_closed_early(weights, make):
    """No thread is left waiting, and what has not begun never does."""
    predictor = FakeGPU() if make is FakeGPU else Predictor(weights, 32, "cpu", "off")
    loaded, before = [], threading.active_count()
    results = stream(predictor, range(500), lambda i: loaded.append(i) or grey(1), lambda *_: 1)
    next(results)
    closing = threading.Thread(target=results.close, daemon=True)
    closing.start()
    closing.join(PATIENCE)
    assert not closing.is_alive()
    assert threading.active_count() == before and len(loaded) < 100


LEFT_OPEN = """
import sys
sys.path[:0] = ["tests", "tests/inference"]
from test_stream import FakeGPU, grey, shape_and_level, stream
results = stream(FakeGPU(), (i % 9 for i in range(500)), grey, shape_and_level)
print(next(results))
"""


def test_a_program_that_ends_amid_a_run():
    """Threads that wait for a batch to fill up do not keep it from ending."""
    done = subprocess.run([sys.executable, "-c", LEFT_OPEN], cwd=ROOT, timeout=PATIENCE)
    assert done.returncode == 0


def test_slow_items_are_not_waited_for(monkeypatch):
    """A camera's: a batch is begun, after a while, with the images that are there."""
    monkeypatch.setattr("src.inference.stream._PATIENCE", 0.2)
    predictor = FakeGPU()
    begun = threading.Event()

    def items():
        yield from range(3)
        assert begun.wait(PATIENCE), "the first three are computed while the fourth is awaited"
        yield 3

    def finish(item, *_):
        begun.set()
        return item

    assert sorted(stream(predictor, items(), grey, finish)) == [(i, i) for i in range(4)]


def test_threads_of_the_caller_are_as_before(weights):
    """Those started afterwards too, for which torch keeps a number of its own."""
    before, seen = torch.get_num_threads(), []
    predictor = Predictor(weights, 32, "cpu", "off")
    list(stream(predictor, [1], lambda _: Image.new("RGB", (9, 9)), lambda *_: 1))
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start(), thread.join()
    assert [torch.get_num_threads(), *seen] == [before, before]


def test_a_fault_in_any_step_is_the_images(weights):
    predictor = Predictor(weights, 32, "cpu", "off")
    image = Image.fromarray(make_scene()[0])

    def step(kind):
        def do(item, *_):
            if item == kind:
                raise faults.get(kind, UserError(kind))
            return image if kind == "load" else 1

        return do

    faults = {"finish": KeyError("finish"), "pixels": OSError(errno.ENOENT, "gone", "a.png")}
    items = ["load", "sound", "finish", "pixels"]
    found = dict(stream(predictor, items, step("load"), step("finish"), step("pixels")))
    assert found.pop("sound") == 1
    assert {k: str(v) for k, v in found.items()} == {
        "load": "load",
        "pixels": "a.png: gone",
        "finish": "cannot be predicted (KeyError: 'finish')",
    }


def test_broken_networks_are_no_images_fault(weights):
    predictor = Predictor(weights, 32, "cpu", "off")
    config, predictor.model = predictor.model.config, torch.nn.Linear(1, 1)
    predictor.model.config = config
    with pytest.raises(RuntimeError):
        list(stream(predictor, [1], lambda _: Image.new("RGB", (9, 9)), lambda *_: 1))


def test_a_full_disk_ends_the_run(weights):
    """Nothing more could be written; another fault of a file is that file's alone."""
    predictor = Predictor(weights, 32, "cpu", "off")

    def finish(item, *_):
        raise OSError(item, os.strerror(item), "out/a.png")

    load = {"load": lambda _: Image.fromarray(make_scene()[0]), "finish": finish}
    ((_, error),) = stream(predictor, [errno.EACCES], **load)
    assert str(error) == "out/a.png: Permission denied"
    load["load"] = lambda path: Image.open(io.BytesIO(b"no image"))
    ((_, error),) = stream(predictor, ["a.png"], **load)
    assert str(error).startswith("cannot identify image file")
    load["load"] = lambda _: Image.fromarray(make_scene()[0])
    with pytest.raises(OSError, match="No space"):
        list(stream(predictor, [errno.ENOSPC] * 9, **load))
