"""Rows of mapped files: the same bytes as the map's own, read side by side."""

from pathlib import Path

import numpy as np
import pytest

from twinblock.core.errors import InputError
from twinblock.data import Images, rows
from twinblock.data.rows import rows_of

SHAPE = (9, 3, 4, 2)


@pytest.fixture(params=[np.uint8, np.uint16, np.float32])
def mapped(tmp_path, request):
    """A file of these values, mapped, and the values."""
    values = np.random.Generator(np.random.PCG64(5)).integers(0, 255, SHAPE).astype(request.param)
    (tmp_path / "pixels").write_bytes(values.tobytes())
    return np.memmap(tmp_path / "pixels", request.param, "r").reshape(SHAPE), values


@pytest.fixture
def large(monkeypatch):
    """Every row counts as large."""
    monkeypatch.setattr(rows, "LARGE", 1)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("places", [[3], [8, 0, 0, 5], [*range(9), *range(9), *range(9)], []])
def test_they_are_those_of_the_map_in_this_order(mapped, places):
    pixels, values = mapped
    read = rows_of(pixels, np.array(places, np.int64))
    assert read.dtype == values.dtype
    assert np.array_equal(read, values[places].reshape(-1, *SHAPE[1:]))


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("part", [np.s_[2:], np.s_[::2], np.s_[:, :, ::-1], np.s_[:, 1:]])
def test_a_part_of_a_map_is_no_whole_file(mapped, part):
    pixels, values = mapped
    assert np.array_equal(rows_of(pixels[part], np.array([2, 0])), values[part][[2, 0]])


@pytest.mark.usefixtures("large")
def test_a_file_that_became_shorter_is_told(mapped):
    pixels, _ = mapped
    with open(pixels.filename, "r+b") as file:
        file.truncate(pixels.nbytes - 1)
    with pytest.raises(InputError, match="is shorter than when the run began"):
        rows_of(pixels, np.array([1, 8]))
    assert len(rows_of(pixels, np.array([1, 7]))) == 2


def test_small_rows_are_taken_from_the_map(mapped, monkeypatch):
    pixels, values = mapped
    monkeypatch.setattr(rows, "_read", None)
    assert np.array_equal(rows_of(pixels, np.array([4])), values[[4]])


def test_large_ones_are_read(mapped, monkeypatch, large):
    taken = []
    monkeypatch.setattr(rows, "_read", lambda file, rows, out, part: taken.append(len(part)) or out[part].nbytes)
    Images(mapped[0]).batch([3, 1])
    assert sum(taken) == 2


@pytest.mark.usefixtures("large")
def test_a_file_without_a_name_is_read_by_the_map(mapped):
    pixels, values = mapped
    Path(pixels.filename).unlink()
    assert np.array_equal(rows_of(pixels, np.array([4, 1])), values[[4, 1]])
