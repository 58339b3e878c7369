"""The labelled images that an encoder is measured on; and labels that cannot be used."""

import numpy as np
import pytest
import tiny

import twinblock
from twinblock.config import Data
from twinblock.data import Images
from twinblock.errors import InputError
from twinblock.evaluation import run as evaluation
from twinblock.evaluation.run import labelled


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
        (None, ("a", "b", "c"), False),
    ],
)
def test_the_classes_of_both_splits_must_agree(monkeypatch, train, test, fit):
    monkeypatch.setattr(evaluation, "load", lambda *_: with_classes(test))
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

    monkeypatch.setattr(evaluation, "quick_knn", refuse)
    small = ["encoder.width=8", "data.batch=64", "train.length=1steps", "projector.dims=[16,8]"]
    run = twinblock.pretrain("simclr", out=tmp_path / "run", overrides=small)
    assert run.finished
    assert run.result is not None and run.result["knn"] is None
    assert "accuracy was not measured: the classes do not agree" in capsys.readouterr().err


def test_without_a_test_split_a_fifth_of_each_class_is_held_out(monkeypatch):
    sizes = (40, 11, 2, 1)
    labels = np.random.Generator(np.random.PCG64(0)).permutation(np.repeat(np.arange(4), sizes))
    images = Images(np.arange(54, dtype=np.uint8).repeat(192).reshape(54, 8, 8, 3), labels)
    monkeypatch.setattr(evaluation, "load", lambda *_: None)
    train, test = labelled(Data(), 0, images)
    assert np.bincount(test.labels, minlength=4).tolist() == [8, 3, 1, 0]  # one image cannot do both
    shown = lambda part: part.batch(range(len(part)))[:, 0, 0, 0].tolist()  # noqa: E731
    assert sorted(shown(train) + shown(test)) == list(range(54))
    assert shown(labelled(Data(), 1, images)[1]) != shown(test)
