"""Features that a run keeps: the same bits, not computed twice, and never those of other images or weights."""

import shutil

import pytest
import tiny
import torch

import twinblock
from twinblock.data import Images
from twinblock.evaluation import stored
from twinblock.evaluation.features import features, seen_by
from twinblock.runs import checkpoint

SMALL = ["encoder.kind=resnet10", "encoder.width=8", "data.batch=16", "train.length=1steps", "projector.dims=[16,8]"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "BATCHES", 1)
    monkeypatch.setattr("twinblock.evaluation.stored.at_once", lambda size: 20)  # three parts of 48 images
    return twinblock.pretrain("simclr", data=tiny.images(), out=tmp_path / "run", overrides=SMALL, quiet=True)


@pytest.fixture
def looked(monkeypatch):
    """How many images the network looks at."""
    return tiny.features_asked_of(stored, monkeypatch)


def test_they_are_the_same_bits_and_computed_once(run, looked):
    first = twinblock.embed(run).features
    assert looked == [20, 20, 8]
    expected = features(run.encoder(), tiny.images(), **seen_by(run.config, torch.device("cpu")), batch=20)
    assert torch.equal(first, expected)
    assert torch.equal(twinblock.embed(run).features, first)
    assert looked == [20, 20, 8]


def test_interrupted_work_goes_on(run, looked, monkeypatch):
    whole = twinblock.embed(run).features
    shutil.rmtree(run.path / "features")
    looked.clear()
    counted = stored.features

    def killed(encoder, images, **how):
        if len(looked) == 2:
            raise KeyboardInterrupt
        return counted(encoder, images, **how)

    with monkeypatch.context() as patch:
        patch.setattr(stored, "features", killed)
        with pytest.raises(KeyboardInterrupt):
            twinblock.embed(run)
    assert torch.equal(twinblock.embed(run).features, whole)
    assert looked == [20, 20, 8]


def test_a_damaged_part_is_computed_again(run, looked):
    whole = twinblock.embed(run).features
    file = sorted((run.path / "features").rglob("*.safetensors"))[1]
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    looked.clear()
    assert torch.equal(twinblock.embed(run).features, whole)
    assert looked == [20]


@pytest.mark.parametrize("what", ["a pixel", "the weights", "the size", "a step"])
def test_what_changes_them_is_noticed(run, looked, monkeypatch, what):
    images, more = tiny.images(), {}
    if what == "a pixel":  # of an image that `Images.fingerprint` does not look at
        monkeypatch.setattr("twinblock.data.FINGERPRINTED", 2)
    twinblock.embed(run, data=images)
    looked.clear()
    if what == "a pixel":
        pixels = images.pixels.copy()
        pixels[11, 3, 3, 0] ^= 64
        images = Images(pixels, images.labels, images.classes)
    elif what == "the size":
        more = {"data": {"source": images, "size": 24}}
    elif what == "a step":
        longer = [x.replace("1steps", "2steps") for x in SMALL]
        twinblock.pretrain("simclr", data=tiny.images(), out=run.path, overrides=longer, quiet=True)
    else:
        tensors, meta = checkpoint.read(run.path / "encoder.safetensors")
        checkpoint.write(run.path / "encoder.safetensors", {n: t * 1.01 for n, t in tensors.items()}, meta)
    found = twinblock.embed(run, **({"data": images} | more)).features
    assert sum(looked) == 48
    assert found.isfinite().all()


def test_a_run_that_cannot_be_written_keeps_nothing(run, looked, monkeypatch):
    def refused(*_):
        raise PermissionError

    monkeypatch.setattr(stored.checkpoint, "write", refused)
    first = twinblock.embed(run).features
    assert torch.equal(twinblock.embed(run).features, first)
    assert looked == [20, 20, 8] * 2


def test_a_data_set_in_python(run, looked):
    """Its packed file has no name any more: features are found again by the pixels themselves."""

    class Pictures(torch.utils.data.Dataset):
        def __init__(self, pixels):
            self.pixels = pixels

        def __len__(self):
            return len(self.pixels)

        def __getitem__(self, i):
            return self.pixels[i]

    pixels = tiny.images().pixels
    first = twinblock.embed(run, data=Pictures(pixels)).features
    assert torch.equal(first, twinblock.embed(run, data=pixels).features)
    looked.clear()
    assert torch.equal(twinblock.embed(run, data=Pictures(pixels)).features, first)
    assert looked == []
    assert not torch.equal(twinblock.embed(run, data=Pictures(255 - pixels)).features, first)
