"""Situations that users of other libraries reported, tried here (docs/results/reliability.md)."""

import copy
import pickle
import shutil
import threading

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import twinblock
from twinblock.data import load

SMALL = {"projector": {"dims": [16, 8]}, "train": {"length": "2steps", "precision": "fp32"}, "quiet": True}
TINY = {"kind": "resnet10", "width": 8, "stem": "cifar"}


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Ten images of noise in each of two classes."""
    monkeypatch.setenv("TWINBLOCK_CACHE", str(tmp_path / "cache"))
    rng = np.random.Generator(np.random.PCG64(0))
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def test_what_programs_leave_in_folders_is_no_class_and_no_image(photos):
    """Jupyter's checkpoints, the other halves of files of a Mac, and a class that is still empty."""
    (photos / ".ipynb_checkpoints").mkdir()
    shutil.copy(photos / "a" / "0.png", photos / ".ipynb_checkpoints")
    (photos / "__MACOSX").mkdir()
    for folder in ("a", "__MACOSX"):
        for i in range(10):
            (photos / folder / f"._{i}.png").write_bytes(b"\0\5\x16\7" + bytes(100))
    (photos / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (photos / "empty").mkdir()
    images = load(str(photos))
    assert images is not None
    assert (len(images), images.classes, list(images.skipped)) == (20, ("a", "b"), [])
    assert str(images.names[0]) == "a/0.png" and str(images.names[10]) == "b/0.png"


def test_images_in_one_folder_below_have_no_labels(photos):
    """What is advised where a library wants class folders and there are no classes."""
    for file in (photos / "b").iterdir():
        file.rename(photos / "a" / f"b{file.name}")
    (photos / "b").rmdir()
    images = load(str(photos))
    assert images is not None and len(images) == 20 and images.labels is None


def test_an_encoder_is_a_module_like_any_other(photos, tmp_path):
    run = twinblock.pretrain("simclr", data={"source": photos, "batch": 8}, encoder=TINY, out=tmp_path / "run", **SMALL)
    encoder, images = twinblock.load_encoder(run), torch.rand(3, 3, 16, 16)
    assert not encoder.training
    features = encoder(images)
    for other in (pickle.loads(pickle.dumps(encoder)), copy.deepcopy(encoder)):
        assert torch.equal(other(images), features)
    torch.testing.assert_close(encoder(images[:1]), features[:1])  # no image depends on others
    encoder.train()(images).sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_weights_are_a_checkpoint_of_timm(photos, tmp_path):
    fields = {"kind": "resnet18", "stem": "standard"}
    data = {"source": photos, "batch": 8, "size": 32}
    run = twinblock.pretrain("simclr", data=data, encoder=fields, out=tmp_path / "run", **SMALL)
    weights = str(run.path / "encoder.safetensors")
    network = timm.create_model("resnet18", num_classes=0, checkpoint_path=weights).eval()
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(network(images), twinblock.load_encoder(run)(images))


def test_frozen_layers_stay_as_they_are(photos, tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1))
    network[0].requires_grad_(False)
    before = copy.deepcopy(network.state_dict())
    data = {"source": photos, "batch": 8}
    run = twinblock.pretrain("simclr", data=data, encoder=network, out=tmp_path / "run", **SMALL)
    after = list(run.encoder().state_dict().values())
    changed = [not torch.equal(old, new) for old, new in zip(before.values(), after, strict=True)]
    assert changed == [False, False, True, True]


def test_trainings_in_threads_are_those_that_run_alone(photos, tmp_path):
    data = {"source": photos, "batch": 8}

    def train(name: str) -> None:
        twinblock.pretrain("simclr", data=data, encoder=TINY, out=tmp_path / name, **SMALL)

    train("alone")
    threads = [threading.Thread(target=train, args=(f"beside{i}",)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone, *others = (twinblock.load_encoder(tmp_path / name).state_dict() for name in ("alone", "beside0", "beside1"))
    for other in others:
        assert all(torch.equal(alone[name], other[name]) for name in alone)
