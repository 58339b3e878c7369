"""Run folders that are not as their run left them: foreign, nonsensical, lost or blocking files."""

import os
import shutil

import pytest
import torch

import twinblock
from twinblock.core.errors import InputError
from twinblock.runs import checkpoint
from twinblock.runs.run import Run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run, and its last checkpoint."""
    out = tmp_path_factory.mktemp("hostile") / "run"
    small = ["encoder.width=8", "data.batch=64", "train.length=2steps", "train.precision=fp32", "projector.dims=[16,8]"]
    run = twinblock.pretrain("simclr", out=out, quiet=True, overrides=small)
    return run, small, checkpoint.read(run.checkpoints / checkpoint.LAST)


def unfinished(whole, folder):
    """A copy of the run that has not come to its end."""
    shutil.copytree(whole[0].path, folder)
    for name in ("result.json", "encoder.safetensors"):
        (folder / name).unlink()
    return Run(folder)


def go_on(whole, run):
    return twinblock.pretrain("simclr", out=run.path, quiet=True, overrides=whole[1])


@pytest.mark.parametrize(
    "meta",
    [
        {"step": None}, {"step": "x"}, {"step": 1.5}, {"step": -5}, {"step": 10**30}, {"data": "x"},
        {"data": {"a": 1}}, {"classes": "x"}, {"classes": -1}, {"classes": 10**12}, {"epoch_steps": None},
        {"epoch_steps": 10**400}, {"config": 3},
    ],
)  # fmt: skip
def test_a_checkpoint_that_says_nonsense_of_itself_is_damaged(whole, tmp_path, meta):
    file = tmp_path / "a.safetensors"
    checkpoint.write(file, whole[2][0], meta)
    with pytest.raises(checkpoint.Damaged, match="says nothing sensible of itself"):
        checkpoint.read(file)


def test_text_that_is_no_mapping_is_damage_too(tmp_path, monkeypatch):
    for text in ("{", "[" * 100_000, "1" * 5000, "[1]", "null"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint.json, "dumps", lambda *_, text=text, **__: text)
            checkpoint.write(tmp_path / "a", {"x": torch.zeros(1)}, {})
        with pytest.raises(checkpoint.Damaged, match="says nothing sensible"):
            checkpoint.read(tmp_path / "a")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("encoder.conv1.weight"), "another architecture"),
        (lambda t: t.update({"encoder.more": torch.zeros(1)}), "another architecture"),
        (lambda t: t.update({"encoder.conv1.weight": torch.zeros(3)}), "another architecture"),
        (lambda t: t.update({"learners.0.more": torch.zeros(1)}), "another architecture"),
        (lambda t: t.update({"optimizers.0.x.momentum_buffer": torch.zeros(1)}), "of no parameter"),
        (lambda t: t.update({"optimizers.0.9999.momentum_buffer": torch.zeros(1)}), "of no parameter"),
        (lambda t: t.update({"optimizers.0.0.zz": torch.zeros(1)}), "of no parameter"),
        (lambda t: t.update({"optimizers.0.0.momentum_buffer": torch.zeros(7)}), "for a parameter of"),
    ],
)
def test_a_state_of_other_tensors_is_one_line(whole, tmp_path, change, words):
    run, (tensors, meta) = unfinished(whole, tmp_path / "run"), whole[2]
    changed = dict(tensors)
    change(changed)
    checkpoint.write(run.checkpoints / checkpoint.LAST, changed, meta)
    with pytest.raises(InputError, match=words) as error:
        go_on(whole, run)
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_config_is_set_aside(whole, tmp_path, caplog):
    run, (tensors, meta) = unfinished(whole, tmp_path / "run"), whole[2]
    other = meta["config"].replace("lr: 0.06", "lr: 0.01")
    assert other != meta["config"]
    checkpoint.write(run.checkpoints / checkpoint.LAST, tensors, {**meta, "config": other})
    again = go_on(whole, run)
    assert (run.checkpoints / (checkpoint.LAST + ".damaged")).is_file()
    end, _ = checkpoint.read(again.checkpoints / checkpoint.LAST)
    assert end.keys() == tensors.keys() and all(torch.equal(end[name], tensors[name]) for name in end)
    checkpoint.write(again.checkpoints / checkpoint.LAST, tensors, {**meta, "step": 3})
    (again.path / "result.json").unlink()
    with pytest.raises(InputError, match="is of step 3, but this run has 2"):
        go_on(whole, again)


@pytest.mark.parametrize("text", ["[1]", '"x"', "1", "{}", "[" * 100_000, '{"state": 1}'])
def test_a_result_that_is_none_is_one_line(whole, tmp_path, text):
    run = unfinished(whole, tmp_path / "run")
    (run.path / "result.json").write_text(text)
    with pytest.raises(InputError, match=r"result\.json is damaged; delete it"):
        go_on(whole, run)


@pytest.mark.parametrize(
    "text",
    [
        b"\xff\n",
        b"[" * 100_000,
        b'{"step": 0, "diagnosis": "x"}\n',
        b'{"step": 0, "diagnosis": [{}]}\n',
        b'{"step": 0, "diagnosis": [{"encoder": 1, "projector": {}}]}\n',
        b'{"step": 0, "diagnosis": [{"encoder": {"std": null}, "projector": 1}]}\n',
        b'{"step": 0, "loss": []}\n',
        None,
    ],
)
def test_metrics_that_are_none_are_told_and_the_run_comes_to_its_end(whole, tmp_path, text):
    run = unfinished(whole, tmp_path / "run")
    if text is None:
        (run.path / "metrics.jsonl").unlink()
    else:
        (run.path / "metrics.jsonl").write_bytes(text)
    assert go_on(whole, run).finished


@pytest.mark.parametrize("name", ["result.json", ".lock", "metrics.jsonl"])
def test_a_pipe_in_a_run_holds_nobody_up(whole, tmp_path, name):
    run = unfinished(whole, tmp_path / "run")
    (run.path / name).unlink(missing_ok=True)
    os.mkfifo(run.path / name)
    with pytest.raises(InputError, match=r"neither a file nor a folder|cannot write there"):
        go_on(whole, run)


def test_what_a_crash_between_two_renames_left_is_read_by_all(whole, tmp_path, caplog):
    run = unfinished(whole, tmp_path / "run")
    (run.checkpoints / checkpoint.LAST).rename(run.checkpoints / checkpoint.FRESH)
    for names in ((checkpoint.FRESH,), (checkpoint.LAST, checkpoint.PREVIOUS)):
        twinblock.load_encoder(run.path)
        assert len(twinblock.diagnose(run.path).verdicts) == 1
        if names == (checkpoint.FRESH,):  # and a damaged last one, with one before it
            (run.checkpoints / checkpoint.FRESH).rename(run.checkpoints / checkpoint.PREVIOUS)
            (run.checkpoints / checkpoint.LAST).write_bytes(b"x" * 100)
            assert not caplog.records
    assert "is taken instead" in caplog.text


def test_a_folder_of_checkpoints_that_is_none(whole, tmp_path):
    run = unfinished(whole, tmp_path / "run")
    shutil.rmtree(run.checkpoints)
    run.checkpoints.write_text("mine")
    with pytest.raises(InputError, match=r"cannot write .*checkpoint: File exists"):
        go_on(whole, run)
