"""Layers by depth: learning rates that fall towards the images, and modules that stay as they are."""

import pytest
import timm
import tiny
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

import twinblock
from twinblock.core.errors import InputError
from twinblock.nn.encoders import build_encoder
from twinblock.nn.layers import rate_scales


@pytest.mark.parametrize("kind", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "resnet18"])
@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_rates_are_those_of_timm(kind, decay):
    """Its classifier stands for our heads: one layer beyond the last."""
    network = timm.create_model(kind, num_classes=10)
    names = {id(p): name for name, p in network.named_parameters()}
    groups = param_groups_layer_decay(network, layer_decay=decay)
    theirs = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    encoder = build_encoder(kind, "standard", "batch", None, 64, 0)
    ours = rate_scales(encoder, encoder.depths, encoder, decay)
    named = {name: ours[id(p)] for name, p in encoder.named_parameters()}
    assert named == {name: pytest.approx(theirs[name]) for name in named}
    assert rate_scales(encoder, encoder.depths, encoder, 1.0) == {}
    assert {scale for name, scale in theirs.items() if name not in named} == {1.0}


def test_of_another_network_each_block_is_a_layer():
    encoder = build_encoder("torchvision/resnet18", "standard", "batch", None, 64, 0)
    ours = rate_scales(encoder, encoder.depths, encoder, 0.5)
    named = {name: ours[id(p)] for name, p in encoder.named_parameters()}
    assert named["conv1.weight"] == named["layer1.0.conv1.weight"] == 0.5**4
    assert named["layer4.1.conv2.weight"] == 0.5


def trained(tmp_path, name: str, method: str = "simclr", scope: str = "end_to_end", **fields):
    """The encoder before and after some steps, and the trainer."""
    config = tiny.config(method, scope, optim={"lr": 0.5, **fields.pop("optim", {})}, **fields)
    run = tiny.trainer(config, tmp_path / name)
    before = {n: t.clone() for n, t in run.encoder.state_dict().items()}
    run.fit()
    return before, run.encoder.state_dict(), run


def moved(before, after) -> set[str]:
    return {name.split(".")[0] for name, t in after.items() if not torch.equal(t, before[name])}


def test_rates_of_a_step(tmp_path):
    """With SGD without momentum the first update is proportional to the rate: a decay of 1/2 halves it a layer."""
    plain = {"momentum": 0.0, "weight_decay": 0.0}
    of_one = {"train": {"length": "1steps"}}
    start, whole, _ = trained(tmp_path, "whole", optim=plain, **of_one)
    _, halved, _ = trained(tmp_path, "halved", optim={**plain, "layer_decay": 0.5}, **of_one)
    for name, factor in (("layer4.0.conv1.weight", 0.5), ("layer3.0.conv1.weight", 0.25), ("conv1.weight", 0.5**5)):
        torch.testing.assert_close(halved[name] - start[name], factor * (whole[name] - start[name]))


@pytest.mark.parametrize("method", ["simclr", "byol", "sdclr"])
def test_what_is_frozen_stays_bit_by_bit(tmp_path, method):
    encoder = {"freeze": ["conv1", "bn1", "layer1"]}
    before, after, run = trained(tmp_path, "run", method, encoder=encoder)
    assert moved(before, after) == {"layer2", "layer3", "layer4"}  # statistics of batch norms stay, too
    assert not run.encoder.conv1.weight.requires_grad
    assert not any(id(p) in run.train_step.frozen for group in run.optimizers[0].param_groups for p in group["params"])


def test_the_statistics_of_frozen_batch_norms_are_used_and_kept_in_averages_too(tmp_path):
    *_, run = trained(tmp_path, "run", "byol", encoder={"freeze": "all"})
    norms = [m for m in run.learners[0].modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 2 * 12 and not any(m.training for m in norms)  # of the encoder and of its average
    heads = [m for m in run.learners[0].modules() if isinstance(m, nn.BatchNorm1d)]
    assert heads and all(m.training for m in heads)


def test_frozen_for_a_time(tmp_path):
    """The same as frozen for good until then; afterwards all moves."""
    fields = {"freeze": ["layer1", "conv1", "bn1"], "freeze_for": "2steps"}
    before, two, _ = trained(tmp_path, "two", encoder={**fields, "freeze_for": "100%"}, train={"length": "2steps"})
    assert "layer1" not in moved(before, two)
    *_, run = trained(tmp_path, "five", encoder=fields)
    assert {"layer1", "conv1", "bn1"} <= moved(before, run.encoder.state_dict())
    assert all(m.training for m in run.learners[0].modules() if isinstance(m, nn.BatchNorm2d))
    losses = [row["loss"] for name in ("two", "five") for row in run_of(tmp_path / name) if "loss" in row]
    assert losses[:2] == losses[2:4]


def test_a_run_made_longer_thaws_when_the_time_is_over(tmp_path):
    fields = {"kind": "resnet10", "width": 8, "stem": "cifar", "freeze": "layer1", "freeze_for": "2steps"}
    small = ["data.batch=16", "projector.dims=[16,8]", "train.precision=fp32"]
    for length in (2, 4):
        run = twinblock.pretrain(
            "simclr", data=tiny.images(32).pixels, encoder=fields, out=tmp_path / "run", quiet=True,
            overrides=[*small, f"train.length={length}steps"],
        )  # fmt: skip
        stays = "layer1" not in moved(run.untrained_encoder().state_dict(), run.encoder().state_dict())
        assert stays == (length == 2)


def run_of(path):
    from twinblock.runs.run import Run

    return Run(path).metrics()


def test_in_blocks_a_frozen_block_trains_its_heads_alone(tmp_path):
    before, after, _ = trained(tmp_path, "run", scope="simultaneous", encoder={"freeze": ["layer1", "conv1", "bn1"]})
    assert moved(before, after) == {"layer2", "layer3", "layer4"}


def test_a_name_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"encoder.freeze: the encoder has no 'layer5'; did you mean layer"):
        tiny.trainer(tiny.config("simclr", encoder={"freeze": ["layer5"]}), tmp_path / "run")
