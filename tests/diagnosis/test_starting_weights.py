"""The verdict on a run that started from weights of others: no better than these is an answer."""

import numpy as np
import pytest

from twinblock.config.recipes import compose
from twinblock.diagnosis import verdict
from twinblock.diagnosis.chance import ADAPTED, STARTING, Accuracy


def row(step: int, agreement: float):
    outputs = {"negative_cosine": 0.1, "positive_cosine": 0.6, "std": 0.09, "feature_norm": 8.0}
    outputs |= {"dimensions": 128, "samples": 256, "effective_rank": 60.0, "centred_rank": 60.0}
    return {"step": step, "encoder": outputs, "projector": outputs, "agreement": (agreement, 0.01)}


LEARNED_BY_VIEWS = [row(0, 0.2), row(100, 0.5), row(200, 0.8)]


@pytest.mark.parametrize(
    ("start", "adapted", "headline"),
    [
        (100, 100, "learned"),
        (145, 145, "too close to tell"),
        (150, 100, "no better than the starting weights"),
        (160, 100, "worse than the starting weights"),
        (100, 150, "no better than the starting weights"),  # batch norms alone do as well
    ],
)
def test_a_run_has_to_be_better_than_what_it_started_from(start, adapted, headline):
    """150 of 600 right after training, 50 of the untrained encoder."""
    index = np.arange(600)
    right = {"encoder": index < 150, "raw pixels": index < 0, "untrained encoder": index < 50}
    right |= {STARTING: (index < start - 5) | (index >= 595), ADAPTED: (index < adapted - 5) | (index >= 595)}
    config = compose("simclr", {"encoder": {"weights": "pretrained", "kind": "resnet18"}})
    found = verdict(LEARNED_BY_VIEWS, True, config, accuracy=Accuracy.of(right, index % 10, 2400))
    assert found.headline == headline
    assert "with the starting weights" in found.evidence and "untrained" not in found.evidence
    assert ("encoder.freeze" in found.advice) == headline.endswith("the starting weights")
