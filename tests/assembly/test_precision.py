"""A run is looked at in the precision that it trained in, where that is fast; never in one that is slow."""

import pytest
import tiny
import torch
from torch import nn

from twinblock import pretrain
from twinblock.assembly import precision
from twinblock.config.recipes import compose
from twinblock.evaluation import seen_by
from twinblock.nn.encoders import build_encoder

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("trained", "fast", "expected"),
    [("bf16", True, torch.bfloat16), ("bf16", False, None), ("fp32", True, None), ("fp64", True, None)],
)
def test_mixed_precision_where_trained_so_and_fast(trained, fast, expected, monkeypatch):
    monkeypatch.setattr(precision, "fast_at_bf16", lambda: fast)
    config = compose("demo", {"train": {"precision": trained}})
    assert precision.autocast_here(config, CPU) == expected
    assert seen_by(config, CPU)["autocast"] == expected


@pytest.mark.parametrize(
    ("name", "avx512", "amx", "expected"),
    [
        ("Intel Xeon", True, True, "bf16"),
        ("Intel Xeon", True, False, "fp32"),  # in a virtual machine that hides AMX
        ("AMD EPYC 9B45", True, False, "bf16"),
        ("AMD EPYC 7B13", False, False, "fp32"),
        ("", True, False, "bf16"),
    ],
)
def test_auto_knows_which_processors_are_slow_at_it(name, avx512, amx, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": name} if name else {})
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert precision.precision("auto", CPU) == expected


def test_a_wish_is_kept_and_auto_asks_the_processor(monkeypatch):
    monkeypatch.setattr(precision, "fast_at_bf16", lambda: True)
    assert precision.precision("fp32", CPU) == "fp32"
    assert precision.precision("auto", CPU) == "bf16"
    monkeypatch.setattr(precision, "fast_at_bf16", lambda: False)
    assert precision.precision("auto", CPU) == "fp32"


@pytest.mark.parametrize(
    ("kind", "stem", "size", "expected"),
    [
        ("resnet18", "standard", 16, "fp32"),
        ("resnet18", "standard", 17, "bf16"),
        ("resnet18", "cifar", 8, "bf16"),
        ("resnet10", "cifar_stride2", 8, "fp32"),
        ("resnet10", "cifar_stride2", 9, "bf16"),
    ],
)
def test_no_bf16_where_a_convolution_strides_over_one_pixel(kind, stem, size, expected, monkeypatch):
    """Counted by hand: halved five times, once or four times, each time rounded up; the last must see two pixels."""
    monkeypatch.setattr(precision, "fast_at_bf16", lambda: True)
    fields = [f"encoder={kind}", f"encoder.stem={stem}", f"data.size={size}", "encoder.width=8"]
    assert precision.precision_of(compose("demo", overrides=fields), CPU) == expected
    assert precision.precision_of(compose("demo", overrides=[*fields, "train.precision=bf16"]), CPU) == "bf16"


@pytest.mark.parametrize(("stride", "expected"), [(4, "fp32"), (2, "bf16")])
def test_an_encoder_of_ones_own_is_asked_too(stride, expected, monkeypatch, tmp_path):
    """Images of 16 pixels, on a processor that is fast at bfloat16: the third convolution sees 1 pixel, or 4."""
    monkeypatch.setattr(precision, "fast_at_bf16", lambda: True)
    width, layers = 3, []
    for _ in range(3):
        layers += [nn.Conv2d(width, 8, 3, stride, 1), nn.ReLU()]
        width = 8
    fields = ["data.batch=8", "train.length=1steps", "projector.dims=[8,8]"]
    run = pretrain(
        "simclr",
        encoder=nn.Sequential(*layers),
        data=tiny.images(16),
        out=tmp_path / "run",
        overrides=fields,
        quiet=True,
    )
    assert run.config.train.precision == expected
    assert not any(module._forward_pre_hooks for module in run.encoder().modules())


def test_images_of_eight_pixels_train(tmp_path):
    """In bfloat16 torch leaves gradients unwritten there, and the weights soon hold NaN."""
    fields = ["data.size=8", "train.length=20steps"]
    run = pretrain("demo", out=tmp_path / "run", overrides=fields, quiet=True)
    assert run.finished
    assert run.config.train.precision == "fp32"


def test_features_are_not_rounded_to_the_precision_of_the_maps():
    encoder = build_encoder("resnet10", "cifar", "batch", 8, 16, seed=0).eval()
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, maps = encoder(x), encoder.maps(x)[-1]
    assert maps.dtype == torch.bfloat16
    assert found.dtype == torch.float32
    assert torch.equal(found, maps.float().mean((2, 3)))
    assert not torch.equal(found, found.bfloat16().float())
