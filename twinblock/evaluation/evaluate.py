"""Measuring a run: kNN and linear probe of its frozen encoder, beside raw pixels and the untrained encoder."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from twinblock.assembly.build import encoder_of
from twinblock.config.schema import Config, Data, other_data
from twinblock.core.console import progress
from twinblock.core.device import best_device
from twinblock.core.errors import InputError
from twinblock.core.files import same_place
from twinblock.core.pictures import optional_picture
from twinblock.core.seeding import order
from twinblock.core.settings import own_settings
from twinblock.data import Images, load, take
from twinblock.data.tails import few_shot
from twinblock.data.training import training, whole
from twinblock.diagnosis.chance import CALIBRATED, PIXELS, UNTRAINED, Accuracy
from twinblock.evaluation import at_size, features, knn_scores, linear_probe, pixels, seen_by
from twinblock.evaluation.depth import (
    BLOCK,
    EveryBlock,
    draw_beside,
    need_blocks,
    rank_share,
    rows_by_block,
    trained_pooling,
)
from twinblock.evaluation.groups import class_accuracies, class_sizes, classes_of, figure, group_report
from twinblock.evaluation.sgd import FEW_SHOT, FULL_SHOT, augmented, sgd_probe
from twinblock.nn.encoders import Encoder
from twinblock.nn.modes import calibrated
from twinblock.runs.run import Run

log = logging.getLogger(__name__)

MOST_PIXELS = 32  # a side: a linear probe of more would not fit into memory
CALIBRATION = 500  # images that the batch norms of an untrained encoder see
K, TEMPERATURE = 200, 0.1  # of the weighted kNN
COPIES = 5  # of its features and scores that a linear probe holds at most
QUICK_BANK, QUICK_QUERIES = 10_000, 5_000  # images that the look at the end of a training takes at most
Pair = tuple[Tensor, Tensor]  # features of the images to fit on, and of those to test on


@dataclass(frozen=True)
class Look:
    """How networks look at the images to fit on and those to test on."""

    config: Config
    sets: tuple[Images, Images]
    device: torch.device
    advance: Callable[[int], None]

    def features(self, module: nn.Module) -> Pair:
        how = seen_by(self.config, self.device)
        first, second = (features(module.to(self.device), s, advance=self.advance, **how) for s in self.sets)
        return first, second

    def baselines(self) -> dict[str, Pair]:
        """The pixels, and the features of the encoder before training."""
        assert self.config.data.size is not None
        side = min(self.config.data.size, MOST_PIXELS)
        first, second = (pixels(s, side) for s in self.sets)
        return {PIXELS: (first, second), UNTRAINED: self.features(self.untrained())}

    def untrained(self) -> Encoder:
        return encoder_of(self.config)

    def calibrated(self) -> Pair:
        """The features of the encoder before training, once its batch norms have seen some of the images to fit on."""
        encoder = self.untrained().to(self.device)
        some = take(self.sets[0], np.arange(min(len(self.sets[0]), CALIBRATION)))
        with calibrated(encoder, lambda: features(encoder, some, **seen_by(self.config, self.device))):
            return self.features(encoder)

    def blocks(self, every: EveryBlock) -> tuple[Pair, dict[str, Pair]]:
        """Of the encoder, and of every block whose features are not the encoder's own."""
        both = (rows.split(every.widths, 1) for rows in self.features(every))
        *blocks, own = zip(*both, strict=True)
        return own, {f"{BLOCK}{k}": pair for k, pair in enumerate(blocks, start=1)}


@own_settings()
def evaluate(
    run: Run | str | Path,
    data: str | Path | Mapping[str, Any] | None = None,
    published: bool = False,
    baselines: bool = True,
    blocks: bool | None = None,
    pooling: bool = False,
    beside: Sequence[str | Path] = (),
    shots: Sequence[int] = (),
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Weighted kNN and linear probe, top-1 in percent, of a run's encoder and of two baselines.

    They are fitted to all training images of the source, also of those that the run did not train on; `data` names
    other labelled data. After training on classes of unequal size, or where the first run `beside` it did, there is a
    few-shot probe too and accuracy by class and by group, drawn in `classes.png` with the runs `beside`. `shots`: the
    images of each class for it, else 1 % of the smallest class. `published`: also SDCLR's SGD probes, and the few-shot
    probe. `blocks`: also every block, with its effective rank in % of its width (None: where the run trained in
    blocks), through the pooling of its training where `pooling`; drawn in `depth.png`, with the runs `beside` measured
    so. All is written to `evaluation.json` in the run; a run that
    may not be written to is said and stays as it is. Raises InputError where there are no labels or no run.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    config = run.config
    source = whole(config.data) if data is None else other_data(whole(config.data), data)
    encoder = run.encoder()
    seen = at_size(config, encoder, source.size)
    train, test = labelled(source, config.train.seed)
    device = best_device()
    known, fit, asked = _numbered(train, test)
    others = [Run.open(other) for other in beside]
    # a balanced twin has the groups of the set that it stands beside
    sizes = _unequal_sizes([run, *others[:1]], source, known)
    drawn = {} if sizes is None else {str(other.path): [classes_of(other)] for other in others}
    few = _few_shot(fit, shots, config.train.seed) if shots or published or sizes is not None else {}
    if blocks is None:
        blocks = config.scope.kind != "end_to_end" or pooling or (bool(others) and sizes is None)
    if blocks and sizes is None:
        need_blocks(others)
    every = EveryBlock(encoder, trained_pooling(run) if pooling else None) if blocks else None
    with progress("computing features", (1 + baselines) * (len(train) + len(test)), quiet) as advance:
        look = Look(seen, (train, test), device, advance)
        own, of_blocks = (look.features(encoder), {}) if every is None else look.blocks(every)
        measured = {"encoder": own, **(look.baselines() if baselines else {}), **of_blocks}
    rows, groups = [], []
    with progress("fitting probes", len(measured), quiet) as advance:
        for name, pair in measured.items():
            scores = _probes(pair, torch.from_numpy(fit), few, len(known), device)
            if published:  # its SGD probes look at images, not at features
                sgd = _published(run.encoder(), seen, train, fit, few, pair[1], device) if name == "encoder" else {}
                scores |= {f"SGD {kind}": sgd.get(kind) for kind in ("linear", *few)}
            row: dict[str, Any] = {
                f"{kind} %": None if found is None else accuracy(found, asked) for kind, found in scores.items()
            }
            if blocks:
                row["rank %"] = None if name == PIXELS else rank_share(pair[1])
            rows.append({"features": name, **row, "width": pair[0].shape[1]})
            groups += [
                {"features": name, "evaluator": kind, **_by_group(found, asked, sizes)}
                for kind, found in scores.items()
                if found is not None and sizes is not None
            ]
            advance(1)
    if blocks and not pooling:
        rows.append({**rows[0], "features": f"{BLOCK}{len(of_blocks) + 1}"})
    note = {"data": source.source, "size": seen.data.size, "train": len(train), "test": len(test)}
    note |= {"k": min(K, len(train)), "temperature": TEMPERATURE, "pooling": pooling}
    if sizes is not None:
        note |= {"class labels": known.tolist(), "class sizes": sizes.tolist(), "groups": groups}
    if few:
        note["shots"] = {kind: len(chosen) // len(known) for kind, chosen in few.items()}
    try:
        run.write_json("evaluation.json", {**note, "rows": rows})
    except InputError as error:  # a colleague's run, which may only be read
        log.warning(f"{error}; what was measured is given here and kept nowhere")
        return rows
    if sizes is not None:
        with optional_picture(run.path / "classes.png"):
            run.write("classes.png", figure({str(run.path): [classes_of(run)], **drawn}, "linear probe"))
    if blocks:
        with optional_picture(run.path / "depth.png"):
            draw_beside(run, [other for other in others if rows_by_block(other)])
    return rows


def group_rows(run: Run) -> list[dict[str, Any]]:
    """The groups that the last `evaluate` wrote, of the encoder, as a table; none after training on equal classes."""
    found = run.evaluation or {}
    return [
        {"evaluator": group["evaluator"], "groups": name, **group["groups"][name]}
        for group in found.get("groups", [])
        if group["features"] == "encoder"
        for name in group["groups"]
    ]


def _numbered(train: Images, test: Images) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The labels of the training images, in order, and which of them each image has, to fit on and to test on.

    A test image whose label is none of them has the number after the last, which no classifier gives.
    """
    assert train.labels is not None and test.labels is not None
    known, fit = np.unique(train.labels, return_inverse=True)
    asked = np.searchsorted(known, test.labels)
    return known, fit, np.where(np.isin(test.labels, known), asked, len(known))


def _probes(
    pair: Pair, labels: Tensor, few: Mapping[str, np.ndarray], classes: int, device: torch.device
) -> dict[str, Tensor]:
    """Scores of each class for each test image, by kNN, by the linear probe and by each few-shot probe."""
    place = _place(device, pair, classes)
    bank, queries, labels = (rows.to(place) for rows in (*pair, labels))
    found = {
        "kNN": knn_scores(bank, labels, queries, classes, k=K, temperature=TEMPERATURE),
        "linear": linear_probe(bank, labels, queries, classes),
    }
    return found | {kind: linear_probe(bank[some], labels[some], queries, classes) for kind, some in few.items()}


def _place(device: torch.device, pair: Pair, classes: int) -> torch.device:
    """Where to fit probes to these features: on the device, unless its memory does not hold the copies they make."""
    if device.type != "cuda":
        return device
    torch.cuda.empty_cache()
    needed = COPIES * sum(rows.element_size() * len(rows) * (rows.shape[1] + classes) for rows in pair)
    return device if needed < torch.cuda.mem_get_info(device)[0] else torch.device("cpu")


def _unequal_sizes(runs: Sequence[Run], source: Data, known: np.ndarray) -> np.ndarray | None:
    """Training images of each class of the first run whose classes are of unequal size, 2 to 1 or more; else None."""
    for config in (run.config for run in runs if same_place(run.config.data.source, source.source)):
        sizes = class_sizes(config, known)
        if sizes.max() >= 2 * max(1, sizes.min()):
            return sizes
    return None


def _few_shot(labels: np.ndarray, shots: Sequence[int], seed: int) -> dict[str, np.ndarray]:
    """The rows of each few-shot probe: of so many images a class, or of 1 % of the smallest class."""
    one_percent = max(1, round(0.01 * int(np.bincount(labels).min())))
    named = {f"{n}-shot": n for n in shots} or {"few-shot": one_percent}
    return {kind: few_shot(labels, n, seed) for kind, n in named.items()}


def _by_group(scores: Tensor, labels: np.ndarray, sizes: np.ndarray) -> dict[str, Any]:
    by_class = class_accuracies(scores.argmax(1).cpu().numpy(), labels, len(sizes))
    classes = [None if np.isnan(one) else float(one) for one in by_class]  # JSON has no NaN
    return {"groups": group_report(by_class, sizes), "classes": classes}


def _published(
    encoder: Encoder,
    config: Config,
    train: Images,
    labels: np.ndarray,
    few: Mapping[str, np.ndarray],
    queries: Tensor,
    device: torch.device,
) -> dict[str, Tensor]:
    """Scores of the published probes, which see augmented images; digits are not mirrored."""
    size, seed, flip = config.data.size, config.train.seed, bool(config.views[0].flip)
    assert size is not None
    encoder, found = encoder.to(device), {}
    parts = {"linear": (np.arange(len(train)), FULL_SHOT), **{kind: (rows, FEW_SHOT) for kind, rows in few.items()}}
    for kind, (rows, (epochs, drops)) in parts.items():
        part, of_part = take(train, rows), torch.from_numpy(labels[rows])
        seen = lambda epoch, part=part: augmented(encoder, part, size, epoch, seed, flip, device)  # noqa: E731
        found[kind] = sgd_probe(seen, of_part, queries, int(labels.max()) + 1, epochs, drops, seed=seed)
    return found


def quick_knn(
    encoder: Encoder, config: Config, train: Images, device: torch.device, quiet: bool = False
) -> Accuracy | None:
    """kNN accuracy of the encoder and the baselines, on a part of the source; None without labels.

    One more baseline is the untrained encoder whose batch norms have seen training images: their statistics move
    without any learning.
    """
    if train.labels is None:
        return None
    source, classes_from = whole(config.data), getattr(train, "classes_from", None)
    # the neighbours of a long-tailed bank would nearly all be of its few large classes
    train, test = labelled(source, config.train.seed, train if source == config.data else None)
    train, test = _part(train, QUICK_BANK, config.train.seed), _part(test, QUICK_QUERIES, config.train.seed)
    known, fit, asked = _numbered(train, test)
    right = {}
    with progress("measuring kNN", 3 * (len(train) + len(test)), quiet) as advance:
        look = Look(config, (train, test), device, advance)
        measured = {"encoder": look.features(encoder), **look.baselines(), CALIBRATED: look.calibrated()}
    for name, (bank, queries) in measured.items():
        scores = knn_scores(bank, torch.from_numpy(fit), queries, len(known))
        right[name] = scores.argmax(1).cpu().numpy() == asked
    return Accuracy.of(right, asked, len(train), classes_from)


def labelled(source: Data, seed: int, train: Images | None = None) -> tuple[Images, Images]:
    """The labelled images to fit on and to test on; a set without a test split gives a fixed fifth of each class.

    Test images may be of classes that are not in training, which come after those that are: they count as missed.
    """
    train = train or training(source)
    test = load(source.source, source.root, "test", source.size)
    if train.labels is None:
        raise InputError(f"{source.source} has no labels, so accuracy cannot be measured; name labelled data: data=...")
    if test is None or test.labels is None:
        held = _held_out(train.labels, seed)
        if not held.any():
            raise InputError(f"{source.source} has one image of each class, so none is left to test on; add some")
        train, test = take(train, np.flatnonzero(~held)), take(train, np.flatnonzero(held))
    names, tested = train.classes or (), test.classes or train.classes or ()
    if bool(names) != bool(tested) or names != tested[: len(names)]:
        raise InputError(
            f"{source.source}: the classes of its test images do not begin with those of its training images, in order"
        )
    return _with_labels(train), _with_labels(test)


def _held_out(labels: np.ndarray, seed: int) -> np.ndarray:
    """A fifth of each class, rounded up, so that rare classes are tested too; a single image is for fitting."""
    rows = order(seed, -2, len(labels))
    by_class = rows[np.argsort(labels[rows], kind="stable")]
    _, first, size = np.unique(labels[by_class], return_index=True, return_counts=True)
    rank = np.arange(len(rows)) - np.repeat(first, size)
    held = np.zeros(len(labels), bool)
    held[by_class[(rank % 5 == 0) & (np.repeat(size, size) > 1)]] = True
    return held


def accuracy(scores: Tensor, labels: np.ndarray) -> float:
    """Top-1 in percent."""
    return 100 * float((scores.argmax(1).cpu().numpy() == labels).mean())


def _part(images: Images, most: int, seed: int) -> Images:
    return images if len(images) <= most else take(images, np.sort(order(seed, -3, len(images))[:most]))


def _with_labels(images: Images) -> Images:
    assert images.labels is not None
    return images if (images.labels >= 0).all() else take(images, np.flatnonzero(images.labels >= 0))
