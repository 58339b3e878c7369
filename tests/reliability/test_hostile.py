"""Input that was made to hurt: generated configs, pickles, links that lead out of a run, image bombs."""

import io
import os
import pickle
import struct
import zipfile
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import twinblock
from twinblock.config.compare import leaves
from twinblock.config.recipes import compose, recipes
from twinblock.core.durations import Duration
from twinblock.core.errors import InputError
from twinblock.data import load
from twinblock.runs import checkpoint
from twinblock.runs.run import Run

LEAVES = sorted(leaves(compose("byol").model_dump(mode="json")))
ODD = ["", "null", "0", "-1", "1", "3", "1e9", "-1e-9", ".nan", ".inf", "true", "x", "[]", "{}", "[1,2]", "[0.2,1.0]"]
ODD += [
    "{kind: x}",
    "{kind: ema}",
    "group",
    "none",
    "ema",
    "shared",
    "nt_xent",
    "info_nce",
    "sync",
    "5epochs",
    "2steps",
]
ODD += ["10%", "!!python/object/apply:os.system [exit]", "[", "&a [*a]", "9" * 400, "ä\n\t\x00", "[red]", "classes"]
KEYS = [*LEAVES, "objective", "target", "scope", "views", "data", "nonsense", "optim.nonsense", "a.b.c", "views.7.crop"]
TEXT = st.one_of(st.sampled_from(ODD), st.text(max_size=8), st.integers(-3, 300).map(str), st.floats().map(str))
OVERRIDES = st.lists(st.tuples(st.sampled_from(KEYS), TEXT), min_size=1, max_size=4)
# what would read or write elsewhere, or take long
KEPT = {"data.source", "data.root", "data", "encoder.weights", "out", "train.length"}


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(recipe=st.sampled_from(sorted(recipes())), pairs=OVERRIDES)
def test_generated_configs_give_a_run_or_one_line(tmp_path_factory, recipe, pairs):
    """Composed, resolved, built and trained for a step where they are valid; else one line, never another error."""
    overrides = [f"{key}={value}" for key, value in pairs if key not in KEPT]
    small = {
        "encoder": {"kind": "resnet10", "width": 8, "weights": None},
        "data": {"batch": 8},
        "train": {"precision": "fp32"},
    }
    small |= {"projector": {"dims": [16, 8]}} if recipe != "supervised" else {}
    try:
        config = compose(recipe, small, overrides)
        one = config.train.model_copy(update={"length": Duration.parse("1steps")})
        config = config.model_copy(update={"train": one})
        trainer = tiny.trainer(config, tmp_path_factory.mktemp("run") / "run")
        with torch.random.fork_rng():
            trainer.fit()
        trainer.run.release()
    except InputError as error:
        told = str(error)
    else:
        told = "nothing to tell"
    assert told.strip()


class Payload:
    def __reduce__(self):
        return (Path("pwned").touch, ())


@pytest.mark.parametrize("form", ["pickle", "torch", "safetensors with a pickle in its text"])
def test_a_checkpoint_with_a_pickle_does_not_run_it(form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "last.safetensors"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Payload()))
    elif form == "torch":
        torch.save({"encoder": Payload()}, path)
    else:
        from safetensors.torch import save_file

        text = pickle.dumps(Payload()).decode("latin1")
        save_file({"a": torch.zeros(1)}, path, {"twinblock": text, "sha256": "0"})
    with pytest.raises(checkpoint.Damaged):
        checkpoint.read(path)
    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("{}")
    path.rename(tmp_path / "run" / "checkpoint" / checkpoint.LAST)
    with pytest.raises(InputError):
        twinblock.load_encoder(tmp_path / "run")
    assert not (tmp_path / "pwned").exists()


def test_the_config_of_a_run_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("!!python/object/apply:os.mkdir [pwned]")
    with pytest.raises(InputError, match=r"config\.yaml"):
        twinblock.load_encoder(tmp_path / "run")
    assert not (tmp_path / "pwned").exists()


def test_a_run_from_someone_else_cannot_write_outside_itself(tmp_path):
    """Every name that a run writes is a link to a file elsewhere: none of those changes."""
    config = tiny.config("simclr", train={"length": "2steps"}, precision="fp32")
    trainer = tiny.trainer(config, tmp_path / "run")
    trainer.fit()
    trainer.run.release()
    outside = tmp_path / "outside"
    outside.mkdir()
    run = Run.open(tmp_path / "run")
    for name in ("config.yaml", "result.json", "metrics.jsonl", "skipped.txt"):
        for link in (name, f"{name}.{os.getpid()}.partial"):
            (outside / link).write_text("mine")
            (run.path / link).unlink(missing_ok=True)
            (run.path / link).symlink_to(outside / link)
    for write in (
        lambda: run.write_config(config),
        lambda: run.write_json("result.json", {}),
        lambda: run.write_skipped((("a", "b"),)),
    ):
        write()
    (run.path / "metrics.jsonl").unlink()
    (run.path / "metrics.jsonl").symlink_to(outside / "metrics.jsonl")
    with pytest.raises(InputError, match="cannot write"):
        run.append_metrics([{"step": 0}])
    assert {file.read_text() for file in outside.iterdir()} == {"mine"}
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (run.path / "checkpoint" / (checkpoint.FRESH + ".partial")).symlink_to(outside / "config.yaml")
    checkpoint.save(run.checkpoints, {"a": torch.zeros(1)}, {})
    assert (outside / "config.yaml").read_text() == "mine"
    run.checkpoints.rename(tmp_path / "moved")
    run.checkpoints.symlink_to(folder)
    for name in ("checkpoint", "curves.png", "tensorboard"):
        for link in run.path.iterdir():
            if link.is_symlink():
                link.unlink()
        (run.path / name).symlink_to(folder)
        with pytest.raises(InputError, match=f"{name} is a link"):
            Run(run.path).claim(config)
    assert list(folder.iterdir()) == []


def png(width: int, height: int) -> bytes:
    """A header that promises width x height pixels, and hardly any behind it."""
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))  # noqa: E731
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")


def encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def test_images_that_are_none_are_left_out_with_their_reasons(tmp_path, monkeypatch):
    monkeypatch.setenv("TWINBLOCK_CACHE", str(tmp_path / "cache"))
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.Generator(np.random.PCG64(0))
    picture = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    for i in range(200):
        picture.save(photos / f"good{i}.png")
    picture.convert("L").resize((1, 1)).save(photos / "one pixel.png")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a", "a")
    bad = {
        "bomb.png": png(60_000, 60_000),
        "empty picture.png": png(0, 0),
        "empty.jpg": b"",
        "truncated.jpg": encoded(picture.resize((64, 64)), "JPEG")[:400],
        "truncated.png": encoded(picture.resize((64, 64)), "PNG")[:400],
        "archive.jpg": archive.getvalue(),
        "text.png": b"hello",
    }
    for name, content in bad.items():
        (photos / name).write_bytes(content)
    images = load(str(photos))
    assert images is not None
    assert len(images) == 201
    assert {Path(name).name for name, _ in images.skipped} == set(bad)
    assert all(reason.strip() and "\n" not in reason for _, reason in images.skipped)


def test_a_wrong_ending_is_no_fault(tmp_path, monkeypatch):
    """Pictures are known by their content: a JPEG named .png is read."""
    monkeypatch.setenv("TWINBLOCK_CACHE", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    picture = Image.new("RGB", (16, 16), (200, 30, 30))
    (tmp_path / "photos" / "a.png").write_bytes(encoded(picture, "JPEG"))
    images = load(str(tmp_path / "photos"))
    assert images is not None and len(images) == 1 and not images.skipped


PLACES = (
    "scope.per_block.1.objective.lambd",
    "views",
    "data",
    "projector.dims",
    "out",
    "objective",
    "optim.kind",
    "scope",
    "objective.kind",
    "target.kind",
    "scope.kind",
    "views.1.like",
)


@pytest.mark.parametrize("place", PLACES)
def test_a_config_that_unfolds_to_a_billion_values(tmp_path, place):
    """Each name stands for nine of the one before: few in the file and in memory, until they are copied."""
    lists = [f"&{b} [{', '.join(['*' + a] * 9)}]" for a, b in pairwise("abcdefghijkl")]
    tree = part = compose("blockwise").model_dump(mode="json")
    *path, name = place.split(".")
    for key in path:
        key = int(key) if key.isdigit() else key
        part = part[key] if isinstance(part, list) else part.setdefault(key, {})
    part[name] = "BOMB"
    text = yaml.safe_dump(tree).replace("BOMB", f"[&a [1, 1], {', '.join(lists)}]")
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError):
        Run(tmp_path).config  # noqa: B018
