"""An encoder of one's own: trained from the weights it has, in blocks where it can be cut, and given again later."""

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import twinblock
from twinblock.core.errors import InputError

PIXELS = np.random.Generator(np.random.PCG64(0)).integers(0, 255, (48, 16, 16, 3), dtype=np.uint8)
DATA = (PIXELS, np.arange(48) % 3)
SMALL = ["data.batch=16", "train.length=3steps", "projector.dims=[16,8]"]


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()
    )


class Tangled(nn.Module):
    """Its second layer needs what the first was given: no row of blocks."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(11, 8, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.cat([self.a(x), x], 1)).mean((2, 3))


def pretrain(out, encoder, *overrides, **more):
    return twinblock.pretrain(
        "simclr", encoder=encoder, data=DATA, out=out, overrides=[*SMALL, *overrides], quiet=True, **more
    )


def test_the_same_network_by_name_and_as_a_module_is_the_same_run(tmp_path):
    """With the weights that the name starts from: every bit."""
    fields = {"kind": "resnet10", "width": 8, "stem": "cifar"}
    named = twinblock.pretrain("simclr", data=DATA, encoder=fields, out=tmp_path / "named", overrides=SMALL, quiet=True)
    start = named.untrained_encoder()
    module = timm.create_model("resnet18", num_classes=0, layers=(1, 1, 1, 1), channels=(8, 16, 32, 64))
    module.conv1, module.maxpool = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.Identity()
    module.bn1 = nn.BatchNorm2d(8)
    module.layer1[0].conv1, module.layer1[0].downsample = nn.Conv2d(8, 8, 3, 1, 1, bias=False), None
    module.load_state_dict(start.state_dict())
    own = pretrain(tmp_path / "own", module)
    assert own.config.encoder.kind == "<timm.models.resnet:ResNet>"
    weights, expected = own.encoder().state_dict(), named.encoder().state_dict()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_module_trains_in_blocks_that_are_named(tmp_path):
    module = plain()
    before = {name: w.clone() for name, w in module.state_dict().items()}
    run = pretrain(tmp_path / "run", module, "scope.kind=blockwise", blocks=["3"])
    assert len(next(row for row in run.metrics() if "loss" in row)["loss"]) == 2
    assert all(torch.equal(w, before[name]) for name, w in module.state_dict().items())  # a copy is trained
    assert torch.equal(run.untrained_encoder().state_dict()["0.weight"], before["0.weight"])
    assert not torch.equal(run.encoder().state_dict()["0.weight"], before["0.weight"])


def test_the_module_is_given_again(tmp_path):
    run = pretrain(tmp_path / "run", plain())
    with pytest.raises(InputError, match=r"Python object; give Sequential again.*encoder=module"):
        twinblock.load_encoder(run.path)
    other = plain()
    for w in other.parameters():
        nn.init.zeros_(w)
    encoder = twinblock.load_encoder(run.path, encoder=other)
    x = torch.zeros(2, 3, 16, 16)
    assert torch.equal(encoder(x), run.encoder()(x))  # the trained weights, whatever the module held
    rows = twinblock.evaluate(run.path, DATA, encoder=other, quiet=True)
    assert [row["features"] for row in rows][:3] == ["encoder", "raw pixels", "untrained encoder"]
    assert rows == twinblock.evaluate(run, quiet=True)  # the untrained one is that of the run, not the one given
    assert len(twinblock.embed(run.path, DATA, encoder=other).features) == 48
    assert twinblock.diagnose(run.path, DATA, encoder=other).verdicts
    with pytest.raises(InputError, match="another architecture"):
        twinblock.load_encoder(run.path, encoder=nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))


def test_what_cannot_be_cut_is_one_block_and_says_why(tmp_path):
    run = pretrain(tmp_path / "run", Tangled())
    assert len(run.encoder().shapes) == 1
    with pytest.raises(InputError, match=r"scope.kind=blockwise needs an encoder in blocks.*one.* block"):
        pretrain(tmp_path / "blocks", Tangled(), "scope.kind=blockwise")


def test_every_target_takes_it(tmp_path):
    for target in ("target={kind: ema, momentum: 0.9}", "target={kind: pruned, ratio: 0.5}"):
        assert pretrain(tmp_path / target[13:16], plain(), target).finished
