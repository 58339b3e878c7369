"""Whole runs of MAE: killed, in half precision, learning, exported."""

import numpy as np
import pytest
import tiny
import torch

import twinblock
from twinblock.config.recipes import compose
from twinblock.core.errors import InputError
from twinblock.methods import parts
from twinblock.methods.learners import KINDS
from twinblock.methods.learners.mae import MAE
from twinblock.runs import checkpoint

RNG = np.random.Generator(np.random.PCG64(0))


DATA = RNG.integers(0, 255, (48, 16, 16, 3), dtype=np.uint8), np.arange(48) % 3


SMALL = [
    *("data.batch=16", "encoder.kind=test_vit", "train.length=4steps", "train.checkpoint_every=1steps"),
    *("learner.decoder_width=16", "learner.decoder_depth=1", "learner.decoder_heads=2"),
]


def pretrain(out, *overrides):
    return twinblock.pretrain("mae", data=DATA, out=out, overrides=[*SMALL, *overrides], quiet=True)


@pytest.mark.parametrize("scope", ["end_to_end", "blockwise"])
def test_a_killed_run_ends_as_the_other_and_is_measured_with_nothing_imported(scope, tmp_path, monkeypatch):
    from twinblock.training.step import TrainStep

    monkeypatch.setattr(parts, "OURS", {})
    take = TrainStep.__call__

    def step(self, number, samples):
        if number == 2:
            raise RuntimeError("killed")
        return take(self, number, samples)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", step)
        with pytest.raises(RuntimeError, match="killed"):
            pretrain(tmp_path / "run", f"scope.kind={scope}")
    runs = [pretrain(tmp_path / name, f"scope.kind={scope}") for name in ("run", "whole")]
    (mine, _), (theirs, _) = (checkpoint.newest(run.checkpoints)[1] for run in runs)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)

    monkeypatch.setattr(parts, "import_part", pytest.fail)
    run = twinblock.Run.open(tmp_path / "run")
    assert type(run.config.learner).__name__ == "MAEFields" and run.config.learner.mask == 0.75
    assert len(twinblock.diagnose(run.path, DATA).verdicts) == (6 if scope == "blockwise" else 1)
    rows = twinblock.evaluate(run.path, data=DATA, blocks=True, quiet=True)
    assert {row["features"] for row in rows} >= {"block 1", "block 6"}
    assert twinblock.load_encoder(run.path)(torch.zeros(2, 3, 16, 16)).shape == (2, 64)
    with pytest.raises(InputError, match=r"learner.mask: 0.75 there, 0.5 here"):
        pretrain(tmp_path / "run", f"scope.kind={scope}", "learner.mask=0.5")


def test_half_precision_is_that_of_the_run(tmp_path):
    config = tiny.config("mae", precision="bf16")
    trainer = tiny.trainer(config, tmp_path / "run")
    seen = []
    trainer.learners[0].pixels.register_forward_hook(lambda module, given, y: seen.append(y.dtype))
    trainer.fit()
    assert torch.bfloat16 in seen
    assert trainer.learners[0].pixels.weight.dtype == torch.float32


def test_it_learns_what_images_have_in_common(tmp_path):
    """Stripes whose direction a visible patch gives away: far below the loss of the mean patch, which is 1."""
    rng = np.random.Generator(np.random.PCG64(0))
    across = rng.integers(0, 2, 64).astype(bool)
    stripes = np.where(np.arange(16) % 4 < 2, 40, 210).astype(np.uint8)
    pixels = np.where(across[:, None, None], stripes[None, :, None], stripes[None, None, :])
    pixels = np.repeat(pixels[..., None], 3, 3)
    run = twinblock.pretrain(
        "mae",
        data=pixels,
        out=tmp_path / "run",
        quiet=True,
        overrides=[
            *SMALL,
            "train.length=60steps",
            "train.checkpoint_every=100%",
            "views=[{crop: null, flip: 0}]",
            "optim.lr=0.03",
        ],
    )
    losses = [row["loss"][0] for row in run.metrics() if "loss" in row]
    assert losses[0] > 0.9 and losses[-1] < 0.5


def test_learners_of_the_package_are_known_by_their_file():
    assert KINDS["mae"] is MAE


def test_an_encoder_with_other_patches_loads_in_timm(tmp_path):
    import timm

    run = pretrain(tmp_path / "run", "train.precision=fp32")
    twinblock.export(run, to="timm", out=tmp_path / "out")
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(model(x), run.encoder()(x), atol=1e-5)


def test_the_published_settings():
    run = compose("mae_imagenet")
    assert run.learner.model_dump() == {
        "kind": "mae",
        "mask": 0.75,
        "decoder_width": 512,
        "decoder_depth": 8,
        "decoder_heads": 16,
        "norm_pixels": True,
    }
    optim = run.optim
    assert (optim.lr, optim.momentum, optim.beta2, optim.weight_decay) == (1.5e-4, 0.9, 0.95, 0.05)
    assert (run.data.batch, run.data.size, str(optim.warmup), run.views[0].crop) == (4096, 224, "40epochs", (0.2, 1.0))
    assert optim.exclude_bias_and_norm and run.views[0].flip == 0.5 and run.views[0].interpolation == "bicubic"


def test_the_second_beta_reaches_the_optimizer(tmp_path):
    trainer = tiny.trainer(tiny.config("mae", optim={"beta2": 0.9}), tmp_path / "run")
    assert {group["betas"] for group in trainer.optimizers[0].param_groups} == {(0.9, 0.9)}
