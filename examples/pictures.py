"""Make a folder of small pictures to try things on: eight places, each seen many times in another light.

    python examples/pictures.py photos 1200                          # photos/roof-0000.jpg, photos/lake-0001.jpg, ...
    python examples/pictures.py labelled 800 --folders --seed 1      # labelled/roof/0000.jpg, ...

The places are parts of two photographs that scikit-learn brings: a pagoda and a flower. Each picture is a piece around
a place, turned, mirrored, nearer or farther, in light of another colour and strength.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

SIDE = 96
PLACES = {  # a photograph, and where the middle of a picture may lie in it: left, top, right, bottom
    "balcony": (0, (130, 190, 290, 225)),
    "bush": (0, (390, 320, 530, 370)),
    "heart": (1, (285, 195, 345, 245)),
    "lake": (0, (390, 190, 500, 260)),
    "leaves": (1, (60, 90, 140, 230)),
    "petals": (1, (215, 140, 240, 290)),
    "roof": (0, (170, 70, 245, 110)),
    "tree": (0, (575, 190, 590, 300)),
}


def picture(place: str, rng: np.random.Generator, photographs: list[Image.Image]) -> Image.Image:
    """One place, seen anew."""
    number, (left, top, right, bottom) = PLACES[place]
    x, y, half = rng.uniform(left, right), rng.uniform(top, bottom), rng.uniform(30, 48)
    image = photographs[number].rotate(rng.uniform(-35, 35), Image.Resampling.BICUBIC, center=(x, y))
    image = image.crop((round(x - half), round(y - half), round(x + half), round(y + half))).resize((SIDE, SIDE))
    pixels = np.asarray(image, np.float32) / 255
    pixels = pixels[:, :: rng.choice((-1, 1))]
    light = rng.uniform(0.45, 1.3) * rng.uniform(0.7, 1.3, 3)
    pixels = np.clip(pixels ** rng.uniform(0.7, 1.4) * light, 0, 1)
    return Image.fromarray((pixels * 255).astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("count", type=int)
    parser.add_argument("--folders", action="store_true", help="a folder for each place, which gives labels")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for i in range(given.count):
        place = list(PLACES)[i % len(PLACES)]
        file = given.folder / (f"{place}/{i:04}.jpg" if given.folders else f"{place}-{i:04}.jpg")
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(place, rng, photographs).save(file, quality=92)


if __name__ == "__main__":
    main()
