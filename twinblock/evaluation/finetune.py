"""`finetune`: the whole network with a classifier, from several starting points, with few labels and with many."""

import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

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
from twinblock.data.training import chosen, whole
from twinblock.data.values import seen_as
from twinblock.diagnosis.chance import STARTING
from twinblock.evaluation import at_size, features, seen_by
from twinblock.evaluation.classifier import Classifier, Schedule, fit, need_modules, save
from twinblock.evaluation.goals import Goal, goal_of
from twinblock.evaluation.protocols import Protocol, Trial, protocol_of
from twinblock.evaluation.published import PREFIX, published, run_of
from twinblock.evaluation.record import hash_weights
from twinblock.nn.encoders import Encoder
from twinblock.runs.run import Run

OWN, PRETRAINED, SCRATCH = "finetune", "pretrained", "scratch"
Start = Callable[[int], Encoder]  # the encoder to begin with, by seed


@dataclass(frozen=True)
class Task:
    """What is learned: labelled images to train on and to test on, as `config` sees them, and how."""

    config: Config
    goal: Goal
    protocol: Protocol
    frozen: tuple[str, ...]
    device: torch.device

    def train(self, start: Encoder, rows: np.ndarray, trial: Trial, seed: int) -> Classifier:
        p, (lr, epochs) = self.protocol, trial
        crop = {} if p.crop is None else {"crop": p.crop, "flip": 0.5, "interpolation": "bicubic"}
        plain = {"jitter_p": 0.0, "gray": 0.0, "blur": 0.0, "solarize": 0.0, "size": None, "count": 1, **crop}
        views = views_of(self.config, [self.config.views[0].model_copy(update=plain)])
        steps = max(p.fewest, epochs * max(1, -(-len(rows) // p.batch)))
        how = Schedule(steps, p.batch, views, self.frozen, self.device, p.decay, p.clip)
        return fit(start, self.goal, rows, lr, seed, how)

    def scores(self, model: nn.Module, images: Images) -> torch.Tensor:
        return features(model, images, **{**seen_by(self.config, self.device), "autocast": None})

    def chosen(self, start: Encoder, rows: np.ndarray, seed: int) -> tuple[float, int, int]:
        """The learning rate and the epochs with the highest score on a fifth of these images, of equals the lowest
        loss; and how many images these are.
        """
        held = self.goal.held_out(rows, seed)
        if not held.any():
            return self.protocol.usual, self.protocol.epochs[0], 0
        targets, judged = self.goal.targets[0][rows[held]], []
        for trial in self.protocol.trials:
            model = self.train(start, rows[~held], trial, seed)
            scores = self.scores(model, take(self.goal.images[0], rows[held]))
            loss = float(self.goal.loss(scores, targets))
            score = self.score(scores, targets) if math.isfinite(loss) else -1.0
            judged.append((score, -loss if math.isfinite(loss) else -math.inf, trial))
        return (*max(judged)[2], int(held.sum()))

    def score(self, scores: torch.Tensor, targets: torch.Tensor) -> float:
        """In percent; 0 where no class is told of."""
        found = self.goal.score(self.goal.measured(scores, targets))
        return 0.0 if math.isnan(found) else found

    def measured(self, model: Classifier) -> Any:
        return self.goal.measured(self.scores(model, self.goal.images[1]), self.goal.targets[1])


@own_settings()
def finetune(
    start: Run | str | Path,
    data: Any = None,
    *,
    protocol: str = "default",
    fraction: float | Sequence[float] | None = None,
    seeds: int = 3,
    epochs: int | None = None,
    freeze: str | Sequence[str] = (),
    beside: str | Sequence[str] = (),
    out: str | Path | None = None,
    encoder: nn.Module | None = None,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Train the whole network with a classifier, and compare starting points: the run's weights, those that it
    started from, those beside, scratch.

    `start`: a run, or `timm:NAME` for published weights. `data`: labelled images, as `evaluate` takes them; by default
    the run's; an image may be of several classes. `protocol`: `default`, or `byol` as published. `fraction`: parts of
    the training images, of each class one at least; by default those of the protocol, as `epochs`, the passes.
    `seeds`: repetitions, each with other images and another order. `freeze`: modules that stay as they are, or
    `encoder` for all. `beside`: further starting points, `timm:NAME`. `encoder`: the module that the run was made with.

    SGD with Nesterov momentum, crops and flips, a cosine to 0. The learning rate, and the epochs where the protocol
    has several, are the best on held-out training images of the first seed, never on test images.
    Returns a row for each starting point and fraction: images, accuracy or mean average precision, and its standard
    deviation over seeds, in percent, rate, epochs. Writes them to finetune.json and finetune.csv in `out`, by default
    `finetune` in the run; for several classes an image each class to finetune-classes.csv; and the classifier of the
    start, the largest fraction and the first seed to `model`, which `export` takes, and `evaluate` for one class.
    The same command again goes on where it stopped. Raises InputError without labels and for what it cannot train.
    """
    how, frozen, others = protocol_of(protocol), tuple(_many(freeze)), tuple(_many(beside))
    fractions = list(how.fractions) if fraction is None else _many(fraction)
    _check(fractions, seeds, 1 if epochs is None else epochs, others)
    how = how if epochs is None else replace(how, epochs=(epochs,))
    at_start = isinstance(start, str) and start.startswith(PREFIX)
    if at_start:
        run, source, images = run_of(str(start), data)
    else:
        run = Run.open(start, encoder=encoder)  # pyright: ignore[reportArgumentType]
        source, images = chosen(whole(run.config.data), data, run.objects.get("data"))
    folder = (
        expanded(out) if out else Path("runs", f"{OWN}-{str(start)[len(PREFIX) :]}") if at_start else run.path / OWN
    )
    task = _task(run, source, images, how, frozen)
    starts = _starts(run, str(start) if at_start else None, others, task)
    need_modules(next(iter(starts.values()))(0), frozen)
    rows, classes = _compared(task, starts, sorted(fractions), seeds, folder, quiet)
    _write(folder / f"{OWN}.csv", rows)
    if classes:
        _write(folder / f"{OWN}-classes.csv", classes)
    return rows


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    columns = {name: ["" if row[name] is None else str(row[name]) for row in rows] for name in rows[0]}
    with replacing(file) as written:
        write_table(written, "csv", columns)


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


def _task(run: Run, source: Data, images: Images | None, how: Protocol, frozen: tuple[str, ...]) -> Task:
    goal = goal_of(source, run.config.train.seed, images)
    if goal.images[0].tiled:
        raise InputError("finetune sees whole images, and data.tile cuts them; leave it out")
    if len(goal.names) < 2 and not goal.several:
        raise InputError(f"{source.source_name} has one class, so there is nothing to tell apart; give labelled data")
    seen = seen_as(at_size(run.config, encoder_of(run.config, run.objects), source.size), source, *goal.images)
    return Task(seen, goal, how, frozen, best_device())


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
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The table, and that of classes; what `folder` holds of the same comparison is not trained again."""
    kept, trials = _Kept.open(folder, task, starts), len(task.protocol.trials)
    rows, classes, trainings = [], [], len(starts) * len(fractions) * (trials + seeds)
    with progress("fine-tuning", trainings, quiet) as advance:
        for fraction in fractions:
            for name, start in starts.items():
                lr, epochs, count = kept.get(f"{name}, {fraction:g}, rate", partial(_chosen, task, start, fraction))
                advance(trials)
                cells = []
                for seed in range(seeds):
                    model_here = name == next(iter(starts)) and fraction == max(fractions) and seed == 0
                    place = folder / "model" if model_here else None
                    key = f"{name}, {fraction:g}, {seed}{', model' if place else ''}"
                    cells.append(kept.get(key, partial(_cell, task, start, fraction, (lr, epochs), seed, place)))
                    advance(1)
                row = {"start": name, "labels %": 100 * fraction}
                mean, deviation = _over_seeds([task.goal.score(cell) for cell in cells])
                of = {"images": len(task.goal.part(fraction, 0)), task.goal.measure: mean, "std": deviation}
                rows.append({**row, **of, "rate": lr, "epochs": epochs, "chosen on": count})
                if task.goal.several:
                    classes += [{**row, **one} for one in _by_class(task, fraction, cells)]
    kept.write(rows)
    return rows, classes


def _over_seeds(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def _by_class(task: Task, fraction: float, cells: Sequence[Sequence[float | None]]) -> Iterator[dict[str, Any]]:
    """Of each class its images in the part of the first seed, its average precision, and what chance has: its share of
    the test images.
    """
    train, test = (targets.numpy() for targets in task.goal.targets)
    count = (train[task.goal.part(fraction, 0)] == 1).sum(0)
    for i, name in enumerate(task.goal.names):
        values = [cell[i] for cell in cells]
        found = [value for value in values if value is not None]
        mean, deviation = _over_seeds(found) if found else (None, None)
        chance = 100 * float((test[:, i] == 1).sum() / max(1, (test[:, i] >= 0).sum()))
        yield {"class": name, "images": int(count[i]), "AP %": mean, "std": deviation, "chance %": chance}


def _chosen(task: Task, start: Start, fraction: float) -> list[Any]:
    return list(task.chosen(start(0), task.goal.part(fraction, 0), 0))


def _cell(task: Task, start: Start, fraction: float, trial: Trial, seed: int, place: Path | None) -> Any:
    model = task.train(start(seed), task.goal.part(fraction, seed), trial, seed)
    if place is not None:
        save(model, task.config, task.goal.names, place, task.goal.several)
    return task.measured(model)


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
    images = [part.fingerprint() for part in task.goal.images]
    config = blake2b(to_yaml(task.config).encode(), digest_size=8).hexdigest()
    protocol = json.loads(json.dumps(asdict(task.protocol)))  # as it is read again
    how = {"protocol": protocol, "frozen": list(task.frozen), "device": task.device.type, "config": config}
    return {"twinblock": __version__, **how, "images": images, "starts": digests, "test": len(task.goal.images[1])}
