"""Blockwise training: isolation, overlap, settings of single blocks, phases, and what is refused."""

import sys
import weakref

import pytest
import tiny
import torch
from torch import nn

from twinblock import diagnosis
from twinblock.methods.learner import Batch, Learner, Network, Signal
from twinblock.methods.objectives import BarlowTwins
from twinblock.methods.overlapping import OverlappingLearners
from twinblock.methods.stacks import Stack
from twinblock.methods.targets.shared import Shared
from twinblock.nn import pooling as pooling_module
from twinblock.nn.heads import mlp
from twinblock.nn.pooling import Noise, Pooling
from twinblock.training.pretrain import pretrain


def views(method: str = "simclr", n: int = 8, side: int = 16) -> Signal:
    g = torch.Generator().manual_seed(1)
    count = 1 if method == "supervised" else 2
    return Signal.from_views([torch.randn(n, 3, side, side, generator=g, dtype=torch.float64) for _ in range(count)])


def labels(n: int = 8) -> Batch:
    return Batch(torch.arange(n) % 3, (0, 0))


@pytest.mark.parametrize("method", tiny.METHODS)
@pytest.mark.parametrize("kind", ["resnet18", "vit"])
def test_no_loss_reaches_another_residual_block_or_layer(method, kind):
    encoder_fields = tiny.VIT if kind == "vit" else {"kind": "resnet18"}
    _, encoder, learners = tiny.learners(method, of_scope={"cuts": "blocks"}, encoder=encoder_fields)
    signal = views(method)
    assert len(learners) == (12 if kind == "vit" else 8)
    for block, learner in zip(encoder.as_blocks(), learners, strict=True):
        loss, signal, *_ = learner(signal, labels())
        loss.backward()
        touched = {id(p) for p in encoder.parameters() if p.grad is not None and p.grad.any()}
        assert touched
        assert touched <= {id(p) for p in block.parameters()}
        encoder.zero_grad()


@pytest.mark.parametrize("method", ["byol", "moco_v2"])
def test_the_target_stream_runs_through_the_blocks_of_the_target(method):
    """Target blocks of other weights: the second Learner's target map is theirs, not the online one."""
    _, _, learners = tiny.learners(method)
    signal = views()
    with torch.no_grad():
        for p in learners[0].target.average.parameters():
            p.mul_(1.5)
    x = signal.target[1]
    expected = learners[0].target.average.blocks[0](x)
    _, second, *_ = learners[0](signal, labels())
    torch.testing.assert_close(second.target[1], expected)
    assert not torch.allclose(second.online[0], learners[0].target.average.blocks[0](signal.online[0]))
    _, third, *_ = learners[1](second, labels())
    torch.testing.assert_close(third.target[1], learners[1].target.average.blocks[0](expected))


@pytest.mark.parametrize(("method", "passes"), [("simclr", (2, 0)), ("byol", (2, 2)), ("moco_v2", (1, 1))])
def test_a_frozen_block_runs_the_passes_that_the_next_needs_and_no_head(method, passes):
    _, _, (first, second, *_) = tiny.learners(method)
    ran = {"online": 0, "target": 0}
    first.network.blocks[0].register_forward_hook(lambda *_: ran.update(online=ran["online"] + 1))
    first.network.projector.register_forward_hook(lambda *_: pytest.fail("an embedding that nobody needs"))
    if first.target.separate:
        first.target.average.blocks[0].register_forward_hook(lambda *_: ran.update(target=ran["target"] + 1))
        first.target.average.projector.register_forward_hook(lambda *_: pytest.fail("an embedding that nobody needs"))
    passed = first.eval().pass_on(views(), labels())
    assert (ran["online"], ran["target"]) == passes
    assert not any(x.requires_grad for x in (*passed.online.values(), *passed.target.values()))
    assert second(passed, labels())[0].isfinite()


def test_a_block_passes_on_what_blocks_of_another_objective_need(tmp_path):
    """MoCo looks at one view in each stream; NT-Xent, two blocks on, at both."""
    config = tiny.config("moco_v2", "simultaneous", train={"length": "2steps"})
    tree = config.model_dump(mode="json")
    tree["scope"]["per_block"] = {3: {"objective": {"kind": "nt_xent", "temperature": 0.2}}}
    trainer = tiny.trainer(type(config).model_validate(tree), tmp_path / "run")
    assert [(set(learner.passes.online), set(learner.passes.target)) for learner in trainer.learners] == [
        *[({0, 1}, {0, 1})] * 3,
        ({0}, {1}),
    ]
    trainer.fit()


@pytest.mark.parametrize("slice_", [3, 128])  # channels of an expansion that there are at once, of 7
@pytest.mark.parametrize("noise", ["none", "all"])
def test_golden_losses_gradients_and_statistics(golden, noise, slice_, monkeypatch):
    """The published network in small: three blocks, each with expansion, global pooling, projector and Barlow Twins."""
    g = {name.removeprefix("blockwise/"): torch.tensor(v) for name, v in golden.items() if name.startswith("blockwise")}
    monkeypatch.setattr(pooling_module, "SLICE", slice_)
    monkeypatch.setattr(Noise, "draws", lambda self, x, key, _: g[f"eps_view{key[0] + 1}_block{key[1] + 1}"])
    sigma = float(g["noise_sigma"]) if noise == "all" else 0.0
    parts, losses = {}, []
    signal = Signal.from_views([g["view1"], g["view2"]])
    for k, names in enumerate((("stem", "block1"), ("block2",), ("block3",))):
        layers: list[nn.Module] = []
        for name in names:
            d_out, d_in = g[f"init/{name}.conv.weight"].shape[:2]
            layers += [nn.Conv2d(d_in, d_out, 3, 2 if k else 1, 1, bias=False), nn.BatchNorm2d(d_out), nn.ReLU()]
            parts |= {f"{name}.conv": layers[-3], f"{name}.bn": layers[-2]}
        pooling, projector = Pooling(d_out, expand=7), mlp(7, [8, 6])
        block = f"block{k + 1}"
        parts |= {f"{block}.expand.conv": pooling.expansion[0], f"{block}.expand.bn": pooling.expansion[1]}
        parts |= {
            f"{block}.proj.fc1": projector[0],
            f"{block}.proj.bn": projector[1],
            f"{block}.proj.fc2": projector[3],
        }
        nn.init.zeros_(projector[0].bias)  # the published layer has none, and the norm behind it takes it away
        network = Network([nn.Sequential(*layers)], pooling, projector, Noise(sigma), number=k)
        objective = BarlowTwins(float(g["lambd"]))
        learner = Learner(network, None, Shared(), objective, sizes=(32, 32), scale=float(g["scale_loss"])).double()
        with torch.no_grad():
            for name, tensor in g.items():
                if name.startswith("init/") and (found := parts.get(name[5:].rpartition(".")[0])) is not None:
                    found.get_parameter(name.rpartition(".")[2]).copy_(tensor)
        loss, signal, *_ = learner(signal, Batch(None, ()))
        loss.backward()
        losses.append(loss.detach())
    torch.testing.assert_close(torch.stack(losses), g[f"{noise}/losses"], rtol=1e-12, atol=0)
    compared = 0
    for kind, get in (("grad", lambda m, name: m.get_parameter(name).grad), ("buffer", nn.Module.get_buffer)):
        for name, expected in g.items():
            part, _, tensor = name.removeprefix(f"{noise}/{kind}/").rpartition(".")
            if name.startswith(f"{noise}/{kind}/") and part in parts:  # all but the statistics of the shared last norm
                torch.testing.assert_close(get(parts[part], tensor), expected, rtol=1e-9, atol=1e-12)
                compared += 1
    assert compared == 33 + 20


@pytest.mark.parametrize("method", ["simclr", "byol", "supervised"])
def test_overlapping_gradients_are_those_of_the_summed_loss(method):
    """Against autograd through the whole chain, with the maps detached by hand where a pair begins."""
    _, encoder, (whole,) = tiny.learners(method, "overlapping", of_scope={"noise": 0.1}, norm="none")
    assert isinstance(whole, OverlappingLearners)
    assert len(whole.parts) == 3
    loss, *_ = whole(views(method), labels())
    loss.backward()
    found = [p.grad.clone() for p in whole.parameters() if p.requires_grad]
    whole.zero_grad()

    blocks, total, start = encoder.as_blocks(), 0.0, views(method).online
    for k, learner in enumerate(whole.parts):
        network, online, target, following = learner.network, {}, {}, {}
        for v, x in start.items():
            first = network.noise(blocks[k](x), (0, 0, v, k), 0)
            second = network.noise(blocks[k + 1](first), (0, 0, v, k + 1), 0)
            online[v], following[v] = network.projector(network.pooling(second)), first.detach()
            # before the first step the moving average equals the network
            target[v] = online[v].detach() if method == "byol" else online[v]
        for i, j in learner.pairs:
            t = labels().labels if j is None else target[j]
            total = total + learner.objective(learner.predict(online[i]), t) * learner.scale
        start = following
    total.backward()
    expected = [p.grad for p in whole.parameters() if p.requires_grad]
    torch.testing.assert_close(loss.detach(), total.detach())
    assert all(g.any() for g in expected)
    torch.testing.assert_close(found, expected)


def test_an_overlap_couples_neighbours_and_nobody_else():
    """The last loss alone reaches the last two blocks; the first block learns from the first pair alone."""
    _, encoder, (whole,) = tiny.learners("simclr", "overlapping", norm="none")
    signal = views()
    for k, learner in enumerate(whole.parts):
        loss, signal, *_ = learner(signal, labels())
        loss.backward()
        reached = [any(p.grad is not None for p in block.parameters()) for block in encoder.as_blocks()]
        assert reached == [i in (k, k + 1) for i in range(4)]
        encoder.zero_grad()


def test_noise_of_each_block_is_its_own():
    _, _, learners = tiny.learners("simclr", of_scope={"noise": 1.0})
    x = torch.randn(2, 4, 4, 4, dtype=torch.float64)
    for learner in learners:
        learner.network.blocks[0] = torch.nn.Identity()
    drawn = [learner.network.maps(Stack(x, [(0, 0, 0)]))[0] for learner in learners[:2]]
    assert not torch.allclose(*drawn)


def test_supervised_learning_in_blocks(tmp_path):
    """Each block has a classifier of its own, and learns."""
    fields = {"train": {"length": "30steps"}, "optim": {"lr": 0.3}}
    trainer = tiny.trainer(tiny.config("supervised", "simultaneous", precision="fp32", **fields), tmp_path / "run")
    trainer.fit()
    losses = [row["loss"] for row in trainer.run.metrics() if "loss" in row]
    assert all(after < before for before, after in zip(losses[0], losses[-1], strict=True))


def test_a_run_ends_with_the_verdict_of_its_worst_block(tmp_path, monkeypatch):
    states = iter(("healthy", "complete collapse", "healthy", "healthy"))
    module = sys.modules["twinblock.diagnosis.verdict"]
    monkeypatch.setattr(module, "verdict", lambda *_, **__: diagnosis.Verdict(state := next(states), state, "why"))
    small = ["scope=blockwise", "data.batch=64", "train.length=1steps", "encoder.width=8", "train.precision=fp32"]
    run = pretrain("simclr", out=tmp_path / "run", quiet=True, overrides=small)
    assert run.failed
    assert (run.result["headline"], run.result["evidence"]) == ("complete collapse", "Learner 2 of 4: why")


def test_what_a_finished_phase_held_is_let_go(tmp_path):
    trainer = tiny.trainer(tiny.config("simclr", "sequential", train={"length": "8steps"}), tmp_path / "run")
    trainer.fit()
    assert [bool(optimizer.state) for optimizer in trainer.optimizers] == [False, False, False, True]


def test_views_are_let_go_when_the_first_block_has_learned(tmp_path):
    config = tiny.config("simclr", "simultaneous", precision="fp32", train={"length": "1steps"})
    trainer = tiny.trainer(config, tmp_path / "run")
    train_step = trainer.train_step
    number, alive = len(trainer.learners) - 1, []
    make, last = train_step.views, train_step.forwards[number]

    def views(*args, **kwargs):
        made = make(*args, **kwargs)
        alive.extend(map(weakref.ref, made))
        return made

    def forward(*args):
        assert len(alive) == 2 and not any(ref() is not None for ref in alive)
        return last(*args)

    train_step.views, train_step.forwards[number] = views, forward
    train_step(0, next(trainer.loader.batches(0, 1)))
