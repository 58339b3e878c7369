"""The accuracy that a verdict stands on: kNN on a part of labelled images, at the end of a training or later."""

from collections.abc import Callable

import numpy as np
import torch

from twinblock.config.schema import Config
from twinblock.core.console import progress
from twinblock.core.seeding import order
from twinblock.data import Images, take
from twinblock.data.training import chosen, whole
from twinblock.diagnosis.chance import ADAPTED, CALIBRATED, Accuracy
from twinblock.evaluation import knn_scores
from twinblock.evaluation.depth import PIXELS, STARTING, UNTRAINED
from twinblock.evaluation.extractor import FeatureExtractor
from twinblock.evaluation.labelled import LabelledSets, each_its_group, labelled
from twinblock.evaluation.report import ENCODER
from twinblock.nn.encoders import Encoder
from twinblock.runs.run import Run

QUICK_BANK, QUICK_QUERIES = 10_000, 5_000  # images that the measurement takes at most


def quick_knn(
    run: Run, encoder: Encoder, config: Config, train: Images, device: torch.device, quiet: bool = False
) -> Accuracy | None:
    """kNN accuracy of the encoder and the baselines, on a part of the run's own images; None without labels."""
    if train.labels is None:
        return None
    classes_from = train.classes_from
    # the neighbours of a long-tailed bank would nearly all be of its few large classes
    source, images = chosen(whole(config.data), held=run.objects.get("data"))
    train, test = labelled(source, config.train.seed, train if source == config.data else images)
    return knn_of_part(run, encoder, config, (train, test), classes_from, device, quiet)


def knn_of_part(
    run: Run,
    encoder: Encoder,
    config: Config,
    images: tuple[Images, Images],
    classes_from: str | None,
    device: torch.device,
    quiet: bool = False,
) -> Accuracy:
    """kNN accuracy of the encoder and the baselines, on a part of the images to compare with and to test on.

    One more baseline is the encoder that it began with, once its batch norms have seen training images: their
    statistics move without any learning.
    """
    train, test = images
    train, test = _part(train, QUICK_BANK, config.train.seed), _part(test, QUICK_QUERIES, config.train.seed)
    sets = LabelledSets.of(train, test)
    untrained, start = run.untrained_encoder(), run.starting_encoder()
    networks = {ENCODER: encoder, PIXELS: None, UNTRAINED: untrained, **({} if start is None else {STARTING: start})}
    with progress("measuring kNN of images", len(sets), quiet) as advance:
        extractor = FeatureExtractor(config, sets.images, device, _every(len(networks), advance))
        measured = {
            name: extractor.features(m) if m is not None else extractor.pixels() for name, m in networks.items()
        }
        measured[CALIBRATED if start is None else ADAPTED] = extractor.calibrated(start or untrained)
    right = {}
    for name, (bank, queries) in measured.items():
        scores = knn_scores(bank, torch.from_numpy(sets.train_labels), queries, len(sets.classes))
        right[name] = scores.argmax(1).cpu().numpy() == sets.test_labels
    groups = None if test.groups is None or test.tiled else each_its_group(test.groups)
    return Accuracy.of(right, sets.test_labels, len(sets.train_labels), classes_from, groups)


def _every(passes: int, advance: Callable[[int], None]) -> Callable[[int], None]:
    """Counts an image once, however many networks look at it."""
    seen = 0

    def count(images: int) -> None:
        nonlocal seen
        advance((seen + images) // passes - seen // passes)
        seen += images

    return count


def _part(images: Images, most: int, seed: int) -> Images:
    return images if len(images) <= most else take(images, np.sort(order(seed, -3, len(images))[:most]))
