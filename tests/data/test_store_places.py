"""The packed store in shared caches, without a home, without locks and on full disks."""

import errno
import fcntl
import os
import pwd
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from pictures import encoded, one_line, plain, values

from twinblock.core.errors import InputError
from twinblock.data import locks, packing, store
from twinblock.data.packing import packed

# ---- Images


STRANGER = """
import codecs, os, sys
sys.path.insert(0, {tests!r})
from pictures import encoded, plain, values
from twinblock.data.packing import packed
cache = os.environ["TWINBLOCK_CACHE"]
os.environ["TWINBLOCK_CACHE"] = {warm!r}
packed(encoded([plain(0)])), codecs.lookup("ascii")  # all is imported that the other user may not read
os.environ["TWINBLOCK_CACHE"] = cache
os.umask(0o022)
if os.geteuid() == 0:  # others can be nobody but themselves; what they may not open is closed to all
    os.setgid(65534), os.setuid(65534)
try:
    print(values(packed(encoded([plain(1), plain(2)]))))
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def shared(monkeypatch, tmp_path):
    """A cache that anybody may write to, and what the images are for somebody who may not open all that lies there."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        monkeypatch.setenv("TWINBLOCK_CACHE", folder)

        def stranger() -> str:
            code = STRANGER.format(tests=str(Path(__file__).parents[1]), warm=str(tmp_path))
            run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
            return (run.stdout + run.stderr).strip()

        yield Path(folder), stranger


def test_what_a_killed_build_of_another_user_left_is_no_hindrance(shared):
    folder, stranger = shared
    key = encoded([plain(1), plain(2)]).key
    for name in (f"{key}-kept.0000.tmp", "other-kept.0000.tmp"):
        (folder / name).mkdir(mode=0o000)
    (folder / "other-kept.lock").touch(0o000)
    with locks.locked(folder / f"{key}-kept.lock"):
        pass
    assert stranger() == "[1, 2]"


def test_what_another_user_keeps_private_is_one_line(shared):
    folder, stranger = shared
    key = encoded([plain(1), plain(2)]).key
    (folder / f"{key}-kept.lock").touch(0o000)
    folder.chmod(0o1777 if os.geteuid() == 0 else 0o555)  # what others own there cannot be removed
    said = stranger()
    folder.chmod(0o777)
    assert said.startswith("InputError cannot write") and ".lock" in said and "free some space" not in said
    (folder / f"{key}-kept.lock").unlink()
    packed(encoded([plain(1), plain(2)]))
    (folder / f"{key}-kept").chmod(0o000)  # as a umask of 077 leaves it to others
    said = stranger()
    (folder / f"{key}-kept").chmod(0o700)
    assert said.startswith("InputError packed images in") and "may not be read (Permission denied)" in said
    assert "\n" not in said


def test_without_a_home_one_line_names_the_variable(monkeypatch):
    def unknown(_):
        raise KeyError

    for name in ("HOME", "TWINBLOCK_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(InputError, match=r"no home folder.*set TWINBLOCK_CACHE") as error:
        packed(encoded([plain(1)]))
    one_line(error)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_said_once_and_works(code, monkeypatch, caplog, cache):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for i in range(2):
        assert values(packed(encoded([plain(i), plain(2)]))) == [i, 2]
    assert [message for message in caplog.messages if "cannot lock" in message] == caplog.messages
    assert len(caplog.messages) == 1
    with locks.locked(cache / "a.lock"), pytest.raises(store.Timeout), locks.locked(cache / "a.lock", blocking=False):
        pass


def test_only_a_full_disk_is_told_to_be_emptied(monkeypatch):
    for code, words in ((errno.ENOSPC, "free some space"), (errno.EROFS, "set TWINBLOCK_CACHE")):

        def fail(*_, code=code):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(packing, "_pack", fail)
        with pytest.raises(InputError, match=words) as error:
            packed(encoded([plain(1)]))
        assert ("free" in one_line(error)) == (code == errno.ENOSPC)
