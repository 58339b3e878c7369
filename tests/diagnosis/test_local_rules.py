"""What the diagnosis says of rules of single layers: a collapse is called one, with its cause."""

import numpy as np
import pytest
import torch

import twinblock
from twinblock.config.recipes import compose
from twinblock.diagnosis.advice import advice
from twinblock.diagnosis.chance import chance_loss, loss_at_chance


@pytest.mark.parametrize(("push", "collapsed"), [(1, False), (0, True)])
def test_lpl_without_its_push_is_called_collapsed_in_its_blocks(push, collapsed, tmp_path):
    rng = np.random.Generator(np.random.PCG64(0))
    pixels = rng.integers(0, 255, (64, 16, 16, 3), dtype=np.uint8)
    small = ["data.batch=32", "encoder={kind: vgg6, width: 8}", "train.length=100steps", "train.checkpoint_every=100%"]
    small += [f"objective.push={push}", "optim.lr=0.08"]
    run = twinblock.pretrain("lpl", data=pixels, out=tmp_path / "run", overrides=small, quiet=True)
    verdicts = [verdict.state for verdict in twinblock.diagnose(run.path, pixels).verdicts]
    assert len(verdicts) == 6
    deep = verdicts[2:]  # shallow blocks shrink slowly
    assert all((state == "complete collapse") == collapsed for state in deep), verdicts
    assert not (collapsed and "healthy" in verdicts), verdicts


def test_the_cause_is_named():
    assert advice("complete collapse", compose("lpl", overrides=["objective.push=0"])).startswith("objective.push=0")
    said = advice("dimensional collapse", compose("lpl", overrides=["objective.decorrelation=0"]))
    assert "objective.decorrelation=0" in said


@pytest.mark.parametrize(("soft", "chance"), [("false", 2.0), ("true", 2.626523)])
def test_a_hinge_loss_at_chance_is_nothing_learned(soft, chance):
    config = compose("clapp_pp", overrides=[f"objective.soft={soft}"])
    assert chance_loss(config) == pytest.approx(chance, abs=1e-6)
    assert "no better than chance" in loss_at_chance([chance] * 40, config)
    assert loss_at_chance([chance - 0.1] * 40, config) == ""


@pytest.mark.parametrize("state", ["complete collapse", "dimensional collapse", "diverging", "healthy"])
@pytest.mark.parametrize("recipe", ["lpl", "clapp_pp", "local_losses", "direct_feedback", "direct_feedback_simclr"])
def test_advice_knows_what_to_say_of_each(recipe, state):
    said = advice(state, compose(recipe), "not collapsed" if state == "healthy" else "")
    assert said and "\n" not in said


@pytest.mark.slow
def test_lpl_learns_what_views_have_in_common(tmp_path):
    """Patches of colour: slowly, as its push comes first. After 200 steps views agree no more than in the beginning."""
    rng = np.random.Generator(np.random.PCG64(0))
    coarse = torch.tensor(rng.integers(0, 255, (128, 3, 4, 4)), dtype=torch.float32)
    pixels = torch.nn.functional.interpolate(coarse, size=16, mode="bilinear").permute(0, 2, 3, 1)
    view = "{crop: [0.5, 1.0], flip: 0, jitter: [0.8, 0.8, 0.8, 0.2], jitter_p: 0.8}"
    small = ["data.batch=64", "encoder={kind: vgg6, width: 8}", "train.length=1200steps", "optim.lr=0.01"]
    small += ["train.checkpoint_every=100%", f"views=[{view}, {{like: 0}}]"]
    pixels = pixels.numpy().astype(np.uint8)
    run = twinblock.pretrain("lpl", data=pixels, out=tmp_path / "run", overrides=small, quiet=True)
    assert run.result is not None and run.result["headline"] == "learned"
