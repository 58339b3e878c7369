"""Local rules on the scanned digits of scikit-learn (1 797 of 8 x 8 pixels): what their publications measure.

    python benchmarks/local_rules.py [forward_forward] [dbn] [--seeds 3] [--out runs/local_rules]

`forward_forward`: test accuracy of the label with the largest goodness, all layers at once and one after the other; a
fifth of the digits is for testing. `dbn`: scikit-learn's example plot_rbm_logistic_classification: digits moved by a
pixel in four directions, an RBM of 100 units, a logistic regression on its hidden units, and one on the pixels. Its
tolerance is 1e-3, with which scikit-learn's own RBM gives the 92.3 % that it published, and the pixels 77.8 %.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import shift
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import minmax_scale

import twinblock
from twinblock.assembly.views import views_of
from twinblock.methods.learners.forward_forward import predicted

PLANS = ("simultaneous", "sequential")
MOVES = ((-1, 0), (0, -1), (0, 1), (1, 0))


def forward_forward(seeds: int, out: Path) -> None:
    digits: Any = load_digits()
    pixels = np.repeat((digits.images * 255 / 16).round().astype(np.uint8)[..., None], 3, 3)
    train, test, labels, true = train_test_split(
        pixels, digits.target, test_size=0.2, random_state=0, stratify=digits.target
    )
    for plan in PLANS:
        found = []
        for seed in range(seeds):
            overrides = [f"scope.plan={plan}", f"train.seed={seed}"]
            folder = out / f"forward_forward-{plan}-{seed}"
            run = twinblock.pretrain(
                "forward_forward", data=(train, labels), out=folder, overrides=overrides, quiet=True
            )
            views = views_of(run.config)(torch.from_numpy(test), seed=0, epoch=0, step=0, batch=len(test))
            found.append(100 * float((predicted(run.learners(), views[0]).numpy() == true).mean()))
        report(f"Forward-Forward, {plan}", found)


def dbn(seeds: int, out: Path) -> None:
    digits: Any = load_digits()
    images = [digits.images, *(np.stack([shift(x, by, order=0) for x in digits.images]) for by in MOVES)]
    rows = minmax_scale(np.concatenate(images).reshape(-1, 64)).astype(np.float32)
    labels = np.tile(digits.target, 5)
    parts: Any = train_test_split(rows, labels, test_size=0.2, random_state=0)
    train, test, known, true = parts
    scaled = ["data.range=[0,1]", "data.mean=[0]", "data.std=[1]", "encoder.width=[100]", "train.length=10epochs"]
    found: dict[str, list[float]] = {
        "RBM": [],
        "untrained RBM": [],
        "pixels": [accuracy(train, known, test, true, 100)],
    }
    for seed in range(seeds):
        overrides = [*scaled, f"train.seed={seed}"]
        run = twinblock.pretrain("dbn", data=maps(train), out=out / f"dbn-{seed}", overrides=overrides, quiet=True)
        for name, encoder in (("RBM", run.encoder()), ("untrained RBM", run.untrained_encoder().eval())):
            features = [hidden(encoder, part) for part in (train, test)]
            found[name].append(accuracy(features[0], known, features[1], true, 6000))
    for name, values in found.items():
        report(name, values)


def maps(rows: np.ndarray) -> np.ndarray:
    return rows.reshape(-1, 8, 8, 1)


@torch.no_grad()
def hidden(encoder: torch.nn.Module, rows: np.ndarray) -> np.ndarray:
    return encoder(torch.from_numpy(maps(rows)).permute(0, 3, 1, 2)).numpy()


def accuracy(train: Any, known: Any, test: Any, true: Any, c: float) -> float:
    classifier = LogisticRegression(solver="newton-cg", tol=1e-3, C=c)
    return 100 * float(classifier.fit(train, known).score(test, true))


def report(name: str, values: Sequence[float]) -> None:
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    print(f"{name}: {statistics.mean(values):.2f}{spread} % ({len(values)} seeds)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Local rules on scanned digits.")
    parser.add_argument("only", nargs="*", default=["forward_forward", "dbn"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/local_rules"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.only:
        {"forward_forward": forward_forward, "dbn": dbn}[name](arguments.seeds, arguments.out)


if __name__ == "__main__":
    main()
