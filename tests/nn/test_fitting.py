"""Weights of others in an encoder: by name below any prefix, by order, of other channels and sizes."""

import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from twinblock.core.errors import InputError
from twinblock.nn.encoders import build_encoder
from twinblock.nn.fitting import start_from
from twinblock.nn.weights import Weights, read_weights


def encoder(kind: str = "test_resnet", stem: str = "standard", channels: int = 3, size: int = 32, norm: str = "batch"):
    return build_encoder(kind, stem, norm, None, size, 0, channels=channels).eval()


def source(kind: str = "test_resnet", **fields) -> nn.Module:
    torch.manual_seed(5)
    return timm.create_model(kind, **fields).eval()


def given(tensors) -> Weights:
    return Weights(tensors, "FILE", "0" * 64)


def below(prefix: str, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def features(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return network.forward_head(network.forward_features(x), pre_logits=True)


X = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("prefix", ["", "module.", "state_dict.module.encoder_q.", "model.backbone.", "_orig_mod."])
def test_names_stand_below_any_prefix(prefix):
    network, mine = source(), encoder()
    notes = start_from(mine, given(below(prefix, network.state_dict()) | {"epoch": torch.tensor(3)}))
    assert torch.equal(mine(X), features(network, X))
    counted = len(mine.state_dict())
    where = f", below {prefix[:-1]}" if prefix else ""
    assert notes[0].startswith(f"starts from FILE{where}: {counted} of {counted} tensors; left out: fc")


def test_of_two_networks_the_average_is_taken_and_it_is_said():
    teacher, student, mine = source(), encoder(), encoder()
    with torch.no_grad():
        next(student.parameters()).zero_()
    both = below("student.backbone.", student.state_dict()) | below("teacher.backbone.", teacher.state_dict())
    (note,) = start_from(mine, given(both))
    assert torch.equal(mine(X), features(teacher, X))
    assert "below teacher.backbone" in note and "student.*" in note


def test_other_names_in_the_same_order():
    """As lightly and others keep a ResNet: a row of modules by number."""
    network, mine = source(), encoder()
    row = nn.Sequential(*list(network.children())[:-2])
    (note,) = start_from(mine, given(below("backbone.", row.state_dict())))
    assert torch.equal(mine(X), features(network, X))
    assert "told by their order" in note
    turned = dict(reversed(row.state_dict().items()))
    with pytest.raises(InputError, match="does not fit the encoder"):
        start_from(mine, given(turned))


@pytest.mark.parametrize("channels", [1, 2, 4, 12])
@pytest.mark.parametrize("kind", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_other_channels_as_timm_has_them(kind, channels):
    tensors = source(kind).state_dict()
    theirs = timm.create_model(
        kind, pretrained=True, pretrained_cfg_overlay={"state_dict": dict(tensors)}, in_chans=channels, num_classes=0
    ).eval()
    mine = encoder(kind, channels=channels)
    notes = start_from(mine, given(tensors), channels)
    assert "3 channels" in notes[1] and "as timm does" in notes[1]
    x = torch.randn(2, channels, 32, 32)
    torch.testing.assert_close(mine(x), theirs.forward_features(x).mean((2, 3)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [32, 80, 224])
def test_a_vit_of_another_size_as_timm_has_it(size):
    tensors = source("test_vit").state_dict()  # of 160 px
    theirs = timm.create_model(
        "test_vit", pretrained=True, pretrained_cfg_overlay={"state_dict": dict(tensors)}, num_classes=0,
        img_size=size, global_pool="avg", fc_norm=False,
    ).eval()  # fmt: skip
    mine = encoder("test_vit", size=size)
    notes = start_from(mine, given(tensors))
    assert f"pos_embed: 10 x 10 places resampled to {size // 16} x {size // 16}" in notes[1]
    x = torch.randn(2, 3, size, size)
    torch.testing.assert_close(mine(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_a_replaced_stem_keeps_what_was_drawn_and_a_fitting_one_takes_what_is_given():
    mine = build_encoder("resnet18", "cifar", "batch", None, 32, 0)
    tensors = timm.create_model("resnet18").state_dict()
    drawn = mine.state_dict()["conv1.weight"].clone()
    notes = start_from(mine, given(tensors), stem="cifar")
    assert notes[1] == "stem=cifar: conv1.weight keeps the weights drawn for it"
    assert torch.equal(mine.state_dict()["conv1.weight"], drawn)
    assert torch.equal(mine.state_dict()["layer1.0.conv1.weight"], tensors["layer1.0.conv1.weight"])
    with pytest.raises(InputError, match=r"conv1.weight is \(64, 3, 7, 7\), not \(64, 3, 3, 3\)"):
        start_from(mine, given(tensors), stem="standard")
    fits = encoder("test_efficientnet", "cifar")
    of_fits = source("test_efficientnet").state_dict()
    assert len(start_from(fits, given(of_fits), stem="cifar")) == 1
    assert torch.equal(fits.state_dict()["conv_stem.weight"], of_fits["conv_stem.weight"])


def test_what_is_missing_or_of_another_shape_is_listed():
    tensors = source().state_dict()
    del tensors["layer2.0.conv1.weight"]
    tensors["layer3.0.conv1.weight"] = torch.zeros(2, 2)
    mine = encoder()
    before = {name: t.clone() for name, t in mine.state_dict().items()}
    with pytest.raises(InputError) as raised:
        start_from(mine, given(tensors))
    assert "layer2.0.conv1.weight is missing" in str(raised.value)
    assert "layer3.0.conv1.weight is (2, 2), not" in str(raised.value) and "\n" not in str(raised.value)
    assert all(torch.equal(t, before[name]) for name, t in mine.state_dict().items())
    with pytest.raises(InputError, match="no tensor has a name of the encoder"):
        start_from(mine, given({"a": torch.zeros(3)}))
    bad = source().state_dict()
    bad["bn1.weight"] = bad["bn1.weight"] * torch.nan
    with pytest.raises(InputError, match=r"NaN or infinity: bn1\.weight"):
        start_from(mine, given(bad))


def test_counters_of_old_files_may_be_missing_and_half_precision_is_widened():
    tensors = {n: t.half() for n, t in source().state_dict().items() if not n.endswith("num_batches_tracked")}
    mine = encoder()
    start_from(mine, given(tensors))
    assert all(t.dtype == torch.float32 for t in mine.parameters())
    assert torch.equal(next(mine.parameters()), next(iter(tensors.values())).float())


def test_another_norm_leaves_running_statistics_out_and_says_so():
    (note,) = start_from(encoder(norm="group2"), given(source().state_dict()))
    assert "left out" in note and "bn1" in note


class Planted:
    def __reduce__(self):
        return Path.touch, (Path("planted"),)


def test_files_are_read_without_running_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tensors = source().state_dict()
    torch.save({"epoch": 3, "args": {"lr": 0.1}, "model": {"module": tensors}}, tmp_path / "a.pth")
    save_file(tensors, tmp_path / "b.safetensors")
    nested, flat = (read_weights(tmp_path / name).tensors for name in ("a.pth", "b.safetensors"))
    assert all(torch.equal(nested[f"model.module.{name}"], tensor) for name, tensor in flat.items())
    torch.save({"model": Planted()}, tmp_path / "c.pth")
    with pytest.raises(InputError, match=r"c\.pth.*more than tensors"):
        read_weights(tmp_path / "c.pth")
    (tmp_path / "d.pth").write_bytes(pickle.dumps({"a": 1})[:-3])
    (tmp_path / "e.safetensors").write_bytes(b"none")
    for name in ("d.pth", "e.safetensors"):
        with pytest.raises(InputError, match=f"cannot read .*{name}"):
            read_weights(tmp_path / name)
    assert not (tmp_path / "planted").exists()
