"""Whole runs with other credit rules: measured by depth, exported without the matrices, refused in one line."""

import numpy as np
import pytest
import torch

import twinblock
from twinblock.core.errors import InputError
from twinblock.runs import checkpoint

RNG = np.random.Generator(np.random.PCG64(0))
DATA = RNG.integers(0, 255, (48, 16, 16, 3), dtype=np.uint8), np.arange(48) % 3
SMALL = ["data.batch=16", "encoder={kind: vgg6, width: 8}", "train.length=3steps", "train.checkpoint_every=1steps"]


def pretrain(out, *overrides, data=DATA):
    return twinblock.pretrain("direct_feedback", data=data, out=out, overrides=[*SMALL, *overrides], quiet=True)


@pytest.mark.parametrize("rule", ["direct", "feedback_alignment", "none"])
def test_a_run_is_measured_by_depth_and_keeps_its_matrices_to_itself(rule, tmp_path):
    run = pretrain(tmp_path / "run", f"scope.credit={rule}")
    start, weights = run.untrained_encoder().state_dict(), run.encoder().state_dict()
    assert weights.keys() == start.keys()
    moved = {name for name, w in weights.items() if not torch.equal(w, start[name])}
    assert moved == (set() if rule == "none" else weights.keys())
    (tensors, _) = checkpoint.newest(run.checkpoints)[1]
    saved = [name for name in tensors if ".matrices." in name or ".feedback." in name]
    assert len(saved) == {"direct": 6, "feedback_alignment": 7, "none": 0}[rule]
    assert not any("matrices" in name or "feedback" in name for name in weights)
    assert len(twinblock.diagnose(run.path, DATA).verdicts) == 1
    rows = twinblock.evaluate(run.path, data=DATA, blocks=True, quiet=True)
    assert {row["features"] for row in rows} >= {"block 1", "block 6"}


def test_labels_are_asked_for_where_they_are_broadcast(tmp_path):
    simclr = ["objective={kind: nt_xent, temperature: 0.2}", "projector.dims=[8]", "views=[{}, {like: 0}]"]
    with pytest.raises(InputError, match=r"scope.credit=drtp broadcasts labels, and this data has none"):
        pretrain(tmp_path / "run", *simclr, "scope.credit=drtp", data=DATA[0])


def test_in_half_precision_blocks_are_taught_too(tmp_path):
    for rule in ("direct", "feedback_alignment"):
        run = pretrain(tmp_path / rule, f"scope.credit={rule}", "train.precision=bf16")
        start = run.untrained_encoder().state_dict()
        assert all(not torch.equal(w, start[name]) for name, w in run.encoder().state_dict().items())
