"""Subsets: the published counts, nested choices, lists of indices, and what cannot be made."""

from dataclasses import replace

import numpy as np
import pytest
import tiny

from twinblock.config.data import Data, LongTail
from twinblock.config.recipes import compose
from twinblock.core.errors import InputError
from twinblock.data import tails as longtail
from twinblock.data import take
from twinblock.data import training as training_module
from twinblock.data.tails import counts, few_shot, read_indices, subset
from twinblock.data.training import training, whole

LABELS = np.random.Generator(np.random.PCG64(0)).permutation(np.repeat(np.arange(10), 500))


def test_counts_are_the_published_ones(golden):
    for i in range(8):
        case = {name: golden[f"longtail_counts/c{i}/{name}"] for name in ("counts", "imbalance_factor", "n_max")}
        found = counts(int(case["n_max"]), len(case["counts"]), float(case["imbalance_factor"]))
        assert found.tolist() == case["counts"].tolist()
    for largest, classes, total, balanced in ((4500, 10, 11_165, 11_160), (450, 100, 9_754, 9_700)):
        assert counts(largest, classes, 100).sum() == total
        assert counts(largest, classes, 100, "balanced").sum() == balanced
    assert counts(500, 4, 10, "step").tolist() == [500, 500, 50, 50]
    assert counts(500, 3, 1).tolist() == [500, 500, 500]


def test_a_count_that_is_whole_is_not_rounded_down():
    assert 49 * 49.0**-1 < 1  # in floating point
    assert counts(49, 2, 49).tolist() == [49, 1]


def test_a_subset_has_those_counts_in_an_order_of_the_split():
    spec = LongTail(imbalance=100, split=0)
    rows = subset(LABELS, spec)
    assert np.bincount(LABELS[rows]).tolist() == counts(500, 10, 100).tolist()
    assert (np.diff(rows) > 0).all()
    orders = [np.bincount(LABELS[subset(LABELS, spec.model_copy(update={"split": k}))]).tolist() for k in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[2]) == sorted(counts(500, 10, 100).tolist())
    other = subset(LABELS, spec.model_copy(update={"seed": 1}))
    assert len(other) == len(rows) and len(np.intersect1d(rows, other)) < len(rows)


def test_every_class_has_an_order_of_its_own():
    first, second = longtail.by_class(np.repeat([0, 1], 50), seed=0)
    assert sorted(first) == list(range(50)) and sorted(second) == list(range(50, 100))
    assert (first != second - 50).any()


def test_the_few_lie_in_the_tail_and_in_the_balanced_twin():
    """As in the published lists: S_b is a part of D_i and of D_b."""
    spec = LongTail(imbalance=100, seed=3)
    tail, twin = subset(LABELS, spec), subset(LABELS, spec.model_copy(update={"kind": "balanced"}))
    few = few_shot(LABELS, 5, seed=3)
    assert np.bincount(LABELS[few]).tolist() == [5] * 10
    assert len(set(np.bincount(LABELS[twin]).tolist())) == 1
    assert 0 <= len(tail) - len(twin) < 10
    assert np.isin(few, tail).all() and np.isin(few, twin).all()


@pytest.fixture
def source(monkeypatch):
    data = tiny.images(300)
    monkeypatch.setattr(training_module, "split_of", lambda *_: data)
    return data


def test_a_list_is_used_as_it_is_and_a_tail_is_cut_from_it(tmp_path, source):
    index = np.array([5, 2, 200, 7])
    np.save(tmp_path / "list.npy", index)
    (tmp_path / "list.txt").write_text("5\n2\n200\n7\n")
    for name in ("list.npy", "list.txt"):
        found = training(Data(indices=str(tmp_path / name)))
        assert np.array_equal(found.batch(range(4)), source.pixels[index])
        assert found.labels.tolist() == source.labels[index].tolist()
    np.save(tmp_path / "half.npy", np.arange(150))
    data = Data(indices=str(tmp_path / "half.npy"), longtail=LongTail(imbalance=10))
    found = training(data)
    assert len(found) == counts(int(np.bincount(source.labels[:150]).min()), 3, 10).sum()
    assert len(training(whole(data))) == 300


def test_a_list_of_numbers_that_would_mean_other_images_is_one_line(tmp_path, source, monkeypatch):
    """A file that cannot be read is left out, and the numbers of those behind it are less by one."""
    (tmp_path / "list.txt").write_text("5\n")
    skipping = replace(source, skipped=(("a.png", "empty file"),))
    monkeypatch.setattr(training_module, "split_of", lambda *_: skipping)
    with pytest.raises(InputError, match="1 files of photos/ could not be read") as error:
        training(Data(source="photos/", indices=str(tmp_path / "list.txt")))
    assert "\n" not in str(error.value)
    assert len(training(Data(source="photos/"))) == 300


def bad_lists(folder):
    np.save(folder / "out.npy", np.array([1, 300]))
    np.save(folder / "minus.npy", np.array([-1]))
    np.save(folder / "float.npy", np.array([0.5]))
    np.save(folder / "empty.npy", np.array([], np.int64))
    np.save(folder / "table.npy", np.ones((2, 2), np.int64))
    np.save(folder / "pickle.npy", np.array([{}]), allow_pickle=True)
    np.savez(folder / "zip.npz", a=np.arange(3))
    (folder / "zip.npz").rename(folder / "zip.npy")
    (folder / "words.txt").write_text("1\ntwo\n")
    (folder / "huge.txt").write_text("9" * 40)
    (folder / "noise.npy").write_bytes(b"\x00\x01")


def test_every_bad_list_is_refused_in_one_line(tmp_path):
    bad_lists(tmp_path)
    words = {"out.npy": "index 300 is out of range; the data has images 0 to 299", "minus.npy": "index -1"}
    for file in [*sorted(tmp_path.iterdir()), tmp_path / "missing.npy"]:
        with pytest.raises(InputError) as caught:
            read_indices(str(file), 300)
        assert words.get(file.name, str(file)) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "spec", "words"),
    [
        (np.array([0, 0, 2, 2]), {"imbalance": 2}, "class 1 has no image"),
        (LABELS, {"imbalance": 1000}, "no image; lower it"),
        (LABELS, {"imbalance": 2, "largest": 501, "split": 0}, "class 0 should have 501 images and has 500"),
        (np.zeros(9, np.int64), {"imbalance": 2}, "at least 2 classes"),
    ],
)
def test_a_tail_that_cannot_be_made(labels, spec, words):
    with pytest.raises(InputError, match=words):
        subset(labels, LongTail(**spec))


def test_more_shots_than_samples_and_classes_without_samples():
    for shots in (0, 501):
        with pytest.raises(InputError, match=f"{shots} shots: the smallest class has 500 images"):
            few_shot(LABELS, shots)
    assert few_shot(np.array([0, 2, -1]), 1).tolist() == [0, 1]  # a class without images is none


def test_a_tail_of_unlabelled_images(source, monkeypatch):
    monkeypatch.setattr(training_module, "split_of", lambda *_: tiny.images(30).__class__(source.pixels))
    with pytest.raises(InputError, match=r"data\.longtail needs labels"):
        training(Data(source="photos/", longtail=LongTail(imbalance=2)))


def test_overrides_reach_the_tail():
    overrides = ["data.longtail.imbalance=100", "data.longtail.kind=balanced", "data.indices=a: b.npy"]
    config = compose("simclr", overrides=overrides)
    assert (config.data.longtail.kind, config.data.longtail.split, config.data.indices) == ("balanced", 1, "a: b.npy")
    with pytest.raises(InputError, match=r"data\.longtail\.imbalance: should be greater than or equal to 1"):
        compose("simclr", overrides=["data.longtail={imbalance: 0.5}"])
    with pytest.raises(InputError, match=r"did you mean data\.longtail\.seed\?"):
        compose("simclr", overrides=["data.longtail={imbalance: 9, sed: 1}"])


def test_a_part_of_which_no_image_has_a_label_has_none():
    images = replace(tiny.images(6), labels=np.array([-1, 2, -1, 0, -1, -1]))
    assert take(images, np.array([0, 2, 4])).labels is None
    assert take(images, np.array([0, 1])).labels.tolist() == [-1, 2]


def test_a_class_that_has_a_name_and_no_image_is_named():
    with pytest.raises(InputError, match="class c has no image"):
        subset(np.array([0, 0, 1, 1]), LongTail(imbalance=2), ("a", "b", "c"))
    with pytest.raises(InputError, match="leaves class b no image"):
        subset(np.array([0, 0, 1, 1]), LongTail(imbalance=3, split=0), ("a", "b"))


def test_few_shots_are_of_seed_0_unless_it_is_said():
    assert np.array_equal(few_shot(LABELS, 5), few_shot(LABELS, 5, seed=0))
    assert not np.array_equal(few_shot(LABELS, 5), few_shot(LABELS, 5, seed=1))


def test_a_number_that_no_index_can_be_is_no_whole_number(tmp_path):
    file = tmp_path / "list.txt"
    file.write_text("3 99999999999999999999")
    with pytest.raises(InputError, match="give whole numbers"):
        read_indices(str(file), 300)


def test_a_list_whose_header_promises_more_than_memory_holds_is_one_line(tmp_path):
    with open(tmp_path / "list.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (10**16,)})
        file.write(bytes(80))
    with pytest.raises(InputError, match="give whole numbers"):
        read_indices(str(tmp_path / "list.npy"), 300)
