"""Every test of data has a cache of its own."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from pictures import encode
from served import COUNT, web

import twinblock
from twinblock.core import seeding
from twinblock.data import locks, server, store


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


@pytest.fixture(scope="module")
def packs(tmp_path_factory) -> Path:
    """Packed pictures of 16 px in two classes, as pixels and as JPEG."""
    folder = tmp_path_factory.mktemp("packs")
    noise = np.random.default_rng(0).integers(0, 256, (COUNT, 16, 16, 3), np.uint8)
    for i, pixels in enumerate(noise):
        file = folder / f"files/train/{'ab'[i % 2]}/{i:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode(pixels))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWINBLOCK_CACHE", str(folder / "cache"))
        for name, jpeg in (("pixels", None), ("jpeg", 90)):
            twinblock.pack({"source": str(folder / "files"), "jpeg": jpeg}, folder / name)
    shutil.rmtree(folder / "files")
    return folder


@pytest.fixture
def site(packs, monkeypatch):
    monkeypatch.setattr(server, "WAITS", (0.01,) * 7)
    monkeypatch.setattr(seeding, "WINDOW", 4)
    with web(packs) as site:
        yield site
