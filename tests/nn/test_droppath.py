"""Drop path: draws that follow from where in the run a sample is."""

import pytest
import timm
import tiny
import torch

from twinblock.config.recipes import compose
from twinblock.core.errors import InputError
from twinblock.nn.droppath import KeyedDropPath, all_kept, dropping
from twinblock.nn.encoders import build_encoder


def dropped(x: torch.Tensor, key=(0, 0, 0), offset: int = 0, rate: float = 0.4, number: int = 0) -> torch.Tensor:
    with dropping([key], offset):
        return KeyedDropPath(rate, number).train()(x)


def test_a_sample_is_dropped_or_scaled_as_often_as_asked():
    x = torch.ones(20_000, 2, 3)
    y = dropped(x)
    assert y.unique().tolist() == [0.0, pytest.approx(1 / 0.6)]
    assert (y == y[:, :1, :1]).all()  # a sample as a whole
    assert float((y == 0).float().mean()) == pytest.approx(0.4, abs=0.02)
    assert float(y.mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_a_batch_in_parts_is_the_whole_batch(parts):
    x = torch.ones(50, 1)
    pieces = x.chunk(parts)
    starts = [sum(len(p) for p in pieces[:i]) for i in range(len(pieces))]
    assert torch.equal(torch.cat([dropped(p, offset=s) for p, s in zip(pieces, starts, strict=True)]), dropped(x))


def test_seed_step_view_and_layer_draw_apart():
    x = torch.ones(200, 1)
    keys = [((0, 0, 0), 0), ((1, 0, 0), 0), ((0, 1, 0), 0), ((0, 0, 1), 0), ((0, 0, 0), 1)]
    rows = [dropped(x, key, number=number).flatten().tolist() for key, number in keys]
    assert len({tuple(row) for row in rows}) == len(rows)
    assert torch.equal(dropped(x), dropped(x))


def test_nothing_is_dropped_in_evaluation_in_targets_or_outside_a_pass():
    x = torch.ones(50, 1)
    module = KeyedDropPath(0.5, 0)
    assert torch.equal(module(x), x)
    with dropping([(0,)], 0), all_kept():
        assert torch.equal(module(x), x)
    with dropping([(0,)], 0):
        assert torch.equal(module.eval()(x), x)


@pytest.mark.parametrize(
    "kind", ["test_resnet", "test_vit", "test_convnext", "efficientnet_lite0", "torchvision/convnext_tiny"]
)
def test_networks_have_the_rates_of_their_library(kind):
    encoder = build_encoder(kind, "standard", "batch", None, 64, 0, drop_path=0.3)
    ours = [m.rate for m in encoder.modules() if isinstance(m, KeyedDropPath)]
    if not kind.startswith("torchvision"):
        theirs = timm.create_model(kind, drop_path_rate=0.3)
        assert ours == [pytest.approx(m.drop_prob) for m in theirs.modules() if type(m).__name__ == "DropPath"]
    assert ours == sorted(ours) and ours[-1] == pytest.approx(0.3, rel=0.2)
    plain = build_encoder(kind, "standard", "batch", None, 64, 0)
    same = plain.state_dict()
    assert all(torch.equal(t, same[name]) for name, t in encoder.state_dict().items())
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(encoder.eval()(x), plain.eval()(x))


def test_what_has_no_paths_says_so():
    with pytest.raises(InputError, match=r"encoder.drop_path=0.1: torchvision/shufflenet_v2_x0_5 has no residual"):
        build_encoder("torchvision/shufflenet_v2_x0_5", "standard", "batch", None, 64, 0, drop_path=0.1)
    for override, word in (("train.compile=true", "train.compile"),):
        with pytest.raises(InputError, match=word):
            compose("simclr", {"encoder": {"drop_path": 0.1}}, [override])


@pytest.mark.parametrize("method", ["simclr", "byol"])
@pytest.mark.parametrize("scope", ["end_to_end", "simultaneous"])
def test_a_run_drops_paths_and_a_resumed_one_drops_the_same(tmp_path, method, scope):
    fields = {"encoder": {"drop_path": 0.5}, "train": {"length": "4steps", "checkpoint_every": "2steps"}}
    config = tiny.config(method, scope, **fields)
    whole = tiny.trainer(config, tmp_path / "whole")
    whole.fit()
    half = tiny.trainer(config, tmp_path / "half")
    next_of = half.next_of

    def stops(batches):
        if half.step == 3:
            raise InputError("stopped")
        return next_of(batches)

    half.next_of = stops
    with pytest.raises(InputError, match="stopped"):
        half.fit()
    half.run.release()
    again = tiny.trainer(config, tmp_path / "half")
    again.resume()
    assert again.step == 2
    again.fit()
    expected = tiny.state(whole)
    assert all(torch.equal(t, expected[name]) for name, t in tiny.state(again).items())
    plain = tiny.trainer(tiny.config(method, scope, train=fields["train"]), tmp_path / "plain")
    plain.fit()
    assert not torch.equal(
        tiny.state(plain)["encoder.layer4.0.conv1.weight"], expected["encoder.layer4.0.conv1.weight"]
    )


def test_a_batch_in_micro_batches_drops_the_same(tmp_path):
    """Backward computes the parts again, outside the forward pass."""
    states = []
    for few in (None, 4):
        train = {"length": "3steps", "micro_batch": few}
        run = tiny.trainer(
            tiny.config("simclr", norm="none", encoder={"drop_path": 0.5}, train=train), tmp_path / str(few)
        )
        run.fit()
        states.append(tiny.state(run))
    assert all(float((t.double() - states[1][name].double()).abs().max()) < 1e-10 for name, t in states[0].items())
