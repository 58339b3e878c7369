import numpy as np
import pytest
import torch
from torch import nn

from twinblock.core.errors import InputError
from twinblock.data import Images
from twinblock.evaluation import features, pixels
from twinblock.evaluation.features import at_once

HOW = {"size": 8, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}


@pytest.fixture
def images():
    rng = np.random.Generator(np.random.PCG64(0))
    return Images(rng.integers(0, 256, (7, 8, 8, 3), dtype=np.uint8))


def test_an_encoder_that_flattens_gives_the_normalised_pixels_in_order(images):
    found = features(nn.Flatten(), images, batch=3, **HOW)
    expected = (images.pixels / 255 - np.array(HOW["mean"])) / np.array(HOW["std"])
    torch.testing.assert_close(found, torch.from_numpy(expected).permute(0, 3, 1, 2).flatten(1).float())


def test_raw_pixels(images):
    found = pixels(images, 8, batch=2)
    torch.testing.assert_close(found, torch.from_numpy(images.pixels / 255).permute(0, 3, 1, 2).flatten(1).float())


def test_squashed_images_are_seen_in_their_own_aspect():
    wide = np.zeros((3, 8, 8, 3), np.uint8)
    wide[:, :, 2:6] = 255  # twice as wide as high before it was squashed: the central square is these columns
    images = Images(wide, aspect=np.array([2, 2, 1], np.float32))
    found = pixels(images, 4, batch=2)
    torch.testing.assert_close(found[:2], torch.ones(2, 48))
    assert (found[2] < 0.9).any()


def test_the_encoder_is_evaluated_and_left_as_it_was(images):
    encoder = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192), nn.Dropout(0.5))
    encoder.train()
    encoder[1].eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    found = features(encoder, images, **HOW)
    torch.testing.assert_close(found, features(encoder, images, batch=1, **HOW))
    assert not found.requires_grad
    assert [encoder.training, encoder[1].training, encoder[2].training] == [True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_fewer_large_images_are_looked_at_together():
    assert [at_once(size) for size in (8, 32, 129, 224, 1024, 4096)] == [500, 500, 500, 167, 8, 1]
    together, done = [], []

    class Means(nn.Module):
        def forward(self, x):
            together.append(len(x))
            return x.mean((2, 3))

    many = Images(np.zeros((170, 8, 8, 3), np.uint8))
    assert len(features(Means(), many, **{**HOW, "size": 224}, advance=done.append)) == 170
    assert together == done == [167, 3]


def test_the_mode_is_restored_after_a_failure(images):
    encoder = nn.Sequential(nn.Conv2d(3, 2, 1)).train()
    with pytest.raises(InputError, match="pool it"):
        features(encoder, images, **HOW)
    assert encoder.training
    assert encoder[0].training


def test_mixed_precision_gives_float32_features(images):
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    exact, mixed = (features(encoder, images, autocast=kind, **HOW) for kind in (None, torch.bfloat16))
    assert mixed.dtype == torch.float32
    assert not torch.equal(mixed, exact)
    torch.testing.assert_close(mixed, exact, rtol=0, atol=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: on a CPU images keep their layout")
def test_a_gpu_sees_images_in_the_layout_of_training(images):
    seen = []
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).cuda()
    encoder.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    features(encoder, images, device="cuda", **HOW)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen) and seen
