"""A run is looked at in the precision that it trained in, where that is fast; never in one that is slow."""

import pytest
import torch

from twinblock import precision, pretrain
from twinblock.evaluation import seen_by
from twinblock.recipes import compose

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("trained", "fast", "expected"),
    [("bf16", True, torch.bfloat16), ("bf16", False, None), ("fp32", True, None), ("fp64", True, None)],
)
def test_mixed_precision_where_trained_so_and_fast(trained, fast, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    config = compose("demo", {"train": {"precision": trained}})
    assert precision.autocast_here(config, CPU) == expected
    assert seen_by(config, CPU)["autocast"] == expected


def test_a_wish_is_kept_and_auto_asks_the_processor(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert precision.precision("fp32", CPU) == "fp32"
    assert precision.precision("auto", CPU) == "bf16"
    assert precision.precision("auto", CPU, size=8) == "fp32"
    assert precision.precision("bf16", CPU, size=8) == "bf16"
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert precision.precision("auto", CPU) == "fp32"


def test_images_of_eight_pixels_train(tmp_path):
    """In bfloat16 torch leaves gradients unwritten there, and the weights soon hold NaN."""
    fields = ["data.size=8", "train.length=20steps"]
    run = pretrain("demo", out=tmp_path / "run", overrides=fields, quiet=True)
    assert run.finished
    assert run.config.train.precision == "fp32"
