"""Scopes: plans, the settings of single blocks, and what does not fit together."""

import pytest
import tiny
import torch
from torch import nn

from twinblock.assembly.build import encoder_of, make_learners
from twinblock.assembly.plan import Phase, make_plan
from twinblock.config.recipes import compose
from twinblock.core.errors import InputError
from twinblock.nn.encoders import build_encoder


def test_blocks_have_settings_of_their_own(tmp_path):
    config = tiny.config("vicreg", "simultaneous", train={"length": "2steps"}, optim={"lr": 1.0, "clip": None})
    tree = config.model_dump(mode="json")
    tree["scope"]["per_block"] = {
        1: {"objective": {"invariance": 5.0, "scale": 0.5}, "optim": {"lr": 0.25, "kind": "sgd"}},
        "3": {"projector": {"dims": [12, 6, 4]}},
    }
    trainer = tiny.trainer(type(config).model_validate(tree), tmp_path / "run")
    first, second, third, _ = trainer.learners
    assert (first.objective.invariance, first.objective.variance, first.scale) == (5.0, 25.0, 0.5)
    assert (second.objective.invariance, second.scale) == (25.0, 1.0)
    assert [m.out_features for m in third.network.projector if isinstance(m, torch.nn.Linear)] == [12, 6, 4]
    assert type(trainer.optimizers[0]).__name__ == "SGD"
    assert type(trainer.optimizers[1]).__name__ == "LARS"
    trainer.fit()
    rates = [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers]
    assert rates[0] == pytest.approx(rates[1] / 4)
    assert trainer.run.config == trainer.config  # numbers of blocks survive YAML


def test_a_setting_on_the_command_line():
    config = compose("vicreg", overrides=["scope.kind=blockwise", "scope.per_block.2.objective.invariance=0.6"])
    assert config.of_block(2).objective.invariance == 0.6
    assert config.of_block(1) is config


def test_budgets_of_the_phases():
    def phases(budgets, steps=20, epoch_steps=5):
        scope = compose(
            "simclr", overrides=["scope.kind=blockwise", "scope.plan=sequential", f"scope.budgets={budgets}"]
        )
        return make_plan(scope.scope, 4, steps, epoch_steps).phases

    assert phases("[10%, 20%, 30%, 40%]") == tuple(Phase((k,), n) for k, n in enumerate((2, 4, 6, 8)))
    assert phases("[2steps, 1epochs, 1epochs, 8steps]") == tuple(Phase((k,), n) for k, n in enumerate((2, 5, 5, 8)))
    assert sum(phase.steps for phase in phases("[33.3%, 33.3%, 16.7%, 16.7%]", steps=17)) == 17
    for budgets, words in (
        ("[50%, 50%]", "2 entries for 4 blocks"),
        ("[1epochs, 1epochs, 1epochs, 2epochs]", "25 steps in all, but train.length is 20"),
        ("[1%, 9%, 40%, 50%]", "1% of 20 steps is no step for block 1"),
    ):
        with pytest.raises(InputError, match=words):
            phases(budgets)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["scope.budgets=[50%,50%]"], "budgets are for plan=sequential"),
        (["scope.plan=sequential", "scope.budgets=[50%,40%]"], "add up to 90%"),
        (["scope.plan=sequential", "scope.budgets=[50%,3steps]"], "all of them in %"),
        (
            ["scope.per_block.1.objective.temprature=1"],
            "temprature: unknown field; did you mean scope.per_block.1.objective.temperature?",
        ),
        (
            ["scope.per_block.1.objectiv.temperature=1"],
            "objectiv: unknown field; did you mean scope.per_block.1.obj",
        ),
        (["scope.per_block.2.optim.lr=-1"], "scope.per_block.2.optim.lr: should be greater than 0"),
        (["scope.per_block.0.optim.lr=1"], "scope.per_block"),
        (["scope.per_block.a.optim.lr=1"], "scope.per_block"),
        (["scope.per_block.1.predictor.norm=none"], "scope.per_block.1.predictor.dims: required"),
        (["scope.cuts=stagess"], "scope.cuts"),
        (["scope.noise_over=w"], "scope.noise_over: should be 'all', 'hw' or 'c'"),
        (["scope.kind=overlapping", "scope.per_block.1.optim.lr=1"], "share one optimizer"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(overrides, words):
    overrides = overrides if any("scope.kind" in text for text in overrides) else ["scope.kind=blockwise", *overrides]
    with pytest.raises(InputError) as caught:
        compose("simclr", overrides=overrides)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("of_scope", "encoder", "words"),
    [
        ({"cuts": ["layer9"]}, {}, "no block can begin at 'layer9'"),
        ({"per_block": {5: {"objective": {"temperature": 1}}}}, {}, "scope.per_block.5: there are 4 blocks"),
        ({"pool": "local", "grid": 3}, {}, "scope.grid=3 is more than the 2 x 2 map of block 4 has"),
        ({"pool": "local", "grid": 2}, tiny.VIT, "scope.pool=local is for maps"),
        ({"expand": 8}, tiny.VIT, "scope.expand=8 is for maps"),
    ],
)
def test_what_does_not_fit_the_encoder_is_said_in_one_line(of_scope, encoder, words):
    with pytest.raises(InputError, match=words) as caught:
        tiny.learners("simclr", of_scope=of_scope, encoder=encoder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("objective", [{"kind": "supervised"}, {"kind": "sup_con", "temperature": 0.1}])
def test_a_supervised_block_needs_labels(objective):
    config = tiny.trainer_config("simclr", "simultaneous")
    own = {2: {"objective": objective}}
    config = compose(
        "simclr", {**config.model_dump(mode="json"), "scope": {**config.scope.model_dump(), "per_block": own}}
    )
    with pytest.raises(InputError, match="of block 2 needs labels"):
        make_learners(config, encoder_of(config), None, None)


def test_one_block_cannot_overlap():
    with pytest.raises(InputError, match="cut into one"):
        tiny.learners("simclr", "overlapping", of_scope={"cuts": ["conv1"]})


def test_an_expansion_has_the_norm_of_the_encoder():
    for norm, name in (("batch", "BatchNorm2d"), ("sync", "SyncBatchNorm"), ("none", "Identity")):
        _, _, learners = tiny.learners("simclr", of_scope={"expand": 24}, encoder={"norm": norm})
        assert {type(learner.network.pooling.expansion[1]).__name__ for learner in learners} == {name}


def test_a_network_without_batch_norms_gets_none_by_its_expansion():
    config = compose("simclr", overrides=["scope=blockwise", "scope.expand=16", "data.size=32"])
    for kind, norm in (("convnext_atto", nn.GroupNorm), ("resnet18", nn.BatchNorm2d)):
        encoder = build_encoder(kind, "standard", "batch", None, 32, seed=0)
        for learner in make_learners(config, encoder, None, None):
            assert [type(m) for m in learner.network.pooling.expansion] == [nn.Conv2d, norm, nn.ReLU]


@pytest.mark.parametrize("dims", [[2], [64]])
def test_a_classifier_has_as_many_outputs_as_there_are_classes(dims):
    config = tiny.trainer_config("supervised", "end_to_end", projector={"dims": dims})
    with pytest.raises(InputError, match=rf"ends in {dims[-1]}, but the data has 3 classes: let it end in classes"):
        make_learners(config, encoder_of(config), 3, None)
