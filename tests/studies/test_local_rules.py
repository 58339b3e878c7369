"""Every rule is a run on every kind of data, differs from the others as its row says, and is measured."""

import pytest
import tiny

from twinblock.config.recipes import compose
from twinblock.studies.local_rules import COST, NEEDS, RULES, WHOLE, arms, cost, picture
from twinblock.studies.study import Options


@pytest.mark.parametrize("data", [(), ("data=cifar10",)])
def test_every_rule_is_a_run(tmp_path, data):
    composed = {
        arm.name: compose(arm.recipe, overrides=(*arm.overrides, *data)) for arm in arms(Options(tmp_path, 1, data))
    }
    assert composed.keys() == RULES.keys()
    for name, rule in RULES.items():
        config = composed[name]
        assert config.labelled == rule.labels, name
        through = config.scope.kind == "end_to_end" and config.scope.credit == "backprop"
        assert (rule.transport == WHOLE) == through, name
    same = [config.encoder for name, config in composed.items() if config.encoder.kind == "vgg8b"]
    assert len(same) > len(RULES) // 2
    assert all(encoder == same[0] for encoder in same)


def test_a_step_costs_what_its_largest_block_holds(tmp_path):
    """Blocks hold less than the whole, at each step; the time is of all phases."""
    held = {}
    for scope in ("end_to_end", "simultaneous", "sequential"):
        trainer = tiny.trainer(tiny.config("simclr", scope, precision="fp32"), tmp_path / scope)
        trainer.run.objects["data"] = tiny.images()
        found = cost(trainer.run)
        assert found.keys() == set(COST)
        assert found[COST[1]] > 0
        held[scope] = found[COST[0]]
    assert held["sequential"] <= held["simultaneous"] < held["end_to_end"]


def test_the_picture_shows_every_rule_that_was_measured():
    rows = [{"arm": name, "seed": 0, "linear 1": 10.0 + k, COST[0]: 2.0**k} for k, name in enumerate(RULES)]
    assert picture(rows)[:4] == b"\x89PNG"
    assert {column for rule in RULES.values() for column in rule.needs()} == set(NEEDS)
