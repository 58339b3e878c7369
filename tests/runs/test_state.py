"""The state of a training as a dictionary: every tensor once, by its name, and read back to the bit."""

import sys
from pathlib import Path

import pytest
import tiny
import torch

from twinblock.config.recipes import compose
from twinblock.core.errors import InputError
from twinblock.runs import checkpoint
from twinblock.runs.state import _current as current
from twinblock.runs.state import restore_state, restored, state_of

FILE = Path("last.safetensors")


def trained(folder, method="byol", scope="simultaneous", steps=2):
    """A trainer after a few steps, with its state in a file."""
    config = tiny.config(method, scope, precision="fp32", train={"length": "4steps"})
    trainer = tiny.trainer(config, folder)
    for step, samples in enumerate(trainer.loader.batches(0, steps)):
        trainer.train_step(step, samples)
    trainer.step = steps
    trainer.save()
    trainer.run.release()
    return trainer


def same(a, b) -> list[str]:
    """The names of tensors that differ."""
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def test_every_tensor_is_there_once_and_comes_back(tmp_path):
    trainer = trained(tmp_path / "a")
    state = tiny.state(trainer)
    assert sorted({name.split(".")[0] for name in state}) == ["encoder", "learners", "optimizers"]
    encoder = {id(t) for t in trainer.encoder.state_dict(keep_vars=True).values()}
    for i, learner in enumerate(trainer.learners):
        own = {name for name, t in learner.state_dict(keep_vars=True).items() if id(t) not in encoder}
        assert own == set(checkpoint.below(f"learners.{i}.", state))
        assert checkpoint.below(f"optimizers.{i}.", state)
    other = tiny.trainer(trainer.config, tmp_path / "b")
    assert same(tiny.state(trainer), {**tiny.state(trainer), **tiny.state(other)}) != []
    restore_state(other.encoder, other.learners, other.optimizers, state, FILE)
    assert same(state_of(other.encoder, other.learners, other.optimizers), state) == []


def test_the_state_of_another_optimizer_is_one_line(tmp_path):
    trainer = trained(tmp_path / "a", "simclr", "end_to_end")
    changed = {**trainer.state(), "optimizers.0.0.nonsense": torch.zeros(1)}
    with pytest.raises(InputError, match=rf"{FILE} holds the state of another optimizer: 0.nonsense"):
        restore_state(trainer.encoder, trainer.learners, trainer.optimizers, changed, FILE)


def test_a_file_gives_encoder_and_learners_that_share_their_blocks(tmp_path):
    trainer = trained(tmp_path / "a")
    file, (tensors, meta) = checkpoint.newest(trainer.run.checkpoints)
    encoder, learners = restored(trainer.config, file, tensors, meta)
    assert same(dict(encoder.state_dict()), dict(trainer.encoder.cpu().state_dict())) == []
    of_encoder = {id(p) for p in encoder.parameters()}
    for learner, true in zip(learners, trainer.learners, strict=True):
        assert same(dict(learner.state_dict()), dict(true.state_dict())) == []
        assert any(id(p) in of_encoder for p in learner.parameters())


def test_a_learner_that_a_file_holds_nothing_of_stays_as_it_was_made(tmp_path):
    trainer = trained(tmp_path / "a", "simclr")
    file, (tensors, meta) = checkpoint.newest(trainer.run.checkpoints)
    part = {name: t for name, t in tensors.items() if not name.startswith("learners.1.")}
    whole, lacking = restored(trainer.config, file, tensors, meta)[1], restored(trainer.config, file, part, meta)[1]
    differ = [same(dict(a.state_dict()), dict(b.state_dict())) for a, b in zip(whole, lacking, strict=True)]
    assert [bool(names) for names in differ] == [False, True, False, False]


def test_the_classes_and_steps_of_an_epoch_of_the_file_are_taken(tmp_path):
    """A head has as many outputs as there were classes, whatever the images are now; budgets are counted in epochs."""
    trainer = trained(tmp_path / "a", "supervised", "end_to_end")
    file, (tensors, meta) = checkpoint.newest(trainer.run.checkpoints)
    assert (meta["classes"], meta["epoch_steps"]) == (3, 3)
    restored(trainer.config, file, tensors, meta)
    with pytest.raises(InputError, match="another architecture"):
        restored(trainer.config, file, tensors, {**meta, "classes": 4})


@pytest.mark.parametrize("given", [False, True])
def test_a_loss_of_the_callers_own_may_be_absent(tmp_path, monkeypatch, given):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "doors")
    import parts

    monkeypatch.setitem(sys.modules, "parts", parts)
    trainer = trained(tmp_path / "a", "simclr")
    own = compose("simclr", {"objective": {"kind": "parts:Counting"}}).objective
    config = trainer.config.model_copy(update={"objective": own})
    file, (tensors, meta) = checkpoint.newest(trainer.run.checkpoints)
    tensors = {**tensors, **{f"learners.{i}.objective.met": torch.tensor(7 + i) for i in range(4)}}
    _, learners = restored(config, file, tensors, meta, {"objective": parts.Counting()} if given else None)
    for i, (learner, true) in enumerate(zip(learners, trainer.learners, strict=True)):
        found = dict(learner.state_dict())
        assert (int(found.pop("objective.met")) == 7 + i) if given else "objective.met" not in found
        assert same(found, dict(true.state_dict())) == []


def test_an_encoder_of_the_callers_own_is_filled_and_must_be_given():
    config, module = tiny.trainer_config("simclr", "end_to_end"), torch.nn.Conv2d(3, 8, 3)
    own = config.encoder.model_copy(update={"kind": "mine:Net", "stem": "auto", "width": None})
    config = config.model_copy(update={"encoder": own})
    tensors = {f"encoder.{name}": torch.full_like(t, 2) for name, t in module.state_dict().items()}
    encoder, _ = restored(config, FILE, tensors, {}, {"encoder": module})
    assert len(tensors) == 2 and all((t == 2).all() for t in encoder.state_dict().values())
    with pytest.raises(InputError, match="as encoder=module"):
        restored(config, FILE, tensors, {})


def test_files_of_version_0_1_have_their_names_of_now():
    then = [
        *("learners.0.network.tap.expansion.0.weight", "learners.1.branch.target.projector.0.weight"),
        *("learners.0.branch.average.tap.expansion.0.weight", "learners.2.branch.norms.tap/expansion/1.running_mean"),
        "encoder.conv1.weight",
    ]
    now = [
        *("learners.0.network.pooling.expansion.0.weight", "learners.1.target.average.projector.0.weight"),
        *("learners.0.target.average.pooling.expansion.0.weight",),
        *("learners.2.target.norms.pooling/expansion/1.running_mean", "encoder.conv1.weight"),
    ]
    found = current({name: torch.tensor(i) for i, name in enumerate(then)})
    assert {name: int(t) for name, t in found.items()} == {name: i for i, name in enumerate(now)}
