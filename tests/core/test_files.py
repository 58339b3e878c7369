"""Tables and files: what is written is what is read, harmless in a spreadsheet, and never half a file."""

import csv
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from twinblock.core.errors import InputError
from twinblock.core.files import replacing, table_kind, write_table
from twinblock.data import Names

NAMES = [
    "a b.png",
    'q"uote,comma.png',
    "new\nline\r.png",
    "=1+1.png",
    "-x.png",
    "@SUM(A1).png",
    "é 日本.png",
    "\udcff.png",
]
SAFE = [*NAMES[:3], "'=1+1.png", "'-x.png", "'@SUM(A1).png", NAMES[6], "\\udcff.png"]  # in a CSV file
FEATURES = np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3) ** 3
COLUMNS = {"image": np.arange(8), "name": Names.of(NAMES), "class": ["+", *"bcdefgh"], "features": FEATURES}


def written(path: Path) -> Path:
    with replacing(path) as file:
        write_table(file, table_kind(path), COLUMNS)
    return path


def test_csv(tmp_path):
    with open(written(tmp_path / "a.csv"), newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image", "name", "class", "features0", "features1", "features2"]
    assert [row["name"] for row in rows] == SAFE
    assert [row["class"] for row in rows] == ["'+", *"bcdefgh"]
    assert [int(row["image"]) for row in rows] == list(range(8))
    # negative numbers stay numbers, and each is the same number again
    found = np.array([[row[f"features{i}"] for i in range(3)] for row in rows]).astype(np.float32)
    assert np.array_equal(found, FEATURES)


def test_npz_and_parquet(tmp_path):
    with np.load(written(tmp_path / "a.npz"), allow_pickle=False) as arrays:
        assert list(arrays) == list(COLUMNS)
        assert arrays["name"].tolist() == NAMES
        assert np.array_equal(arrays["features"], FEATURES)
    table = parquet.read_table(written(tmp_path / "a.parquet"))
    assert table["name"].to_pylist() == [*NAMES[:7], "\\udcff.png"]
    assert np.array_equal(np.array(table["features"].to_pylist(), np.float32), FEATURES)
    assert table["image"].to_pylist() == list(range(8))


def test_tables_longer_than_what_is_text_at_a_time(tmp_path):
    columns = {"image": np.arange(2500), "features": np.arange(5000.0).reshape(2500, 2)}
    for kind in ("csv", "parquet"):
        with replacing(tmp_path / "long") as file:
            write_table(file, kind, columns)
        if kind == "csv":
            assert np.array_equal(
                np.loadtxt(tmp_path / "long", delimiter=",", skiprows=1)[:, 2], columns["features"][:, 1]
            )
        else:
            assert parquet.read_table(tmp_path / "long")["image"].to_pylist() == list(range(2500))


def test_kinds(monkeypatch):
    assert table_kind(Path("a.b/C.NPZ")) == "npz"
    with pytest.raises(InputError, match=r"ends with \.npz, \.parquet or \.csv"):
        table_kind(Path("a.pt"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install .*hf"):
        table_kind(Path("a.parquet"))


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("before")

    def fail(error: BaseException) -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(InputError, match=r"a\.csv: No space left on device"):
        fail(OSError(28, "No space left on device"))
    with pytest.raises(KeyboardInterrupt):
        fail(KeyboardInterrupt())
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]
    assert path.read_text() == "before"
    (tmp_path / f"a.csv.{os.getpid()}.partial").symlink_to(tmp_path / "elsewhere")
    with replacing(path) as file:
        file.write(b"after")
    assert path.read_text() == "after"
    assert not (tmp_path / "elsewhere").exists()


def test_of_two_processes_that_write_one_file_either_writes_it_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    with replacing(path) as file:
        file.write(b"half of ")
        with monkeypatch.context() as other:
            other.setattr(os, "getpid", lambda: 4711)
            with replacing(path) as another:
                another.write(b"theirs")
        assert path.read_text() == "theirs"
        file.write(b"mine")
    assert path.read_text() == "half of mine"
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]
