"""Every test of data has a cache of its own."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TWINBLOCK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
