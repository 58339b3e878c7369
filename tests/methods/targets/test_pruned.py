"""The pruned target: masks and gradients of the published code, private norms, and when masks move."""

import numpy as np
import pytest
import tiny
import torch
from torch import nn
from torch.nn import functional as F

from twinblock.assembly.build import encoder_of, make_learners
from twinblock.config.recipes import compose
from twinblock.core.errors import InputError
from twinblock.methods.learner import Batch, Learner, Network, Signal, pairs_of
from twinblock.methods.objectives import BarlowTwins, InfoNCE, NTXent, Regression
from twinblock.methods.stacks import Stack
from twinblock.methods.targets.pruned import Pruned, magnitude_masks
from twinblock.methods.targets.shared import Shared
from twinblock.nn.pooling import Noise, Pooling

CONVS = ("stem.conv", "block1.conv1", "block1.conv2", "block2.conv1", "block2.conv2", "block2.shortcut.conv")


def group(golden, prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): torch.as_tensor(v) for k, v in golden.items() if k.startswith(prefix)}


@pytest.mark.parametrize("case", ["a", "ties"])
def test_masks_are_the_published_ones(golden, case):
    weights = group(golden, f"sdclr_mask/{case}/w/")
    for i, ratio in enumerate(golden[f"sdclr_mask/{case}/ratios"].tolist()):
        masks = magnitude_masks(weights, ratio)
        assert all(
            torch.equal(mask, group(golden, f"sdclr_mask/{case}/mask{i}/")[name]) for name, mask in masks.items()
        )
        assert sum(int(mask.sum()) for mask in masks.values()) == golden[f"sdclr_mask/{case}/kept"][i]


def test_no_weight_goes_at_ratio_0_and_the_share_is_exact():
    weights = {"a": torch.arange(1, 71.0), "b": -torch.arange(71, 101.0)}
    kept = [sum(int(m.sum()) for m in magnitude_masks(weights, ratio).values()) for ratio in (0, 0.07, 0.29, 0.995)]
    assert kept == [100, 93, 71, 1]  # in floats 0.07 x 100 is more than 7
    for ratio in (1.0, -0.1, float("nan")):
        with pytest.raises(InputError, match="at least 0 and less than 1"):
            magnitude_masks(weights, ratio)


class Residual(nn.Module):
    def __init__(self, d_in: int, d_out: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(d_in, d_out, 3, stride, 1, bias=False), nn.BatchNorm2d(d_out)
        self.conv2, self.bn2 = nn.Conv2d(d_out, d_out, 3, 1, 1, bias=False), nn.BatchNorm2d(d_out)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut.add_module("conv", nn.Conv2d(d_in, d_out, 1, stride, bias=False))
            self.shortcut.add_module("bn", nn.BatchNorm2d(d_out))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


def published_toy(golden) -> Learner:
    """The network of the golden vectors, with its weights, dense and private norms; its own mask."""
    stem = nn.Sequential()
    stem.add_module("conv", nn.Conv2d(3, 4, 3, 1, 1, bias=False))
    stem.add_module("bn", nn.BatchNorm2d(4))
    stem.add_module("relu", nn.ReLU())
    blocks = nn.Sequential()
    for name, block in (("stem", stem), ("block1", Residual(4, 4, 1)), ("block2", Residual(4, 6, 2))):
        blocks.add_module(name, block)
    head = nn.Sequential()
    for i, (d_out, bias) in enumerate(((6, True), (6, False), (5, False)), start=1):
        head.add_module(f"fc{i}", nn.Linear(6, d_out, bias=bias))
        head.add_module(f"bn{i}", nn.BatchNorm1d(d_out))
        head.add_module(f"relu{i}", nn.ReLU() if i < 3 else nn.Identity())
    network = Network([blocks], Pooling(6), head, Noise(0.0)).double()
    init = group(golden, "sdclr_step/init/")
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(init[golden_name(name, "dense")])
    target = Pruned(network, float(golden["sdclr_step/prune_ratio"])).double()
    with torch.no_grad():
        for name, parameter in target.norms.named_parameters():
            parameter.copy_(init[golden_name(name, "pruned")])
    return Learner(network, None, target, NTXent(float(golden["sdclr_step/T"])), sizes=(32, 32))


def golden_name(name: str, kind: str) -> str:
    """`blocks.stem.bn.weight` is stored as `stem.bn.dense.weight`."""
    name = name.replace("/", ".").removeprefix("blocks.0.").replace("projector", "head")
    module, _, last = name.rpartition(".")
    return f"{module}.{kind}.{last}" if module.rpartition(".")[2].startswith("bn") else name


def tensors(learner: Learner, what: str):
    """(golden name, tensor) of the parameters or float buffers of network and private norms."""
    for module, kind in ((learner.network, "dense"), (learner.target.norms, "pruned")):
        for name, tensor in getattr(module, f"named_{what}")():
            if tensor.is_floating_point():
                yield golden_name(name, kind), tensor


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=0, atol=1e-9 * float(b.abs().max()) + 1e-12)


def test_one_joint_step_has_the_gradients_of_the_published_three_forwards_and_two_backwards(golden):
    learner = published_toy(golden)
    masks = group(golden, "sdclr_step/mask/")
    assert all(torch.equal(learner.target.get_buffer(f"mask/blocks/0/{n.replace('.', '/')}"), masks[n]) for n in CONVS)
    views = torch.as_tensor(golden["sdclr_step/views"])
    loss, *_ = learner(Signal.from_views([*views[0]]), Batch(None, (0, 0)))
    loss.backward()
    assert loss.item() == pytest.approx(float(golden["sdclr_step/one/losses_dense"][0]), rel=1e-10)
    gradients = group(golden, "sdclr_step/one/grad/")
    compared = {name for name, p in tensors(learner, "parameters") if close(p.grad, gradients[name])}
    assert compared == gradients.keys()
    buffers = group(golden, "sdclr_step/one/buffer/")
    for name, found in tensors(learner, "buffers"):
        twice = 0.19 * (found - 0.9) / 0.1 + 0.81 if name.endswith("var") else 1.9 * found
        # the published code runs the pruned network twice, so its statistics move twice
        assert close(twice if ".pruned." in name else found, buffers[name]), name


def test_an_epoch_ends_with_the_published_weights(golden):
    learner = published_toy(golden)
    settings = {k: float(golden[f"sdclr_step/epoch/{k}"]) for k in ("lr", "momentum", "weight_decay")}
    optimizer = torch.optim.SGD(learner.parameters(), **settings)
    for views, loss_there in zip(
        torch.as_tensor(golden["sdclr_step/views"]), golden["sdclr_step/epoch/losses_dense"], strict=True
    ):
        loss, *_ = learner(Signal.from_views([*views]), Batch(None, (0, 0)))
        assert loss.item() == pytest.approx(loss_there, rel=1e-9)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    end = group(golden, "sdclr_step/epoch/param/")
    assert {name for name, p in tensors(learner, "parameters") if close(p, end[name])} == end.keys()


def build(method: str, scope: str = "end_to_end", **fields) -> list[Learner]:
    config = tiny.trainer_config(method, scope, **fields)
    return [x.double() for x in make_learners(config, encoder_of(config).double(), 3, None, epoch_steps=3)]


def views() -> list[torch.Tensor]:
    return [*torch.randn(2, 8, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)]


def test_both_views_train_the_network_that_sees_them():
    pruned, head, both = Pruned(tiny.network(), 0.5), nn.Linear(1, 1), ((0, 1), (1, 0))

    def pairs(objective, predictor):
        return pairs_of(objective, pruned, predictor, (32, 32))

    assert pairs(NTXent(0.1), None) == pairs(BarlowTwins(0.1), None) == ((0, 1),)
    assert pairs(Regression(), head) == pairs(InfoNCE(2, 4, 0.1), None) == both
    assert pairs(NTXent(0.1), head) == both


@pytest.mark.parametrize("method", tiny.PRUNED)
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_every_method_takes_two_passes_and_trains_all_its_tensors(method, norm):
    wide = {"projector": {"dims": [64, 8]}, "width": 32} if norm == "group" else {}
    if norm == "group" and tiny.config(method).predictor is not None:
        wide["predictor"] = {"dims": [64, 8]}
    (learner,) = build(method, norm=norm, **wide)
    passes = []
    learner.network.blocks[0].register_forward_hook(lambda *_: passes.append(1))
    x = views()
    loss, *_ = learner(Signal.from_views(x), Batch(torch.arange(len(x[0])) % 3, (0, 0)))
    loss.backward()
    assert len(passes) == 2
    assert [name for name, p in learner.named_parameters() if p.grad is None] == []
    assert len(learner.target.norms) == (0 if norm == "none" else 12 + 1)  # encoder, head


def test_pruned_entries_learn_from_the_dense_view_alone():
    (learner,) = build("sdclr")
    y = views()[1]
    name = "blocks.0.0.layer1.0.conv1.weight"
    weight = learner.network.get_parameter(name)
    mask = learner.target.get_buffer("mask/" + name.removesuffix(".weight").replace(".", "/"))
    learner.target(learner.network, [Stack(y, [(0,)])])[0][1].square().sum().backward()
    assert not weight.grad[~mask].any()
    assert weight.grad[mask].all()
    assert learner.network.get_submodule("blocks.0.0.bn1").num_batches_tracked == 0  # the statistics are private
    assert learner.target.norms["blocks/0/0/bn1"].num_batches_tracked == 1


def test_with_ratio_0_and_the_same_norms_it_is_the_shared_branch():
    (pruned,) = build("sdclr", target={"kind": "pruned", "ratio": 0.0})
    (shared,) = build("simclr")
    assert isinstance(shared.target, Shared)
    losses = [learner(Signal.from_views(views()), Batch(None, (0, 0)))[0] for learner in (pruned, shared)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-12)


def test_blocks_of_a_blockwise_run_are_pruned_each_by_itself_and_pass_their_pruned_map_on():
    learners = build("sdclr", "simultaneous", target={"kind": "pruned", "ratio": 0.5})
    signal = Signal.from_views(views())
    for learner in learners:
        masks = [m for name, m in learner.target.named_buffers() if name.startswith("mask/")]
        assert np.isclose(sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks), 0.5, atol=0.01)
        _, following, *_ = learner(signal, Batch(None, (0, 0)))
        ((expected, _),) = learner.target(learner.network, [Stack(signal.online[1], [(0, 0, 1)])])
        assert torch.equal(following.online[1], expected)
        signal = following


@pytest.mark.parametrize(
    ("recipe", "overrides", "words"),
    [
        ("supervised", [], "labels"),
        ("simsiam", ["predictor=null"], "needs a predictor"),
        ("simclr", ["target.ratio=1.0"], "target.ratio: should be less than 1 (got 1.0)"),
        ("simclr", ["target.ratio=-0.1"], "target.ratio: should be greater than or equal to 0"),
        ("simclr", ["target.every=often"], "not a duration"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(recipe, overrides, words):
    with pytest.raises(InputError) as caught:
        compose(recipe, overrides=["target.kind=pruned", "target.ratio=0.5", *overrides])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_network_without_layers_is_refused():
    with pytest.raises(InputError, match="removes weights of layers"):
        Pruned(Network([nn.ReLU()], Pooling(3), nn.Identity(), Noise(0.0)), 0.5)
