"""Videos, as PyAV decodes them: what their headers say, and some frames a second, one in memory at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from math import floor
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray as Array

EXTRA = 'videos need: pip install "twinblock[video]"'
# the containers that are read: a playlist, which names other files and addresses, is none
CONTAINERS = "mov,mp4,avi,matroska,webm,mpeg,mpegts,asf"
EARLY = Fraction(1, 500)  # seconds: containers round the times of frames
SHORT = 1  # seconds that a video may end before its header says


@dataclass(frozen=True)
class Header:
    """What a video says of itself: (h, w) of a frame as it is to be looked at, seconds, and the bits of a sample."""

    size: tuple[int, int]
    seconds: float
    bits: int


def installed() -> bool:
    return find_spec("av") is not None


@contextmanager
def _opened(file: str) -> Iterator[tuple[Any, Any]]:
    """A video and its stream of pictures. Raises ValueError where it has none, and anything for a damaged one."""
    try:
        import av
    except ImportError:
        raise ValueError(EXTRA) from None
    with av.open(file, options={"protocol_whitelist": "file", "format_whitelist": CONTAINERS}) as container:
        stream = container.streams.best("video")
        if stream is None:
            raise ValueError("no pictures in it, only sound")
        yield container, stream


def header(file: str) -> Header:
    """What the header says, and the first frame, which alone tells how it lies."""
    with _opened(file) as (container, stream):
        first = next(container.decode(stream), None)
        if first is None:
            raise ValueError("no frames")
        size = (first.height, first.width)
        bits = max(part.bits for part in first.format.components)
        return Header(size if first.rotation % 180 == 0 else size[::-1], float(_length(container, stream)), bits)


def _length(container: Any, stream: Any) -> Fraction:
    """Seconds by the header; 0 where it says none."""
    return stream.duration * stream.time_base if stream.duration else Fraction(container.duration or 0, 10**6)


def frames(file: str, rate: float) -> Iterator[tuple[float, UInt8[Array, "h w 3"]]]:
    """(seconds since the first frame, RGB) of the first frame in each of `rate` equal parts of a second.

    Frames are upright. Raises ValueError, or an error of FFmpeg, behind the last whole frame of a damaged video. Frames
    are decoded in one thread: several of FFmpeg's lose the errors.
    """
    with _opened(file) as (container, stream):
        start, last, due = None, Fraction(0), 0
        for frame in container.decode(stream):
            if frame.pts is None:
                raise ValueError("its frames have no times")
            time = frame.pts * frame.time_base
            start = time if start is None else start
            last = time - start
            if frame.is_corrupt:
                raise ValueError(f"damaged from {float(last):.1f} s on; the frames before are used")
            place = floor((last + EARLY) * Fraction(str(rate)))
            if place >= due:
                yield float(last), _rgb(frame)
                due = place + 1
        if start is None:
            raise ValueError("no frames")
        length = _length(container, stream)
        if length > max(last + SHORT, last * Fraction(11, 10)):
            raise ValueError(f"ends at {float(last):.1f} of {float(length):.1f} s; the frames before are used")


def _rgb(frame: Any) -> UInt8[Array, "h w 3"]:
    """The pixels of a frame, turned as it is to be looked at. Raises ValueError for grey of more than 8 bits."""
    parts = frame.format.components
    if len(parts) == 1 and parts[0].bits > 8:
        raise ValueError(f"grey of {parts[0].bits} bits, of which 8 would be left: write its frames to TIFF")
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
