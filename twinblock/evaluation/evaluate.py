"""Measuring a run: kNN and linear probe of its frozen encoder, beside raw pixels and what it began with."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from twinblock.config.data import Data
from twinblock.config.schema import Config
from twinblock.core.console import progress
from twinblock.core.device import best_device
from twinblock.core.errors import InputError
from twinblock.core.files import same_places
from twinblock.core.pictures import optional_picture
from twinblock.core.settings import own_settings
from twinblock.core.version import __version__
from twinblock.data import Images, take
from twinblock.data.tails import few_shot
from twinblock.data.training import chosen, whole
from twinblock.data.values import seen_as
from twinblock.diagnosis import outcome
from twinblock.evaluation import at_size, knn_scores, linear_probe, record
from twinblock.evaluation.depth import (
    BLOCK,
    PIXELS,
    STARTING,
    UNTRAINED,
    EveryBlock,
    draw_beside,
    need_blocks,
    rank_share,
    trained_pooling,
)
from twinblock.evaluation.extractor import FeatureExtractor, Pair
from twinblock.evaluation.groups import class_accuracies, class_sizes, classes_of, figure, group_report
from twinblock.evaluation.labelled import LabelledSets, labelled
from twinblock.evaluation.quick import knn_of_part
from twinblock.evaluation.report import ENCODER, group_rows
from twinblock.evaluation.sgd import FEW_SHOT, FULL_SHOT, augmented, sgd_probe
from twinblock.nn.encoders import Encoder
from twinblock.runs.curves import draw
from twinblock.runs.run import Run

__all__ = ["evaluate", "group_rows"]

log = logging.getLogger(__name__)

K, TEMPERATURE = 200, 0.1  # of the weighted kNN
COPIES = 5  # of its features and scores that a linear probe holds at most
Measured = dict[str, Any]  # `rows` of the table and `groups` of classes, of one network and its blocks


@dataclass(frozen=True)
class Protocol:
    """What features are measured by: images with labels, probes, and groups of classes.

    `config` says how images are seen; `few` holds the rows of each few-shot probe; `sizes` the training images of each
    class where they are unequal; `published`: also SGD probes; `blocks`: also every block, and effective ranks.
    """

    config: Config
    sets: LabelledSets
    device: torch.device
    few: Mapping[str, np.ndarray]
    sizes: np.ndarray | None
    published: bool
    blocks: bool
    pooling: bool

    def digest(self, network: nn.Module | None) -> str:
        """What the results for a network depend on; None stands for the pixels."""
        hashed = blake2b(repr(self._conditions).encode(), digest_size=16)
        if network is not None:
            record.hash_weights(hashed, network)
        return hashed.hexdigest()

    @cached_property
    def _conditions(self) -> tuple[Any, ...]:
        config, few = self.config, {kind: rows.tolist() for kind, rows in self.few.items()}
        sizes = None if self.sizes is None else self.sizes.tolist()
        images = [part.fingerprint() for part in self.sets.images]
        how = (
            config.data.size,
            config.encoder,
            config.train.precision,
            config.train.seed,
            self.device.type,
            config.data.seen,
        )
        flip = bool(config.views[0].flip) if self.published else None
        return __version__, images, how, few, sizes, self.published, flip, self.blocks, self.pooling


@own_settings()
def evaluate(
    run: Run | str | Path,
    data: Any = None,
    *,
    encoder: nn.Module | None = None,
    step: int | None = None,
    published: bool = False,
    baselines: bool = True,
    blocks: bool | None = None,
    pooling: bool = False,
    beside: Sequence[str | Path] = (),
    shots: Sequence[int] = (),
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Measure weighted kNN and a linear probe, top-1 in percent, of a run's encoder and of its baselines.

    These are raw pixels, the untrained encoder and, of a run with `encoder.weights`, the starting weights. Probes are
    fitted to all training images of the source, even if the run trained on a part. `data`: other labelled data, or
    images with labels, as `pretrain` takes them. `encoder`: the module that the run was made with. `step`: measure the
    encoder that was kept after this step (`train.keep`), not the last one; what is said of the run stays as it is, and
    nothing is drawn. `shots`: images of each class for a few-shot probe. `published`: also SDCLR's SGD probes and a
    few-shot probe. `blocks`: also every block, with its effective rank in % of its width, drawn in `depth.png` (None:
    if the run trained in blocks); `pooling`: through the pooling of its training. `beside`: evaluated runs to draw in
    the same figure. If this run or the first one `beside` it trained on classes of unequal size, there is a few-shot
    probe too (without `shots`, of 1 % of the smallest class) and accuracy by class and by group, drawn in
    `classes.png`.

    Writes `evaluation.json` in the run, and a file for each source in `evaluations`, and measures nothing twice. The
    verdict on a finished run without labels of its own is then by these. A run that may only be read stays unchanged,
    with a warning. Raises InputError without labels or without a run.
    """
    run, others = Run.open(run, encoder=encoder), [Run.open(other) for other in beside]
    source, images = chosen(whole(run.config.data), data, run.objects.get("data"))
    if step is not None and (pooling or beside):
        raise InputError(f"step={step}: a kept encoder is measured alone and has no pooling; leave these out")
    trained = run.encoder(step)
    sets = LabelledSets.of(*labelled(source, run.config.train.seed, images))
    seen = seen_as(at_size(run.config, trained, source.size), source, *sets.images)
    # a balanced twin has the groups of the set that it stands beside
    sizes = _unequal_sizes([run, *others[:1]], source, sets.classes, images)
    few = _few_shot(sets.train_labels, shots, seen.train.seed) if shots or published or sizes is not None else {}
    if blocks is None:
        blocks = run.config.scope.kind != "end_to_end" or pooling or (bool(others) and sizes is None)
    beside_them = {str(other.path): [classes_of(other, source.source_name)] for other in others if sizes is not None}
    if sizes is None and blocks:
        need_blocks(others, source.source_name)
    protocol = Protocol(seen, sets, best_device(), few, sizes, published, blocks, pooling)
    every = EveryBlock(trained, trained_pooling(run) if pooling else None) if blocks else trained
    networks = {ENCODER: every, **(_baselines(run) if baselines else {})}
    measured = _measure(networks, protocol, record.measured(run, source.source_name, step), quiet)
    report = _report(protocol, source, list(measured.values()))
    try:
        record.write(run, report, {protocol.digest(networks[n]): measured[n] for n in measured}, step)
    except InputError as error:  # a colleague's run, which may only be read
        log.warning(f"{error}; what was measured is given here and kept nowhere")
        return report["rows"]
    if step is None:
        _judge_anew(run, trained, source, protocol, quiet)
        _draw(run, others, None if sizes is None else beside_them, source.source_name if blocks else None)
    return report["rows"]


def _draw(run: Run, others: Sequence[Run], drawn: Mapping[str, Any] | None, source: str | None) -> None:
    """Accuracy by class, beside the classes `drawn` of other runs, and by depth, on a source; None: no such figure."""
    if drawn is not None:
        with optional_picture(run.path / "classes.png"):
            run.write("classes.png", figure({str(run.path): [classes_of(run)], **drawn}, "linear probe"))
    if source is not None:
        with optional_picture(run.path / "depth.png"):
            draw_beside(run, others, source)


def _judge_anew(run: Run, encoder: Encoder, source: Data, protocol: Protocol, quiet: bool) -> None:
    """Let labels decide on a finished run whose own images have none, as they decide at the end of a training."""
    result = run.result
    if result is None or "starts" not in result or (result["accuracy"] is not None and "labels" not in result):
        return
    if result.get("judged by") == (by := protocol.digest(encoder)):
        return
    images = protocol.sets.images
    accuracy = knn_of_part(run, encoder, protocol.config, images, images[0].classes_from, protocol.device, quiet)
    judged = outcome(run.metrics(), result["starts"], run.config, accuracy)
    run.write_json("result.json", {**result, **judged, "labels": source.source_name, "judged by": by})
    with optional_picture(run.path / "curves.png"):  # its title is the verdict
        draw({run.path.name: run}, run.path / "curves.png")


def _baselines(run: Run) -> dict[str, nn.Module | None]:
    start = run.starting_encoder()
    return {PIXELS: None, UNTRAINED: run.untrained_encoder(), **({} if start is None else {STARTING: start})}


def _measure(
    networks: Mapping[str, nn.Module | None], protocol: Protocol, kept: Mapping[str, Measured], quiet: bool
) -> dict[str, Measured]:
    """What each network is worth; those of which `kept` holds it, by digest, are not looked at again."""
    if protocol.published and protocol.sets.train.tiled:
        raise InputError("published: these probes see whole images, and data.tile cuts them; leave it out")
    digests = {name: protocol.digest(network) for name, network in networks.items()}
    fresh = {name: network for name, network in networks.items() if digests[name] not in kept}
    passes = sum(network is not None for network in fresh.values())
    with progress("computing features", passes * len(protocol.sets), quiet) as advance:
        extractor = FeatureExtractor(protocol.config, protocol.sets.images, protocol.device, advance)
        rows_of = {name: extractor.of(network) for name, network in fresh.items()}
    pairs = {name: pair if isinstance(pair, dict) else {name: pair} for name, pair in rows_of.items()}
    measured = {}
    with progress("fitting probes", sum(map(len, pairs.values())), quiet) as advance:
        for name, network in networks.items():
            if name not in fresh:
                measured[name] = kept[digests[name]]
                continue
            parts = []
            for part, pair in pairs[name].items():
                # SGD probes look at images, not at features
                sgd = _sgd_scores(network, protocol, pair[1]) if protocol.published and part == ENCODER else {}
                parts.append(_worth(part, pair, sgd, protocol))
                advance(1)
            rows, groups = zip(*parts, strict=True)
            measured[name] = {"rows": list(rows), "groups": [group for some in groups for group in some]}
    return measured


def _worth(
    name: str, pair: Pair, sgd: Mapping[str, Tensor], protocol: Protocol
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The row of the table of these features, and what each probe gives by group of classes."""
    labels, sizes = protocol.sets.test_labels, protocol.sizes
    scores: dict[str, Tensor | None] = {**_probes(pair, protocol)}
    if protocol.published:
        scores |= {f"SGD {kind}": sgd.get(kind) for kind in ("linear", *protocol.few)}
    row: dict[str, Any] = {"features": name}
    row |= {
        f"{kind} %": None if predicted is None else accuracy(predicted, labels) for kind, predicted in scores.items()
    }
    if protocol.blocks:
        row["rank %"] = None if name == PIXELS else rank_share(pair[1])
    groups = [
        {"features": name, "evaluator": kind, **_by_group(predicted, labels, sizes)}
        for kind, predicted in scores.items()
        if predicted is not None and sizes is not None
    ]
    return {**row, "width": pair[0].shape[1]}, groups


def _report(protocol: Protocol, source: Data, measured: Sequence[Measured]) -> dict[str, Any]:
    """What `evaluation.json` holds: the rows of the encoder, of the baselines and of the blocks, and what they are."""
    sets = protocol.sets
    (first, *blocks), *others = (one["rows"] for one in measured)
    rows = [first, *(row for some in others for row in some), *blocks]
    if protocol.blocks and not protocol.pooling:
        rows.append({**first, "features": f"{BLOCK}{len(blocks) + 1}"})
    report: dict[str, Any] = {"data": source.source_name, "size": protocol.config.data.size}
    report |= {"train": len(sets.train_labels), "test": len(sets.test_labels)}
    report |= {"k": min(K, len(sets.train_labels)), "temperature": TEMPERATURE, "pooling": protocol.pooling}
    if protocol.sizes is not None:
        report |= {"class labels": sets.classes.tolist(), "class sizes": protocol.sizes.tolist()}
        report["groups"] = [group for one in measured for group in one["groups"]]
    if protocol.few:
        report["shots"] = {kind: len(chosen) // len(sets.classes) for kind, chosen in protocol.few.items()}
    return {**report, "rows": rows}


def _probes(pair: Pair, protocol: Protocol) -> dict[str, Tensor]:
    """Scores of each class for each test image, by kNN, by the linear probe and by each few-shot probe."""
    classes = len(protocol.sets.classes)
    place = _place(protocol.device, pair, classes)
    bank, queries, labels = (rows.to(place) for rows in (*pair, torch.from_numpy(protocol.sets.train_labels)))
    predictions = {
        "kNN": knn_scores(bank, labels, queries, classes, k=K, temperature=TEMPERATURE),
        "linear": linear_probe(bank, labels, queries, classes),
    }
    few = {kind: linear_probe(bank[some], labels[some], queries, classes) for kind, some in protocol.few.items()}
    return predictions | few


def _place(device: torch.device, pair: Pair, classes: int) -> torch.device:
    """Where to fit probes to these features: on the device, unless its memory does not hold the copies they make."""
    if device.type != "cuda":
        return device
    torch.cuda.empty_cache()
    needed = COPIES * sum(rows.element_size() * len(rows) * (rows.shape[1] + classes) for rows in pair)
    return device if needed < torch.cuda.mem_get_info(device)[0] else torch.device("cpu")


def _unequal_sizes(runs: Sequence[Run], source: Data, labels: np.ndarray, images: Images | None) -> np.ndarray | None:
    """Training images of each class of the first run whose classes are of unequal size, 2 to 1 or more; else None."""
    for config in (run.config for run in runs if same_places(run.config.data.source, source.source)):
        sizes = class_sizes(config, labels, images)
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


def _sgd_scores(network: nn.Module | None, protocol: Protocol, queries: Tensor) -> dict[str, Tensor]:
    """Scores of the published probes, which see augmented images; digits are not mirrored."""
    encoder = network.encoder if isinstance(network, EveryBlock) else network
    assert encoder is not None
    config, labels, predictions = protocol.config, protocol.sets.train_labels, {}
    seed, flip = config.train.seed, bool(config.views[0].flip)
    parts = {"linear": (np.arange(len(labels)), FULL_SHOT)}
    parts |= {kind: (rows, FEW_SHOT) for kind, rows in protocol.few.items()}
    for kind, (rows, (epochs, drops)) in parts.items():
        part, of_part = take(protocol.sets.train, rows), torch.from_numpy(labels[rows])
        seen = lambda epoch, part=part: augmented(encoder, part, config.data, epoch, seed, flip, protocol.device)  # noqa: E731
        predictions[kind] = sgd_probe(seen, of_part, queries, int(labels.max()) + 1, epochs, drops, seed=seed)
    return predictions


def accuracy(scores: Tensor, labels: np.ndarray) -> float:
    """Top-1 in percent."""
    return 100 * float((scores.argmax(1).cpu().numpy() == labels).mean())
