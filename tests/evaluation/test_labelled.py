"""The labelled images that an encoder is measured on; and labels that cannot be used."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from pictures import put

import twinblock
from twinblock.config.data import Data, other_data
from twinblock.config.recipes import compose
from twinblock.core.errors import InputError
from twinblock.core.seeding import order
from twinblock.data import Images
from twinblock.data import training as longtail
from twinblock.evaluation import evaluate as evaluation
from twinblock.evaluation import labelled as labelled_sets
from twinblock.evaluation import quick
from twinblock.evaluation.groups import classes_of
from twinblock.evaluation.labelled import labelled
from twinblock.evaluation.quick import quick_knn


def with_classes(classes: tuple[str, ...] | None) -> Images:
    images = tiny.images(20)
    return Images(images.pixels, images.labels, classes)


@pytest.mark.parametrize(
    ("train", "test", "fit"),
    [
        (None, None, True),  # parquet files whose labels have no names
        (("a", "b", "c"), None, True),
        (("a", "b", "c"), ("a", "b", "c"), True),
        (("a", "b", "c"), ("a", "c", "b"), False),
        (("a", "b"), ("a", "b", "c"), True),  # a class that is only tested: its images count as missed
        (("b", "c"), ("a", "b", "c"), False),
        (("a", "b", "c"), ("a", "b"), False),
        (None, ("a", "b", "c"), False),
    ],
)
def test_the_classes_of_both_splits_must_agree(monkeypatch, train, test, fit):
    monkeypatch.setattr(labelled_sets, "split_of", lambda *_: with_classes(test))
    if not fit:
        with pytest.raises(InputError, match="classes of its test images"):
            labelled(Data(), 0, with_classes(train))
        return
    found = labelled(Data(), 0, with_classes(train))
    assert [len(images) for images in found] == [20, 20]
    assert np.array_equal(found[1].labels, tiny.images(20).labels)


def test_a_run_whose_labels_cannot_be_used_is_finished_all_the_same(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise InputError("the classes do not agree")

    monkeypatch.setattr(quick, "quick_knn", refuse)
    small = ["encoder.width=8", "data.batch=64", "train.length=1steps", "projector.dims=[16,8]"]
    run = twinblock.pretrain("simclr", out=tmp_path / "run", overrides=small)
    assert run.finished
    assert run.result is not None and run.result["knn"] is None
    assert "accuracy was not measured: the classes do not agree" in capsys.readouterr().err


def test_without_a_test_split_a_fifth_of_each_class_is_held_out(monkeypatch):
    sizes = (40, 11, 2, 1)
    labels = np.random.Generator(np.random.PCG64(0)).permutation(np.repeat(np.arange(4), sizes))
    images = Images(np.arange(54, dtype=np.uint8).repeat(192).reshape(54, 8, 8, 3), labels)
    monkeypatch.setattr(labelled_sets, "split_of", lambda *_: None)
    train, test = labelled(Data(), 0, images)
    assert np.bincount(test.labels, minlength=4).tolist() == [8, 3, 1, 0]  # one image cannot do both
    shown = lambda part: part.batch(range(len(part)))[:, 0, 0, 0].tolist()  # noqa: E731
    assert sorted(shown(train) + shown(test)) == list(range(54))
    assert shown(labelled(Data(), 1, images)[1]) != shown(test)
    with pytest.raises(InputError, match="one image of each class"):
        labelled(Data(), 0, Images(images.pixels[:3], np.arange(3)))


def test_what_is_held_out_is_the_same_in_every_version():
    """By hand: every fifth image of a class, or fifth group, in an order of the seed that no epoch has (place -2)."""
    rows = order(7, -2, 11)
    held = labelled_sets._held_out(np.zeros(11, np.int64), 7)
    assert np.flatnonzero(held).tolist() == sorted(rows[[0, 5, 10]])
    groups = np.repeat(np.arange(11), 2)
    assert np.unique(groups[labelled_sets.held_groups(groups, 7)]).tolist() == sorted(rows[:3])


def test_an_image_of_no_group_is_a_group_of_its_own():
    assert labelled_sets.each_its_group(np.array([-1, 3, -1, 0, -1])).tolist() == [4, 3, 5, 0, 6]
    assert labelled_sets.each_its_group(np.array([-1, -1])).tolist() == [0, 1]


def folder(root, train: dict[str, int], test: dict[str, int] | None = None) -> str:
    """Classes of so many images, of one colour each."""
    for split, classes in (("train", train), ("val", test or {})):
        for i, (name, count) in enumerate(classes.items()):
            for k in range(count):
                place = (f"{split}/" if test else "") + f"{name}/{k}.png"
                put(root, place, 40 * i + k)
    return str(root)


SMALL = ["encoder.width=8", "encoder.kind=resnet10", "data.batch=16", "train.length=1steps", "projector.dims=[16,8]"]


@pytest.mark.parametrize(
    ("train", "test", "sizes", "untested"),
    [
        ({"a": 24, "b": 8, "lone": 1}, None, [24, 8, 1], [2]),  # its only image is for fitting
        ({"a": 24, "b": 8, "c": 8}, {"a": 3, "c": 3}, [24, 8, 8], [1]),
        ({"a": 24, "b": 8}, {"a": 3, "b": 1, "new": 3}, [24, 8], []),
    ],
)
def test_unbalanced_folders_are_evaluated(tmp_path, monkeypatch, train, test, sizes, untested):
    monkeypatch.setenv("TWINBLOCK_CACHE", str(tmp_path / "cache"))
    source = folder(tmp_path / "photos", train, test)
    run = twinblock.pretrain("simclr", data=source, out=tmp_path / "run", quiet=True, overrides=SMALL)
    for data in (None, f"{source}/", Path(source)):
        rows = twinblock.evaluate(run, data, baselines=False, quiet=True)
        assert list(rows[0]) == ["features", "kNN %", "linear %", "few-shot %", "width"]
        written = run.evaluation
        assert written["class sizes"] == sizes
        assert [i for i, found in enumerate(written["groups"][1]["classes"]) if found is None] == untested
    tested = len(sizes) - len(untested)
    assert [len(column) for column in classes_of(run)] == [tested, tested]
    if "new" in (test or {}):
        assert rows[0]["linear %"] <= 100 * 4 / 7 + 1e-9
    with pytest.raises(InputError, match="9 shots"):
        twinblock.evaluate(run, baselines=False, shots=[9])


@pytest.mark.parametrize("numbers", [(1, 2, 3), (0, 7, 1000)])
def test_unused_label_numbers_are_no_classes(tmp_path, monkeypatch, numbers):
    found = tiny.images(120)
    rows = np.flatnonzero((found.labels < 2) | (np.arange(120) % 4 == 0))  # one class is rare
    found = Images(found.pixels[rows], np.array(numbers)[found.labels[rows]])
    for module in (longtail, labelled_sets):
        monkeypatch.setattr(module, "split_of", lambda *_: found)
    monkeypatch.setattr(quick, "quick_knn", lambda *_: None)
    run = twinblock.pretrain("simclr", data="photos", out=tmp_path / "run", quiet=True, overrides=SMALL)
    rows = twinblock.evaluate(run, baselines=False, quiet=True)
    assert rows[0]["linear %"] > 90
    assert run.evaluation["class labels"] == list(numbers)
    assert run.evaluation["class sizes"] == np.unique(found.labels, return_counts=True)[1].tolist()
    measured = quick_knn(run, run.encoder(), run.config, found, torch.device("cpu"), quiet=True)
    assert measured is not None and measured.top1["raw pixels"] > 90


def test_probes_are_fitted_on_a_device_that_holds_them(monkeypatch):
    pair, gpu = (torch.zeros(100, 40), torch.zeros(20, 40)), torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    for free, place in ((120 * 50 * 4, "cpu"), (120 * 50 * 40, "cuda")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 2**40))
        assert evaluation._place(gpu, pair, 10).type == place
    assert evaluation._place(torch.device("cpu"), pair, 10).type == "cpu"


def test_a_path_names_data():
    assert other_data(Data(), Path("photos")).source == "photos"
    assert other_data(Data(), {"source": Path("photos"), "root": Path("/data")}).root == "/data"
    cifar = Data(source="cifar10", root="/sets")
    for given, root in (("photos", None), ("cifar10", "/sets")):  # the same set is still where the run found it
        assert other_data(cifar, given).root == other_data(cifar, {"source": given}).root == root
    config = compose("simclr", {"data": {"source": Path("photos"), "indices": Path("rows.npy")}})
    assert (config.data.source, config.data.indices) == ("photos", "rows.npy")


@pytest.mark.parametrize(("knn", "headline", "advised"), [(42.0, "too close to tell", True), (50.0, "learned", False)])
def test_accuracies_have_their_error_and_the_sizes_of_the_sets_beside_them(
    tmp_path, monkeypatch, capsys, knn, headline, advised
):
    """Against 38.5 % of 600 images: right for 252 and 231 of them, of which one network alone has many right."""
    tested = tiny.images(600)
    labels = np.arange(600) % 3
    index = np.arange(600)
    right = iter([index < 6 * knn, index < 0, index >= 369, index >= 369])  # encoder, pixels, untrained, calibrated

    def scores(*_, **__):
        return torch.nn.functional.one_hot(torch.from_numpy(np.where(next(right), labels, 3)), 4).float()

    monkeypatch.setattr(quick, "labelled", lambda *_: (replace(tested, labels=labels),) * 2)
    monkeypatch.setattr(quick, "knn_scores", scores)
    monkeypatch.setattr(sys.modules["twinblock.diagnosis.verdict"], "EARLY", 0)
    run = twinblock.pretrain("simclr", data="photodigits", out=tmp_path / "run", overrides=SMALL)
    result, out = run.result, " ".join("".join(capsys.readouterr()).split())
    assert result["headline"] == headline
    gain, error = result["accuracy"]["gains"]["untrained encoder"]
    assert gain == pytest.approx(knn - 38.5)
    assert f"{headline}: kNN {knn:.1f} % (raw pixels 0.0 %, untrained encoder 38.5 %)" in out
    assert f"{gain:.1f} ± {error:.1f} points above untrained on 600 test images, 600 to compare with" in out
    assert ("600 test images cannot tell" in out) == advised == bool(result["advice"]) == ("advice:" in out)
    assert twinblock.diagnose(run.path).judgement.headline == headline


def test_labels_are_numbered_in_order_and_what_is_only_tested_comes_after():
    images = tiny.images(4)
    train, test = (replace(images, labels=np.array(labels)) for labels in ([7, 3, 7, 7], [3, 7, 5, 9]))
    sets = labelled_sets.LabelledSets.of(train, test)
    assert (sets.classes.tolist(), sets.train_labels.tolist(), sets.test_labels.tolist()) == (
        [3, 7],
        [1, 0, 1, 1],
        [0, 1, 2, 2],
    )
    assert len(sets) == 8 and sets.images == (train, test)


def test_images_without_label_are_in_neither_set(monkeypatch):
    some = replace(tiny.images(20), labels=np.array([-1, 0, 1, -1] * 5))
    monkeypatch.setattr(labelled_sets, "split_of", lambda *_: some)
    train, test = labelled(Data(), 0, some)
    assert train.labels.tolist() == test.labels.tolist() == [0, 1] * 5
    assert np.array_equal(train.batch([0, 1]), some.pixels[[1, 2]])


def test_the_test_images_are_those_of_the_same_source_at_the_same_size(monkeypatch):
    asked = []
    monkeypatch.setattr(labelled_sets, "split_of", lambda *args: asked.append(args) or tiny.images(20))
    labelled(Data(source="photos", root="/data", size=32), 0, tiny.images(20))
    ((data, split),) = asked
    assert (data.source, data.root, split, data.size) == ("photos", "/data", "test", 32)
