"""Checkpoint files: what is verified, which one is taken, and the state of optimizers."""

import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from twinblock.core.errors import InputError
from twinblock.runs import checkpoint
from twinblock.runs.checkpoint import FRESH, LAST, PREVIOUS, Damaged

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(7), "c": torch.ones(2, dtype=torch.bfloat16)}


def test_what_is_written_is_read(tmp_path):
    meta = {"step": 5, "classes": 3, "epoch_steps": 2, "note": "mine", "data": {"images": 4, "digest": "x"}}
    checkpoint.write(tmp_path / "a", {**TENSORS, "d": torch.arange(6).view(2, 3).T}, meta)
    tensors, found = checkpoint.read(tmp_path / "a")
    assert found == meta
    assert all(torch.equal(tensors[name], t) and tensors[name].dtype == t.dtype for name, t in TENSORS.items())
    assert torch.equal(tensors["d"], torch.arange(6).view(2, 3).T)
    assert os.stat(tmp_path / "a").st_mode & 0o777 == 0o666 & ~_umask()  # as any file, not for the owner alone


def _umask() -> int:
    os.umask(mask := os.umask(0))
    return mask


@pytest.mark.parametrize(
    "change",
    [
        lambda t, text: ({**t, "a": t["a"] + 1}, text),
        lambda t, text: ({**t, "a": t["a"].view(3, 2)}, text),
        lambda t, text: ({**t, "a": t["a"].view(torch.int32)}, text),
        lambda t, text: ({("z" if n == "a" else n): x for n, x in t.items()}, text),
        lambda t, text: ({n: x for n, x in t.items() if n != "b"}, text),
        lambda t, text: (t, text.replace("5", "6")),
    ],
    ids=["value", "shape", "type", "name", "missing", "text"],
)
def test_the_checksum_covers_names_types_shapes_values_and_the_text(tmp_path, change):
    text = json.dumps({"step": 5})
    whole = {"twinblock": text, "sha256": checkpoint._digest(TENSORS, text)}
    save_file(TENSORS, tmp_path / "a", whole)
    assert checkpoint.read(tmp_path / "a")[1] == {"step": 5}
    tensors, text = change(TENSORS, text)
    save_file(tensors, tmp_path / "a", {**whole, "twinblock": text})
    with pytest.raises(Damaged, match="checksum does not match"):
        checkpoint.read(tmp_path / "a")


@pytest.mark.parametrize("left_out", ["twinblock", "sha256"])
def test_a_file_of_another_program_is_none_of_ours(tmp_path, left_out):
    head = {"twinblock": "{}", "sha256": checkpoint._digest(TENSORS, "{}")}
    del head[left_out]
    save_file(TENSORS, tmp_path / "a", head)
    with pytest.raises(Damaged, match="was not written by twinblock"):
        checkpoint.read(tmp_path / "a")


@pytest.mark.parametrize("meta", [{"step": -1}, {"classes": 0}, {"classes": 65_537}, {"epoch_steps": 0}, {"data": 3}])
def test_a_file_that_says_nonsense_of_itself_is_damaged(tmp_path, meta):
    checkpoint.write(tmp_path / "a", TENSORS, meta)
    with pytest.raises(Damaged, match="nothing sensible"):
        checkpoint.read(tmp_path / "a")
    for good in ({"step": 0, "classes": 1, "epoch_steps": 1}, {"classes": 65_536}, {}):
        checkpoint.write(tmp_path / "b", TENSORS, good)
        assert checkpoint.read(tmp_path / "b")[1] == good


def steps(folder) -> dict[str, int]:
    return {path.name: checkpoint.read(path)[1]["step"] for path in folder.iterdir()}


def test_save_keeps_the_one_before(tmp_path):
    folder = tmp_path / "checkpoint"
    for step in (1, 2, 3):
        checkpoint.save(folder, TENSORS, {"step": step})
    assert steps(folder) == {LAST: 3, PREVIOUS: 2}
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        checkpoint.save(tmp_path / "file" / "x", TENSORS, {})


def test_recover_takes_the_newest_that_is_whole_and_of_this_run(tmp_path):
    def put(**names):
        for name, step in names.items():
            checkpoint.write(tmp_path / f"{name}.safetensors", TENSORS, {"step": step})

    put(fresh=3, last=2, previous=1)
    assert checkpoint.recover(tmp_path) == []
    assert steps(tmp_path) == {LAST: 3, PREVIOUS: 1}
    put(fresh=4)
    complaints = checkpoint.recover(tmp_path, lambda meta: "other" if meta["step"] == 4 else "")
    assert complaints == [f"{tmp_path / FRESH} is of another run (other)"]
    assert steps(tmp_path) == {LAST: 3, PREVIOUS: 1, FRESH + ".damaged": 4}
    (tmp_path / LAST).write_bytes(b"x")
    (complaint,) = checkpoint.recover(tmp_path)
    assert "not a readable checkpoint" in complaint
    assert checkpoint.read(tmp_path / LAST)[1]["step"] == 1
    assert (tmp_path / (LAST + ".damaged")).read_bytes() == b"x"


def test_newest_passes_over_what_is_damaged_and_says_so(tmp_path, caplog):
    folder = tmp_path / "checkpoint"
    with pytest.raises(InputError, match="has no checkpoint yet"):
        checkpoint.newest(folder)
    folder.mkdir()
    for step, name in enumerate((PREVIOUS, LAST, FRESH)):
        checkpoint.write(folder / name, TENSORS, {"step": step})
    checkpoint.write(tmp_path / "better", TENSORS, {"step": 9})
    for better, name in (((tmp_path / "better",), tmp_path / "better"), ((tmp_path / "none",), folder / FRESH)):
        path, (tensors, meta) = checkpoint.newest(folder, *better)
        assert path == name and tensors.keys() == TENSORS.keys()
        assert meta["step"] == (9 if better[0].exists() else 2)
    assert caplog.messages == []
    (folder / FRESH).write_bytes(b"")
    assert checkpoint.newest(folder)[0] == folder / LAST
    (message,) = caplog.messages
    assert str(folder / FRESH) in message and f"{folder / LAST} is taken instead" in message
    (folder / LAST).write_bytes(b"")
    (folder / PREVIOUS).unlink()
    with pytest.raises(Damaged, match="fresh"):  # the first problem, where nothing is left
        checkpoint.newest(folder)


def test_fill_names_what_is_of_another_architecture(tmp_path):
    layer, file = nn.Linear(2, 3), tmp_path / "a"
    good = {f"x.{name}": torch.full_like(t, 5) for name, t in layer.state_dict().items()}
    checkpoint.fill(layer, {**good, "y.weight": torch.zeros(1)}, file, "x.")
    assert (layer.weight == 5).all() and (layer.bias == 5).all()
    for wrong, words in (
        ({**good, "x.bias": torch.zeros(4)}, r"x\.bias is \(4,\) there, \(3,\) by the config"),
        ({**good, "x.more": torch.zeros(4)}, r"x\.more is \(4,\) there, missing by the config"),
        ({"x.weight": good["x.weight"]}, r"x\.bias is missing there, \(3,\) by the config"),
    ):
        with pytest.raises(InputError, match=words):
            checkpoint.fill(layer, wrong, file, "x.")
    checkpoint.fill(layer, {"x.weight": torch.zeros(3, 2)}, file, "x.", shared={"bias"})
    assert (layer.weight == 0).all() and (layer.bias == 5).all()
    with pytest.raises(InputError, match="missing by the config"):
        checkpoint.fill(layer, good, file, "x.", shared={"bias"})


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_an_optimizer_goes_on_from_its_state(kind):
    settings = {"lr": 0.1, **({"momentum": 0.9} if kind is torch.optim.SGD else {})}

    def train(layer, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            layer(torch.ones(4, 2)).square().sum().backward()
            optimizer.step()

    layer, other = nn.Linear(2, 3), nn.Linear(2, 3)
    optimizer = kind(layer.parameters(), **settings)
    assert checkpoint.flatten_optimizer(optimizer) == {}
    train(layer, optimizer, 2)
    state = {name: tensor.clone() for name, tensor in checkpoint.flatten_optimizer(optimizer).items()}
    assert {name.split(".")[0] for name in state} == {"0", "1"}
    other.load_state_dict(layer.state_dict())
    resumed = kind(other.parameters(), **settings)
    checkpoint.restore_optimizer(resumed, state)
    train(layer, optimizer, 2)
    train(other, resumed, 2)
    assert torch.equal(layer.weight, other.weight) and torch.equal(layer.bias, other.bias)


def test_a_state_of_another_optimizer_is_refused():
    layer = nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(layer.parameters())
    for name, tensor, words in (
        ("2.step", torch.tensor(1.0), "of no parameter"),
        ("x.step", torch.tensor(1.0), "of no parameter"),
        ("0.other", torch.zeros(3, 2), "of no parameter"),
        ("0.exp_avg.x", torch.zeros(3, 2), "of no parameter"),
        ("0.exp_avg", torch.zeros(2, 3), r"is \(2, 3\) for a parameter of \(3, 2\)"),
    ):
        with pytest.raises(ValueError, match=words):
            checkpoint.restore_optimizer(optimizer, {name: tensor})
    checkpoint.restore_optimizer(optimizer, {"1.step": torch.tensor(1.0), "1.exp_avg": torch.zeros(3)})


def test_a_state_has_the_layout_and_the_type_that_it_should():
    layer = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    values = torch.from_numpy(np.arange(54, dtype=np.float32)).view(3, 2, 3, 3)
    checkpoint.restore_optimizer(optimizer, {"0.momentum_buffer": values})
    held = optimizer.state[layer.weight]["momentum_buffer"]
    assert held.stride() == layer.weight.stride() and torch.equal(held, values)
