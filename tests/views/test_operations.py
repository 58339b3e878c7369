"""Operations of views against golden numbers and torchvision."""

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv

from twinblock.views import View, centre
from twinblock.views.operations import adjust_hue_, color_jitter_, gaussian_blur, grayscale_, resized_crop, solarize_

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
PLAIN = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
KINDS = ("brightness", "contrast", "saturation", "hue")
EVERYTHING = View(jitter=(0.4, 0.4, 0.2, 0.4), gray=0.5, blur=0.5, solarize=0.3)


def cases(golden, group):
    return sorted({key.split("/")[2] for key in golden if key.startswith(f"aug/{group}/")})


def read(golden, group, case):
    """The case's image as (1, h, w, 3) uint8 and (1, 3, h, w) float, and a function to look up its arrays."""
    key = f"aug/{group}/{case}"
    pixels = torch.from_numpy(golden[f"aug/images{golden[f'{key}/base']}"][golden[f"{key}/img"]])[None]
    return pixels.permute(0, 2, 3, 1), pixels / 255, lambda name: golden[f"{key}/{name}"]


def compare(out, get, atol, levels):
    """Against float output within `atol` and uint8 output within `levels` of 255."""
    torch.testing.assert_close(out[0], torch.from_numpy(get("out_f32")), atol=atol, rtol=0)
    assert (out[0] * 255 - torch.from_numpy(get("out_u8")).float()).abs().max() <= levels


@pytest.mark.parametrize("case", [f"c{i}" for i in range(10)])
def test_resized_crop_golden(golden, case):
    images, _, get = read(golden, "resized_crop", case)
    interpolation = "bicubic" if get("bicubic") else "bilinear"
    out = resized_crop(images, get("box")[None].astype(float), int(get("size")), interpolation)
    expected = torch.from_numpy(get("out_f32")).clamp(0, 1)  # the published one lets bicubic overshoot
    torch.testing.assert_close(out[0], expected, atol=2e-6, rtol=0)
    assert (out[0] * 255 - torch.from_numpy(get("out_u8")).float()).abs().max() <= 1


def test_horizontal_flip_golden(golden):
    images, _, get = read(golden, "hflip", "c0")
    side = images.shape[1]
    box = np.array([[0.0, 0.0, side, side]])
    compare(resized_crop(images, box, side, flip=np.array([True])), get, 2e-6, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_single_jitter_golden(golden, kind):
    for case in cases(golden, kind):
        _, x, get = read(golden, kind, case)
        factor = np.array([[1.0, 1.0, 1.0, 0.0]])
        factor[0, KINDS.index(kind)] = get("factor")
        # torchvision truncates uint8, contrast and saturation twice: up to two levels below the float value
        levels = 1 if kind == "brightness" else 2
        compare(
            color_jitter_(x, np.array([[KINDS.index(kind)]]), factor),
            get,
            1e-5 if kind == "hue" else 2e-6,
            levels,
        )


def test_color_jitter_golden(golden):
    for case in cases(golden, "color_jitter"):
        _, x, get = read(golden, "color_jitter", case)
        # each of the four uint8 operations truncates, and later factors enlarge what was lost
        compare(color_jitter_(x, get("order")[None], get("factors")[None]), get, 1e-5, 5)


def test_grayscale_golden(golden):
    for case in cases(golden, "grayscale"):
        _, x, get = read(golden, "grayscale", case)
        compare(grayscale_(x), get, 2e-6, 1)


@pytest.mark.parametrize("case", ["c0", "c1", "c2", "c3"])
def test_gaussian_blur_golden(golden, case):
    _, x, get = read(golden, "gaussian_blur", case)
    (across, down), pooling = get("sigma"), int(get("kernel_size")[1])
    if across == down:
        compare(gaussian_blur(x, np.array([down]), pooling // 2), get, 2e-6, 1)
    else:  # so narrow across that it blurs only down, as on samples that repeat one column of the image
        assert across == 0.1
        columns = x[0].permute(2, 0, 1)[..., None].expand(-1, -1, -1, 16)
        out = gaussian_blur(columns, np.full(len(columns), down), pooling // 2)
        compare(out[..., 8].permute(1, 2, 0)[None], get, 2e-6, 1)


def test_solarize_golden(golden):
    for case in cases(golden, "solarize"):
        _, x, get = read(golden, "solarize", case)
        compare(solarize_(x, float(get("threshold_f32"))), get, 2e-6, 1)


def test_normalisation_golden(golden):
    images, _, get = read(golden, "normalize", "c0")
    out = centre(images, images.shape[1], golden["aug/mean"].tolist(), golden["aug/std"].tolist())
    torch.testing.assert_close(out[0], torch.from_numpy(get("out_f32")), atol=2e-6, rtol=0)


def test_hue_is_torchvisions_for_any_turn():
    x = torch.cat([torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(4, 3, 8, 8)])
    x[40], x[41], x[42, 0], x[43, 1:] = 1.0, 0.3, 0.5, 0.7  # white, gray and pure colours
    x[:4] = (x[:4] * 2).round() / 2  # ties between channels
    shift = np.linspace(-0.5, 0.5, 44)
    out = adjust_hue_(x.clone(), shift)
    for i in range(44):
        torch.testing.assert_close(out[i], tv.adjust_hue(x[i], shift[i]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("thirds", [-1, 0, 1])
def test_a_hue_of_whole_thirds_permutes_the_channels_to_the_bit(thirds):
    """Also where two channels are equal, and where the turn is nothing at all."""
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x[1, 0], x[2, 1], x[3, 2] = x[1, 1], x[2, 2], x[3, 0]
    x[4:] = (x[4:] * 2).round() / 2
    out = adjust_hue_(x.clone(), np.full(6, thirds / 3))
    torch.testing.assert_close(out, x.roll(thirds, 1), atol=3e-7, rtol=0)
