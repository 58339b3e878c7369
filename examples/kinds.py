"""Make small sets of the kinds of images that microscopes, satellites and camera traps give, to try things on.

python examples/kinds.py microscope     # microscope/control/00.tif, ...: 16-bit TIFF, 768 px, 12 bits used
python examples/kinds.py satellite      # satellite/000.tif, ...: four bands of 16 bits, some values missing
python examples/kinds.py cameras        # cameras/cam1/0000.jpg, ... and cameras/animals.csv
python examples/kinds.py clips          # clips/fox/0.mp4, ...: five seconds each; needs pip install "twinblock[video]"
"""

import argparse
import csv
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_sample_images


def microscope(folder: Path, rng: np.random.Generator) -> None:
    """Fields of view of round cells, which are larger in treated wells; 12 bits, dark."""
    rows, columns = np.mgrid[:768, :768]
    for i in range(12):
        treated = i % 2
        field = np.full((768, 768), 120.0)
        for _ in range(60):
            top, left, radius = *rng.uniform(0, 768, 2), rng.uniform(8, 12) * (1 + treated)
            field += rng.uniform(300, 900) * np.exp(-((rows - top) ** 2 + (columns - left) ** 2) / radius**2)
        file = folder / ("treated" if treated else "control") / f"{i:02}.tif"
        file.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(file, rng.poisson(field).clip(0, 4095).astype(np.uint16), tile=(256, 256), compression="zlib")


def satellite(folder: Path, rng: np.random.Generator) -> None:
    """Patches of red, green, blue and near infrared, reflectances times 10 000; 65535 where nothing was seen."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(96):
        ground = gaussian_filter(rng.standard_normal((64, 64)), rng.uniform(2, 8))
        green = np.clip(0.5 + ground / ground.std() / 4, 0, 1)  # share of plants in a place
        bands = np.stack([0.2 - 0.15 * green, 0.15 - 0.05 * green, 0.1 - 0.06 * green, 0.2 + 0.3 * green], -1)
        values = (10_000 * bands * rng.uniform(0.8, 1.2) + rng.normal(0, 30, bands.shape)).clip(1).astype(np.uint16)
        if i % 8 == 0:
            values[: rng.integers(8, 24)] = 65535
        nodata = (42113, "s", 0, "65535", True)
        tifffile.imwrite(
            folder / f"{i:03}.tif", values, photometric="rgb", extrasamples=["unspecified"], extratags=[nodata]
        )


def cameras(folder: Path, rng: np.random.Generator) -> None:
    """Four places, each of one light, with one of three animals or none in each photograph."""
    backgrounds = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    colours = {"fox": (190, 90, 40), "boar": (60, 50, 45), "deer": (150, 120, 80), "empty": None}
    rows = []
    for i in range(160):
        camera, animal = i % 4, rng.choice(list(colours), p=(0.1, 0.15, 0.25, 0.5))
        left, top = 40 + 60 * camera, 60 + 20 * camera
        photo = np.asarray(backgrounds[camera % 2].crop((left, top, left + 240, top + 240)).resize((96, 96)), float)
        if (colour := colours[animal]) is not None:
            y, x, size = rng.integers(50, 80), rng.integers(15, 80), rng.integers(8, 14)
            rows_, columns_ = np.mgrid[:96, :96]
            photo[((rows_ - y) / size) ** 2 + ((columns_ - x) / (2 * size)) ** 2 < 1] = colour
        photo = photo * rng.uniform(0.5, 1.1) + rng.normal(0, 6, photo.shape)
        name = f"cam{camera + 1}/{i:04}.jpg"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo.clip(0, 255).astype(np.uint8)).save(folder / name, quality=92)
        rows.append({"path": name, "species": animal, "group": f"cam{camera + 1}"})
    with open(folder / "animals.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["path", "species", "group"])
        writer.writeheader()
        writer.writerows(rows)


def clips(folder: Path, rng: np.random.Generator) -> None:
    """Sixteen videos of an animal that walks through the picture, in a folder for each kind."""
    import av

    colours = {"fox": (190, 90, 40), "deer": (150, 120, 80)}
    backgrounds = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for i in range(16):
        animal, left = ("fox", "deer")[i % 2], int(rng.integers(0, 200))
        place = np.asarray(backgrounds[i % 4 // 2].crop((left, 80, left + 240, 320)).resize((96, 96)))
        file = folder / animal / f"{i:02}.mp4"
        file.parent.mkdir(parents=True, exist_ok=True)
        rows, columns = np.mgrid[:96, :96]
        with av.open(str(file), "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.height, stream.width, stream.pix_fmt = 96, 96, "yuv420p"
            for k in range(50):
                frame = place.copy()
                frame[((rows - 70) / 10) ** 2 + ((columns - 2 * k) / 20) ** 2 < 1] = colours[animal]
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = {"microscope": microscope, "satellite": satellite, "cameras": cameras, "clips": clips}
    parser.add_argument("kind", choices=kinds)
    kind = parser.parse_args().kind
    kinds[kind](Path(kind), np.random.default_rng(0))


if __name__ == "__main__":
    main()
