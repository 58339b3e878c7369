"""The recipes of blockwise training: published settings, and twins that differ in their scope alone."""

import pytest
import tiny

from twinblock.config.recipes import compose


@pytest.mark.parametrize("name", ["blockwise", "blockwise_demo", "blockwise_barlow_imagenet", "barlow_imagenet"])
def test_the_recipes_take_a_step_at_a_small_size(name, tmp_path):
    small = {"kind": "resnet10", "stem": "cifar", "width": 8}
    fields = {"data": {"batch": 8, "size": 16}, "projector": {"dims": [16, 16]}, "train": {"length": "1steps"}}
    overrides = [] if name == "barlow_imagenet" else ["scope.expand=24"]
    trainer = tiny.trainer(compose(name, {**fields, "encoder": small}, overrides), tmp_path / "run")
    trainer.fit()
    assert len(trainer.learners) == (1 if name == "barlow_imagenet" else 4)


@pytest.mark.parametrize(
    "twins",
    [("blockwise_barlow_imagenet", "barlow_imagenet"), ("blockwise", "simclr"), ("blockwise_demo", "demo")],
)
def test_twins_differ_in_their_scope_alone(twins):
    blockwise, whole = map(compose, twins)
    assert whole.scope.kind == "end_to_end"
    assert blockwise.model_copy(update={"scope": whole.scope}) == whole


def test_the_published_settings():
    """Those of the released training script, and ResNet-50 as torchvision builds it there."""
    run = compose("blockwise_barlow_imagenet")
    assert (str(run.train.length), run.data.batch, run.data.size, run.encoder.kind) == (
        "300epochs",
        2048,
        224,
        "timm/resnet50",
    )
    unused = {name for name, value in run.optim if value is None}
    assert run.optim.model_dump(exclude={"warmup", "freeze_prototypes", "beta2", "milestones", "factor", *unused}) == {
        "kind": "lars",
        "lr": 0.2,
        "momentum": 0.9,
        "weight_decay": 1e-6,
        "layer_decay": 1.0,
        "exclude_bias_and_norm": True,
        "end": 0.001,
    }
    assert str(run.optim.warmup) == "10epochs"
    assert run.projector.dims == (8192, 8192, 8192)
    assert (run.encoder.norm, run.projector.norm, run.projector.last_norm, run.predictor) == ("sync",) * 2 + (
        "none",
        None,
    )
    assert (run.objective.kind, run.objective.lambd, run.objective.scale) == ("barlow_twins", 0.0051, 0.024)
    scope = run.scope
    assert (scope.plan, scope.cuts, scope.pool, scope.expand) == ("simultaneous", "stages", "gap", 2048)
    assert (scope.noise, scope.noise_over) == (0.25, "all")
    first, second = run.views
    assert (first.crop, first.flip, first.jitter, first.jitter_p, first.gray) == (
        (0.08, 1.0),
        0.5,
        (0.4, 0.4, 0.2, 0.1),
        0.8,
        0.2,
    )
    assert (first.blur, first.solarize, second.blur, second.solarize) == (1.0, 0.0, 0.1, 0.2)
    assert first.interpolation == "bicubic"
    assert second.model_copy(update={"blur": first.blur, "solarize": first.solarize}) == first
