"""Images that are parts of one file: tiles of a large image, frames of a video. Where they are, and which belong
together.
"""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped

from twinblock.data.endings import VIDEOS

TILE = re.compile(r"(.*)\[(\d+),(\d+)\]", re.DOTALL)
FRAME = re.compile(rf"(.*(?:{'|'.join(map(re.escape, VIDEOS))}))@(\d+\.\d{{3}})s", re.DOTALL | re.IGNORECASE)
TILES = np.dtype([("group", np.int64), ("top", np.int64), ("left", np.int64)])
FRAMES = np.dtype([("group", np.int64), ("time", np.float64)])


def tile_name(file: str, top: int, left: int) -> str:
    return f"{file}[{top},{left}]"


def frame_name(file: str, time: float) -> str:
    return f"{file}@{time:.3f}s"


def file_of(name: str) -> str:
    """The file that a tile or a frame is of; any other name is itself."""
    return part[1] if (part := TILE.fullmatch(name) or FRAME.fullmatch(name)) else name


def parts_of(names: Sequence[str], kind: np.dtype) -> Shaped[np.ndarray, " n"]:
    """What `kind`, TILES or FRAMES, has of each image by its name: rows down and columns right where a tile begins, or
    seconds from the beginning of a video; and the number of its file, in order of name.

    An image that is no part, as a photograph beside videos, has the group -1 and no time.
    """
    pattern, number = TILE if kind == TILES else FRAME, {}
    parts = np.zeros(len(names), kind)
    for i, name in enumerate(names):
        if match := pattern.fullmatch(name):
            parts[i] = (number.setdefault(match[1], len(number)), *map(float, match.groups()[1:]))
        else:
            parts[i] = (-1, *[np.nan] * (len(kind.names or ()) - 1))
    place = {file: i for i, file in enumerate(sorted(number))}
    parts["group"] = np.array([*map(place.get, number), -1])[parts["group"]]
    return parts
