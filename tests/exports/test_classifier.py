"""A fine-tuned classifier in other libraries: its scores, and the names of its classes in order."""

import importlib
import json

import numpy as np
import pytest
import torch
from torch import nn

import twinblock
from twinblock.core.errors import InputError
from twinblock.evaluation.classifier import Classifier, save

SMALL = ["data.batch=8", "train.length=1steps", "projector.dims=[16,8]", "train.precision=fp32"]
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
NAMES = ["cat", "dog's", "<b>"]
IMPORTS = {
    "timm": ["timm"],
    "hf": ["transformers"],
    "torchvision": ["torch", "torchvision", "safetensors.torch"],
    "onnx": ["onnxruntime"],
}


def tuned(home, kind: str) -> tuple[twinblock.Run, Classifier]:
    """A run with a linear layer of random weights, as `finetune` writes it."""
    how = [*SMALL, f"encoder.kind={kind}", "encoder.stem=standard"]
    run = twinblock.pretrain("simclr", data=PIXELS, out=home / kind.replace("/", "-"), overrides=how, quiet=True)
    model = Classifier(run.encoder(), len(NAMES)).eval()
    nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    nn.init.constant_(model.head.bias, 0.5)
    save(model, run.config, NAMES, run.path / "model")
    return twinblock.Run.open(run.path / "model"), model


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    return tuned(tmp_path_factory.mktemp("home"), "resnet18")


@pytest.mark.parametrize("to", IMPORTS)
def test_scores_are_the_same_elsewhere(resnet, tmp_path, to):
    names = {"images": torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))}
    for name in IMPORTS[to]:
        names[name.partition(".")[0]] = pytest.importorskip(name.partition(".")[0])
        importlib.import_module(name)
    run, model = resnet
    lines = twinblock.export(run, to, out=tmp_path / "out")
    with torch.no_grad():
        exec("\n".join(lines), names)
        torch.testing.assert_close(torch.as_tensor(names["logits"]), model(names["images"]), atol=1e-4, rtol=1e-4)
    assert json.loads((tmp_path / "out" / "preprocessing.json").read_text())["classes"] == NAMES
    assert "Classes, in order: cat, dog's, <b>." in (tmp_path / "out" / "README.md").read_text()
    assert "sigmoid" not in (tmp_path / "out" / "README.md").read_text()
    if to in ("timm", "hf"):
        assert json.loads((tmp_path / "out" / "config.json").read_text())["label_names"] == NAMES


def test_it_is_said_that_an_image_may_be_of_several_classes(resnet, tmp_path):
    transformers = pytest.importorskip("transformers")
    run, model = resnet
    save(model, run.config, NAMES, tmp_path / "model", several=True)
    twinblock.export(tmp_path / "model", "hf", out=tmp_path / "out")
    assert "the sigmoid of a logit is the probability of its class" in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "preprocessing.json").read_text())["several"] is True
    read = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert read.config.problem_type == "multi_label_classification"


def test_a_classifier_behind_another_norm_is_refused(tmp_path):
    """timm's ConvNeXt has a norm before its classifier."""
    run, _ = tuned(tmp_path, "convnext_atto")
    with pytest.raises(InputError, match="its logits are not those of the run; --to onnx, program or weights works"):
        twinblock.export(run, "timm", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
