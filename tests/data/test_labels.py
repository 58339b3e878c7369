"""Classes by the field `data.labels`, and what they mean for a run: its first line, its verdict."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from pictures import one_line, put

import twinblock
from twinblock.config.recipes import compose
from twinblock.core.errors import InputError
from twinblock.core.seeding import drawn
from twinblock.data import Images, Names, load, take
from twinblock.data.layout import look_like_sites
from twinblock.evaluation.labelled import labelled
from twinblock.training.loader import Loader

SMALL = [
    *("data.batch=8", "data.size=16", "encoder=resnet10", "encoder.width=8", "projector.dims=[16,8]"),
    *("train.length=2steps", "train.precision=fp32"),
]


def headline(capsys) -> str:
    return next(line for line in "\n".join(capsys.readouterr()).splitlines() if " images of " in line)


@pytest.fixture
def cameras(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(24):
        put(tmp_path, f"photos/cam{i % 4:02}/{i}.png", 10 * i)
    rows = (f"cam{i % 4:02}/{i}.png,{'deer' if i < 12 else 'boar'}\n" for i in range(24))
    (tmp_path / "animals.csv").write_text("file,label\n" + "".join(rows))
    return tmp_path


def test_the_first_line_and_the_verdict_say_that_classes_are_folders(cameras, capsys):
    run = twinblock.pretrain("simclr", data="photos", overrides=SMALL)
    said = headline(capsys)
    assert "class = top folder: cam00, cam01, cam02, ... (4), which look like sites or dates" in said
    assert "data.labels=none if these are no classes" in said
    # what the verdict adds to its reason: tests/diagnosis/test_verdict.py
    assert run.result["accuracy"]["classes_from"].endswith("cam02, ... (4), which look like sites or dates")


@pytest.mark.parametrize(
    ("labels", "words", "classes"),
    [("none", "(no labels)", None), ("animals.csv", "(class = column label of animals.csv, for the report only)", 2)],
)
def test_other_labels_are_said_and_the_verdict_names_no_folders(cameras, capsys, labels, words, classes):
    run = twinblock.pretrain("simclr", data="photos", overrides=[*SMALL, f"data.labels={labels}"])
    assert words in headline(capsys)
    assert run.result["classes"] == classes
    assert "folder" not in run.result["evidence"]
    assert (run.result["knn"] is None) == (classes is None)
    if classes:
        assert twinblock.evaluate(run)  # with the labels of the run
    else:
        with pytest.raises(InputError, match="photos has no labels"):
            twinblock.evaluate(run)


def test_the_same_run_with_other_labels_is_another(cameras):
    twinblock.pretrain("simclr", data="photos", overrides=SMALL, quiet=True)
    with pytest.raises(InputError, match=r"data\.labels: auto there, none here"):
        twinblock.pretrain("simclr", data="photos", overrides=[*SMALL, "data.labels=none"], quiet=True)


def test_a_list_of_folders_trains_evaluates_and_goes_on(cameras, capsys):
    for i in range(4):
        put(cameras, f"more/cam01/{i}.png", i)
    how = {"data": ["photos", cameras / "more"], "overrides": SMALL}
    run = twinblock.pretrain("simclr", **how)
    assert "28 images of photos, " in headline(capsys)
    assert run.config.data.source == ("photos", str(cameras / "more"))
    assert twinblock.pretrain("simclr", **how).path == run.path  # it is finished, and the same
    assert twinblock.evaluate(run)
    assert len(twinblock.embed(run, data=["photos", "more"]).images) == 28
    again = compose("simclr", overrides=[f"data=[photos,{cameras}/more]"])
    assert again.data.source == run.config.data.source


@pytest.mark.parametrize(
    "written", ["data.labels=specis", "data=gone.csv", "data=[photos,gone]", "data.labels=gone.csv"]
)
def test_bad_input_ends_the_command_with_one_line_and_code_2(cameras, written):
    command = [sys.executable, "-m", "twinblock", "pretrain", "simclr", "data=photos", written, *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: [^\n]+\n", done.stderr), done.stderr
    assert not (cameras / "runs").exists() or not list((cameras / "runs").rglob("config.yaml"))


def test_the_command_cache_lists_verifies_and_clears(cameras):
    def command(*words):
        words = [sys.executable, "-m", "twinblock", "cache", *words]
        wide = {**os.environ, "COLUMNS": "200"}
        return subprocess.run(words, capture_output=True, text=True, check=False, env=wide)

    load("photos")
    shown = command().stdout
    assert str(cameras / "photos") in shown and "whole" in shown and "1 in " in shown
    (path,) = (cameras / "cache").glob("*/pixels.u8")
    path.write_bytes(bytes(path.stat().st_size))
    damaged = command("verify")
    assert damaged.returncode == 2 and "1 of 1 are damaged; they are packed anew" in damaged.stderr
    assert "removed" in command("clear", path.parent.name[:12]).stdout
    assert command("clen").returncode == 2
    assert not list((cameras / "cache").glob("*/pixels.u8"))


# ---- folders' names


@pytest.mark.parametrize(
    "names",
    [
        *(
            ["cam01", "cam02"],
            ["Site_1", "Site_2"],
            ["site-a", "site-b"],
            ["2019", "2020"],
            ["2021-05-03", "2021-05-04"],
        ),
        *(["20210503", "20210504"], ["patient007", "patient008"], ["100CANON", "101CANON"], ["plate1", "plate2"]),
        *(["day1", "day2", "day3"], ["batch_01", "batch_02"], ["Station 3", "Station 4"]),
    ],
)
def test_folders_that_look_like_sites_or_dates(names):
    assert look_like_sites(names)


@pytest.mark.parametrize(
    "names",
    [
        *(["cat", "dog"], ["0", "1", "2"], ["n01440764", "n01443537"], ["camel", "camera"], ["class_1", "class_2"]),
        *(
            ["benign", "malignant"],
            ["sitting", "standing"],
            ["daisy", "dandelion"],
            ["grade0", "grade1"],
            ["A", "B"],
            [],
        ),
        *(["001.Black_footed_Albatross", "002.Laysan_Albatross"], ["partridge", "plover"]),
    ],
)
def test_folders_that_look_like_classes(names):
    assert not look_like_sites(names)


# ---- labels in a table


def images(*names: str) -> Images:
    return Images(np.zeros((len(names), 4, 4, 3), np.uint8), names=Names.of(names), name="photos")


def write(path, *rows: str) -> str:
    path.write_text("\n".join(rows))
    return str(path)


@pytest.mark.parametrize(
    "cells",
    [
        *(["x/a.png", "x/b.png"], ["./x/a.png", "x//b.png"], ["a.png", "b.png"], ["a", "b"], ["x/a", "x/b"]),
        ["/elsewhere/photos/x/a.png", "/elsewhere/photos/x/b.png"],
    ],
)
def test_rows_are_found_by_the_part_of_the_path_that_agrees(tmp_path, cells):
    from twinblock.data.labels import labelled_by

    file = write(tmp_path / "l.csv", "file,label", *(f"{cell},{i}" for i, cell in enumerate(cells)))
    assert labelled_by(images("x/a.png", "x/b.png"), file).labels.tolist() == [0, 1]


def test_the_last_folder_tells_files_of_one_name_apart(tmp_path):
    from twinblock.data.labels import labelled_by

    file = write(tmp_path / "l.csv", "file,label", "/far/p/x/a.png,cat", "/far/p/y/a.png,dog")
    assert labelled_by(images("p/y/a.png", "p/x/a.png"), file).labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["file,label", "a.png,"], "column label of .* is empty"),
        (["file,size,colour", "a.png,3,red"], "no column is called label"),
        (["what,label", "3,cat"], "no column is called path or file"),
        (["", "a.png,cat"], "first line is empty"),
        (["file,label"], "no row below"),
        (["file,label,label", "a.png,1,2"], "two columns are called 'label'"),
        (["file,label", '"a.png,cat'], "cannot be read"),
    ],
)
def test_tables_that_say_no_labels_are_one_line(tmp_path, rows, words):
    from twinblock.data.labels import labelled_by

    with pytest.raises(InputError, match=words) as error:
        labelled_by(images("a.png"), write(tmp_path / "l.csv", *rows))
    one_line(error)


def test_a_table_that_is_no_text_is_one_line(tmp_path):
    from twinblock.data.labels import labelled_by

    (tmp_path / "l.csv").write_bytes("file,label\né.png,cat".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8") as error:
        labelled_by(images("a.png"), str(tmp_path / "l.csv"))
    one_line(error)


def test_images_without_names_have_no_labels_in_a_file(tmp_path):
    file = write(tmp_path / "l.csv", "file,label", "a.png,cat")
    with pytest.raises(InputError, match="its images have no names") as error:
        load("photodigits", labels=file)
    one_line(error)
    assert load("photodigits", labels="none").labels is None


def test_labels_given_in_python_can_be_left_out_too(tmp_path):
    put(tmp_path, "a.png")
    run = {"source": ([str(tmp_path / "a.png")] * 8, [0, 1] * 4), "labels": "none"}
    from twinblock.config.data import Data
    from twinblock.data.training import chosen

    assert chosen(Data(), run)[1].labels is None


# ---- groups and weights


def test_images_of_one_group_are_tested_together_or_not_at_all(monkeypatch):
    from twinblock.config.data import Data
    from twinblock.evaluation import labelled as module

    rng = np.random.default_rng(0)
    groups = rng.integers(-1, 10, 200)
    pixels = np.arange(200, dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    found = Images(pixels, labels=rng.integers(0, 2, 200), groups=groups)
    monkeypatch.setattr(module, "split_of", lambda *_: None)
    train, test = labelled(Data(source="photos"), 0, found)
    assert sorted([*train.rows, *test.rows]) == list(range(200))
    assert not {*train.groups} & {*test.groups} - {-1}
    assert len({*test.groups} - {-1}) + (test.groups == -1).sum() == -(-(10 + (groups == -1).sum()) // 5)


def test_one_group_alone_cannot_be_divided(monkeypatch):
    from twinblock.config.data import Data
    from twinblock.evaluation import labelled as module

    found = Images(np.zeros((4, 2, 2, 3), np.uint8), labels=np.array([0, 1, 0, 1]), groups=np.zeros(4, np.int64))
    monkeypatch.setattr(module, "split_of", lambda *_: None)
    with pytest.raises(InputError, match="one group, so none is left to test on"):
        labelled(Data(source="photos"), 0, found)


def test_images_are_drawn_by_their_weight():
    weights = np.array([0.0, 1.0, 3.0, 0.0, 6.0])
    of_epochs = np.stack([drawn(0, epoch, weights) for epoch in range(2000)])
    share = np.bincount(of_epochs.ravel(), minlength=5) / of_epochs.size
    assert share[0] == share[3] == 0
    # 10,000 draws: standard errors are below 0.005
    assert np.abs(share - weights / 10).max() < 0.02
    assert np.array_equal(drawn(3, 7, weights), drawn(3, 7, weights))
    assert not np.array_equal(drawn(3, 7, np.ones(50)), drawn(3, 8, np.ones(50)))


def test_a_run_sees_images_by_their_weight():
    found = Images(np.arange(40, dtype=np.uint8)[:, None, None, None].repeat(3, 3), weights=np.arange(40) % 2.0)
    batches = Loader(found, 0, 8, 8, 0, torch.device("cpu")).batches(0, 10)
    seen = torch.cat([samples.index for samples in batches])
    assert len(seen) == 80 and bool((seen % 2 == 1).all())
    assert take(found, np.array([3, 4])).weights.tolist() == [1, 0]
    assert found.fingerprint() != Images(found.pixels).fingerprint()
