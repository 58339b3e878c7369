"""The folder of a run on file systems and with rights that are not ours."""

import errno
import fcntl
import json
import os

import pytest
import tiny

from twinblock.core import files
from twinblock.core.errors import InputError
from twinblock.runs.run import Run


def without(code: int):
    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    return refuse


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_flock_another_lock_is_taken_and_without_any_it_is_said(tmp_path, monkeypatch, caplog, code):
    monkeypatch.setattr(fcntl, "flock", without(code))
    run = Run(tmp_path / "a")
    run.claim(tiny.config("simclr"))
    assert caplog.records == []
    monkeypatch.setattr(fcntl, "lockf", without(code))
    Run(tmp_path / "b").claim(tiny.config("simclr"))
    assert "this file system has no locks" in caplog.text


@pytest.mark.parametrize("take", ["flock", "lockf"])
def test_a_folder_that_another_process_holds(tmp_path, monkeypatch, take):
    monkeypatch.setattr(fcntl, "flock", without(errno.ENOSYS))
    monkeypatch.setattr(fcntl, take, without(errno.EACCES))
    with pytest.raises(InputError, match="another process is training there"):
        Run(tmp_path / "a").claim(tiny.config("simclr"))


@pytest.mark.parametrize("method", ["exists", "mkdir", "iterdir"])
def test_a_folder_that_may_not_be_entered_is_one_line(tmp_path, monkeypatch, method):
    config = tiny.config("simclr")
    monkeypatch.setattr(type(tmp_path), method, without(errno.EACCES))
    with pytest.raises(InputError, match=r"out=.*cannot write there \(Permission denied\)"):
        Run(tmp_path / "a").claim(config)


def test_files_that_may_not_be_read_are_one_line(tmp_path, monkeypatch):
    for name in ("config.yaml", "result.json", "metrics.jsonl"):
        (tmp_path / name).write_text(json.dumps({}))
    monkeypatch.setattr(type(tmp_path), "read_text", without(errno.EACCES))
    for look in (lambda run: run.result, lambda run: run.metrics(), lambda run: run.config):
        with pytest.raises(InputError, match=r"cannot read .*Permission denied"):
            look(Run(tmp_path))
    monkeypatch.setattr(type(tmp_path), "is_file", without(errno.EACCES))
    with pytest.raises(InputError, match="Permission denied"):
        Run.open(tmp_path)


def test_a_run_in_the_home_folder_by_its_short_name(tmp_path, monkeypatch):
    """A shell leaves ~ behind `out=` as it is, and a notebook does always."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Run("~/runs/a").path == tmp_path / "runs" / "a"
    assert files.same_place("~/photos", str(tmp_path / "photos"))
    assert not files.same_place("~/photos", str(tmp_path / "photo"))


def test_what_a_library_writes_by_name_is_replaced_too(tmp_path):
    (tmp_path / "a").write_text("old")
    with files.replacing(tmp_path / "a") as file:
        other = tmp_path / "other"
        other.write_text("new")
        os.replace(other, file.name)
    assert (tmp_path / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_killed_processes_left_in_the_checkpoints_is_removed(tmp_path):
    run = Run(tmp_path / "a")
    run.claim(tiny.config("simclr"))
    run.write_config(tiny.config("simclr"))
    run.release()
    run.checkpoints.mkdir()
    (run.checkpoints / "fresh.safetensors.4711.partial").write_text("half")
    run.claim(tiny.config("simclr"))
    assert list(run.checkpoints.iterdir()) == []
