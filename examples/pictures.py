"""Make a folder of small pictures to try things on: eight signs, each on a piece of one of two photographs.

    python examples/pictures.py photos 1200      # photos/ring-0000.jpg, photos/star-0001.jpg, ...
    python examples/pictures.py labelled 800 --folders --seed 1      # labelled/ring/0000.jpg, ...
"""

import argparse
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_images

SIDE = 96


def polygon(corners: int, inner: float, turn: float) -> list[tuple[float, float]]:
    """The corners of a star in the unit circle; with `inner` = 1 a regular polygon."""
    angles = [turn + math.pi * k / corners for k in range(2 * corners)]
    return [(math.sin(a) * r, -math.cos(a) * r) for k, a in enumerate(angles) for r in [inner if k % 2 else 1.0]]


def cross(turn: float) -> list[tuple[float, float]]:
    w = 0.33
    points = [(-w, -1), (w, -1), (w, -w), (1, -w), (1, w), (w, w), (w, 1), (-w, 1), (-w, w), (-1, w), (-1, -w), (-w, -w)]
    c, s = math.cos(turn), math.sin(turn)
    return [(x * c - y * s, x * s + y * c) for x, y in points]


def disc(turn: float) -> list[tuple[float, float]]:
    return [(math.sin(2 * math.pi * k / 48), math.cos(2 * math.pi * k / 48)) for k in range(48)]


SIGNS = {
    "cross": cross,
    "disc": disc,
    "hexagon": lambda turn: polygon(6, math.cos(math.pi / 6), turn),
    "moon": disc,
    "ring": disc,
    "square": lambda turn: polygon(4, math.cos(math.pi / 4), turn + math.pi / 4),
    "star": lambda turn: polygon(5, 0.42, turn),
    "triangle": lambda turn: polygon(3, 0.5, turn),
}


def picture(sign: str, rng: np.random.Generator, photographs: list[Image.Image]) -> Image.Image:
    """A sign of random size, place and colour on a random piece of a photograph."""
    photograph = photographs[rng.integers(len(photographs))]
    x, y = rng.integers(0, photograph.width - 160), rng.integers(0, photograph.height - 160)
    image = photograph.crop((x, y, x + 160, y + 160)).resize((SIDE, SIDE))
    radius = rng.uniform(0.28, 0.42) * SIDE
    centre = rng.uniform(radius, SIDE - radius, 2)
    paint, draw = tuple(rng.integers(0, 256, 3).tolist()), ImageDraw.Draw(image)
    under = image.copy()

    def shape(size: float, shift: float = 0.0) -> list[tuple[float, float]]:
        return [(centre[0] + (a * size + shift) * radius, centre[1] + b * size * radius) for a, b in corners]

    corners = SIGNS[sign](rng.uniform(-0.3, 0.3))
    draw.polygon(shape(1.0), fill=paint, outline=(255, 255, 255))
    if sign in ("ring", "moon"):  # what shows through
        mask = Image.new("L", image.size)
        ImageDraw.Draw(mask).polygon(shape(0.55) if sign == "ring" else shape(0.8, 0.5), fill=255)
        image.paste(under, mask=mask)
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("count", type=int)
    parser.add_argument("--folders", action="store_true", help="a folder for each sign, which gives labels")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for i in range(given.count):
        sign = list(SIGNS)[i % len(SIGNS)]
        file = given.folder / (f"{sign}/{i:04}.jpg" if given.folders else f"{sign}-{i:04}.jpg")
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(sign, rng, photographs).save(file, quality=92)


if __name__ == "__main__":
    main()
