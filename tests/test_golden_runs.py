"""No refactoring changes a bit of a run: what short runs give is what was recorded; see `golden_runs.py`."""

import json

import golden_runs
import pytest

RECORD = json.loads(golden_runs.FILE.read_text())
QUICK = ("simclr fp64", "byol", "byol overlapping", "moco pruned, blockwise", "sdclr", "vicreg sequential")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in (*QUICK, "byol in blocks, two processes") else pytest.mark.slow)
        for name in (*golden_runs.RUNS, *golden_runs.ON_TWO)
    ],
)
def test_a_run_gives_what_was_recorded(tmp_path, monkeypatch, name):
    monkeypatch.setenv("TWINBLOCK_CACHE", str(tmp_path / "cache"))
    outcome, expected = golden_runs.carry_out(name, tmp_path), RECORD[name]
    double = golden_runs.FP64 in (golden_runs.RUNS | golden_runs.ON_TWO)[name][1]
    same_machine = expected["machine"] == golden_runs.machine()
    assert golden_runs.differences(expected, outcome, same_machine, double) == []


def test_every_target_objective_scope_and_precision_is_recorded():
    from twinblock.config.recipes import compose
    from twinblock.methods import objectives, targets

    configs = [compose(recipe, overrides=golden_runs.short(own)) for recipe, own in golden_runs.RUNS.values()]
    assert {config.objective.kind for config in configs if config.objective} == objectives.KINDS.keys()
    assert {config.target.kind for config in configs} == targets.KINDS.keys()
    assert {config.scope.kind for config in configs} == {"end_to_end", "blockwise", "overlapping"}
    assert {config.train.precision for config in configs} == {"fp32", "bf16", "fp64"}
    assert RECORD.keys() == (golden_runs.RUNS | golden_runs.ON_TWO).keys()
