"""A loss, a target network, a learner of one's own: trained in every scope, resumed, diagnosed, or refused."""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import twinblock
from twinblock.config.recipes import compose, from_yaml
from twinblock.core.errors import InputError
from twinblock.methods import parts as registry
from twinblock.methods.learners.alone import Alone
from twinblock.methods.objectives import NTXent

sys.path.insert(0, str(Path(__file__).parent))
import parts

SMALL = ["encoder.kind=resnet10", "encoder.width=8", "data.batch=16", "train.length=4steps", "projector.dims=[16,8]"]
RNG = np.random.Generator(np.random.PCG64(0))
PIXELS, LABELS = RNG.integers(0, 255, (48, 16, 16, 3), dtype=np.uint8), np.arange(48) % 3


def pretrain(out, recipe="simclr", overrides=(), **given):
    return twinblock.pretrain(
        recipe, data=(PIXELS, LABELS), out=out, overrides=[*SMALL, *overrides], quiet=True, **given
    )


def weights(run) -> dict[str, torch.Tensor]:
    return run.encoder().state_dict()


def test_a_copy_of_a_loss_of_ours_gives_the_same_run(tmp_path):
    """NT-Xent given as an object: the very bits of the recipe's own."""
    ours = weights(pretrain(tmp_path / "ours"))
    given = weights(pretrain(tmp_path / "given", objective=NTXent(0.2)))
    assert all(torch.equal(ours[name], given[name]) for name in ours)


@pytest.mark.parametrize("scope", ["end_to_end", "blockwise", "overlapping"])
def test_a_loss_trains_in_every_scope(tmp_path, scope):
    run = pretrain(tmp_path / "run", objective=parts.MyLoss(0.1), overrides=[f"scope.kind={scope}"])
    objective = run.config.objective
    assert (objective.kind, objective.temperature) == ("<parts:MyLoss>", 0.1)
    start = run.untrained_encoder().state_dict()
    assert any(not torch.equal(start[name], w) for name, w in weights(run).items() if name == "conv1.weight")
    diagnosis = twinblock.diagnose(run)
    assert len(diagnosis.outputs) == {"end_to_end": 1, "blockwise": 4, "overlapping": 3}[scope]


def test_a_loss_is_named_in_a_recipe(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "OURS", {})
    fields = {"objective": {"kind": "parts:MyLoss", "temperature": 0.1}}
    run = pretrain(tmp_path / "run", **fields)
    assert run.config.objective.temperature == 0.1
    again = pretrain(tmp_path / "again", objective=parts.MyLoss(0.1))
    assert all(torch.equal(w, weights(again)[name]) for name, w in weights(run).items())
    with pytest.raises(InputError, match=r"objective.temprature: unknown|temprature"):
        compose("simclr", {"objective": {"kind": "parts:MyLoss", "temprature": 0.1}})
    with pytest.raises(InputError, match="greater than 0"):
        compose("simclr", {"objective": {"kind": "parts:MyLoss", "temperature": -1.0}})


def test_a_run_on_disk_imports_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "OURS", {})
    run = pretrain(tmp_path / "run", objective={"kind": "parts:MyLoss", "temperature": 0.1})
    text = (run.path / "config.yaml").read_text().replace("parts:MyLoss", "antigravity_of_mine:Evil")
    monkeypatch.setattr(registry, "OURS", {})
    assert from_yaml(text).objective.kind == "antigravity_of_mine:Evil"  # read, not imported
    (run.path / "config.yaml").write_text(text)
    assert twinblock.load_encoder(run.path) is not None
    with pytest.raises(InputError, match=r"a run's config.yaml imports nothing"):
        compose(run.path / "config.yaml")


def test_a_run_goes_on_with_the_same_object_only(tmp_path):
    with pytest.raises(RuntimeError, match="killed"):
        _killed_half_way(tmp_path / "run")
    with pytest.raises(InputError, match=r"objective.temperature: 0.1 there, 0.2 here"):
        pretrain(tmp_path / "run", objective=parts.MyLoss(0.2), overrides=["train.checkpoint_every=1steps"])
    with pytest.raises(InputError, match="another config"):
        pretrain(tmp_path / "run", overrides=["train.checkpoint_every=1steps"])
    run = pretrain(tmp_path / "run", objective=parts.MyLoss(0.1), overrides=["train.checkpoint_every=1steps"])
    whole = pretrain(tmp_path / "whole", objective=parts.MyLoss(0.1), overrides=["train.checkpoint_every=1steps"])
    assert all(torch.equal(w, weights(whole)[name]) for name, w in weights(run).items())


def _killed_half_way(out):
    from twinblock.training.step import TrainStep

    take = TrainStep.__call__

    def step(self, number, samples):
        if number == 2:
            raise RuntimeError("killed")
        return take(self, number, samples)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__call__", step)
        pretrain(out, objective=parts.MyLoss(0.1), overrides=["train.checkpoint_every=1steps"])


def test_a_loss_may_ask_for_the_batch_and_keep_a_state(tmp_path):
    run = pretrain(tmp_path / "run", objective=parts.Counting, overrides=["target={kind: ema, momentum: 0.5}"])
    from twinblock.runs import checkpoint

    _, (tensors, _) = checkpoint.newest(run.checkpoints)
    assert tensors["learners.0.objective.met"].item() == 4 * 2 * 16  # steps, targets of a step, batch


def test_a_target_of_ones_own(tmp_path):
    run = pretrain(tmp_path / "run", "byol", ["predictor.dims=[16,8]", "scope.kind=blockwise"], target=parts.Frozen)
    assert run.config.target.kind == "<parts:Frozen>"
    assert twinblock.diagnose(run.path, (PIXELS, LABELS)).verdicts
    still = pretrain(tmp_path / "still", "byol", ["predictor.dims=[16,8]", "scope.kind=blockwise", "target.momentum=1"])
    assert all(torch.equal(w, weights(still)[name]) for name, w in weights(run).items())


@pytest.mark.parametrize("plan", ["simultaneous", "sequential"])
def test_a_learner_of_ones_own_block_by_block(tmp_path, plan):
    scope = ["scope.kind=blockwise", f"scope.plan={plan}", "views=[{crop: null, flip: 0, jitter_p: 0, gray: 0}]"]
    small = [field for field in SMALL if not field.startswith("projector")]
    make = partial(parts.Denoiser, sigma=0.2)
    data = (PIXELS, LABELS)
    run = twinblock.pretrain(
        "simclr", learner=make, data=data, out=tmp_path / "run", overrides=[*small, *scope], quiet=True
    )
    assert (run.config.learner.kind, run.config.learner.sigma) == ("<parts:Denoiser>", 0.2)
    assert run.config.objective is None
    losses = [row["loss"] for row in run.metrics() if "loss" in row]
    assert len(losses) == 4
    assert (run.path / "curves.png").exists()
    rows = twinblock.evaluate(run, blocks=True, quiet=True)
    assert {row["features"] for row in rows} >= {"block 1", "block 4"}
    assert len(twinblock.diagnose(run).verdicts) == 4
    assert twinblock.exemplars(run) == []
    with pytest.raises(InputError, match=r"<parts:Denoiser>.*Python object; give Denoiser again"):
        twinblock.diagnose(run.path, data)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"objective": parts.Wrong}, r"gives \(3,\); it should give one number"),
        ({"objective": {"kind": "parts:Untyped"}}, "argument 'temperature' has no type"),
        ({"objective": {"kind": "nowhere:Loss"}}, "objective.kind=nowhere:Loss: cannot import it"),
        ({"objective": {"kind": "parts:Nothing"}}, "cannot import it"),
        ({"learner": parts.MyLoss}, "has no pass_on"),
        ({"learner": Alone}, "has no forward, pass_on, outputs"),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path, given, message):
    small = [field for field in SMALL if "learner" not in given or not field.startswith("projector")]
    with pytest.raises(InputError, match=message) as error:
        twinblock.pretrain("simclr", data=PIXELS, out=tmp_path / "run", overrides=small, quiet=True, **given)
    assert "\n" not in str(error.value)


def test_parts_of_the_recipe_do_not_stand_beside_a_learner():
    with pytest.raises(InputError, match="projector: it belongs to the siamese learner"):
        compose("simclr", {"learner": {"kind": "parts:Denoiser"}}, ["projector.dims=[8]"])
