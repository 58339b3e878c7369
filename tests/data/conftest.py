"""Every test of data has a cache of its own."""

from pathlib import Path

import pytest

from twinblock.data import locks, store


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TWINBLOCK_CACHE", str(tmp_path / "cache"))
    store.say_once.cache_clear()
    locks._locks_files.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def photos(tmp_path) -> Path:
    (tmp_path / "photos").mkdir()
    return tmp_path / "photos"
