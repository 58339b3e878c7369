"""Small image files and photographs for tests."""

import io
import itertools
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from twinblock.data.store import Encoded, digest


def encode(pixels, mode=None, kind="PNG", **options) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels))
    out = io.BytesIO()
    (image.convert(mode) if mode else image).save(out, kind, **options)
    return out.getvalue()


def plain(value: int, width: int = 8, height: int = 8) -> bytes:
    return encode(np.full((height, width, 3), value, np.uint8))


def encoded(files: list[bytes], labels: list[int] | None = None, **options) -> Encoded:
    labels = labels or [-1] * len(files)
    names = [f"{i:03}.png" for i in range(len(files))]
    return Encoded(
        name="some",
        key=digest(files),
        count=len(files),
        items=lambda: iter(zip(names, files, labels, strict=True)),
        sample=lambda: files,
        **options,
    )


def truncated(kind: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    return encode(noise, kind=kind)[:-300]


def huge() -> bytes:
    """A PNG file of a few bytes that says it is 10 000 pixels wide and high."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"0")),
        (b"IEND", b""),
    )
    parts = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def put(folder: Path, name: str, value: int = 0) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(plain(value))


def values(images) -> list[int]:
    return images.pixels[:, 0, 0, 0].tolist()


def write_parquet(path: Path, columns: dict, features: dict | None = None, **options) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, **options)


def cells(*numbers: int) -> list[dict]:
    return [{"bytes": plain(number), "path": None} for number in numbers]


def photos(n, height, width, seed=0):
    """(n, height, width, 3) uint8: random crops of two photographs."""
    rng, found = np.random.default_rng(seed), []
    for photo in itertools.islice(itertools.cycle(load_sample_images().images), n):
        top, left = rng.integers(0, photo.shape[0] - height), rng.integers(0, photo.shape[1] - width)
        found.append(photo[top : top + height, left : left + width])
    return torch.from_numpy(np.stack(found))


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text
