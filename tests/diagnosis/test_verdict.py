import math

import pytest
import torch

from twinblock.diagnosis.measures import indicators
from twinblock.diagnosis.verdict import Verdict, verdict, worst


def gaussian(n=256, width=64, seed=0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def look(spread, agreement=0.6, rank=64, width=64, scale=1.0):
    """`indicators` of two views: a mean and about it, `spread` wide, what views share and what they do not."""
    basis = torch.linalg.qr(gaussian(width, rank, seed=2))[0].T / math.sqrt(rank)
    shared, *noise = (gaussian(256, rank, seed=seed) @ basis for seed in (3, 4, 5))
    mean = math.sqrt(1 - min(spread, 1) ** 2) * torch.ones(width) / math.sqrt(width)
    return indicators(
        *(scale * (mean + spread * (agreement**0.5 * shared + (1 - agreement) ** 0.5 * own)) for own in noise)
    )


def run(*projector, encoder=None, finished=True, step=10):
    encoder = encoder or [look(0.2, 0.3), *[look(0.5)] * (len(projector) - 1)]
    rows = [
        {"step": i * step, "loss": 1.0, "encoder": h, "projector": z}
        for i, (h, z) in enumerate(zip(encoder, projector, strict=True))
    ]
    return verdict(rows, finished)


UNTRAINED = look(0.05, 0.3)


def test_a_healthy_run():
    assert run(UNTRAINED, look(0.3), look(0.9)).headline == "learned"
    found = run(UNTRAINED, look(0.3), look(0.9), finished=False)
    assert (found.state, found.headline, found.advice) == ("healthy", "learning", "")
    assert "views agree to 0.6" in found.evidence


def test_nothing_learned_is_not_called_learned():
    """As with a learning rate of 0 where batch norm alone spreads the embeddings."""
    found = run(UNTRAINED, look(0.9), look(0.9), encoder=[look(0.2, 0.4), *[look(0.5, 0.3)] * 2])
    assert (found.state, found.headline) == ("healthy", "not collapsed")


@pytest.mark.parametrize("finished", [True, False])
def test_complete_collapse(finished):
    found = run(UNTRAINED, look(0.01), look(0.005), finished=finished)
    assert found.state == found.headline == "complete collapse"
    assert "spread 0.005 after 0.05" in found.evidence
    assert "norm" in found.advice
    assert run(look(0.9), look(0.05), look(0.05), finished=finished).state == "complete collapse"


def test_less_than_collapse():
    """Narrower than at first, but still apart; and all variation in one of 64 coordinates."""
    assert run(look(0.9), look(0.2), look(0.2)).state == "healthy"
    line = indicators(*[gaussian(width=1) * torch.eye(1, 64)] * 2)
    assert line["positive_cosine"] == pytest.approx(1)
    assert run(look(0.9), line, line).state == "healthy"


def test_collapse_to_a_point_is_seen_before_the_directions_are_alike():
    """As VICReg does without its variance: the objective sees distances, and they vanish."""
    short, long = look(0.18, scale=0.1), look(0.18)
    assert 0.95 < short["negative_cosine"] < 0.99
    found = run(look(0.36), short, short, finished=False)
    assert found.state == "complete collapse"
    assert "distances 0.05 of the first" in found.evidence
    assert run(look(0.36), long, long, finished=False).state == "healthy"
    assert run(look(0.36), *[look(0.9, scale=0.01)] * 2, finished=False).state == "healthy"
    assert run(look(0.36), short, look(0.5, scale=0.1), finished=False).state == "healthy"


def test_collapse_is_called_on_the_second_look_at_it():
    once = run(look(0.5), look(0.3), look(0.01), finished=False)
    assert (once.state, once.headline) == ("healthy", "perhaps collapsing")
    assert run(look(0.5), look(0.3), look(0.01), look(0.01), finished=False).state == "complete collapse"
    assert run(UNTRAINED, look(0.01), look(0.5), finished=False).state == "healthy"


def test_a_constant_with_noise_has_collapsed_even_if_nothing_else_is_known():
    z = torch.ones(256, 64) + 1e-4 * gaussian()
    assert verdict([{"encoder": indicators(z)}], finished=True).state == "complete collapse"
    assert verdict([{"projector": indicators(z, z)}] * 3, finished=True).state == "complete collapse"


def test_a_constant_with_noise_that_tells_classes_apart():
    """The spread against the start decides: cosines do not see such noise, even if a probe would."""
    classes = gaussian(10, 64, seed=1)[torch.arange(256) % 10]
    z = indicators(1 + 0.03 * classes, 1 + 0.03 * (classes + 0.3 * gaussian()))
    assert run(look(0.05), z, z, finished=False).state == "not started"
    assert run(look(0.9), z, z, finished=False).state == "complete collapse"
    assert verdict([{"encoder": z}], finished=True).state != "complete collapse"


def test_features_behind_a_relu_are_no_collapse():
    h = indicators((gaussian() + 12).relu(), (gaussian() + 12 + 0.1 * gaussian(seed=1)).relu())
    assert h["negative_cosine"] > 0.99
    assert run(UNTRAINED, look(0.5), look(0.8), encoder=[h] * 3).state == "healthy"
    assert verdict([{"encoder": h}], finished=True).state != "complete collapse"


@pytest.mark.parametrize("finished", [True, False])
def test_a_long_warm_up_is_no_collapse(finished):
    found = run(UNTRAINED, look(0.049), look(0.045), look(0.05), finished=finished)
    assert found.state == "not started"
    assert "warm-up" in found.advice


def test_leaving_collapse():
    assert run(look(0.5), look(0.001), look(0.02)).state == "leaving collapse"
    deep = [look(0.5), look(0.01), look(0.002), look(0.003)]
    assert run(*deep).state == "complete collapse"
    assert run(*deep, look(0.02)).state == "leaving collapse"
    assert run(*deep, look(0.02), look(0.008)).state == "complete collapse"
    assert run(*deep, look(0.2)).state == "leaving collapse"
    found = run(*deep, look(0.2), look(0.5))
    assert found.headline == "learned"
    assert "recovered from a collapse" in found.evidence


def test_dimensional_collapse():
    poor = look(0.9, rank=2)
    found = run(UNTRAINED, look(0.9), look(0.9), encoder=[look(0.5), poor, poor])
    assert found.state == "dimensional collapse"
    assert "2.0 of 64 directions" in found.evidence
    assert verdict([{"encoder": poor}], finished=True).state == "dimensional collapse"


def test_few_directions_are_judged_late_and_at_the_encoder():
    poor, rich = look(0.9, rank=2), look(0.9)
    z = [UNTRAINED, rich, rich, rich]
    assert run(*z[:2], encoder=[rich, poor], finished=False).state == "healthy"
    assert run(*z, encoder=[rich, poor, rich, poor], finished=False).state == "healthy"
    assert run(*z, encoder=[rich, rich, poor, poor], finished=False).state == "dimensional collapse"
    assert run(*[UNTRAINED, poor, poor, poor], encoder=[look(0.5, 0.3), *[rich] * 3]).state == "healthy"
    assert run(*z, encoder=[poor] * 4, finished=False).state == "healthy"  # as it was before training
    assert run(*z, encoder=[rich, *[look(0.9, rank=5)] * 3]).state == "healthy"
    narrow = look(0.9, width=2, rank=2)
    assert run(*z, encoder=[narrow] * 4).state == "healthy"  # two of two


def test_diverging():
    assert "loss is nan" in verdict([{"loss": 2.0}, {"loss": math.nan}]).evidence
    broken = indicators(torch.full((4, 3), math.nan), torch.ones(4, 3))
    assert run(UNTRAINED, broken).state == "diverging"
    assert run(UNTRAINED, look(0.5), encoder=[look(0.5), broken]).state == "diverging"
    found = run(UNTRAINED, look(0.5, scale=1e6))
    assert found.state == "diverging"
    assert "1.2e+05" in found.evidence or "1.3e+05" in found.evidence  # 1e6 / sqrt(64) in each entry
    assert run(UNTRAINED, look(0.5, scale=1e4)).state == "healthy"


@pytest.mark.parametrize("history", [[], [{"step": 3, "loss": 1.0}], [{"step": 0, "projector": UNTRAINED}]])
def test_not_started(history):
    assert verdict(history).state == "not started"


def test_rows_that_only_hold_a_loss_are_skipped():
    losses = [{"step": step, "loss": 1.0} for step in range(4)]
    looks = [{"step": 0, "projector": look(0.5)}, *({"step": s, "projector": look(0.001)} for s in (2, 3))]
    assert verdict([*losses[:2], *looks, *losses[2:]]).state == "complete collapse"


def test_a_network_whose_untrained_features_are_one_point_may_rise():
    """EfficientNet's start within 5e-5 of each other; after a few steps they are still close, but on their way."""
    assert run(look(5e-5), look(5e-4), look(2e-3)).state == "not started"
    assert run(look(5e-4), look(5e-4), look(6e-4)).state == "complete collapse"


@pytest.mark.parametrize("finished", [True, False])
def test_embeddings_that_are_exactly_constant_or_exactly_zero_have_collapsed(finished):
    """A cosine of zeros is 0, not 1, and of a constant nothing is below its spread of 0."""
    constant, zero = (indicators(z, z) for z in (torch.ones(64, 8), torch.zeros(64, 8)))
    for end in (constant, zero):
        assert run(UNTRAINED, end, end, finished=finished).state == "complete collapse"
        assert verdict([{"projector": end}], finished=True).state == "complete collapse"
    assert "all zero" in run(UNTRAINED, zero, zero).evidence


def test_of_several_learners_the_worst_is_told_and_named():
    good, bad, worse = (Verdict(state, state, "why") for state in ("healthy", "diverging", "complete collapse"))
    assert worst([bad]) == bad
    assert worst([good, good]) == good
    assert worst([worse, bad, good]).evidence == "Learner 1 of 3: why"
    assert worst([bad, worse, worse]).evidence == "Learner 3 of 3: why"


def test_rows_of_indicators_alone_are_of_embeddings():
    g = torch.Generator().manual_seed(0)
    views = torch.randn(2, 64, 16, generator=g)
    point = torch.ones(2, 64, 16) + 1e-4 * views
    rows = [{"step": step, **indicators(*z)} for step, z in enumerate((views, point, point))]
    assert verdict(rows, finished=True).state == "complete collapse"
    assert verdict([{"step": 0, "projector": rows[0]}, rows[1], rows[2]], finished=True).state == "complete collapse"
