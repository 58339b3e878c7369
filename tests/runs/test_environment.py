"""What a run records of where and when it ran."""

import platform

import pytest
import torch

import twinblock
from twinblock.runs.environment import environment, recorded, starts_of
from twinblock.runs.run import Run


def test_every_start_is_an_entry(tmp_path):
    run, step = Run(tmp_path), [0]
    facts = environment(torch.device("cpu"), 2)
    assert facts["twinblock"] == twinblock.__version__
    assert (facts["python"], facts["torch"]) == (platform.python_version(), torch.__version__)
    assert (facts["device"], facts["processes"]) == ("cpu", 2)
    assert (facts["host"] and facts["commit"] is None) or len(facts["commit"].removesuffix("-dirty")) == 40

    def fail():
        with recorded(run, facts, lambda: step[0]):
            assert [set(start) - set(facts) for start in starts_of(run)] == [{"began", "from_step"}]
            step[0] = 7
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with recorded(run, facts, lambda: step[0]):
        step[0] = 9
    assert [(start["from_step"], start["to_step"]) for start in starts_of(run)] == [(0, 7), (7, 9)]
    assert all(start["seconds"] >= 0 for start in starts_of(run))


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", '{"starts": 3}', "[" * 9999])
def test_a_damaged_record_ends_no_training(tmp_path, content):
    (tmp_path / "environment.json").write_text(content)
    with recorded(Run(tmp_path), {}, lambda: 0):
        assert len(starts_of(Run(tmp_path))) == 1
