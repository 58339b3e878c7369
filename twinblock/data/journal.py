"""A store that is being packed: what is written so far, so that a packing that was killed goes on behind it."""

import json
import os
from array import array
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

import numpy as np
from PIL import __version__ as pillow

FILES = ("pixels.u8", "names.u8")
FORMAT = 2  # of a journal's lines and of what is packed


class Journal:
    """Pixels and names of a store, and `journal`: a line for each chunk of images, written once the chunk is.

    A line holds what stands beside the pixels, the lengths of both files after it, and checksums: of each image, of the
    names, of the line itself. Its first line says of what it is. One of something else, of another Pillow, or of
    another shape is begun anew. Only chunks that are whole, with all those before them, are kept.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]):
        self.folder = folder
        self.labels, self.aspect = array("q"), array("f")
        self.ends, self.sums = array("q"), array("I")  # where each name ends; CRC-32 of each image
        self.pixel_ends = array("q")  # where each image ends
        self.skipped: list[tuple[str, str]] = []
        self.items = 0  # of the source, decoded or skipped
        first = _line({**about, "pillow": pillow, "journal": FORMAT})
        kept = self._recall(first)
        self.files = [open(folder / name, "r+b" if kept else "wb") for name in (*FILES, "journal")]  # noqa: SIM115
        self.pixels, self.names, self.lines = self.files
        for file, length in zip(self.files, kept or (0, 0, 0), strict=True):
            file.truncate(length)
            file.seek(length)
        if not kept:
            self.lines.write(first)

    def append(
        self,
        pixels: np.ndarray | Sequence[bytes],
        names: list[str],
        labels: list[int],
        aspect: list[float],
        skipped: list[tuple[str, str]],
    ) -> None:
        """Write a chunk: (n, h, w, c) pixels, or a JPEG each, of those that could be decoded; and the others' names and
        reasons.
        """
        pixels = np.ascontiguousarray(pixels) if isinstance(pixels, np.ndarray) else pixels
        text = [name.encode("utf-8", "surrogateescape") for name in names]
        sums = list(map(crc32, pixels))
        self.pixels.write(pixels.data if isinstance(pixels, np.ndarray) else b"".join(pixels))
        self.names.write(b"".join(text))
        for file in (self.pixels, self.names):
            file.flush()
        fields = {
            "items": len(names) + len(skipped),
            "labels": list(labels),
            "aspect": [float(one) for one in aspect],
            "names": [len(one) for one in text],
            "of_names": crc32(b"".join(text)),
            "sums": sums,
            "skipped": skipped,
            "sizes": [memoryview(one).nbytes for one in pixels],
        }
        self.lines.write(_line(fields))
        self.lines.flush()
        self._add(fields)

    def _add(self, fields: Mapping[str, Any]) -> None:
        for ends, lengths in ((self.ends, fields["names"]), (self.pixel_ends, fields["sizes"])):
            end = ends[-1] if ends else 0
            ends.extend(end + length for length in accumulate(lengths))
        self.labels.extend(fields["labels"])
        self.aspect.extend(fields["aspect"])
        self.sums.extend(fields["sums"])
        self.skipped.extend((name, why) for name, why in fields["skipped"])
        self.items += fields["items"]

    def _recall(self, first: bytes) -> tuple[int, int, int] | None:
        """Take up the chunks that are there. The lengths of the files with them; None: they are not of this store."""
        kept = None
        with suppress(OSError), ExitStack() as stack:
            pixels, names, lines = [stack.enter_context(open(self.folder / one, "rb")) for one in (*FILES, "journal")]
            if lines.readline() == first:
                kept = 0, 0, lines.tell()
                while (fields := _read(lines.readline())) and _whole(fields, pixels, names):
                    self._add(fields)
                    kept = pixels.tell(), names.tell(), lines.tell()
        return kept

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_) -> None:
        for file in self.files:
            file.flush()
            if file is self.pixels:
                os.fsync(file.fileno())
            file.close()

    def close(self) -> None:
        """The packing is done: the journal is not needed any more."""
        (self.folder / "journal").unlink()


def _line(fields: Mapping[str, Any]) -> bytes:
    text = json.dumps(fields).encode()
    return b"%08x %s\n" % (crc32(text), text)


def _read(line: bytes) -> dict[str, Any] | None:
    """The fields of a whole line."""
    sum_, _, text = line.removesuffix(b"\n").partition(b" ")
    return json.loads(text) if line.endswith(b"\n") and sum_ == b"%08x" % crc32(text) else None


def _whole(fields: Mapping[str, Any], pixels: BinaryIO, names: BinaryIO) -> bool:
    """Whether the next images and names of these files are those of a line."""
    if crc32(names.read(sum(fields["names"]))) != fields["of_names"]:
        return False
    return all(crc32(pixels.read(size)) == one for size, one in zip(fields["sizes"], fields["sums"], strict=True))
