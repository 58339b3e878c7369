"""Seconds and memory of embed, search and duplicates on 100,000 images, each in a process of its own.

    python benchmarks/large.py [--images 100000] [--out runs/large] [--json FILE]

Images are renderings of the embedded digits at 32 x 32, and the encoder is a ResNet-10 of width 8 after one step: what
it has learned does not matter here. `embed` is timed as it begins, then once more with all features kept; `search` and
`duplicates` find them kept, too. Seconds are those of the clock and those of processor cores, which other work on the
machine does not lengthen; the latter with the start of Python. Memory is the peak of the process (Linux's VmHWM).
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

import twinblock
from twinblock.data.photodigits import photodigits
from twinblock.studies.study import markdown

SMALL = ("encoder.kind=resnet10", "encoder.width=8", "data.batch=64", "train.length=1steps")
HEAD = "import re, sys, time; import numpy as np, twinblock; data = np.load(sys.argv[2]); began = time.monotonic(); "
PEAK = "re.search('VmHWM: *([0-9]+)', open('/proc/self/status').read().replace(chr(9), ' '))[1]"
TAIL = f"; print(time.monotonic() - began, time.process_time(), {PEAK})"
COMMANDS = {
    "embed": "twinblock.embed(sys.argv[1], data=data)",
    "embed, again": "twinblock.embed(sys.argv[1], data=data)",
    "search of ten pictures": "twinblock.search(sys.argv[1], sys.argv[3:], data=data)",
    "duplicates": "twinblock.duplicates(sys.argv[1], data=data)",
    "nothing but the images": "data.sum()",
}


def made(out: Path, count: int) -> tuple[Path, list[Path]]:
    """An array of so many images, and ten pictures to search for."""
    file, pictures = out / f"images{count}.npy", [out / f"picture{i}.png" for i in range(10)]
    if not file.exists():
        parts = []
        while sum(map(len, parts)) < count:
            parts.append(photodigits("train", seed=len(parts)).pixels)
        np.save(file, np.concatenate(parts)[:count])
        for picture, pixels in zip(pictures, photodigits("test").pixels[::100], strict=False):
            Image.fromarray(pixels).save(picture)
    return file, pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=Path("runs/large"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    file, pictures = made(args.out, args.images)
    run = twinblock.pretrain("simclr", out=args.out / f"run{int(time.time())}", overrides=SMALL, quiet=True)
    rows = []
    for name, code in COMMANDS.items():
        words = [sys.executable, "-c", HEAD + code + TAIL, str(run.path), str(file), *map(str, pictures)]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        seconds, cpu, peak = map(float, done.stdout.splitlines()[-1].split())
        row = {"command": name, "seconds": round(seconds, 1), "of a core": round(cpu, 1), "GiB": round(peak / 2**20, 2)}
        rows.append(row)
        print(rows[-1], flush=True)
    print(f"{args.images:,} images\n\n{markdown(rows)}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
