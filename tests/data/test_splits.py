"""Folders that are splits of one set, and those that only look so."""

import os

import pytest
from pictures import one_line, put, values

from twinblock.core.errors import InputError
from twinblock.data import load


@pytest.mark.parametrize("stray", ["README.txt", "preview.png", "labels.csv"])
def test_a_stray_file_does_not_hide_the_train_folder(photos, stray):
    for i in range(10):
        put(photos, f"train/{'ab'[i % 2]}/{i}.png")
    put(photos, stray)
    images = load(str(photos))
    assert images.classes == ("a", "b")
    assert len(images) == 10


def test_a_folder_named_train_among_many_images_is_not_all_of_them(photos):
    for i in range(3):
        put(photos, f"{i}.png")
        put(photos, f"train/{i}.png")
    assert len(load(str(photos))) == 6


@pytest.mark.parametrize("name", ["test", "val", "valid", "validation", "Test"])
def test_train_and_test_folders_are_the_splits(photos, name):
    put(photos, "train/cat/0.png", 1)
    put(photos, "train/dog/0.png", 2)
    put(photos, f"{name}/dog/0.png", 3)
    put(photos, f"{name}/bird/0.png", 4)  # is before cat by name, and not in training
    train, test = load(str(photos)), load(str(photos), split="test")
    assert (values(train), train.labels.tolist(), train.classes) == ([1, 2], [0, 1], ("cat", "dog"))
    assert dict(zip(values(test), test.labels.tolist(), strict=True)) == {3: 1, 4: 2}
    assert list(train.names) == ["train/cat/0.png", "train/dog/0.png"]  # from the folder that the user named
    assert sorted(test.names) == [f"{name}/bird/0.png", f"{name}/dog/0.png"]
    assert list(load(str(photos / "train")).names) == ["cat/0.png", "dog/0.png"]  # the same files by another way
    assert test.classes == ("cat", "dog", "bird")


def test_the_test_split_is_the_one_with_the_classes_of_training(photos):
    for name in ("train/cat/0.png", "train/dog/0.png", "val/cat/0.png", "val/dog/1.png", "test/0.png"):
        put(photos, name)
    assert load(str(photos), split="test").labels.tolist() == [0, 1]


@pytest.mark.parametrize("name", ["test/0.png", "test/everything/0.png"])
def test_a_test_folder_without_the_classes_of_training_has_no_labels(photos, name):
    for file in ("train/cat/0.png", "train/dog/0.png", name):
        put(photos, file)
    test = load(str(photos), split="test")
    assert len(test) == 1
    assert test.labels is None


def test_a_class_named_train_is_a_class(photos):
    for name in ("train/0.png", "bus/0.png"):
        put(photos, name)
    assert load(str(photos)).classes == ("bus", "train")


# ---- what folders' names mean, and what is left out


@pytest.mark.parametrize(
    ("train", "test"),
    [("train2017", "val2017"), ("Training", "Testing"), ("TRAIN", "VAL"), ("train_images", "test_images")],
)
def test_splits_of_other_usual_names_are_no_classes(photos, train, test, caplog):
    put(photos, f"{train}/0.png", 1)
    put(photos, f"{test}/0.png", 2)
    put(photos, "unlabeled2017/0.png", 3)
    put(photos, "annotations/notes.txt/0.bmp", 4)
    images, held_out = load(str(photos)), load(str(photos), split="test")
    assert (values(images), images.labels, images.classes_from) == ([1], None, None)
    assert (values(held_out), held_out.labels) == ([2], None)
    (line,) = caplog.messages
    assert f"{train} is for training, {test} for testing; annotations, unlabeled2017 left out" in line


def test_classes_inside_of_splits_of_other_names_are_classes(photos):
    for name in ("Training/cat/0.png", "Training/dog/0.png", "Testing/dog/1.png"):
        put(photos, name)
    images, held_out = load(str(photos)), load(str(photos), split="test")
    assert images.classes == held_out.classes == ("cat", "dog")
    assert images.classes_from == "top folder of Training: cat, dog"
    assert held_out.labels.tolist() == [1]


def test_folders_that_are_named_as_splits_but_none_for_training_are_no_classes(photos, caplog):
    for name in ("test/0.png", "unlabeled/0.png"):
        put(photos, name)
    assert load(str(photos)).labels is None
    assert "test, unlabeled are named as splits" in caplog.text


def test_two_folders_for_training_are_one_line(photos):
    for name in ("train2014/0.png", "train2017/0.png", "val2017/0.png"):
        put(photos, name)
    with pytest.raises(InputError, match=r"several folders for training \(train2014, train2017\)") as error:
        load(str(photos))
    one_line(error)


@pytest.mark.parametrize("name", ["trainer", "train1", "valley", "testbed", "contest", "training_wheels"])
def test_names_that_only_begin_as_splits_are_classes(photos, name):
    put(photos, f"{name}/0.png")
    put(photos, "bus/0.png")
    assert load(str(photos)).classes == tuple(sorted(("bus", name)))


def test_the_same_test_images_beside_other_classes_get_other_labels(tmp_path):
    """Names, sizes, times and content of the test images agree."""
    for name, classes in (("two", "bc"), ("three", "abc")):
        for kind in classes:
            put(tmp_path, f"{name}/train/{kind}/0.png")
        put(tmp_path, f"{name}/test/c/0.png", 9)
        os.utime(tmp_path / name / "test/c/0.png", ns=(0, 0))
    assert load(str(tmp_path / "two"), split="test").labels.tolist() == [1]
    assert load(str(tmp_path / "three"), split="test").labels.tolist() == [2]


def test_a_run_beside_the_only_split_does_not_hide_it(photos):
    for name in ("train/cat/0.png", "train/dog/0.png", "runs/a/curves.png"):
        put(photos, name)
    (photos / "runs/a/config.yaml").touch()
    (photos / "runs/a/metrics.jsonl").touch()
    assert load(str(photos)).classes == ("cat", "dog")
