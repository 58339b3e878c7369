"""Images that the caller holds: arrays, tensors, lists of files, torch data sets."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from pictures import one_line, put, values
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import twinblock
from twinblock.config.data import Data
from twinblock.core.errors import InputError
from twinblock.data import load, rows
from twinblock.data.forms import Wanted
from twinblock.data.objects import describe, images_from, is_object
from twinblock.data.training import training

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), np.uint8)


class Birds(Dataset):
    """Items as they are given; counts how often each is read."""

    def __init__(self, items, **attributes):
        self.items, self.reads = items, []
        self.__dict__.update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        self.reads.append(i)
        if isinstance(self.items[i], Exception):
            raise self.items[i]
        return self.items[i]


def test_images_are_themselves():
    images = tiny.images(4)
    assert images_from(images) is images
    assert images_from(images, labels=["a", "b", "a", "b"]).classes == ("a", "b")


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_the_layouts_of_an_array_give_the_same_pixels(kind):
    first = np.ascontiguousarray(PIXELS.transpose(0, 3, 1, 2))
    for given in (PIXELS, first):
        assert np.array_equal(images_from(kind(given.copy())).pixels, PIXELS)
    grey = PIXELS[..., 0].copy()
    for given in (grey, grey[:, None], grey[..., None]):
        assert np.array_equal(images_from(kind(given)).pixels, np.stack([grey] * 3, -1))
    images = images_from(kind(first))
    assert images.pixels.flags.c_contiguous  # or every batch would copy all of them
    assert images.labels is None and images.aspect is None


def test_pixels_of_the_stored_layout_are_used_in_place():
    assert images_from(PIXELS).pixels is PIXELS or np.shares_memory(images_from(PIXELS).pixels, PIXELS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_stay_floats(dtype):
    eighths = torch.arange(9, dtype=dtype).div(8).reshape(3, 3, 1).expand(3, 3, 5)
    images = images_from(eighths)
    assert images.pixels[:, :, 0, 0].ravel().tolist() == [i / 8 for i in range(9)]
    assert images.pixels.dtype == np.float32 and images.channels == 1
    assert images_from(np.full((4, 8, 8, 3), np.nan)).channels == 3


def test_floats_that_were_bytes_are_bytes_again(monkeypatch):
    monkeypatch.setattr("twinblock.data.objects.CONVERTED", 100)  # looked at in more than one part
    every = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
    assert np.array_equal(images_from(torch.from_numpy(every) / 255).pixels[..., 1], every)
    almost = torch.from_numpy(every) / 255
    almost[3, 0, 0] += 1e-6
    assert np.array_equal(images_from(almost).pixels[..., 0], almost.numpy())


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_whole_numbers_of_16_bits_are_used_in_place(dtype):
    for shape, channels in (((5, 6, 7), 1), ((5, 16, 17, 12), 12), ((5, 12, 16, 17), 12), ((5, 16, 17, 2), 2)):
        given = np.arange(np.prod(shape), dtype=dtype).reshape(shape)
        images = images_from(given)
        assert images.channels == channels and images.pixels.dtype == dtype
        last = given[..., None] if len(shape) == 3 else given.transpose(0, 2, 3, 1) if shape[1] == 12 else given
        assert np.array_equal(images.batch(range(5)).numpy(), last)
        if len(shape) == 3:
            assert np.shares_memory(images.pixels, given)
        items = images_from(Birds([image.copy() for image in given]))  # a data set of the same
        assert np.array_equal(items.pixels, images.pixels) and items.pixels.dtype == dtype


def test_grey_bytes_are_one_channel_where_that_is_asked_for():
    grey = PIXELS[..., 0].copy()
    assert np.array_equal(images_from(grey, wanted=Wanted(1)).pixels[..., 0], grey)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (np.zeros((4, 8, 8, 3), np.int64), "values are int64"),
        (np.zeros((4, 8, 8, 3), np.bool_), "values are bool"),
        (torch.zeros(4, 8, 8, 3, dtype=torch.complex64), "values are complex64"),
        (np.zeros((4, 40, 40, 40), np.uint8), "give 32 channels at most"),
        (np.zeros((8, 9, 3), np.uint8), r"one image needs an axis more, image\[None\]"),
        (np.zeros((4, 3, 9, 3), np.uint8), "either end may be the channels"),
        (np.zeros((4, 192), np.uint8), "its shape is"),
        (np.array(3, np.uint8), "its shape is"),
        (np.zeros((0, 8, 8, 3), np.uint8), "holds no pixels"),
        (np.zeros((4, 0, 8, 3), np.uint8), "holds no pixels"),
        (object(), "no image by its number"),
        (3, "no image by its number"),
        ((item for item in [1]), "no image by its number"),
        (DataLoader(TensorDataset(torch.zeros(4, 3, 8, 8))), "give its .dataset"),
        ([], "is empty"),
    ],
)
def test_what_are_no_images_is_one_line(given, words):
    with pytest.raises(InputError, match=words) as error:
        images_from(given)
    one_line(error)


def test_an_iterable_data_set_is_one_line():
    class Stream(IterableDataset):
        def __iter__(self):
            yield from PIXELS

    with pytest.raises(InputError, match="no image by its number") as error:
        images_from(Stream())
    one_line(error)


# ---- labels


@pytest.mark.parametrize("labels", [[1, 0, -1, 1, 2], np.array([1, 0, -1, 1, 2]), torch.tensor([1, 0, -1, 1, 2])])
def test_labels_lie_beside(labels):
    for images in (images_from(PIXELS, labels=labels), images_from((PIXELS, labels))):
        assert images.labels.tolist() == [1, 0, -1, 1, 2] and images.labels.dtype == np.int64
        assert images.classes is None
        assert images.classes_from == "the labels given"


def test_text_labels_are_classes_in_alphabetic_order():
    images = images_from(PIXELS, labels=np.array(["dog", "cat", "dog", "a\nb", "cat"]))
    assert (images.labels.tolist(), images.classes) == ([2, 1, 2, 0, 1], ("a\\nb", "cat", "dog"))
    images = images_from(PIXELS, labels=["dog", None, "dog", "cat", -1])
    assert (images.labels.tolist(), images.classes) == ([1, -1, 1, 0, -1], ("cat", "dog"))


def test_labels_that_are_all_unknown_are_none():
    assert images_from(PIXELS, labels=[-1] * 5).labels is None


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 1], "2 labels for 5 images"),
        (7, "labels of type int for 5 images"),
        ([0, 1, -2, 0, 0], "label 2 is -2"),
        ([0, 1, 0.5, 0, 0], "label 2 is 0.5"),
        ([0, "a", 0, 0, 0], "label 0 is 0"),
        (np.full((5, 3), 0.5), r"labels of shape \(5, 3\); give a column a class, of 0, 1, or -1: not known"),
        (np.zeros((4, 3)), "labels of 4 images for 5"),
        ([["a"], ["b", 1], [], [], []], "'[ab]' among others; give text for all"),
        ([[0], [-1], [], [], []], "'-1' among others"),
        ([0, 0, 0, 0, 10**9], "label 4 is 1000000000"),
    ],
)
def test_unusable_labels_are_one_line(labels, words):
    with pytest.raises(InputError, match=words) as error:
        images_from(PIXELS, labels=labels)
    one_line(error)


# ---- files


def test_a_list_of_paths_is_packed_with_its_labels(tmp_path, cache):
    for i in range(30):
        put(tmp_path, f"{i}.png", i)
    (tmp_path / "7.png").write_bytes(b"")
    paths = [tmp_path / f"{i}.png" for i in range(30)]
    kept = [i for i in range(30) if i != 7]
    for images in (images_from((paths, list(range(30)))), images_from([str(p) for p in paths], labels=list(range(30)))):
        assert values(images) == images.labels.tolist() == kept
        assert images.names[0] == str(paths[0])
        assert images.skipped == ((str(paths[7]), "empty file"),)
    assert len(list(cache.glob("*-kept"))) == 1  # the same files and labels
    assert images_from(paths).labels is None
    os.utime(paths[3], ns=(0, 0))
    put(tmp_path, "4.png", 200)
    assert values(images_from(paths))[4] == 200
    assert values(images_from(paths[:0:-1]))[:2] == [29, 28]


def test_two_paths_are_no_images_and_labels(tmp_path):
    for name in ("a.png", "b.png"):
        put(tmp_path, name)
    assert len(images_from((tmp_path / "a.png", str(tmp_path / "b.png")))) == 2


def test_paths_to_nothing_are_one_line(tmp_path):
    with pytest.raises(InputError, match=r"2 of 2 images cannot be read.*No such file") as error:
        images_from([tmp_path / "a.png", tmp_path / "b.png"])
    one_line(error)


# ---- data sets


def test_every_kind_of_item_gives_the_pixels_and_the_label():
    first = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
    kinds = {
        "pil": [Image.fromarray(image) for image in PIXELS],
        "array": list(PIXELS),
        "tensor": list(first),
        "floats": [image / 255 for image in first],
    }
    for kind, items in kinds.items():
        images = images_from(Birds(items))
        assert np.array_equal(images.pixels, PIXELS), kind
        assert images.labels is None and images.names is None
        labels = [2, torch.tensor(0), np.int64(1), -1, np.array(2)]
        images = images_from(Birds(list(zip(items, labels, strict=True)), classes=["a", "b", "c"]))
        assert np.array_equal(images.pixels, PIXELS), kind
        assert images.labels.tolist() == [2, 0, 1, -1, 2]
        assert images.classes == ("a", "b", "c")
    assert np.array_equal(images_from(TensorDataset(first, torch.tensor([2, 0, 1, 1, 2]))).pixels, PIXELS)
    assert np.array_equal(images_from(kinds["pil"]).pixels, PIXELS)  # a list is a data set as well


def test_items_are_read_once_and_in_their_order_and_leave_nothing_behind(cache):
    data = Birds([(np.full((8, 8, 3), i % 256, np.uint8), i) for i in range(3000)])
    images = images_from(data)
    assert sorted(data.reads) == list(range(3000))
    assert values(images) == [i % 256 for i in range(3000)]
    assert images.labels.tolist() == list(range(3000))
    assert isinstance(images.pixels, np.memmap)
    assert list(cache.iterdir()) == []
    assert images.batch([2999, 5])[:, 0, 0, 0].tolist() == [2999 % 256, 5]


def test_items_of_mixed_sizes_are_squashed_with_their_aspect():
    images = images_from(Birds([np.zeros((20, 40, 3), np.uint8), np.zeros((30, 30, 3), np.uint8)]), size=224)
    assert images.pixels.shape == (2, 40, 40, 3)
    assert images.aspect.tolist() == [2, 1]


def test_pil_items_of_any_mode_are_rgb():
    images = images_from(
        Birds([Image.new("L", (8, 8), 7), Image.new("RGB", (8, 8), (7, 7, 7)), Image.new("1", (8, 8))])
    )
    assert values(images) == [7, 7, 0]


GOOD = np.zeros((8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (OSError("no disk\nat all"), r"item 20 raises OSError \(no disk\)"),
        (IndexError("list index out of range"), "item 20 raises IndexError"),
        ({"image": GOOD}, "item 20 is dict"),
        ("a.png", "item 20 is str"),
        ((GOOD, GOOD), r"\(ndarray of \(8, 8, 3\), ndarray of \(8, 8, 3\)\): its label"),
        ((GOOD, 1, "more"), r"item 20 is \(ndarray of \(8, 8, 3\), int, str\)"),
        ((GOOD, 0.5), "item 20 .*its label"),
        (
            torch.randn(3, 8, 8),
            r"item 20 \(Tensor of \(3, 8, 8\)\) has 3 channels of float32 and item 0 3 channels of u",
        ),
        (np.zeros((8, 8, 4), np.uint8), "item 20 .*4 channels"),
        (np.zeros((8, 8, 3), np.int32), r"item 20 .*int32"),
        (np.zeros((8, 0, 3), np.uint8), "item 20 is ndarray"),
        (np.zeros(5, np.uint8), r"item 20 is ndarray of \(5,\)"),
        (None, "item 20 is NoneType"),
    ],
)
def test_an_unusable_item_is_one_line_and_leaves_nothing(bad, words, cache):
    with pytest.raises(InputError, match=words) as error:
        images_from(Birds([GOOD] * 20 + [bad] + [GOOD] * 20))
    one_line(error)
    assert not list(cache.glob("object-*/*"))


def test_a_killed_process_leaves_no_store(cache):
    """Its files have no name any more, so that the system frees them however the process ends."""
    code = (
        "import os, numpy as np; from twinblock.data.objects import images_from\n"
        "images = images_from([np.zeros((8, 8, 3), np.uint8)] * 5); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert list(cache.iterdir()) == []


# ---- what a run keeps of them


def test_descriptions_name_the_object():
    assert describe(PIXELS) == describe((PIXELS, [1] * 5)) == "<array of 5 images>"
    assert describe(torch.zeros(500, 3, 2, 2)) == "<tensor of 500 images>"
    assert describe(["a.png", "b.png"]) == describe((["a.png", "b.png"], [0, 1])) == "<list of 2 files>"
    assert describe(Birds([1])) == f"<dataset {__name__}.Birds of 1 images>"
    assert describe(replace(tiny.images(4), name="photos")) == "<photos of 4 images>"
    assert describe(iter(())).startswith("<dataset builtins.")


def test_what_is_an_object():
    assert all(map(is_object, (PIXELS, ["a.png"], Birds([]), tiny.images(3), 3)))
    assert not any(map(is_object, (None, "photos", os.curdir, {"source": "photos"})))


def test_the_description_of_an_object_is_no_source():
    for given in (PIXELS, Birds([GOOD])):
        with pytest.raises(InputError, match=r"were a Python object.*give them again: data=\.\.\.") as error:
            load(describe(given))
        one_line(error)


def test_subsets_are_cut_from_given_images(tmp_path):
    (tmp_path / "rows.txt").write_text("3\n1\n")
    part = training(Data(source="<array of 5 images>", indices=str(tmp_path / "rows.txt")), images_from(PIXELS))
    assert np.array_equal(part.batch([0, 1]), PIXELS[[3, 1]])


def test_large_items_of_a_data_set_are_trained_on(tmp_path):
    """Rows so large that they are read from the file, which has no name any more."""
    items = [*np.random.default_rng(1).integers(0, 256, (8, 160, 160, 3), np.uint8)]
    images = images_from(Birds(items))
    assert images.pixels[0].nbytes > rows.LARGE
    assert np.array_equal(images.batch([5, 2]).numpy(), np.asarray(images.pixels)[[5, 2]])
    small = ["encoder.kind=resnet10", "encoder.width=8", "data.batch=8", "data.size=32", "train.length=1steps"]
    run = twinblock.pretrain("simclr", data=Birds(items), out=tmp_path / "run", overrides=small, quiet=True)
    assert len(twinblock.embed(run, data=Birds(items[:3])).features) == 3
