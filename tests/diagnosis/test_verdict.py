import math

import pytest
import torch
from looks import LEARNED_BY_VIEWS, UNTRAINED, accuracy, gaussian, history, look

from twinblock.config.recipes import compose
from twinblock.diagnosis.measures import indicators
from twinblock.diagnosis.verdict import Verdict, judge, verdict, worst


def run(*projector, encoder=None, finished=True, step=100):
    encoder = encoder or [look(0.2, 0.3), *[look(0.5)] * (len(projector) - 1)]
    rows = [
        {"step": i * step, "loss": 1.0, "encoder": h, "projector": z}
        for i, (h, z) in enumerate(zip(encoder, projector, strict=True))
    ]
    return verdict(rows, finished)


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


def test_a_network_that_starts_alike_has_not_collapsed_by_a_few_steps():
    """As mobilenetv3_small_050, whose untrained embeddings are nearly one."""
    assert run(look(0.005), look(0.005), step=20).state == "not started"
    assert run(look(0.005), look(0.005), step=50).state == "complete collapse"
    assert run(look(0.2), look(0.005), step=20).state == "complete collapse"


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


def test_a_run_that_recovered_from_a_collapse_has_learned_only_if_labels_say_so():
    """What it had before may be lost; with a learning rate far too high, views agree afterwards all the same."""
    deep = [look(0.5), look(0.01), look(0.002), look(0.2), look(0.5)]
    found = run(*deep)
    assert (found.state, found.headline) == ("healthy", "not collapsed")
    assert found.evidence.startswith("recovered from a collapse, so only labels can tell")
    rows = [{"step": 100 * i, "encoder": h, "projector": h} for i, h in enumerate(deep)]
    assert verdict(rows, True, accuracy=accuracy(0, 60)).headline == "learned"
    assert verdict(rows, True, accuracy=accuracy(60, 10)).headline == "worse than untrained"


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


def headline(*agreements, **more):
    return verdict(history(*agreements, **more), finished=True).headline


def test_learned_is_more_than_two_standard_errors_above_untrained():
    """0.1 is two of the error 0.05 = hypot(0.03, 0.04) of the difference."""
    assert headline((0.3, 0.03), (0.41, 0.04)) == "learned"
    assert headline((0.3, 0.03), (0.39, 0.04)) == "not collapsed"
    assert "0.39 ± 0.04 after 0.30 ± 0.03" in verdict(history((0.3, 0.03), (0.39, 0.04)), True).evidence
    assert headline((0.3, 0.0), (0.319, 0.0)) == "not collapsed"  # too little to matter, however sure
    assert headline((0.3, 0.0), (0.321, 0.0)) == "learned"


def test_agreement_that_rises_to_chance_is_nothing_learned():
    """Frames of a resting camera: from below 0 up to 0, which is chance."""
    assert headline((-0.15, 0.01), (0.01, 0.01)) == "not collapsed"
    assert headline((-0.15, 0.01), (0.03, 0.01)) == "learned"
    assert headline((-0.15, 0.01), (0.03, 0.02)) == "not collapsed"
    assert "no more than those of different images" in verdict(history((-0.15, 0.01), (0.0, 0.01)), True).evidence


def test_moving_statistics_of_batch_norms_are_nothing_learned():
    assert headline((0.2, 0.01), (0.4, 0.01)) == "learned"
    assert headline((0.2, 0.01), (0.4, 0.01), untrained=(0.39, 0.01)) == "not collapsed"
    assert headline((0.39, 0.01), (0.4, 0.01), untrained=(0.2, 0.01)) == "not collapsed"
    assert headline((0.3, 0.01), (0.4, 0.01), untrained=(0.2, 0.01)) == "learned"


def test_views_that_agree_in_few_directions_are_nothing_learned():
    """At a rate far too high, some directions are left, and views do agree in them."""
    assert headline((0.2, 0.01), (0.8, 0.01), untrained=(0.2, 0.01), rank=21) == "learned"
    found = verdict(history((0.2, 0.01), (0.8, 0.01), untrained=(0.2, 0.01), rank=19), True)
    assert (found.headline, "60.0 directions untrained" in found.evidence) == ("not collapsed", True)


def test_a_few_steps_are_too_early_to_tell():
    assert headline((0.2, 0.01), (0.8, 0.01), step=49) == "too early to tell"
    assert headline((0.2, 0.01), (0.8, 0.01), step=50) == "learned"
    assert verdict(history((0.2, 0.01), (0.8, 0.01), step=49)).headline == "learning"
    assert verdict(history((0.2, 0.01), (0.8, 0.01), step=1), True, accuracy=accuracy(0, 90)).headline == (
        "too early to tell"
    )


def test_judge_gives_each_learner_its_own_rows_and_losses():
    config = compose("simclr", overrides=["data.batch=64", "scope.kind=blockwise"])
    chance = math.log(127)
    rows = [
        {
            "step": row["step"],
            "diagnosis": [{k: row[k] for k in ("encoder", "projector")}] * 2,
            "agreement": [row["agreement"]] * 2,
        }
        for row in LEARNED_BY_VIEWS
    ]
    rows += [{"step": step, "loss": [chance - 1, chance]} for step in range(100)]
    assert [v.headline for v in judge(rows, [0, 0], config)] == ["learned", "not collapsed"]
    judged = judge(rows, [0, 0], config, accuracy=accuracy(60, 10, both=131))
    assert [v.headline for v in judged] == ["learned", "worse than untrained"]
    assert worst(judged).headline == "worse than untrained"
    later = judge(rows, [0, 100], config, finished=False)
    assert later[1].state == "not started"  # its history begins at step 100


# what the mutants of the thresholds change


def test_a_confirmed_collapse_is_remembered_and_a_single_look_is_not():
    """Two looks in a row make a collapse that one may recover from; one may be a stumble of the first steps."""
    two, one = (run(look(0.5), *[look(0.002)] * n, look(0.9), look(0.9)) for n in (2, 1))
    assert "recovered from a collapse" in two.evidence
    assert "recovered" not in one.evidence


def test_the_most_directions_that_are_few():
    """3, or 2 % of the possible ones, but never more than half of them."""
    for width, few, enough in ((64, 2.9, 3.2), (400, 5.0, 5.2), (4, 1.9, 2.1)):
        for rank, state in ((few, "dimensional collapse"), (enough, "healthy")):
            h = {**look(0.9, width=width, rank=min(8, width)), "centred_rank": rank}
            assert run(UNTRAINED, look(0.9), encoder=[h, h]).state == state, (width, rank)


def test_a_spread_that_rises_threefold_leaves_a_collapse():
    low = look(0.001)
    for factor, state in ((2.9, "complete collapse"), (3.1, "leaving collapse")):
        assert run(look(0.5), low, low, look(0.001 * factor)).state == state


def test_a_spread_that_stays_where_it_has_risen_to_has_left_the_collapse():
    low, risen = look(0.001), look(0.0035)
    assert run(look(0.5), low, low, risen, risen).state == "leaving collapse"


def test_directions_that_fell_to_just_half_are_not_yet_few_for_good():
    """Of a run that goes on: 2 of 4 directions is not less than half; 1.9 is."""
    h = look(0.9)
    for rank, state in ((2.0, "healthy"), (1.9, "dimensional collapse")):
        encoder = [{**h, "centred_rank": 4.0}, *[{**h, "centred_rank": rank}] * 2]
        assert run(UNTRAINED, look(0.9), look(0.9), encoder=encoder, finished=False).state == state


def test_the_length_is_from_the_first_look_to_the_last():
    """Of a block in turn the first look is at the step where its turn begins."""
    for step, expected in ((24, "too early to tell"), (25, "learned")):
        rows = [{**row, "step": 1000 + row["step"]} for row in history(*[(0.2, 0.01)] * 2, (0.8, 0.01), step=step)]
        assert verdict(rows, finished=True).headline == expected


def test_the_last_look_says_whether_views_agree():
    assert headline((0.3, 0.01), (0.3, 0.01), (0.9, 0.01)) == "learned"
    assert headline((0.3, 0.01), (0.9, 0.01), (0.3, 0.01)) == "not collapsed"


def shared(*of_looks, finished=True, kind="dino", **fields):
    """A run whose views say that it learned, with these (prototypes in use, entropy) of its looks."""
    rows = history(*[(0.2, 0.01), *[(0.8, 0.01)] * (len(of_looks) - 1)])
    for row, (used, uncertainty) in zip(rows, of_looks, strict=True):
        row["prototypes"] = {"prototypes": 64.0, "used": used, "uncertainty": uncertainty}
    return verdict(rows, finished, compose(kind, {"objective": fields}))


def test_prototypes_that_tell_images_apart():
    for finished in (True, False):
        assert shared((1.0, 0.85), (20.0, 0.3), (40.0, 0.1), finished=finished).state == "healthy"
        assert shared((1.0, 1.0), (2.0, 0.9995), (40.0, 0.6), finished=finished).state == "healthy"  # they may begin so


def test_one_prototype_for_all_images_is_a_collapse():
    found = shared((1.0, 0.85), (20.0, 0.3), (1.0, 0.0), (1.1, 0.0), finished=False, momentum=1.0)
    assert found.state == "complete collapse"
    assert found.evidence == "all images choose the same one of 64 prototypes; 20.0 were in use before"
    assert found.advice.startswith("objective.momentum=1: the centre never moves")
    assert shared((1.0, 0.85), (20.0, 0.3), (1.0, 0.0), finished=False).state == "healthy"  # it may be a stumble
    assert shared((1.0, 0.85), (1.0, 0.1), (1.0, 0.0)).state == "complete collapse"  # a run that ends so
    assert shared((1.0, 0.85), (1.0, 0.1), (1.0, 0.0), finished=False).state == "healthy"  # it has not left it yet


def test_all_prototypes_alike_for_each_image_is_a_collapse():
    found = shared((9.0, 0.85), (20.0, 0.3), (20.0, 0.9995), target_temperature=0.2)
    assert found.state == "complete collapse"
    assert found.evidence == "each image has all 64 prototypes alike: entropy 0.9995, 0.30 before"
    assert found.advice.startswith("objective.target_temperature=0.2 is not below objective.temperature=0.1")
    assert shared((9.0, 0.85), (20.0, 0.3), (20.0, 0.998)).state == "healthy"
    assert shared((9.0, 1.0), (20.0, 0.9999), (20.0, 0.9999)).state == "healthy"  # never otherwise: nothing fell


def test_codes_no_sharper_than_predictions_are_named():
    found = shared((9.0, 0.9), (20.0, 0.3), (1.0, 0.0), kind="swav", epsilon=0.2)
    assert found.advice.startswith("objective.epsilon=0.2: codes are hardly sharper")
    stuck = shared((9.0, 0.9), (20.0, 0.9995), (20.0, 0.9995), kind="swav", epsilon=0.05)
    assert stuck.state == "complete collapse" and stuck.advice.startswith("lower objective.epsilon=0.05")
