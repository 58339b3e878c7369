"""`export`: the printed lines, run as they are, give the features of `embed` elsewhere; nothing by halves."""

import importlib
import json
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import twinblock
from twinblock import cli
from twinblock.core.errors import InputError
from twinblock.core.files import new_folder

SMALL = ["data.batch=8", "train.length=1steps", "projector.dims=[16,8]", "train.precision=fp32"]
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
KINDS = {
    "resnet": ["encoder.kind=resnet10", "encoder.stem=standard"],
    "convnext": ["encoder.kind=convnext_atto", "encoder.stem=standard"],
    "vit": ["encoder.kind=vit_tiny_patch16_224", "encoder.stem=standard"],
    "torchvision": ["encoder.kind=torchvision/resnet18", "encoder.stem=standard"],
    "small": ["encoder.kind=resnet10", "encoder.width=8", "encoder.stem=cifar"],
}


class Mine(nn.Module):
    """A row of two convolutions with a classifier, which is no part of the features."""

    def __init__(self):
        super().__init__()
        self.row = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1))
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        return self.head(self.row(x).mean((2, 3)))


def made(folder, *overrides, pixels=PIXELS, **given):
    return twinblock.pretrain("simclr", data=pixels, out=folder, overrides=[*SMALL, *overrides], quiet=True, **given)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs by name, each trained when it is first asked for."""
    home, found = tmp_path_factory.mktemp("runs 'quoted'"), {}

    def run(name):
        if name not in found:
            module = {"encoder": Mine()} if name == "own" else {}
            found[name] = made(home / name, *KINDS.get(name, []), **module)
        return found[name]

    return run


def used(lines: list[str], images: torch.Tensor, *imports: str, **names) -> torch.Tensor:
    """What a reader gets who runs these lines."""
    for name in imports:
        names[name.partition(".")[0]] = importlib.import_module(name.partition(".")[0])
        importlib.import_module(name)
    names["images"] = images
    with torch.no_grad():
        exec("\n".join(lines), names)
    return torch.as_tensor(names["features"])


def prepared(folder, pixels) -> torch.Tensor:
    how = json.loads((folder / "preprocessing.json").read_text())
    low, high = how["range"]
    x = (torch.from_numpy(pixels).float().permute(0, 3, 1, 2) - low).div(high - low).clamp(0, 1)
    assert x.shape[1:] == (how["channels"], how["size"], how["size"])
    mean, std = (torch.tensor(how[name]).view(-1, 1, 1) for name in ("mean", "std"))
    return (x - mean) / std


IMPORTS = {
    "timm": ["timm"],
    "torchvision": ["torch", "torchvision", "safetensors.torch"],
    "hf": ["transformers"],
    "onnx": ["onnxruntime"],
    "program": ["torch"],
}
FORMS = [
    *[(kind, to) for kind in ("resnet", "convnext", "vit") for to in ("timm", "hf", "program")],
    *[("resnet", "onnx"), ("vit", "onnx"), ("own", "onnx"), ("own", "program"), ("small", "program")],
    *[("torchvision", "torchvision"), ("torchvision", "timm")],
]


@pytest.mark.parametrize(("name", "to"), FORMS, ids=lambda value: value)
def test_features_are_those_of_embed(runs, tmp_path, name, to):
    for needed in IMPORTS[to]:
        pytest.importorskip(needed)
    given = {"encoder": Mine()} if name == "own" else {}
    out = tmp_path / "it's here"
    lines = twinblock.export(runs(name), to, out=out, **given)
    assert len(lines) == 2 and all(line in (out / "README.md").read_text() for line in lines)
    expected = twinblock.embed(runs(name), PIXELS).features
    for count in (1, 8):  # any number of images
        found = used(lines, prepared(out, PIXELS[:count]), *IMPORTS[to])
        torch.testing.assert_close(found, expected[:count], atol=1e-4, rtol=1e-4)


def test_a_module_of_ones_own_gets_its_weights(runs, tmp_path):
    run = runs("own")
    lines = twinblock.export(run, "weights", out=tmp_path / "out", encoder=Mine())
    names = {"safetensors": safetensors, "module": Mine().eval()}
    exec("\n".join(lines), names)
    with torch.no_grad():
        found = names["module"].row(prepared(tmp_path / "out", PIXELS)).mean((2, 3))
    torch.testing.assert_close(found, twinblock.embed(run, PIXELS).features, atol=1e-4, rtol=1e-4)


def test_timm_prepares_images_as_the_run_does(runs, tmp_path):
    import timm
    from timm.data import resolve_model_data_config

    twinblock.export(runs("vit"), "timm", out=tmp_path / "out")
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    how, data = resolve_model_data_config(model), runs("vit").config.data
    assert how["input_size"] == (3, 32, 32) and how["crop_pct"] == 1.0 and how["interpolation"] == "bilinear"
    assert tuple(how["mean"]) == tuple(data.mean) and tuple(how["std"]) == tuple(data.std)
    assert model.num_classes == 0 and model.global_pool == "avg"


def test_16_bits_of_four_channels_are_prepared_as_it_says(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 4096, (8, 32, 32, 4), dtype=np.uint16)
    run = made(tmp_path / "run", "encoder.kind=resnet10", "encoder.stem=standard", pixels=pixels)
    lines = twinblock.export(run, "timm", out=tmp_path / "out")
    found = used(lines, prepared(tmp_path / "out", pixels.astype(np.float32)), "timm")
    torch.testing.assert_close(found, twinblock.embed(run, pixels).features, atol=1e-4, rtol=1e-4)
    assert "4 channels" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "to", "said"),
    [
        ("small", "timm", "no network with encoder.stem=cifar and encoder.width=8"),
        ("small", "hf", "--to onnx, program or weights works"),
        ("convnext", "torchvision", "--to onnx, program or weights works"),
        ("vit", "torchvision", "cannot be exported to torchvision"),
        ("own", "timm", "a network of your own has no name there"),
        ("resnet", "tim", "did you mean timm?"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line_and_leaves_nothing(runs, tmp_path, name, to, said):
    given = {"encoder": Mine()} if name == "own" else {}
    with pytest.raises(InputError) as error:
        twinblock.export(runs(name), to, out=tmp_path / "out", **given)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_one_line_says_what_to_install(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r'pip install "twinblock\[onnx\]"'):
        twinblock.export(runs("small"), "onnx", out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_gives_other_features_is_noticed(runs, tmp_path, monkeypatch):
    """ViT with its class token, as timm has it by default."""
    from twinblock.exports import forms

    monkeypatch.setattr(forms, "_timm_arguments", lambda subject: {"img_size": 32})
    monkeypatch.setattr(forms, "_means", lambda subject, model, images: [("model(images)", model(images))])
    with pytest.raises(InputError, match="its features are not those of the run"):
        twinblock.export(runs("vit"), "timm", out=tmp_path / "out")


def test_the_command_prints_the_lines(runs, tmp_path, monkeypatch, capsys):
    run = runs("resnet")
    for _ in range(2):  # its own folder is replaced
        monkeypatch.setattr(sys, "argv", ["twinblock", "export", str(run.path), "--to", "timm"])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 0
    lines = capsys.readouterr().out.splitlines()[:2]
    found = used(lines, prepared(run.path / "export-timm", PIXELS), "timm")
    torch.testing.assert_close(found, twinblock.embed(run, PIXELS).features, atol=1e-4, rtol=1e-4)
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="is there already"):
        twinblock.export(run, "timm", out=tmp_path / "mine")


def test_a_folder_is_whole_or_not_there(tmp_path):
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "a") as folder:
        1 / (folder / "half").write_text("")
    assert list(tmp_path.iterdir()) == []
    for content in ("first", "second"):
        with new_folder(tmp_path / "a", replace=True) as folder:
            (folder / "file").write_text(content)
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and (tmp_path / "a" / "file").read_text() == "second"


def test_a_diverged_encoder_is_refused(runs, tmp_path, monkeypatch):
    encoder = runs("small").encoder()
    nn.init.constant_(next(encoder.parameters()), float("nan"))
    monkeypatch.setattr(twinblock.Run, "encoder", lambda self: encoder)
    with pytest.raises(InputError, match="NaN"):
        twinblock.export(runs("small"), "program", out=tmp_path / "out")
