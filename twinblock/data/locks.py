"""Locks among processes, on any file system."""

import errno
import fcntl
import functools
import logging
import os
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock

log = logging.getLogger(__name__)


def locked(path: Path, blocking: bool = True) -> BaseFileLock:
    """A lock among the processes of all users, to be entered. Raises filelock's Timeout where it is taken and
    `blocking` is false.
    """
    if _locks_files(path.parent):
        return FileLock(path, mode=0o666, blocking=blocking)
    return SoftFileLock(path.with_suffix(".softlock"), mode=0o666, blocking=blocking)


@functools.cache
def _locks_files(folder: Path) -> bool:
    """Whether the file system knows flock(). Lustre and NFS may be mounted without."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            log.warning(f"{folder}: its file system cannot lock files ({error.strerror}); .softlock files are used")
            return False
    finally:
        os.close(handle)
    return True
