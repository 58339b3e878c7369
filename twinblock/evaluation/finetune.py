"""`finetune`: the whole network with a classifier, from several starting points, with few labels and with many."""

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from twinblock.assembly.build import encoder_of
from twinblock.assembly.views import views_of
from twinblock.config.data import Data
from twinblock.config.recipes import to_yaml
from twinblock.config.schema import Config
from twinblock.core.console import progress
from twinblock.core.device import best_device
from twinblock.core.errors import InputError
from twinblock.core.files import expanded, replacing, write_table
from twinblock.core.settings import own_settings
from twinblock.core.version import __version__
from twinblock.data import Images, take
from twinblock.data.tails import by_class
from twinblock.data.training import chosen, whole
from twinblock.data.values import seen_as
from twinblock.diagnosis.chance import STARTING
from twinblock.evaluation import at_size, features, seen_by
from twinblock.evaluation.classifier import Classifier, Schedule, fit, need_modules, save
from twinblock.evaluation.labelled import LabelledSets, labelled
from twinblock.evaluation.published import PREFIX, published, run_of
from twinblock.evaluation.record import hash_weights
from twinblock.nn.encoders import Encoder
from twinblock.runs.run import Run

FRACTIONS = (0.01, 0.1, 1.0)
RATES = (0.003, 0.01, 0.03, 0.1)  # tried on held-out training images
USUAL = 0.03  # where there is nothing to hold out
HELD_OUT = 5  # every fifth image of a class chooses the rate
BATCH, FEWEST = 64, 100  # images of a step, and steps of a training at least
OWN, PRETRAINED, SCRATCH = "finetune", "pretrained", "scratch"
Start = Callable[[int], Encoder]  # the encoder to begin with, by seed


@dataclass(frozen=True)
class Task:
    """What is learned: labelled images to train on and to test on, as `config` sees them, and how long."""

    config: Config
    sets: LabelledSets
    epochs: int
    frozen: tuple[str, ...]
    device: torch.device

    @property
    def names(self) -> list[str]:
        """Of the classes."""
        given = self.sets.train.classes
        return [given[i] if given and i < len(given) else str(i) for i in self.sets.classes.tolist()]

    def rows(self, fraction: float, seed: int) -> np.ndarray:
        """So large a part of each class, rounded, one image at least; parts of one seed lie within each other."""
        parts = [rows[: max(1, round(fraction * len(rows)))] for rows in by_class(self.sets.train_labels, seed)]
        return np.sort(np.concatenate([part for part in parts if len(part)]))

    def train(self, start: Encoder, rows: np.ndarray, lr: float, seed: int) -> Classifier:
        images, labels = take(self.sets.train, rows), self.sets.train_labels[rows]
        plain = {"jitter_p": 0.0, "gray": 0.0, "blur": 0.0, "solarize": 0.0, "size": None, "count": 1}
        views = views_of(self.config, [self.config.views[0].model_copy(update=plain)])
        batches = max(1, -(-len(rows) // BATCH))
        how = Schedule(max(FEWEST, self.epochs * batches), BATCH, views, self.frozen, self.device)
        return fit(start, images, labels, len(self.sets.classes), lr, seed, how)

    def scores(self, model: nn.Module, images: Images) -> torch.Tensor:
        return features(model, images, **{**seen_by(self.config, self.device), "autocast": None})

    def rate(self, start: Encoder, rows: np.ndarray, seed: int) -> tuple[float, int]:
        """The rate with the highest accuracy on a fifth of these images, of equals the lowest loss; and how many these
        are. Classes of one image are all trained on.
        """
        labels = self.sets.train_labels[rows]
        held = np.zeros(len(rows), bool)
        for some in by_class(labels, seed):
            held[some[: max(1, len(some) // HELD_OUT) if len(some) > 1 else 0]] = True
        if not held.any():
            return USUAL, 0
        judged = []
        for lr in RATES:
            scores = self.scores(self.train(start, rows[~held], lr, seed), take(self.sets.train, rows[held]))
            truth = torch.from_numpy(labels[held])
            loss = float(cross_entropy(scores, truth))
            right = float((scores.argmax(1) == truth).float().mean()) if math.isfinite(loss) else -1.0
            judged.append((right, -loss if math.isfinite(loss) else -math.inf, lr))
        return max(judged)[2], int(held.sum())

    def accuracy(self, model: Classifier) -> float:
        right = self.scores(model, self.sets.test).argmax(1).numpy() == self.sets.test_labels
        return 100 * float(right.mean())


@own_settings()
def finetune(
    start: Run | str | Path,
    data: Any = None,
    *,
    fraction: float | Sequence[float] = FRACTIONS,
    seeds: int = 3,
    epochs: int = 30,
    freeze: str | Sequence[str] = (),
    beside: str | Sequence[str] = (),
    out: str | Path | None = None,
    encoder: nn.Module | None = None,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Train the whole network with a classifier, and compare starting points: the run's weights, those that it
    started from, those beside, scratch.

    `start`: a run, or `timm:NAME` for published weights. `data`: labelled images, as `evaluate` takes them; by default
    the run's. `fraction`: parts of the training images of each class, at least one image. `seeds`: repetitions, each
    with other images and another order. `epochs`: passes, of 100 steps in all at least. `freeze`: modules that stay as
    they are, or `encoder` for all. `beside`: further starting points, `timm:NAME`. `encoder`: the module that the run
    was made with.

    SGD with Nesterov momentum, 64 images a step, crops and flips as in the run's views, a cosine to 0. The learning
    rate is the best of four on held-out training images of the first seed, never on test images.
    Returns a row for each starting point and fraction: images, accuracy and its standard deviation over seeds in
    percent, rate. Writes them to finetune.json and finetune.csv in `out`, by default `finetune` in the run, and the
    classifier of the start, the largest fraction and the first seed to `model`, which `export` and `evaluate` take.
    The same command again goes on where it stopped. Raises InputError without labels and for what it cannot train.
    """
    fractions, frozen, others = _many(fraction), tuple(_many(freeze)), tuple(_many(beside))
    _check(fractions, seeds, epochs, others)
    at_start = isinstance(start, str) and start.startswith(PREFIX)
    if at_start:
        run, source, images = run_of(str(start), data)
    else:
        run = Run.open(start, encoder=encoder)  # pyright: ignore[reportArgumentType]
        source, images = chosen(whole(run.config.data), data, run.objects.get("data"))
    folder = (
        expanded(out) if out else Path("runs", f"{OWN}-{str(start)[len(PREFIX) :]}") if at_start else run.path / OWN
    )
    task = _task(run, source, images, epochs, frozen)
    starts = _starts(run, str(start) if at_start else None, others, task)
    need_modules(next(iter(starts.values()))(0), frozen)
    rows = _compared(task, starts, sorted(fractions), seeds, folder, quiet)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    with replacing(folder / f"{OWN}.csv") as file:
        write_table(file, "csv", {name: [str(cell) for cell in column] for name, column in columns.items()})
    return rows


def _many(given: Any) -> list[Any]:
    if isinstance(given, str):
        return [part for part in given.split(",") if part]
    return list(given) if isinstance(given, Sequence) else [given]


def _check(fractions: Sequence[Any], seeds: int, epochs: int, beside: Sequence[str]) -> None:
    for one in fractions:
        if isinstance(one, bool) or not isinstance(one, int | float) or not 0 < one <= 1:
            raise InputError(f"fraction={one}: give parts of the training images, more than 0 and at most 1")
    if not fractions or len({*fractions}) < len(fractions):
        raise InputError("fraction: give one or more different numbers")
    for name, value in (("seeds", seeds), ("epochs", epochs)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name}={value}: give a whole number of at least 1")
    for one in beside:
        if not str(one).startswith(PREFIX):
            raise InputError(
                f"beside={one}: give {PREFIX}NAME, such as timm:resnet18; compare runs by fine-tuning each"
            )


def _task(run: Run, source: Data, images: Images | None, epochs: int, frozen: tuple[str, ...]) -> Task:
    sets = LabelledSets.of(*labelled(source, run.config.train.seed, images))
    if sets.train.tiled:
        raise InputError("finetune sees whole images, and data.tile cuts them; leave it out")
    if len(sets.classes) < 2:
        raise InputError(f"{source.source_name} has one class, so there is nothing to tell apart; give labelled data")
    seen = seen_as(at_size(run.config, encoder_of(run.config, run.objects), source.size), source, *sets.images)
    return Task(seen, sets, epochs, frozen, best_device())


def _starts(run: Run, tag: str | None, beside: Sequence[str], task: Task) -> dict[str, Start]:
    """The starting points by name; the first is the one that is asked about."""

    def scratch(seed: int) -> Encoder:
        if ":" in run.config.encoder.kind:
            return run.untrained_encoder()  # a module of one's own: the weights it came with
        train = run.config.train.model_copy(update={"seed": run.config.train.seed + seed})
        return encoder_of(run.config.model_copy(update={"train": train}), run.objects)

    named = {PRETRAINED: run.encoder()} if tag is None else {tag: published(tag, task.config)}
    if (begun := run.starting_encoder()) is not None:
        named[STARTING] = begun
    named |= {one: published(one, task.config) for one in beside if one != tag}
    return {**{name: (lambda seed, one=one: one) for name, one in named.items()}, SCRATCH: scratch}


def _compared(
    task: Task, starts: Mapping[str, Start], fractions: Sequence[float], seeds: int, folder: Path, quiet: bool
) -> list[dict[str, Any]]:
    """The table; what `folder` holds of the same comparison is not trained again."""
    kept = _Kept.open(folder, task, starts)
    rows, trainings = [], len(starts) * len(fractions) * (len(RATES) + seeds)
    with progress("fine-tuning", trainings, quiet) as advance:
        for fraction in fractions:
            for name, start in starts.items():
                lr, chosen_by = kept.get(f"{name}, {fraction:g}, rate", partial(_rate, task, start, fraction))
                advance(len(RATES))
                cells = []
                for seed in range(seeds):
                    model_here = name == next(iter(starts)) and fraction == max(fractions) and seed == 0
                    place = folder / "model" if model_here else None
                    key = f"{name}, {fraction:g}, {seed}{', model' if place else ''}"
                    cells.append(kept.get(key, partial(_cell, task, start, fraction, lr, seed, place)))
                    advance(1)
                deviation = statistics.stdev(cells) if len(cells) > 1 else None
                row = {"start": name, "labels %": 100 * fraction, "images": len(task.rows(fraction, 0))}
                row |= {"accuracy %": statistics.fmean(cells), "std": deviation, "rate": lr, "chosen on": chosen_by}
                rows.append(row)
    kept.write(rows)
    return rows


def _rate(task: Task, start: Start, fraction: float) -> list[Any]:
    return list(task.rate(start(0), task.rows(fraction, 0), 0))


def _cell(task: Task, start: Start, fraction: float, lr: float, seed: int, place: Path | None) -> float:
    model = task.train(start(seed), task.rows(fraction, seed), lr, seed)
    if place is not None:
        save(model, task.config, task.names, place)
    return task.accuracy(model)


class _Kept:
    """finetune.json: what was trained of a comparison, by cell, so that a killed one goes on."""

    def __init__(self, file: Path, facts: dict[str, Any], cells: dict[str, Any]):
        self.file, self.facts, self.cells = file, facts, cells

    @classmethod
    def open(cls, folder: Path, task: Task, starts: Mapping[str, Start]) -> "_Kept":
        facts = _facts(task, starts)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"out={folder}: cannot write there ({error.strerror}); choose another folder") from None
        file, others = folder / f"{OWN}.json", [p for p in folder.iterdir() if not p.name.startswith(OWN)]
        if not file.is_file() and [p for p in others if p.name != "model"]:
            raise InputError(f"out={folder} holds other files; choose another folder")
        try:
            before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            same = before.get("of") == facts and isinstance(before.get("cells"), dict)
        except (OSError, ValueError, AttributeError, RecursionError):
            before, same = {}, False
        return cls(file, facts, before["cells"] if same else {})

    def get(self, key: str, make: Callable[[], Any]) -> Any:
        if key not in self.cells or (key.endswith("model") and not (self.file.parent / "model").is_dir()):
            self.cells[key] = make()
            self.write(None)
        return self.cells[key]

    def write(self, rows: list[dict[str, Any]] | None) -> None:
        """`rows` None: not finished."""
        with replacing(self.file) as file:
            text = json.dumps({"of": self.facts, "rows": rows, "cells": self.cells}, indent=2)
            file.write((text + "\n").encode())


def _facts(task: Task, starts: Mapping[str, Start]) -> dict[str, Any]:
    """What the cells depend on."""
    digests = {}
    for name, start in starts.items():
        hashed = blake2b(digest_size=8)
        hash_weights(hashed, start(0))
        digests[name] = hashed.hexdigest()
    images = [part.fingerprint() for part in task.sets.images]
    config = blake2b(to_yaml(task.config).encode(), digest_size=8).hexdigest()
    how = {"epochs": task.epochs, "frozen": list(task.frozen), "device": task.device.type, "config": config}
    return {"twinblock": __version__, **how, "images": images, "starts": digests, "test": len(task.sets.test_labels)}
