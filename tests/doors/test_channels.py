"""Images of 1, 4 and 12 channels and of other depths, through every command."""

import numpy as np
import pytest
import tifffile
import torch
from pictures import one_line

import twinblock
from twinblock.core.errors import InputError
from twinblock.data.training import training
from twinblock.evaluation import features
from twinblock.views import centre
from twinblock.views.operations import unit

SMALL = (
    *("data.batch=16", "encoder.kind=resnet10", "encoder.width=8", "encoder.stem=cifar", "train.length=4steps"),
    *("projector.dims=[24,8]", "train.precision=fp32"),
)


def write(folder, channels, dtype, top, seed=0, suffix="tif"):
    """48 images of 16 px of two classes, one brighter in its first channel; no value but 0 to `top`."""
    rng = np.random.default_rng(seed)
    for i in range(48):
        values = rng.integers(0, top // 2, (16, 16, channels)).astype(dtype)
        values[..., 0] += dtype(i % 2 * top // 2)
        values.flat[:2] = top, 0
        (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        options = {"photometric": "minisblack", "planarconfig": "contig"} if channels > 1 else {}
        tifffile.imwrite(folder / "ab"[i % 2] / f"{i:02}.{suffix}", values.squeeze(), **options)
    return folder


@pytest.mark.parametrize(
    ("channels", "dtype", "top", "high"),
    [(1, np.uint16, 1500, 4095), (4, np.uint8, 255, 255), (12, np.uint16, 9000, 16383)],
)
def test_other_channels_go_through_every_command(tmp_path, capsys, channels, dtype, top, high):
    photos = write(tmp_path / "photos", channels, dtype, top)
    run = twinblock.pretrain("byol", data=photos, out=tmp_path / "run", overrides=[*SMALL, "predictor.dims=[24,8]"])
    said = " ".join("".join(capsys.readouterr()).split())
    words = (
        f"{'8' if dtype is np.uint8 else '16'}-bit TIFF, {channels} channel{'s' * (channels > 1)}, values 0 to {top}"
    )
    assert f"{words}: range [0, {high}]; data.range=[low, high] changes it" in said
    assert "saturation and hue" in said and ("solarisation" in said) == (channels > 1)
    data = run.config.data
    assert (data.channels, data.range) == (channels, (0, high))
    assert len(data.mean) == len(data.std) == channels and 0.05 < min(data.mean) < 0.5
    assert {row["features"] for row in twinblock.evaluate(run, quiet=True)} >= {"encoder", "raw pixels"}
    found = twinblock.embed(run)
    encoder = twinblock.load_encoder(run)
    images = training(data)
    view = centre(images.batch([5]), 16, data.mean, data.std, value_range=data.range)
    with torch.no_grad():
        torch.testing.assert_close(encoder(view)[0], found.features[5], atol=1e-4, rtol=1e-4)
    assert str(twinblock.diagnose(run))
    with pytest.raises(InputError, match=f"of 2 channels, and the run was trained on {channels}") as error:
        twinblock.embed(run, data=np.zeros((4, 16, 16, 2), np.uint16))
    one_line(error)


def test_a_run_goes_on_with_the_range_that_it_began_with(tmp_path):
    photos = write(tmp_path / "photos", 1, np.uint16, 1500)
    how = {"data": photos, "out": tmp_path / "run", "quiet": True}
    run = twinblock.pretrain("simclr", overrides=SMALL, **how)
    assert twinblock.pretrain("simclr", overrides=SMALL, **how).result == run.result
    assert twinblock.pretrain("simclr", overrides=[*SMALL, "data.range=percentile"], **how).result == run.result
    with pytest.raises(InputError, match=r"data.range: \[0.0, 4095.0\] there, \[0.0, 1023.0\] here") as error:
        twinblock.pretrain("simclr", overrides=[*SMALL, "data.range=[0,1023]"], **how)
    one_line(error)


def test_channels_that_differ_widely_keep_their_levels(tmp_path, capsys):
    """Of a mask of 0 to 3 beside 16 bits one range would leave 4 of 65 536 values, so each channel has its own."""
    rng = np.random.default_rng(0)
    values = np.stack([rng.integers(0, 60_001, (40, 16, 16)), rng.integers(0, 4, (40, 16, 16))], -1).astype(np.uint16)
    how = {"data": values, "quiet": True}
    run = twinblock.pretrain("simclr", out=tmp_path / "auto", overrides=SMALL, data=values)
    assert run.config.data.range == ((0, 65_535), (0, 3))
    said = " ".join("".join(capsys.readouterr()).split())
    assert (
        f"values 0 to {values.max()}: ranges [0, 65535], [0, 3] of the channels; data.range=[low, high] changes them"
        in said
    )
    unit = values / np.array([65_535, 3])
    assert np.allclose(run.config.data.mean, unit.mean((0, 1, 2)), atol=1e-4)
    assert np.allclose(run.config.data.std, unit.std((0, 1, 2)), atol=1e-4)
    seen = centre(torch.from_numpy(values[:2]), 16, (0, 0), (1, 1), value_range=run.config.data.range)
    assert np.allclose(seen.numpy(), unit[:2].transpose(0, 3, 1, 2), atol=1e-6)
    given = twinblock.pretrain(
        "simclr", out=tmp_path / "given", overrides=[*SMALL, "data.range=[[0,65535],[0,3]]"], **how
    )
    assert given.result == run.result
    assert given.config.data.range == run.config.data.range
    assert twinblock.pretrain("simclr", out=tmp_path / "given", overrides=SMALL, **how).result == given.result
    assert len(twinblock.embed(run, data=values).features) == 40 and str(twinblock.diagnose(run, data=values))
    with pytest.raises(InputError, match=r"and the run sees 0 to 65535") as error:
        twinblock.embed(run, data=values[..., ::-1].copy())
    one_line(error)


@pytest.mark.parametrize("scale", [1, 1000])
def test_missing_values_are_the_lower_end_of_their_channel(scale):
    holed = torch.tensor([[np.nan, np.nan], [5.0, 5.0 * scale]]).view(1, 1, 2, 2)
    seen = unit(holed, ((4.0, 6.0), (4.0 * scale, 6.0 * scale)))
    assert seen.flatten().tolist() == [0, 0, 0.5, 0.5]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("[[0,1],[5,2]]", r"range is \[\[0.0, 1.0\], \[5.0, 2.0\]\], but must be \[low, high\], or a list of these"),
        ("[[0,1],[0,2],[0,3]]", "data.range has 3 pairs, and the images have 2 channels"),
        ("[]", "data.range"),
    ],
)
def test_bad_ranges_are_one_line(given, said, tmp_path):
    values = np.zeros((40, 16, 16, 2), np.uint16)
    with pytest.raises(InputError, match=said) as error:
        twinblock.pretrain("simclr", data=values, out=tmp_path / "run", overrides=[*SMALL, f"data.range={given}"])
    one_line(error)


def test_images_beyond_the_range_of_a_run_are_refused(tmp_path):
    run = twinblock.pretrain(
        "simclr", data=write(tmp_path / "dark", 1, np.uint16, 200), out=tmp_path / "run", overrides=SMALL, quiet=True
    )
    bright = write(tmp_path / "bright", 1, np.uint16, 60_000)
    with pytest.raises(InputError, match=r"from 0 to 60000, and the run sees 0 to 255: give data.range=") as error:
        twinblock.embed(run, data=bright)
    one_line(error)
    scaled = twinblock.embed(run, data={"source": bright, "range": (0, 60_000)}).features
    again = {**run.config.data.seen, "value_range": (0.0, 60_000.0)}
    expected = features(
        run.encoder(), training(run.config.data.model_copy(update={"source": str(bright)})), size=16, **again
    )
    torch.testing.assert_close(scaled, expected)


def test_what_is_measured_stands_in_the_config(tmp_path):
    values = np.random.default_rng(0).integers(0, 1000, (40, 16, 16, 2)).astype(np.uint16)
    run = twinblock.pretrain(
        "simclr", data=values, out=tmp_path / "run", overrides=[*SMALL, "data.range=[100, 900]"], quiet=True
    )
    unit = ((values.astype(np.float64) - 100) / 800).clip(0, 1)
    assert np.allclose(run.config.data.mean, unit.mean((0, 1, 2)), atol=1e-5)
    assert np.allclose(run.config.data.std, unit.std((0, 1, 2)), atol=1e-5)


def test_pictures_of_eight_bits_are_seen_as_ever(tmp_path):
    values = np.random.default_rng(0).integers(0, 255, (40, 16, 16, 3), np.uint8)
    data = twinblock.pretrain("simclr", data=values, out=tmp_path / "run", overrides=SMALL, quiet=True).config.data
    assert (data.channels, data.range) == (3, (0, 255))
    assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_a_picture_shows_images_beside_their_views(tmp_path):
    from PIL import Image

    photos = write(tmp_path / "photos", 1, np.uint16, 1500)
    file = twinblock.draw_views("byol", data=photos, out=tmp_path / "views.png")
    pixels = np.asarray(Image.open(file).convert("RGB"))
    assert pixels.shape[1] > pixels.shape[0] > 500 and len(np.unique(pixels)) > 50
    twinblock.draw_views("byol", data=photos, out=file)  # its own name is replaced
    (tmp_path / "mine.png").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"mine.png is there already") as error:
        twinblock.draw_views("byol", data=photos, out=tmp_path / "mine.png")
    one_line(error)
