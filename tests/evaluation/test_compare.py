"""`compare`: what differs between runs, accuracies of one measurement only, and bad input."""

import csv
import json
import sys

import pytest
from PIL import Image

import twinblock
from twinblock import cli
from twinblock.config.compare import settings
from twinblock.config.recipes import compose, to_yaml

ROW = {"features": "encoder", "kNN %": 50.0, "linear %": 60.0, "width": 128}


def made(folder, *overrides, recipe="simclr", knn=None, evaluated=None, seconds=()):
    """The folder of a run as training and `evaluate` leave it."""
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(compose(recipe, overrides=overrides)))
    if knn is not None:
        result = {"state": "healthy", "headline": "learned", "evidence": "", "advice": "", "steps": 10}
        result |= {"effective_rank": 7.5, "width": 128, "knn": {"encoder": knn}, "accuracy": {"test": 90}}
        (folder / "result.json").write_text(json.dumps(result))
    if evaluated is not None:
        rows = [{**ROW, "features": "raw pixels", "kNN %": 1.0}, {**ROW, "kNN %": evaluated}]
        (folder / "evaluation.json").write_text(json.dumps({"data": "photodigits", "test": 400, "rows": rows}))
    starts = [{"began": "2026-01-01", **({} if s is None else {"seconds": s})} for s in seconds]
    (folder / "environment.json").write_text(json.dumps({"starts": starts}))
    return folder


def test_only_settings_that_differ_are_listed(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    averaged = ["target={kind: ema, momentum: 0.9}"]
    first = compose("simclr", overrides=["optim.lr=0.5", f"data.source={photos}", "out=a"])
    second = compose("simclr", overrides=["optim.lr=0.25", f"data.source={photos}/", "out=b", *averaged])
    differing = settings([first, second])
    assert differing["optim.lr"] == [0.5, 0.25]
    assert differing["target.kind"] == ["shared", "ema"]
    assert differing["target.momentum"] == [None, 0.9]  # a shared target has none
    assert set(differing) == {
        "optim.lr",
        *(f"target.{name}" for name in ("kind", "momentum", "schedule", "buffers", "kept")),
    }
    assert settings([first, first]) == {}


def test_runs_that_were_evaluated_alike_are_compared_by_that(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a = made(tmp_path / "a", "optim.lr=0.5", knn=40.0, evaluated=70.0, seconds=[10.0, None, 2.5])
    b = made(tmp_path / "b", "optim.lr=0.25", knn=45.0, evaluated=65.0)
    rows = twinblock.compare([a, b])
    assert [(row["run"], row["optim.lr"], row["kNN %"], row["linear %"]) for row in rows] == [
        (str(a), 0.5, 70.0, 60.0),
        (str(b), 0.25, 65.0, 60.0),
    ]
    assert {row["measured"] for row in rows} == {"evaluate on photodigits"}
    assert [row["seconds"] for row in rows] == [12.5, None]
    assert [row["test images"] for row in rows] == [400, 400]
    with open("compare.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["kNN %"] for row in written] == ["70.0", "65.0"]
    assert written[1]["seconds"] == ""
    with Image.open("compare.png") as picture:
        assert picture.width > 800  # two columns
    twinblock.compare([b, a])  # its own names are replaced


def test_two_measurements_never_stand_in_one_column(tmp_path, caplog):
    a = made(tmp_path / "a", knn=40.0, evaluated=70.0)
    b = made(tmp_path / "b", knn=45.0)
    c = made(tmp_path / "c")
    rows = twinblock.compare([a, b, c], out=tmp_path / "x.png")
    assert [row["kNN %"] for row in rows] == [40.0, 45.0, None]
    assert [row["linear %"] for row in rows] == [None] * 3
    assert [row["measured"] for row in rows] == ["end of training", "end of training", None]
    assert [row["verdict"] for row in rows] == ["learned", "learned", "not finished"]
    assert f"not evaluated on photodigits: {b}, {c}" in caplog.text


def test_many_runs_are_all_in_the_table(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("twinblock.evaluation.compare.DRAWN", 2)
    runs = [made(tmp_path / str(i)) for i in range(3)]
    assert len(twinblock.compare(runs, out=tmp_path / "x.png")) == 3
    assert "the first 2 of 3 runs" in caplog.text
    with Image.open(tmp_path / "x.png") as picture:
        assert 800 < picture.width < 1200


def test_bad_input_is_one_line_and_nothing_is_written(tmp_path):
    a, b = made(tmp_path / "a"), made(tmp_path / "b")
    for runs, out, words in (
        ([a], None, "at least two"),
        ([a, b, tmp_path / "." / "a"], None, "is given twice"),
        ([a, tmp_path], None, "no run at"),
        ([a, b], tmp_path / "x.jpg", "ends in .png"),
        ([a, b], tmp_path / "no" / "x.png", "there is no folder"),
    ):
        with pytest.raises(twinblock.InputError, match=words):
            twinblock.compare(runs, out=out)
    (tmp_path / "mine.csv").write_text("mine")
    with pytest.raises(twinblock.InputError, match=r"mine\.csv is there already"):
        twinblock.compare([a, b], out=tmp_path / "mine.png")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b", "mine.csv"]


def test_the_command_prints_a_column_for_each_run(tmp_path, monkeypatch, capsys):
    a = made(tmp_path / "a", "optim.lr=0.5", "optim.weight_decay=0.0000015", knn=40.0, seconds=[2.04])
    b = made(tmp_path / "b=1", "optim.lr=0.25", "optim.weight_decay=0.000001", knn=50.0)  # a folder, and no field
    monkeypatch.setattr(sys, "argv", ["twinblock", "compare", str(a), str(b), f"out={tmp_path / 'x.png'}"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out = capsys.readouterr().out
    assert not end.value.code
    line = next(line for line in out.splitlines() if "kNN %" in line)
    assert "40.0 ± 5.2" in line  # 100 sqrt(0.4 x 0.6 / 90)
    assert "50.0 ± 5.3" in line
    parts = [[cell.strip() for cell in line.split("│")[1:4]] for line in out.splitlines() if "│" in line]
    cells = {name: values for name, *values in parts}
    assert cells["optim.lr"] == ["0.5", "0.25"]
    assert cells["optim.weight_decay"] == ["1.5e-06", "1e-06"]  # a setting is never rounded
    assert cells["seconds"] == ["2.0", "-"]
    assert "x.png and" in out
