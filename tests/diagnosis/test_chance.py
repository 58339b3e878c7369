"""What labels and a loss at chance say of a run, whatever its views show."""

import math

import numpy as np
import pytest
import torch
from looks import LEARNED_BY_VIEWS, NOT_BY_VIEWS, accuracy, gaussian, history, look

from twinblock.config.recipes import compose
from twinblock.diagnosis.chance import AT_CHANCE, Accuracy, chance_loss, loss_at_chance
from twinblock.diagnosis.verdict import verdict
from twinblock.training.finish import last_line

CANDIDATES = {  # of a batch of 32 images and a queue of 64 rows
    "simclr": 63,
    "moco_v2": 65,
    "moco_v3": 32,
    "nnclr": 32,
    "dcl": 62,
    "sup_con": 63,
    "pcl": 65 * 32,  # among keys, and among prototypes: those of the batch's images, and others if there are any
}


def small(recipe, *overrides):
    """A recipe with a batch of 32, a queue of 64 and embeddings of width 8."""
    queue = ["objective.queue=64"] if recipe in ("moco_v2", "nnclr", "pcl") else []
    queue += ["objective.clusters=[9, 20]"] if recipe == "pcl" else []
    predictor = ["predictor.dims=[16,8]"] if recipe in ("moco_v3", "nnclr") else []
    return compose(recipe, overrides=["data.batch=32", "projector.dims=[16,8]", *queue, *predictor, *overrides])


@pytest.mark.parametrize("recipe", CANDIDATES)
def test_the_loss_of_embeddings_without_information_is_at_least_what_is_taken_for_chance(recipe):
    """Positives that are no more alike than any candidate: by Jensen's inequality the mean is above ln of the count.

    Nor is a collapse below it.
    """
    from twinblock.methods.objectives import KINDS
    from twinblock.methods.parts import make

    config, chance = small(recipe), math.log(CANDIDATES[recipe])
    assert KINDS[config.objective.kind].chance(config.objective, 32) == pytest.approx(chance)
    point, losses = torch.ones(32, 8), []
    for s in range(20):
        objective = make(config.objective, KINDS, dim=8, seed=s, epoch_steps=1, images=100)
        if recipe == "pcl":
            objective.begin_epoch(lambda: gaussian(100, 8, seed=100), 9, 10)
        losses.append(float(objective(gaussian(32, 8, seed=2 * s), gaussian(32, 8, seed=2 * s + 1))))
        if not hasattr(objective, "queue") or recipe == "nnclr":
            assert float(objective(point, point)) == pytest.approx(chance)
    assert np.mean(losses) > chance


@pytest.mark.parametrize(
    ("recipe", "overrides", "terms"),
    [
        ("simclr", [], 1),
        ("simclr", ["objective.scale=3"], 3),
        ("simclr", ["target={kind: ema, momentum: 0.9}"], 2),
        ("simclr", ["predictor.dims=[16,8]"], 2),
        ("sdclr", [], 1),
        ("moco_v2", [], 1),
        ("moco_v2", ["target={kind: pruned, ratio: 0.5}"], 2),
        ("moco_v3", [], 0.8),
        ("nnclr", [], 1),
        ("dcl", [], 1),
        ("dcl", ["target={kind: ema, momentum: 0.9}"], 2),
        ("sup_con", ["objective.scale=1"], 1),
        ("simclr", ["views=[{}, {like: 0}, {like: 0}]"], 3),
        ("simclr", ["views=[{}, {like: 0}, {like: 0, size: 16}]", "data.size=32"], 3),
    ],
)
def test_the_loss_at_chance_counts_the_terms_that_a_learner_sums(recipe, overrides, terms):
    assert chance_loss(small(recipe, *overrides)) == pytest.approx(terms * math.log(CANDIDATES.get(recipe, 63)))


def test_other_objectives_have_no_chance_loss():
    assert [chance_loss(compose(name)) for name in ("byol", "vicreg", "barlow_twins", "supervised")] == [None] * 4
    assert chance_loss(None) is None


def test_a_contrastive_loss_at_chance_is_nothing_learned():
    config = compose("simclr", overrides=["data.batch=64"])
    rows, chance = history((0.2, 0.01), (0.8, 0.01)), math.log(127)
    noise = 0.01 * np.random.Generator(np.random.PCG64(0)).normal(size=100)
    found = verdict(rows, True, config, list(chance - 0.01 + noise))
    assert found.headline == "not collapsed"
    assert "no better than chance, 4.844" in found.evidence
    assert verdict(rows, True, config, list(chance - 0.1 + noise)).headline == "learned"
    assert verdict(rows, True, config, [*(chance - 1 + noise[:80]), *([chance] * 30)]).headline == "not collapsed"
    assert loss_at_chance(list(chance - 0.1 + 100 * noise), config)  # too noisy to be below
    assert verdict(rows, True, compose("byol"), [chance] * 100).headline == "learned"


def test_the_error_of_a_gain_is_that_of_paired_answers():
    """McNemar: (b - c) / n with variance (b + c - (b - c)^2 / n) / n^2; what both get right does not count."""
    for b, c, n in ((30, 51, 600), (0, 21, 600), (7, 7, 50)):
        gain, error = accuracy(b, c, both=30, n=n).gains["untrained encoder"]
        assert gain == pytest.approx(100 * (c - b) / n)
        exact = 100 * (b + c - (c - b) ** 2 / n) ** 0.5 / n
        assert error == pytest.approx(exact * (n / (n - 1)) ** 0.5)


@pytest.mark.parametrize("rows", [LEARNED_BY_VIEWS, NOT_BY_VIEWS])
@pytest.mark.parametrize(
    ("only_untrained", "only_encoder", "headline"),
    [
        (0, 60, "learned"),
        (100, 121, "too close to tell"),  # 42.0 against 38.5 % of 600: 3.5 points, with an error of 2.5
        (30, 30, "no better than untrained"),
        (40, 30, "no better than untrained"),
        (60, 10, "worse than untrained"),
    ],
)
def test_labels_decide_where_there_are_any(rows, only_untrained, only_encoder, headline):
    """So "not collapsed" is never said alone of an encoder worse than the untrained one."""
    measured = accuracy(only_untrained, only_encoder, both=131)
    found = verdict(rows, True, compose("simclr"), accuracy=measured)
    assert found.headline == headline
    assert bool(found.advice) == (headline != "learned")
    if headline in ("too close to tell", "no better than untrained"):
        assert "600 test images cannot tell" in found.evidence


def test_a_gain_that_batch_norms_alone_make_is_none():
    rows = LEARNED_BY_VIEWS
    assert verdict(rows, True, accuracy=accuracy(0, 60, both=131, calibrated=131)).headline == "learned"
    assert (
        verdict(rows, True, accuracy=accuracy(0, 60, both=131, calibrated=191)).headline == "no better than untrained"
    )


def test_learned_is_not_said_below_raw_pixels():
    found = verdict(LEARNED_BY_VIEWS, True, accuracy=accuracy(0, 60, both=131, pixels=200))
    assert found.headline == "no better than raw pixels"
    assert "raw pixels is 33.3 %" in found.evidence
    assert found.advice


def test_classes_that_nothing_tells_apart_say_nothing_of_the_encoder():
    """Images dealt at random into folders: a tenth is right by chance."""
    folders = "top folder: a, b"
    dealt = accuracy(30, 20, both=40, pixels=55, classes_from=folders)
    for rows, expected in ((LEARNED_BY_VIEWS, "learned"), (NOT_BY_VIEWS, "not collapsed")):
        found = verdict(rows, True, compose("simclr"), accuracy=dealt)
        assert found.headline == expected
        assert "say nothing of the encoder" in found.evidence
        assert found.evidence.endswith("classes are the top folders: a, b")
    assert verdict(LEARNED_BY_VIEWS, True, compose("supervised"), accuracy=dealt).headline != "learned"


def test_a_verdict_that_rests_on_names_of_folders_says_so():
    found = verdict(LEARNED_BY_VIEWS, True, accuracy=accuracy(0, 60, both=131, classes_from="top folder: a, b"))
    assert found.evidence.endswith("classes are the top folders: a, b")
    named = verdict(LEARNED_BY_VIEWS, True, accuracy=accuracy(0, 60, both=131, classes_from="column label"))
    assert "classes are" not in named.evidence


def test_accuracy_does_not_excuse_a_collapse():
    rows = [{"step": 0, "projector": look(0.9)}, *({"step": s, "projector": look(0.001)} for s in (100, 200))]
    assert verdict(rows, True, accuracy=accuracy(0, 60, both=131)).headline == "complete collapse"


def test_features_tell_classes_apart_three_standard_errors_above_chance():
    """Of 10 000 images at chance 50 % the error is 0.5 points."""
    for top1, tells in ((51.49, False), (51.51, True)):
        assert Accuracy({"encoder": top1, "raw pixels": 3.0}, {}, 1, 10_000, 50.0).tells is tells


def test_a_gain_of_half_a_point_is_a_gain():
    found = verdict(LEARNED_BY_VIEWS, True, accuracy=accuracy(100, 103, both=131))
    assert found.headline == "too close to tell" and "+0.5 points" in found.evidence


def test_the_loss_of_the_last_quarter_and_its_error_by_hand():
    config = compose("simclr", overrides=["data.batch=64"])
    chance = math.log(127)
    assert loss_at_chance([*[chance] * 3, chance - 1], config) == ""  # a quarter of four is one
    for d, clear in ((0.045, True), (0.055, False)):  # of two, the standard error is half their distance
        losses = [*[0.0] * 6, chance - 0.1 - d, chance - 0.1 + d]
        assert (loss_at_chance(losses, config) == "") is clear


def test_the_last_line_says_that_labels_tell_nothing():
    """`learned` by views stands beside an accuracy of guessing only with a word on it."""
    result = {"state": "healthy", "headline": "learned", "knn": None, "effective_rank": 9.0, "width": 64, "advice": ""}
    said = verdict(LEARNED_BY_VIEWS, True, accuracy=accuracy(30, 20, both=40, pixels=55)).evidence
    assert AT_CHANCE in said and AT_CHANCE in last_line({**result, "evidence": said})
    clear = verdict(LEARNED_BY_VIEWS, True, accuracy=accuracy(0, 60)).evidence
    assert last_line({**result, "evidence": clear}).endswith("not collapsed")


def test_what_went_wrong_and_what_to_do_have_lines_of_their_own():
    result = {"state": "healthy", "headline": "not collapsed", "knn": None, "effective_rank": 9.0, "width": 64}
    first, why, advice = last_line({**result, "evidence": "a; b", "advice": "train for longer"}).split("\n")
    assert first == "not collapsed: no labels to measure accuracy with · effective rank 9/64"
    assert (why, advice) == ("why: a; b", "advice: train for longer")
    assert last_line({**result, "evidence": "a; b", "advice": ""}).split("\n")[1:] == ["why: a; b"]
