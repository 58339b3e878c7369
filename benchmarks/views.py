"""Time of a view on one core: views of a batch against torchvision on PIL images, and lightly if installed.

    python benchmarks/views.py [--repeats 9]

The sides run in turn in one process, on the same photographs, with SimCLR's settings, each up to normalised
float tensors. Printed: the median time of a view, and the median ratio to our time in the same turn. Then the share
of a step that its views take, with and without small crops, on the CPU.
"""

import argparse
import importlib.util
import statistics
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import torch
from lightning_fabric import Fabric
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision import transforms

from twinblock.assembly.resolve import resolve
from twinblock.config.recipes import compose
from twinblock.data import Images
from twinblock.training.loader import Loader
from twinblock.training.step import TrainStep
from twinblock.views import View, Views

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
JITTER = (0.4, 0.4, 0.2, 0.1)


def photographs(count: int, side: int) -> np.ndarray:
    """(count, side, side, 3) uint8: random square crops of scikit-learn's two photographs."""
    rng, photos, crops = np.random.default_rng(0), load_sample_images().images, []
    for index in range(count):
        photo = photos[index % 2]
        edge = int(rng.integers(128, min(photo.shape[:2]) + 1))
        top, left = (int(rng.integers(0, length - edge + 1)) for length in photo.shape[:2])
        crop = Image.fromarray(photo[top : top + edge, left : left + edge])
        crops.append(np.asarray(crop.resize((side, side), Image.Resampling.BICUBIC)))
    return np.stack(crops)


def torchvision_view(size: int, blur: float) -> Callable:
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, (0.2, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(*JITTER)], 0.8),
            transforms.RandomGrayscale(0.2),
            transforms.RandomApply([transforms.GaussianBlur(2 * (size // 20) + 1)], blur),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


def lightly_view(size: int, blur: float) -> Callable:
    from lightly.transforms.simclr_transform import SimCLRViewTransform  # pyright: ignore[reportMissingImports]

    strengths = dict(zip(("cj_bright", "cj_contrast", "cj_sat", "cj_hue"), JITTER, strict=True))
    return SimCLRViewTransform(input_size=size, min_scale=0.2, gaussian_blur=blur, **strengths)


def compare(batch: int, side: int, size: int, blur: float, repeats: int) -> None:
    pixels = photographs(batch, side)
    images, pictures = torch.from_numpy(pixels), [Image.fromarray(p) for p in pixels]
    views = Views([View(jitter=JITTER, blur=blur)], size, MEAN, STD)
    makers = {"twinblock": lambda turn: views(images, seed=0, epoch=0, step=turn, batch=batch)}
    peers = {"torchvision": torchvision_view}
    if importlib.util.find_spec("lightly"):
        peers["lightly"] = lightly_view
    for name, peer in peers.items():
        view = peer(size, blur)
        makers[name] = lambda turn, view=view: [view(picture) for picture in pictures]
    times: dict[str, list[float]] = {name: [] for name in makers}
    for turn in range(repeats + 1):
        for name, make in makers.items():
            start = time.perf_counter()
            make(turn)
            times[name].append((time.perf_counter() - start) / batch * 1e6)
    print(f"batch {batch}, {side} -> {size} px, blur {blur}: µs a view, and the ratio (median of {repeats})")
    for name, values in times.items():
        turns = list(zip(values, times["twinblock"], strict=True))[1:]  # the first is a warm-up
        median = statistics.median(peer for peer, _ in turns)
        print(f"  {name:12} {median:9.1f} {statistics.median(peer / own for peer, own in turns):7.1f}")


def share(recipe: str, side: int, batch: int, *overrides: str) -> None:
    """The part of a step that its views take: medians of four steps after a first one."""
    images = Images(photographs(5 * batch, side))
    fields = (f"data.batch={batch}", f"data.size={min(side, 224)}", "train.length=1epochs", *overrides)
    config = resolve(compose(recipe, overrides=fields), images, torch.device("cpu"))
    loader = Loader(images, 0, batch, batch, 0, torch.device("cpu"))
    step, spent, parts = TrainStep(config, Fabric(accelerator="cpu", devices=1), None, 5, 5, {}), 0.0, []
    views = step.views

    def timed(*given, **how):
        nonlocal spent
        began = time.process_time()
        made = views(*given, **how)
        spent = time.process_time() - began
        return made

    step.views = timed  # pyright: ignore[reportAttributeAccessIssue]
    for k, samples in enumerate(loader.batches(0, 5)):
        began = time.process_time()
        step(k, samples)
        parts.append(spent / (time.process_time() - began))
    sizes = ", ".join(f"{count} of {size} px" for size, count in Counter(config.view_sizes).items())
    print(f"{recipe}, {config.encoder.kind}, views {sizes}: {statistics.median(parts[1:]):.1%} of a step", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of a view on one core, ours and that of peers.")
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    if not importlib.util.find_spec("lightly"):
        print("lightly is not installed: left out")
    compare(batch=256, side=32, size=32, blur=0.0, repeats=repeats)
    compare(batch=32, side=256, size=224, blur=0.5, repeats=repeats)
    crops = (
        "views=[{crop: [0.2, 1.0], flip: 0.5, blur: 0.0}, {like: 0}, {like: 0, crop: [0.05, 0.4], size: 16, count: 6}]"
    )
    network = "encoder=resnet18", "encoder.stem=cifar"
    for recipe in ("simclr", "dino"):
        share(recipe, 32, 64, *network)
        share(recipe, 32, 64, *network, crops)
    share("simclr_imagenet", 256, 4)
    share("swav_imagenet", 256, 4)
    share("dino_imagenet", 256, 4)


if __name__ == "__main__":
    main()
