"""What the cache holds: packed images by source, size and date; whether they are whole; and how they leave it."""

import json
import re
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from filelock import Timeout

from twinblock.core.errors import InputError, first_line, nearest
from twinblock.data.decode import printable
from twinblock.data.locks import locked as lock_of
from twinblock.data.served import url_of
from twinblock.data.store import cache as cache_folder
from twinblock.data.store import opened, sealed

ACTIONS = ("list", "verify", "clear")
STORE = re.compile(r"([0-9a-f]{32}|object-[0-9a-f]{32})(-\w+)+(\.\d+\.part)?")
WHOLE, DAMAGED, UNFINISHED, OTHER = "whole", "damaged", "unfinished", "of another version"
SERVED = "fetched as needed"
SHORT = 8  # letters of a name that will do for all


def cache(action: str = "list", name: str | None = None) -> list[dict[str, Any]]:
    """The packed images in the cache, one row each: name, source, images, bytes, date and state.

    `action`: `list`; `verify` compares every image, name and label with its checksum, and damaged ones are packed anew
    when they are next used; `clear` removes them. `name`: only those whose name begins so, or of this source. What is
    packed at the moment stays. State is whole, damaged, unfinished (the next packing goes on there), of another
    version, or fetched as needed (pieces of images on a server); after `clear`, removed or why not. Raises InputError
    where nothing has that name.
    """
    if action not in ACTIONS:
        near = nearest(action, ACTIONS, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"cache {action}: {hint}There are {', '.join(ACTIONS)}")
    found = [row for row in map(_row, _stores()) if name is None or _is_meant(row, name)]
    if name is not None and not found:
        raise InputError(f"nothing in {cache_folder()} is called {printable(name)}; `twinblock cache` shows names")
    for row in found:
        folder = cache_folder() / row["name"]
        if action == "verify" and row["state"] == WHOLE:
            row["state"] = _verified(folder)
        elif action == "clear":
            row["state"] = _removed(folder)
    return found


def _stores() -> Iterator[Path]:
    """Folders that were packed into. Whatever else lies in the cache is no affair of ours."""
    folder = cache_folder()
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if STORE.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            yield path


def _row(folder: Path) -> dict[str, Any]:
    try:
        files = [path.stat() for path in folder.rglob("*")]
    except OSError:  # of a user who does not share it
        files = []
    if (url := url_of(folder)) is not None:
        return _as_row(folder, files, url, None, SERVED)
    fields = sealed(folder)
    about = fields if fields is not None else _begun(folder)
    state = UNFINISHED if folder.suffix == ".part" else WHOLE if fields is not None else DAMAGED
    if fields is not None and "key" not in fields:
        state = OTHER
    count = fields["shape"][0] if fields is not None else about.get("count")
    return _as_row(folder, files, about.get("source", ""), count, state)


def _as_row(folder: Path, files: list, source: str, images: int | None, state: str) -> dict[str, Any]:
    newest = max((one.st_mtime for one in files), default=0.0)
    return {
        "name": folder.name,
        "source": source,
        "images": images,
        "bytes": sum(one.st_size for one in files),
        "date": datetime.fromtimestamp(newest).isoformat(" ", "minutes"),
        "state": state,
    }


def _begun(folder: Path) -> dict[str, Any]:
    """What the journal of an unfinished store says of it."""
    try:
        with open(folder / "journal", "rb") as file:
            fields = json.loads(file.readline().partition(b" ")[2])
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _is_meant(row: dict[str, Any], name: str) -> bool:
    begins = len(name) >= SHORT and row["name"].startswith(name)
    return begins or row["source"] in (name, name.rstrip("/"), str(Path(name).expanduser().absolute()))


def _verified(folder: Path) -> str:
    """Whether all of a store is what was packed; a damaged one is not used again."""
    try:
        store = opened(folder)
    except InputError as error:
        return first_line(error)
    if store is not None and not store.damaged(np.arange(len(store.pixels))):
        return WHOLE
    try:
        (folder / "meta.json").unlink(missing_ok=True)
    except OSError as error:
        return f"{DAMAGED}, and may not be removed ({error.strerror})"
    return DAMAGED


def _removed(folder: Path) -> str:
    try:
        with lock_of(folder.parent / f"{folder.name.split('.')[0]}.lock", blocking=False):
            shutil.rmtree(folder)
    except Timeout:
        return "is being packed"
    except OSError as error:
        return f"may not be removed ({error.strerror})"
    folder.with_suffix(".skipped.txt").unlink(missing_ok=True)
    return "removed"
