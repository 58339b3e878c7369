"""What one reads to know a method: every file that runs between its recipe and its second training step.

`python benchmarks/reading.py [RECIPE]` composes the recipe, builds its parts, takes two steps on noise and lists the
files of this package that were entered, with the lines of the whole file and those of the functions that ran. A line
moved to another file still counts there: only code that need not run, or is shorter, makes the sums smaller. Not
counted: what reads images, writes files, or judges embeddings, since none of it runs here.
"""

import sys
from collections import defaultdict
from pathlib import Path
from types import CodeType

PACKAGE = Path(__file__).parent.parent / "twinblock"


def entered(recipe: str) -> dict[Path, set[CodeType]]:
    """The code that ran, by file."""
    import numpy as np
    import torch
    from lightning_fabric import Fabric

    from twinblock.assembly.resolve import resolve
    from twinblock.config.recipes import compose
    from twinblock.data import Images
    from twinblock.training.loader import Loader
    from twinblock.training.step import TrainStep

    ran: dict[Path, set[CodeType]] = defaultdict(set)

    def note(frame, event, _):
        file = Path(frame.f_code.co_filename)
        if event == "call" and PACKAGE in file.parents:
            ran[file].add(frame.f_code)

    small = ["encoder.kind=resnet10", "encoder.width=8", "data.batch=8", "train.precision=fp32"]
    images = Images(np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8))
    fabric = Fabric(accelerator="cpu", devices=1)
    sys.setprofile(note)
    try:
        config = resolve(compose(recipe, overrides=small), images, torch.device("cpu"))
        loader = Loader(images, 0, 8, 8, 0, fabric.device)
        step = TrainStep(config, fabric, None, loader.epoch_steps, 2, {})
        for number, samples in enumerate(loader.batches(0, 2)):
            step(number, samples)
    finally:
        sys.setprofile(None)
    return ran


def lines_of(code: CodeType) -> set[int]:
    """The lines from a function's first to its last, with those of functions inside it."""
    lines = {line for _, _, line in code.co_lines() if line}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            lines |= lines_of(constant)
    return set(range(min(lines), max(lines) + 1))


def main(recipe: str) -> None:
    rows = []
    for file, codes in entered(recipe).items():
        ran = set().union(*(lines_of(code) for code in codes if code.co_name != "<module>"))
        if ran:
            rows.append((str(file.relative_to(PACKAGE)), len(file.read_text().splitlines()), len(ran)))
    print(f"{'file':40} {'lines':>6} {'that ran':>9}")
    for name, lines, ran in sorted(rows):
        print(f"{name:40} {lines:6} {ran:9}")
    print(f"{len(rows)} files{'':33} {sum(r[1] for r in rows):6} {sum(r[2] for r in rows):9}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "byol")
