"""The built-in recipes as files, and what they have in a part of some kind."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

QUICK = ("demo", "fast", "first_look")  # made for minutes, not after a publication
MOST = 3  # values that a message names, and recipes of each


def recipes() -> dict[str, Path]:
    """The built-in recipes by name."""
    folder = Path(str(files("twinblock") / "recipes"))
    return {path.stem: path for path in folder.iterdir() if path.suffix == ".yaml"}


def published(part: str, kind: str, field: str) -> str:
    """The values of a field in recipes whose part is of this kind, as `0.2 (sdclr, simclr), 0.1 (simclr_imagenet)`."""
    names: dict[Any, list[str]] = {}
    for name in sorted(recipes(), key=lambda name: ("_" in name, name)):  # plain ones first
        if any(word in name for word in QUICK):
            continue
        fields = yaml.safe_load(recipes()[name].read_text(encoding="utf-8")).get(part)
        if isinstance(fields, Mapping) and fields.get("kind") == kind and field in fields:
            names.setdefault(fields[field], []).append(name)
    return ", ".join(f"{value} ({', '.join(some[:MOST])})" for value, some in [*names.items()][:MOST])
