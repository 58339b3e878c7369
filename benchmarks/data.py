"""How fast images of 224 px come from disk: packed rows beside torchvision's ImageFolder and WebDataset.

    python benchmarks/data.py [--images 2000] [--repeats 3] [--folder DIR]

Photographs of 500 x 375 as JPEG files in two folders, the same in tar files, and packed by twinblock. Each side gives
batches of 64 random crops of 224 px as float tensors, in random order, one process without workers; twinblock also
batches as they lie in the store, once as pixels and once as JPEG. The sides run in turn. Printed: images a second by
the clock and by the seconds of a core, medians, with the files in memory, and with the files dropped from it (`cold`).
Only Linux drops files so.
"""

import argparse
import importlib.util
import os
import statistics
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from twinblock.data import Images, load
from twinblock.data.forms import Wanted
from twinblock.training.loader import Loader
from twinblock.views import View, Views

SIZE, BATCH, SHARD = 224, 64, 500
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLAIN = View(flip=0.5, jitter=(0.0, 0.0, 0.0, 0.0), jitter_p=0.0, gray=0.0, blur=0.0, solarize=0.0)


def write(folder: Path, count: int) -> None:
    """Photographs in folders, and in tar files of `SHARD`."""
    rng, photos = np.random.Generator(np.random.PCG64(0)), load_sample_images().images
    for i in range(count):
        photo = photos[i % 2]
        edge = int(rng.integers(200, photo.shape[0]))
        top, left = (
            int(rng.integers(0, length - side)) for length, side in zip(photo.shape, (edge, edge), strict=False)
        )
        crop = Image.fromarray(photo[top : top + edge, left : left + edge]).resize((500, 375))
        file = folder / "files" / str(i % 2) / f"{i:06}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        crop.save(file, quality=90)
        with tarfile.open(folder / f"shard-{i // SHARD:04}.tar", "a") as tar:
            tar.add(file, f"{i:06}.jpg")


def image_folder(folder: Path) -> Callable[[int], Iterator[torch.Tensor]]:
    found = datasets.ImageFolder(str(folder / "files"), cropped())
    return lambda turn: (batch for batch, _ in DataLoader(found, BATCH, shuffle=True, drop_last=True))


def web_dataset(folder: Path) -> Callable[[int], Iterator[torch.Tensor]]:
    import webdataset as wds  # pyright: ignore[reportMissingImports]

    crop = cropped()
    shards = [str(path) for path in sorted(folder.glob("shard-*.tar"))]
    found = wds.WebDataset(shards, shardshuffle=len(shards)).shuffle(SHARD).decode("pil").to_tuple("jpg")  # pyright: ignore[reportAttributeAccessIssue]
    batches = found.map_tuple(crop).batched(BATCH, partial=False)
    return lambda turn: (batch for (batch,) in DataLoader(batches, None))


def cropped() -> Callable:
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, (0.2, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


def packed(images: Images, views: Views | None) -> Callable[[int], Iterator[torch.Tensor]]:
    def batches(turn: int) -> Iterator[torch.Tensor]:
        loader = Loader(images, turn, BATCH, BATCH, 0, torch.device("cpu"))
        for step, samples in enumerate(loader.batches(0, loader.epoch_steps)):
            assert samples.pixels is not None
            if views is None:
                yield samples.pixels
            else:
                yield views(samples.pixels, seed=turn, epoch=0, step=step, batch=BATCH, aspect=samples.aspect)[0]

    return batches


def drop(folder: Path) -> None:
    """The files below are no longer in memory, if the system agrees."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def rates(give: Callable[[int], Iterator[torch.Tensor]], turn: int) -> tuple[float, float]:
    """Images a second, by the clock and by a core's time."""
    clock, core = time.perf_counter(), time.process_time()
    count = sum(len(batch) for batch in give(turn))
    return count / (time.perf_counter() - clock), count / (time.process_time() - core)


def compare(folder: Path, images: int, repeats: int) -> None:
    write(folder, images)
    os.environ["TWINBLOCK_CACHE"] = str(folder / "cache")
    sides = {}
    for name, wanted in (("", Wanted()), (", JPEG", Wanted(jpeg=90))):
        began = time.process_time()
        found = load(str(folder / "files"), size=SIZE, wanted=wanted)
        assert found is not None
        rate = images / (time.process_time() - began)
        size = Path(found.pixels.filename).stat().st_size / images  # pyright: ignore[reportAttributeAccessIssue]
        print(f"packed{name} once, at {rate:.0f} images a second of a core; {size / 1000:.1f} kB an image")
        sides[f"twinblock{name}, as stored"] = packed(found, None)
        sides[f"twinblock{name}, cropped"] = packed(found, Views([PLAIN], SIZE, MEAN, STD))
    sides |= {
        "torchvision ImageFolder": image_folder(folder),
    }
    if importlib.util.find_spec("webdataset"):
        sides["WebDataset"] = web_dataset(folder)
    print("| side | files | images/s | images/s of a core | times ImageFolder's |\n|---|---|---|---|---|")
    for state in ("in memory", "cold"):
        seen: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for turn in range(repeats + 1):
            for name, give in sides.items():
                if state == "cold":
                    drop(folder)
                seen[name].append(rates(give, turn))
        of_folder = [core for _, core in seen["torchvision ImageFolder"][1:]]
        for name, values in seen.items():
            clock, core = (statistics.median(column) for column in zip(*values[1:], strict=True))  # after a warm-up
            times = statistics.median(own / peer for (_, own), peer in zip(values[1:], of_folder, strict=True))
            print(f"| {name} | {state} | {clock:.0f} | {core:.0f} | {times:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Images from disk: twinblock, torchvision, WebDataset.")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files go; by default a temporary folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not importlib.util.find_spec("webdataset"):
        print("webdataset is not installed: left out")
    with TemporaryDirectory() as temporary:
        compare(arguments.folder or Path(temporary), arguments.images, arguments.repeats)


if __name__ == "__main__":
    main()
