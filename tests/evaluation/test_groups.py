"""Groups of classes as published, balancedness, the SGD probe, and what `evaluate` writes of a long-tailed run."""

import json

import numpy as np
import pytest
import tiny
import torch
from torch import nn

import twinblock
import twinblock.views
from twinblock.config.data import Data, LongTail
from twinblock.config.recipes import compose
from twinblock.core.errors import InputError
from twinblock.data import Images
from twinblock.data import training as training_module
from twinblock.evaluation.evaluate import group_rows
from twinblock.evaluation.groups import (
    _drawing,
    _group_bars,
    _trend,
    by_size,
    class_accuracies,
    class_sizes,
    classes_of,
    figure,
    group_report,
    thirds,
)
from twinblock.evaluation.sgd import augmented, sgd_probe


@pytest.mark.parametrize("case", ["cifar10", "cifar100", "imagenet"])
def test_groups_accuracies_and_balancedness_are_the_published_ones(golden, case):
    there = {k.rpartition("/")[2]: v for k, v in golden.items() if k.startswith(f"longtail_groups/{case}/")}
    name, define = ("by size", by_size) if case == "imagenet" else ("thirds", thirds)
    assert define(there["train_counts"]).tolist() == there["group_of_class"].tolist()
    found = class_accuracies(there["predictions"], there["labels"], len(there["train_counts"]))
    assert np.allclose(found, there["per_class_acc"], atol=1e-6)
    report = group_report(found, there["train_counts"])[name]
    for mine, theirs in (("many", "acc_many"), ("medium", "acc_medium"), ("few", "acc_few"), ("all", "mean_class_acc")):
        assert report[mine] == pytest.approx(float(there[theirs]), rel=1e-9)
    assert report["std"] / 100 == pytest.approx(float(there["std_groups"]), rel=1e-9)


def test_a_group_without_classes_and_classes_without_images():
    report = group_report(np.array([50.0, 70.0]), np.array([500, 300]))
    assert report["by size"] == {"all": 60.0, "many": 60.0, "medium": None, "few": None, "std": 0.0}
    found = class_accuracies(np.array([0, 0, 1]), np.array([0, 2, 3]), 3)  # class 3 is not in training
    assert np.array_equal(found, [100, np.nan, 0], equal_nan=True)
    # by the true label: what is taken for class 0 says nothing of it
    assert class_accuracies(np.array([0, 0, 0, 1]), np.array([0, 1, 1, 1]), 2) == pytest.approx([100, 100 / 3])
    assert np.array_equal(class_accuracies(np.array([0]), np.array([0]), 2), [100, np.nan], equal_nan=True)
    report = group_report(found, np.array([500, 300, 5]))
    assert report["by size"] == {"all": 50.0, "many": 100.0, "medium": None, "few": 0.0, "std": 50.0}
    assert report["thirds"]["medium"] is None  # it has a class, and that was not tested
    nothing = dict.fromkeys(("all", "many", "medium", "few", "std"))
    assert group_report(np.array([np.nan]), np.array([5])) == {"thirds": nothing, "by size": nothing}


def test_the_bounds_of_the_groups():
    assert by_size(np.array([101, 100, 20, 19])).tolist() == [0, 1, 1, 2]
    assert thirds(np.array([5, 9, 9, 1, 7])).tolist() == [1, 0, 0, 2, 0]  # what is over counts as many
    assert thirds(np.array([3, 3, 3])).tolist() == [2, 1, 0]  # the smaller label is rarer
    means, errors = _group_bars([(np.array([9, 9, 5, 5, 1, 1]), np.array([80.0, 60, 50, 50, 10, 30]))])
    assert (means, errors) == ([70, 50, 20], pytest.approx([10, 0, 10]))
    means, errors = _group_bars([(np.array([9, 5, 1]), np.array([a, 50.0, 10])) for a in (70.0, 90)])
    assert (means, errors) == ([80, 50, 10], pytest.approx([200**0.5, 0, 0]))


def test_the_picture_shows_classes_and_groups_of_each_method():
    """Two methods, the second of two runs: dots, trends, bars side by side with their errors, axes, legend."""
    one = [(np.array([90, 50, 10]), np.array([80.0, 60, 20]))]
    two = [(np.array([90, 50, 10]), np.array([a, 50.0, 40])) for a in (70.0, 90.0)]
    drawing = _drawing({"$a": one, "b": two}, "linear probe")
    scatter, bars = drawing.axes
    assert [dots.get_offsets().tolist() for dots in scatter.collections] == [
        [[90, 80], [50, 60], [10, 20]],
        [[90, 70], [50, 50], [10, 40], [90, 90], [50, 50], [10, 40]],
    ]
    assert [line.get_xydata().tolist() for line in scatter.lines] == [
        [[10, 20], [50, 60], [90, 80]],
        [[10, 40], [50, 50], [90, 80]],  # the mean over both runs
    ]
    first, second = bars.patches[:3], bars.patches[3:]
    assert [bar.get_height() for bar in first] == [80, 60, 20]
    assert [bar.get_height() for bar in second] == [80, 50, 40]
    middles = [[bar.get_x() + bar.get_width() / 2 for bar in part] for part in (first, second)]
    assert middles == [pytest.approx([-0.2, 0.8, 1.8]), pytest.approx([0.2, 1.2, 2.2])]  # a tick between the two
    assert first[0].get_x() + first[0].get_width() < second[0].get_x()
    errors = [bar.lines[2][0].get_segments() for bar in bars.containers if hasattr(bar, "lines")]
    assert [np.ptp(part[0][:, 1]) for part in errors] == pytest.approx([0, 2 * 200**0.5])
    assert [text.get_text() for text in bars.get_xticklabels()] == ["many", "medium", "few"]
    assert (scatter.get_xscale(), scatter.get_ylim(), bars.get_ylim()) == ("log", (0, 100), (0, 100))
    assert scatter.xaxis.get_major_formatter()(1000) == "1,000"
    assert (scatter.get_xlabel(), scatter.get_ylabel()) == ("training images of the class", "accuracy in %")
    assert scatter.get_title() == "a dot is a class, a line their mean"
    assert bars.get_title() == "mean accuracy of each third of the classes"
    assert [line.get_color() for line in scatter.lines] == ["C0", "C1"]
    assert drawing.get_suptitle() == "linear probe"
    assert figure({"$a": one, "b": two}, "linear probe").startswith(b"\x89PNG")
    assert [text.get_text() for text in drawing.legends[0].get_texts()] == [r"\$a", "b"]
    assert [bar.get_facecolor()[:3] for bar in (first[0], second[0])] == [
        tuple(dots.get_facecolor()[0][:3]) for dots in scatter.collections
    ]


def test_a_trend_has_a_point_for_each_size_and_of_many_ten():
    sizes, accuracies = np.arange(20) + 1, np.arange(20.0)
    assert [part.tolist() for part in _trend(np.repeat(sizes, 2), np.repeat(accuracies, 2) + [-1, 1] * 20)] == [
        sizes.tolist(),
        accuracies.tolist(),
    ]
    sizes = np.arange(30)[::-1]  # the smallest last
    assert [part.tolist() for part in _trend(sizes, 2.0 * sizes)] == [
        [3 * i + 1 for i in range(10)],
        [6 * i + 2 for i in range(10)],
    ]
    sizes, accuracies = np.repeat(np.arange(25)[::-1], 4), np.arange(100.0)  # of one size in order of class
    order = sorted(range(100), key=lambda i: (sizes[i], i))
    tenths = [order[10 * i : 10 * i + 10] for i in range(10)]
    assert _trend(sizes, accuracies)[1].tolist() == [accuracies[tenth].mean() for tenth in tenths]


def test_dots_of_many_classes_are_smaller_and_fainter():
    def dots(classes):
        sizes = np.arange(classes) + 1
        return _drawing({"a": [(sizes, np.full(classes, 50.0))]}, "t").axes[0].collections[0]

    few, many = dots(20), dots(21)
    assert few.get_sizes()[0] > many.get_sizes()[0]
    assert few.get_alpha() > many.get_alpha()


def test_groups_need_labels(monkeypatch):
    monkeypatch.setattr(training_module, "split_of", lambda *_: Images(tiny.images().pixels))
    with pytest.raises(InputError, match="groups of classes need labels"):
        class_sizes(compose("simclr", {"data": {"source": "photos"}}), np.arange(3))


def test_sizes_of_images_that_are_a_python_object(monkeypatch):
    monkeypatch.setattr(training_module, "split_of", lambda *_: pytest.fail("the source is not asked"))
    images = Images(tiny.images(5).pixels, np.array([2, 0, 2, 2, 7]))
    assert class_sizes(compose("simclr"), np.array([0, 1, 2, 7]), images).tolist() == [1, 0, 3, 1]


def test_a_balanced_twin_has_the_groups_of_the_long_tailed_set(monkeypatch):
    monkeypatch.setattr(training_module, "split_of", lambda *_: tiny.images(300))
    config = compose("simclr")
    sizes = [
        class_sizes(config.model_copy(update={"data": Data(longtail=LongTail(imbalance=10, kind=kind))}), np.arange(4))
        for kind in ("exp", "balanced")
    ]
    assert np.array_equal(sizes[0], sizes[1])
    assert max(sizes[0]) >= 9 * min(sizes[0][:3])
    assert sizes[0][3] == 0


def test_the_published_probe_separates_what_can_be_separated():
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    x = torch.eye(3)[labels] + 0.1 * torch.randn(300, 3, generator=g)
    seen = []

    def train(epoch):
        seen.append(epoch)
        return x[:200]

    scores = sgd_probe(train, labels[:200], x[200:], 3, epochs=4, drops=(2, 3))
    assert seen == [0, 1, 2, 3]
    assert (scores.argmax(1) == labels[200:]).float().mean() > 0.97
    with pytest.raises(InputError, match="NaN"):
        sgd_probe(lambda _: x[:200] * torch.nan, labels[:200], x[200:], 3, epochs=1)


def test_augmentation_moves_and_mirrors_whole_images():
    images, seen = tiny.images(40), []

    class Look(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x.flatten(1)

    again = [augmented(Look(), images, Data(size=16), epoch, 0, True, torch.device("cpu")) for epoch in (0, 0, 1)]
    assert torch.equal(again[0], again[1])
    assert not torch.equal(again[0], again[2])
    still = augmented(Look(), images, Data(size=16), 0, 0, False, torch.device("cpu")).view(40, 3, 16, 16)
    plain = twinblock.views.centre(images.batch(range(40)), 16, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    for one, whole in zip(still, plain, strict=True):  # each is the image moved by at most 2 pixels
        places = [(a, b) for a in range(-2, 3) for b in range(-2, 3)]
        assert any(torch.allclose(inner(one, a, b), inner(whole, -a, -b), atol=1e-5) for a, b in places)


def inner(x, down, right):
    return x[:, max(0, down) : 16 + min(0, down), max(0, right) : 16 + min(0, right)]


def test_evaluate_of_a_long_tailed_run(tmp_path, monkeypatch):
    tiny.in_place_of_any_source(monkeypatch, 600)
    small = ["encoder.width=8", "encoder.kind=resnet10", "train.length=2steps", "projector.dims=[16,8]"]
    tail = ["data.longtail={imbalance: 20}", "data.batch=64"]
    run = twinblock.pretrain("simclr", out=tmp_path / "a", quiet=True, overrides=[*small, *tail])
    rows = twinblock.evaluate(run, published=True)
    columns = ["features", "kNN %", "linear %", "few-shot %", "SGD linear %", "SGD few-shot %", "width"]
    assert [list(row) for row in rows] == [columns] * 3
    assert rows[0]["SGD linear %"] > 50  # the colour is the class
    written = json.loads((run.path / "evaluation.json").read_text())
    assert written["train"] == 600  # the probes are fitted to all images of the source
    assert max(written["class sizes"]) >= 20 * min(written["class sizes"])
    table = group_rows(run)
    assert [(row["evaluator"], row["groups"]) for row in table] == [
        (evaluator, groups)
        for evaluator in ("kNN", "linear", "few-shot", "SGD linear", "SGD few-shot")
        for groups in ("thirds", "by size")
    ]
    alone = (run.path / "classes.png").read_bytes()

    # a twin by a balanced list: it has no groups of its own
    rows_of = [np.flatnonzero(tiny.images(600).labels == label)[:70] for label in range(3)]
    np.save(tmp_path / "balanced.npy", np.concatenate(rows_of))
    twin = [f"data.indices={tmp_path / 'balanced.npy'}", "data.batch=64"]
    twin = twinblock.pretrain("simclr", out=tmp_path / "b", quiet=True, overrides=[*small, *twin])
    rows = twinblock.evaluate(twin, baselines=False)
    assert list(rows[0]) == ["features", "kNN %", "linear %", "width"] and group_rows(twin) == []
    with pytest.raises(InputError, match="b has no accuracy by class: evaluate it first"):
        twinblock.evaluate(run, baselines=False, beside=[twin.path])
    rows = twinblock.evaluate(twin, baselines=False, beside=[run.path], shots=[7, 3])
    assert list(rows[0]) == ["features", "kNN %", "linear %", "7-shot %", "3-shot %", "width"]
    twins = json.loads((twin.path / "evaluation.json").read_text())
    assert twins["class sizes"] == written["class sizes"] and twins["shots"] == {"7-shot": 7, "3-shot": 3}
    linear = twins["groups"][1]
    sizes, accuracies = classes_of(twin)
    assert (linear["evaluator"], linear["classes"]) == ("linear", accuracies.tolist())
    assert linear["groups"] == group_report(accuracies, sizes)
    twinblock.evaluate(run, baselines=False, beside=[twin.path])
    assert (run.path / "classes.png").read_bytes() not in (alone, (twin.path / "classes.png").read_bytes())
    with pytest.raises(InputError, match="1000 shots: the smallest class has"):
        twinblock.evaluate(run, shots=[1000])
