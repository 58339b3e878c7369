"""Whole views against torchvision, and the rules by which parameters are drawn."""

import itertools
import math
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from pictures import photos
from processes import apart
from pydantic import ValidationError
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.transforms import InterpolationMode

import twinblock.views as module
from twinblock.views import TRIES, UNIFORM, View, Views, apply, centre, draw
from twinblock.views.operations import resized_crop

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
PLAIN = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
KINDS = ("brightness", "contrast", "saturation", "hue")
EVERYTHING = View(jitter=(0.4, 0.4, 0.2, 0.4), gray=0.5, blur=0.5, solarize=0.3)


def uniform(n, seed=0):
    return np.random.default_rng(seed).random((n, sum(UNIFORM)))


# -------------------------------------------------------------------------------------- torchvision


def torchvision_crop(image, box, size, interpolation):
    mode = InterpolationMode.BICUBIC if interpolation == "bicubic" else InterpolationMode.BILINEAR
    out = tv.resized_crop(image, *(int(b) for b in box), [size, size], interpolation=mode, antialias=True)
    return out.clamp(0, 1)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("height", "width", "size"), [(32, 32, 32), (48, 40, 96), (100, 150, 32), (130, 90, 67), (250, 300, 37)]
)
def test_resized_crop_is_torchvisions(height, width, size, interpolation):
    images, rng = photos(6, height, width), np.random.default_rng(1)
    extent = rng.integers(1, [height + 1, width + 1], (6, 2))
    extent[:2] = [[height, width], [1, 1]]
    corner = rng.integers(0, [height + 1, width + 1] - extent)
    box, flip = np.concatenate([corner, extent], 1).astype(float), np.arange(6) % 2 == 0
    out = resized_crop(images, box, size, interpolation, flip)
    for i in range(6):
        expected = torchvision_crop(images[i].permute(2, 0, 1) / 255, box[i], size, interpolation)
        expected = expected.flip(-1) if flip[i] else expected
        torch.testing.assert_close(out[i], expected, atol=3e-6, rtol=0)


def reference(image, params, i, size, interpolation):
    """View i by torchvision, operation by operation, on one float image (3, h, w)."""
    x = torchvision_crop(image, params.box[i], size, interpolation)
    x = tv.horizontal_flip(x) if params.flip[i] else x
    adjust = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    if params.jitter[i]:
        for kind in params.order[i]:
            x = adjust[kind](x, float(params.factor[i, kind]))
    x = tv.rgb_to_grayscale(x, 3) if params.gray[i] else x
    kernel = 2 * max(1, size // 20) + 1
    x = tv.gaussian_blur(x, [kernel, kernel], [float(params.sigma[i])] * 2) if params.blur[i] else x
    x = tv.solarize(x, 0.5) if params.solarize[i] else x
    return tv.normalize(x, MEAN, STD)


@pytest.mark.parametrize(("side", "size", "n"), [(32, 32, 64), (80, 48, 24), (64, 80, 20)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_whole_view_is_torchvisions(side, size, n, interpolation, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 9 * 3 * size * size)  # several chunks
    images = photos(n, side, side)
    params = draw(EVERYTHING, uniform(n), side, side)
    assert params.jitter.any()
    assert (params.gray & params.blur & ~params.solarize).any()
    out = apply(images, params, size, MEAN, STD, interpolation)
    for i in range(n):
        expected = reference(images[i].permute(2, 0, 1) / 255, params, i, size, interpolation)
        close = (out[i] - expected).abs() < 1e-4
        # a value within rounding of the threshold may fall on either side of solarisation
        assert close.float().mean() > (0.999 if params.solarize[i] else 0.999999)


@pytest.mark.parametrize(("side", "size"), [(40, 32), (16, 8)])
def test_chunks_change_nothing_but_the_last_bits(side, size, monkeypatch):
    """Some processors add in another order for another number of images: a few roundings of values up to 1/std."""
    images = photos(20, side, side)
    params = draw(EVERYTHING.model_copy(update={"solarize": 0}), uniform(20), side, side)
    whole = apply(images, params, size, MEAN, STD, "bilinear")
    monkeypatch.setattr(module, "CHUNK", 1)
    rounding = 16 * torch.finfo(torch.float32).eps / min(STD)
    torch.testing.assert_close(apply(images, params, size, MEAN, STD, "bilinear"), whole, atol=rounding, rtol=0)


# ------------------------------------------------------------------------------------------- centre


def test_centre_keeps_an_image_of_the_right_size():
    images = photos(5, 40, 40)
    assert torch.equal(centre(images, 40, *PLAIN), images.permute(0, 3, 1, 2) / 255)


@pytest.mark.parametrize(("height", "width"), [(60, 90), (90, 60)])
def test_centre_is_the_whole_middle_square(height, width):
    images = photos(3, height, width)
    x = images.permute(0, 3, 1, 2) / 255
    expected = tv.normalize(tv.resize(tv.center_crop(x, [60, 60]), [32, 32], antialias=True), MEAN, STD)
    torch.testing.assert_close(centre(images, 32, MEAN, STD), expected, atol=2e-5, rtol=0)


def test_view_without_crop_is_the_centre():
    images = photos(3, 60, 90)
    still = View(crop=None, flip=0, jitter_p=0, gray=0)
    out = Views([still], 32, MEAN, STD)(images, seed=0, epoch=0, step=0, batch=3)
    assert torch.equal(out[0], centre(images, 32, MEAN, STD))


# ------------------------------------------------------------------------------------------- aspect


def squash(images, side):
    """To side x side, and the aspect before."""
    x = tv.resize(images.permute(0, 3, 1, 2), [side, side], antialias=True)
    return x.permute(0, 2, 3, 1).contiguous(), torch.full((len(images),), images.shape[2] / images.shape[1])


@pytest.mark.parametrize(("height", "width"), [(128, 256), (256, 128)])
def test_crops_of_squashed_images_are_undistorted(height, width):
    images = photos(8, height, width)
    squashed, aspect = squash(images, 128)
    still = View(flip=0, jitter_p=0, gray=0)
    params = draw(still, uniform(8), 128, 128, aspect)
    out = apply(squashed, params, 32, *PLAIN, "bilinear")
    box = params.box * [height / 128, width / 128, height / 128, width / 128]
    expected = resized_crop(images, box, 32)
    wrong = resized_crop(images, draw(still, uniform(8), height, width, torch.ones(8)).box, 32)
    # the squashed axis is filtered twice: fine texture differs by a few levels; another crop by far more
    assert (out - expected).abs().mean() < 0.015
    assert (wrong - expected).abs().mean() > 0.06
    ratio = box[:, 3] / box[:, 2]
    assert (ratio > 0.72).all()
    assert (ratio < 1.39).all()  # 3/4 to 4/3 and the rounding to whole pixels
    middle = centre(squashed, 32, *PLAIN, aspect)
    assert (middle - centre(images, 32, *PLAIN)).abs().mean() < 0.015
    assert (centre(squashed, 32, *PLAIN) - centre(images, 32, *PLAIN)).abs().mean() > 0.06


def test_aspect_of_undistorted_images_changes_nothing():
    images = photos(4, 40, 60)
    make = Views([EVERYTHING], 32, MEAN, STD)
    place = {"seed": 0, "epoch": 0, "step": 0, "batch": 4}
    assert torch.equal(make(images, **place, aspect=torch.full((4,), 1.5))[0], make(images, **place)[0])


# --------------------------------------------------------------------------------------------- draw


@pytest.mark.parametrize(("height", "width"), [(32, 32), (100, 40), (40, 200), (11, 7)])
@pytest.mark.parametrize("area", [(0.08, 1.0), (0.9, 1.0), (0.001, 0.01)])
def test_random_boxes_follow_the_rule_of_random_resized_crop(height, width, area):
    u = uniform(300)
    boxes = draw(View(crop=area), u, height, width).box
    fallbacks = 0
    for row, box in zip(u, boxes, strict=True):
        for area_u, ratio_u in row[: 2 * TRIES].reshape(TRIES, 2):
            target = height * width * (area[0] + (area[1] - area[0]) * area_u)
            ratio = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * ratio_u)
            w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
            if 0 < w <= width and 0 < h <= height:
                top = int(row[2 * TRIES] * (height - h + 1))
                left = int(row[2 * TRIES + 1] * (width - w + 1))
                break
        else:
            fallbacks += 1
            h, w = height, width
            if width / height < 3 / 4:
                h = round(width / (3 / 4))
            elif width / height > 4 / 3:
                w = round(height * 4 / 3)
            top, left = (height - h) // 2, (width - w) // 2
        assert box.tolist() == [top, left, h, w]
    if area == (0.9, 1.0) and height != width:
        assert fallbacks > 0


def test_a_box_is_tried_ten_times_as_in_torchvision():
    """Nine tries too high for the image; the tenth fits, or the largest central box of ratio 4/3 is taken."""
    too_high, fits = (1.0, 0.0), (0.0, 1.0)  # uniform numbers of area (0.64 to 1) and ratio (3/4 to 4/3)
    for last, size in ((fits, [48, 64]), (too_high, [60, 80])):
        u = np.zeros((1, sum(UNIFORM)))
        u[0, :20] = [*too_high * 9, *last]
        assert draw(View(crop=(0.64, 1.0)), u, 60, 81).box.tolist() == [[0, 0, *size]]


def test_boxes_stay_inside_and_are_never_empty():
    for height, width, aspect in ((1, 1, 1.0), (2, 3, 30.0), (5, 5, 0.05), (32, 32, 8.0)):
        for crop in ((0.001, 1.0), None):
            box = draw(View(crop=crop), uniform(200), height, width, torch.full((200,), aspect)).box
            assert (box[:, :2] >= 0).all()
            assert (box[:, 2:] >= 1).all()
            assert (box[:, :2] + box[:, 2:] <= [height, width]).all()


def test_probabilities_and_ranges():
    n = 20_000
    spec = View(flip=0.3, jitter=(0.4, 0.6, 1.5, 0.1), jitter_p=0.7, gray=0.25, blur=0.45, solarize=0.15)
    params = draw(spec, uniform(n), 32, 32)
    rates = {"flip": 0.3, "jitter": 0.7, "gray": 0.25, "blur": 0.45, "solarize": 0.15}
    for name, p in rates.items():
        assert abs(getattr(params, name).mean() - p) < 4 * math.sqrt(p * (1 - p) / n), name  # 4 sigma
    low, high = np.array([0.6, 0.4, 0.0, -0.1]), np.array([1.4, 1.6, 2.5, 0.1])
    assert (params.factor >= low).all()
    assert (params.factor <= high).all()
    spread = (high - low) / math.sqrt(12)
    assert (np.abs(params.factor.mean(0) - (low + high) / 2) < 4 * spread / math.sqrt(n)).all()
    assert 0.1 <= params.sigma.min() < 0.11
    assert 1.99 < params.sigma.max() <= 2
    orders, counts = np.unique(params.order, axis=0, return_counts=True)
    assert len(orders) == 24
    assert np.abs(counts - n / 24).max() < 4 * math.sqrt(n / 24)


def test_certain_and_impossible_operations():
    images = photos(16, 32, 32)
    place = {"seed": 0, "epoch": 0, "step": 0, "batch": 16}

    def make(**fields):
        still = {"crop": None, "flip": 0, "jitter_p": 0, "gray": 0}
        return Views([View(**(still | fields))], 32, *PLAIN)(images, **place)[0]

    x = images.permute(0, 3, 1, 2) / 255
    assert torch.equal(make(), x)
    assert torch.equal(make(flip=1), x.flip(3))
    torch.testing.assert_close(make(solarize=1), torch.where(x >= 0.5, 1 - x, x))
    torch.testing.assert_close(make(gray=1), tv.rgb_to_grayscale(x, 3))
    torch.testing.assert_close(make(jitter_p=1, jitter=(0, 0, 0, 0)), x, atol=1e-5, rtol=0)
    assert (make(blur=1) != x).flatten(1).any(1).all()


# ----------------------------------------------------------------------------------------- identity


@pytest.mark.parametrize(("side", "size", "n"), [(32, 32, 48), (96, 80, 13)])
def test_shards_give_the_same_views_bit_for_bit(side, size, n):
    images = photos(n, side, side)
    aspect = torch.linspace(0.5, 2, n)
    make = Views([EVERYTHING, View(blur=1.0, interpolation="bicubic")], size, MEAN, STD)
    place = {"seed": 3, "epoch": 1, "step": 2, "batch": n}
    whole = make(images, **place, aspect=aspect)
    for cuts in ([0, n // 2, n], [0, 1, 3, n], [*range(0, n, 5), n]):
        parts = [make(images[a:b], **place, offset=a, aspect=aspect[a:b]) for a, b in itertools.pairwise(cuts)]
        for view, shards in zip(whole, zip(*parts, strict=True), strict=True):
            assert torch.equal(torch.cat(shards), view)


def test_views_depend_on_each_part_of_their_identity():
    images = photos(1, 64, 64).expand(4, -1, -1, -1)
    make = Views([EVERYTHING, EVERYTHING], 32, MEAN, STD)
    place = {"seed": 0, "epoch": 1, "step": 2, "batch": 4}
    first, second = make(images, **place)
    assert torch.equal(make(images, **place)[0], first)
    changed = [make(images, **(place | {name: 7}))[0] for name in ("seed", "epoch", "step")]
    swapped = make(images, **(place | {"epoch": 2, "step": 1}))[0]
    distinct = torch.cat([first, second, swapped, *changed]).flatten(1)
    assert torch.cdist(distinct, distinct).add(torch.eye(len(distinct)) * 1e9).min() > 1


def test_the_global_generators_are_left_alone():
    torch.manual_seed(0)
    before, numbers = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    Views([EVERYTHING], 32, MEAN, STD)(photos(4, 32, 32), seed=0, epoch=0, step=0, batch=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numbers).all()  # noqa: NPY002


# ------------------------------------------------------------------------------------ form and place


def test_output_is_float32_contiguous_and_without_gradient():
    out = Views([EVERYTHING], 32, MEAN, STD)(photos(4, 40, 60), seed=0, epoch=0, step=0, batch=4)[0]
    assert out.shape == (4, 3, 32, 32)
    assert out.dtype == torch.float32
    assert out.is_contiguous()
    assert not out.requires_grad


def test_input_is_left_alone():
    images = photos(4, 32, 32)
    before = images.clone()
    Views([EVERYTHING], 32, MEAN, STD)(images, seed=0, epoch=0, step=0, batch=4)
    assert torch.equal(images, before)


def test_autocast_does_not_reach_the_views():
    images = photos(4, 40, 40)
    make = Views([EVERYTHING], 32, MEAN, STD)
    place = {"seed": 0, "epoch": 0, "step": 0, "batch": 4}
    expected = make(images, **place)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(make(images, **place)[0], expected)


def devices_of_fakes() -> list[str]:
    """Where the views of images on a GPU lie. Fake tensors have a device but no data, and refuse to mix devices."""
    # pinning needs a driver
    with patch.object(torch.Tensor, "pin_memory", lambda t: t), FakeTensorMode():
        images = torch.empty(8, 40, 40, 3, dtype=torch.uint8, device="cuda")
        out = Views([EVERYTHING, View(interpolation="bicubic")], 32, MEAN, STD)(
            images, seed=0, epoch=0, step=0, batch=8
        )
        return [view.device.type for view in [*out, centre(images, 32, MEAN, STD)]]


def test_everything_happens_on_the_device_of_the_batch():
    """In a process of its own: once there are such tensors, autograd does not work in forked processes any more."""
    assert apart(devices_of_fakes) == ["cuda"] * 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_equals_cpu():
    images = photos(32, 80, 80)
    make = Views([EVERYTHING], 64, MEAN, STD)
    place = {"seed": 0, "epoch": 0, "step": 0, "batch": 32}
    difference = (make(images.cuda(), **place)[0].cpu() - make(images, **place)[0]).abs()
    assert (difference < 1e-3).float().mean() > 0.999


@pytest.mark.parametrize(
    "fields",
    [
        {"crop": (0.0, 1.0)},
        {"crop": (0.8, 0.2)},
        {"crop": (0.5, 1.5)},
        {"flip": 1.1},
        {"gray": -0.1},
        {"jitter": (0.4, 0.4, 0.2, 0.6)},
        {"jitter": (-0.4, 0.4, 0.2, 0.1)},
        {"interpolation": "nearest"},
        {"blurr": 0.5},
    ],
)
def test_specs_out_of_range_are_refused(fields):
    with pytest.raises(ValidationError):
        View(**fields)
