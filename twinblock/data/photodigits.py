"""The embedded data set: real handwritten digits on real photographs, made from a seed in a second.

The 1 797 digits and the two photographs come with scikit-learn; nothing is downloaded. Place, size, tilt, shade and
polarity of a digit are nuisances, and its class is what is left once they are ignored. Only IEEE operations on
single elements, whole numbers and raw uniform draws are used: the same decoded photographs give the same bytes on
any machine.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from twinblock.data import Images

DIGITS, PHOTOS = "data/digits.csv.gz", ("images/china.jpg", "images/flower.jpg")  # of sklearn.datasets
SIDE = 32  # pixels of an image
RENDERINGS = 4  # images of one digit
TEST_EVERY = 5  # of the digits of a class, one in so many is for testing
GRID = 8  # pixels of a scanned digit, of values 0 to 16

SIZE = (17, 24)  # side of the digit's square in pixels
TILT = 0.176  # tangent of half the largest rotation, 20 degrees
OUTSIDE = 2  # pixels by which the square may leave the image
EDGE = (6, 0.25)  # scan value at a stroke's edge, and how fast the ink covers the ground there
SHRINK = 2  # photographs are reduced by this factor
TEXTURE = 15  # percent of the photograph's contrast
GROUND = (25, 230)  # mean level of the ground
INK = (50, 150)  # distance of the ink's level from the ground's
LEVELS = (5, 250)  # the ink's level stays inside, else the polarity is turned round
GROUND_TINT, INK_TINT = 8, 12  # largest departure of a channel from the level


def photodigits(split: Literal["train", "test"], seed: int = 0) -> Images:
    """Images of 32 x 32: 5 752 of 1 438 digits to train on, or 1 436 of the other 359 to test on.

    The seed decides the renderings alone: which digit is in which split is always the same.
    """
    pixels, labels = render(split, seed)
    return Images(pixels, labels.copy(), tuple("0123456789"), name="photodigits")


@cache
def render(split: Literal["train", "test"], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels, (n, 32, 32, 3) uint8, and labels, (n,) int64; the renderings of one digit are neighbours."""
    scans, labels = scanned()
    rows = np.repeat(digits_of(split, labels), RENDERINGS)
    uniform = np.random.Generator(np.random.PCG64([seed, split == "test"])).random((17, len(rows)))
    place, ground, ink = np.split(uniform, [4, 11])
    cover = _cover(scans.reshape(-1, GRID, GRID), rows, place)[..., None]
    behind, level = _ground(ground)
    pixels = behind + ((_ink(ink, level)[:, None, None] - behind) * cover >> 6)
    made = pixels.clip(0, 255).astype(np.uint8)
    made.flags.writeable = False  # every caller gets the same array
    return made, labels[rows]


def scanned() -> tuple[np.ndarray, np.ndarray]:
    """The digits, (1797, 64) float of 0 to 16, and their labels, (1797,) int64."""
    table = np.loadtxt(_shipped(DIGITS), delimiter=",")
    return table[:, :-1], table[:, -1].astype(np.int64)


def _shipped(name: str) -> Path:
    """A file of scikit-learn's, which is not imported for it: that would take a second."""
    package = find_spec("sklearn")
    assert package is not None and package.origin is not None, "scikit-learn is a dependency"
    return Path(package.origin).parent / "datasets" / name


def digits_of(split: Literal["train", "test"], labels: np.ndarray) -> np.ndarray:
    """Row numbers of the digits of a split: of each class every fifth tests, from the third on."""
    rank = np.zeros(len(labels), np.int64)
    for label in range(10):
        (members,) = np.nonzero(labels == label)
        rank[members] = np.arange(len(members))
    return np.flatnonzero((rank % TEST_EVERY == 2) == (split == "test"))


def _cover(scans: np.ndarray, rows: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """How much of each pixel the ink covers, 0 to 64: the scans turned, enlarged and placed, read bilinearly."""
    side = _between(*SIZE, uniform[0])
    half = _between(-TILT, TILT, uniform[1])
    cos, sin = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
    room = np.maximum((SIDE - side) / 2 + OUTSIDE, 0)
    scale = GRID / side
    pixel = np.arange(SIDE) + 0.5
    x = (pixel - (SIDE / 2 + room * _between(-1, 1, uniform[2]))[:, None])[:, None, :]
    y = (pixel - (SIDE / 2 + room * _between(-1, 1, uniform[3]))[:, None])[:, :, None]
    along, across = (cos * scale)[:, None, None], (sin * scale)[:, None, None]
    centre = GRID / 2 + 0.5  # of a scan with an empty border of one pixel, where all that is outside is read
    column = np.clip(x * along + y * across + centre, 0, GRID + 1).astype(np.float32)
    row = np.clip(y * along - x * across + centre, 0, GRID + 1).astype(np.float32)
    left, top = column.astype(np.int32), row.astype(np.int32)
    right, bottom = column - left, row - top
    padded = np.pad(scans, ((0, 0), (1, 2), (1, 2))).astype(np.float32)
    width = padded.shape[2]
    corner = (rows * width * width).astype(np.int32)[:, None, None] + top * width + left
    values = padded.ravel()
    above = values[corner] * (1 - right) + values[corner + 1] * right
    below = values[corner + width] * (1 - right) + values[corner + width + 1] * right
    value = above * (1 - bottom) + below * bottom
    edge, steepness = EDGE
    return (np.clip((value - edge) * steepness + 0.5, 0, 1) * 64).astype(np.int16)


def _ground(uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Crops of the photographs, flattened and tinted, (n, 32, 32, 3), and their mean levels, (n,)."""
    photos = np.stack([_reduced(np.asarray(Image.open(_shipped(name)))) for name in PHOTOS])
    crops = np.lib.stride_tricks.sliding_window_view(photos, (SIDE, SIDE, 3), axis=(1, 2, 3))
    choice = tuple((u * n).astype(np.int64) for u, n in zip(uniform, crops.shape[:3], strict=False))
    texture = crops[*choice, 0]
    level = _whole(*GROUND, uniform[3])
    colour = level[:, None] + _whole(-GROUND_TINT, GROUND_TINT, uniform[4:7].T)
    mean = texture.sum((1, 2), dtype=np.int32) // SIDE**2
    return texture + (colour - mean).astype(np.int16)[:, None, None], level


def _reduced(photo: np.ndarray) -> np.ndarray:
    """A photograph shrunk by whole-number means of squares, at the contrast of the ground."""
    height, width = (side // SHRINK for side in photo.shape[:2])
    squares = photo[: height * SHRINK, : width * SHRINK].reshape(height, SHRINK, width, SHRINK, 3)
    return (squares.sum((1, 3), dtype=np.int32) * TEXTURE // (100 * SHRINK**2)).astype(np.int16)


def _ink(uniform: np.ndarray, level: np.ndarray) -> np.ndarray:
    """The ink's colour, (n, 3): lighter or darker than the ground, where there is room."""
    distance = _whole(*INK, uniform[0])
    low, high = LEVELS
    lighter = np.where(uniform[1] < 0.5, level + distance <= high, level - distance < low)
    ink = level + np.where(lighter, distance, -distance)
    return ink[:, None] + _whole(-INK_TINT, INK_TINT, uniform[2:5].T)


def _between(low: float, high: float, uniform: np.ndarray) -> np.ndarray:
    return low + (high - low) * uniform


def _whole(low: int, high: int, uniform: np.ndarray) -> np.ndarray:
    return np.floor(_between(low, high + 1, uniform)).astype(np.int16)
