"""What the names of folders say: which images are for training and which for testing, and of which class they are."""

import os
import re
from collections.abc import Sequence

from twinblock.data.decode import printable
from twinblock.data.store import say_once

LOOSE = 0.1  # a larger share of images beside the folders of a source, and those are no classes
# train, Training, val2017, test_images, unlabeled2017 and so on
SPLIT = re.compile(
    r"(train|training|test|testing|val|valid|validation|unlabell?ed)([-_ ]?(set|data|images?|split))?([-_ ]?\d{4})?",
    re.IGNORECASE,
)
TESTS = ("test", "validation", "valid", "val")  # names of a held-out split, the preferred one first
SITES = (  # what numbered folders are, where they are no classes
    "cam|camera|site|loc|location|station|trap|plot|plate|well|slide|patient|subject|sub|pat|case|scan|series|session|"
    "batch|day|week|month|year|run|seq|sequence|clip|video|part|chunk|shard|tile|region|area|zone|roi|exp|experiment"
)
SITE = re.compile(
    rf"({SITES})s?[-_ ]?\w{{0,2}}\d+|({SITES})[-_ ][a-z]"
    r"|(19|20)\d\d([-_.]?[01]\d([-_.]?[0-3]\d)?)?"
    r"|\d{3}[A-Z][A-Z_0-9]{4}",  # folders of a camera, as 100CANON
    re.IGNORECASE,
)
SURE = 0.9  # share of such names


def role(name: str) -> str | None:
    """The split that a folder's name stands for: train, test, val or unlabel; None for all other names."""
    if SPLIT.fullmatch(name) is None:
        return None
    return next(role for role in ("train", "test", "val", "unlabel") if name.lower().startswith(role))


def begins_with_split(name: str) -> str:
    """The split that begins the name of a file or folder, as `train-00000-of-00001.parquet`; empty where none does."""
    match = re.match(rf"({'|'.join(('train', *TESTS))})(?![a-z])", name.lower())
    return match[1] if match else ""


def few(names: Sequence[str]) -> str:
    """The first names, for a line of text."""
    return ", ".join(map(printable, names[:3])) + f", ... ({len(names)})" * (len(names) > 3)


def first_level(files: list[str]) -> list[str]:
    """The names of the folders that the files lie in; none where too many lie in no folder."""
    return sorted({file.split(os.sep, 1)[0] for file in files if os.sep in file}) if few_loose(files) else []


def few_loose(files: list[str]) -> bool:
    return sum(os.sep not in file for file in files) <= LOOSE * len(files)


def classes_of(source: str, files: list[str]) -> list[str]:
    """The classes of these files: the names of their top folders, where there are two or more, and no splits."""
    names = first_level(files)
    if len(names) > 1 and all(map(role, names)):
        say_once(f"{source}: {few(names)} are named as splits and not taken for classes")
        return []
    return names if len(names) > 1 else []


def said(classes: Sequence[str], of: str = "") -> str:
    """Where classes come from that are folders: `top folder: cam01, cam02, which look like sites or dates`."""
    look = ", which look like sites or dates" * look_like_sites(classes)
    return f"top folder{f' of {printable(of)}' if of else ''}: {few(classes)}{look}"


def look_like_sites(names: Sequence[str]) -> bool:
    """Whether these folders are named as sites, cameras, patients or dates are, and not as classes."""
    return bool(names) and sum(SITE.fullmatch(name) is not None for name in names) >= SURE * len(names)


def rooted(files: list[str]) -> tuple[str, list[str]]:
    """The folder that all files lie below, down to one that is named as a split, and their names from there on."""
    below = ""
    while files and all(os.sep in file for file in files) and len({file.split(os.sep, 1)[0] for file in files}) == 1:
        top = files[0].split(os.sep, 1)[0]
        below, files = os.path.join(below, top), [file.split(os.sep, 1)[1] for file in files]
        if role(top):
            break
    return below, files


def by_split(source: str, files: list[str]) -> list[str]:
    """Of each file of an archive `train` or `test`; empty for those left out.

    The top folders tell, where one is named for training; else all files are for training.
    """
    tops = first_level(files)
    roles = {name: found for name in tops if (found := role(name))}
    train = next((name for name in roles if roles[name] == "train"), None)
    if train is None or len(tops) < 2:
        return ["train"] * len(files)
    tests = sorted((name for name in roles if roles[name] in ("test", "val")), key=lambda name: roles[name] != "test")
    split = {train: "train"} | dict.fromkeys(tests[:1], "test")
    if left_out := [name for name in tops if name not in split]:
        say_once(f"{source}: {printable(train)} is for training; {few(left_out)} left out")
    return [split.get(file.split(os.sep, 1)[0], "") for file in files]


def both_classes(classes: list[str], files: list[str]) -> list[str]:
    """The classes of training with those that only test files have behind them; none where they have none in common."""
    there = set(first_level(files))
    return classes + sorted(there - set(classes)) if there & set(classes) else []
