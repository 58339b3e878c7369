"""Features of labelled images, to fit probes on and to test them on."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from twinblock.config.schema import Config
from twinblock.data import Images, take
from twinblock.evaluation import features, seen_by
from twinblock.evaluation.depth import BLOCK, EveryBlock
from twinblock.evaluation.features import by_image, feature_rows, pixel_rows
from twinblock.evaluation.report import ENCODER
from twinblock.nn.encoders import Encoder
from twinblock.nn.modes import calibrated

MOST_PIXELS = 32  # a side: a linear probe of more would not fit into memory
CALIBRATION = 500  # images that the batch norms of an untrained encoder see
Pair = tuple[Tensor, Tensor]  # features of the images to fit on, and of those to test on


@dataclass(frozen=True)
class FeatureExtractor:
    """The features of the images to fit on and of those to test on, as the run of a config sees images."""

    config: Config
    sets: tuple[Images, Images]
    device: torch.device
    advance: Callable[[int], None]

    def features(self, module: nn.Module) -> Pair:
        how = seen_by(self.config, self.device)
        rows = (feature_rows(module.to(self.device), s, advance=self.advance, **how) for s in self.sets)
        first, second = map(by_image, rows, self.sets)
        return first, second

    def pixels(self) -> Pair:
        assert self.config.data.size is not None
        side = min(self.config.data.size, MOST_PIXELS)
        rows = (pixel_rows(s, side, value_range=self.config.data.seen["value_range"]) for s in self.sets)
        first, second = map(by_image, rows, self.sets)
        return first, second

    def calibrated(self, encoder: Encoder) -> Pair:
        """Features of an untrained encoder once its batch norms have seen some of the images to fit on."""
        encoder = encoder.to(self.device)
        some = take(self.sets[0], np.arange(min(len(self.sets[0]), CALIBRATION)))
        with calibrated(encoder, lambda: features(encoder, some, **seen_by(self.config, self.device))):
            return self.features(encoder)

    def blocks(self, every: EveryBlock) -> dict[str, Pair]:
        """Of the encoder, and of every block whose features are not the encoder's own."""
        both = (rows.split(every.widths, 1) for rows in self.features(every))
        *blocks, outputs = zip(*both, strict=True)
        return {ENCODER: outputs, **{f"{BLOCK}{k}": pair for k, pair in enumerate(blocks, start=1)}}

    def of(self, network: nn.Module | None) -> Pair | dict[str, Pair]:
        """Of a network, of every block of an `EveryBlock`, or, for None, the pixels."""
        if network is None:
            return self.pixels()
        return self.blocks(network) if isinstance(network, EveryBlock) else self.features(network)
