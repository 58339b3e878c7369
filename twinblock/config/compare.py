"""In which fields two configs differ."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from twinblock.config.recipes import from_yaml
from twinblock.config.schema import Config
from twinblock.core.durations import Duration
from twinblock.core.files import same_places

RESOLVED = re.compile(
    r"data\.(batch|size|channels|range|mean|std)|encoder\.(kind|stem|width|weights|weights_sha256)|views\.\d\.(crop|flip)"
    r"|train\.(length|precision|micro_batch)"
)
OPEN_BY_WORD = ("data.range", "data.mean", "data.std")  # a word says how a number is found
OPEN_BY_NULL = (
    "data.size",
    "encoder.width",
    "encoder.weights_sha256",
)  # of those, what null leaves to data and machine; the others: auto
NOT_OF_TRAINING = (
    "out",
    "train.on_collapse",
    "train.loggers",
    "train.keep",
)  # fields that a run may be resumed with another value of
PATHS = ("data.source", "data.root", "data.indices", "data.labels", "encoder.weights")


def differences(saved: Config, wanted: Config, going_on: bool = False) -> list[str]:
    """The fields in which two configs differ, in words; what was left open agrees with what it became.

    `going_on`: a longer training is no difference, since a run may go on to it.
    """
    old, new = (leaves(config.model_dump(mode="json")) for config in (saved, wanted))
    return [
        f"{name}: {old.get(name)} there, {new.get(name)} here"
        for name in dict.fromkeys([*old, *new])
        if name not in NOT_OF_TRAINING
        and old.get(name) != new.get(name)
        and not (name in PATHS and same_places(old[name], new[name]))
        and not (RESOLVED.fullmatch(name) and _open(name, new))
        and not (going_on and name == "train.length" and longer(saved, wanted))
    ]


def longer(saved: Config, wanted: Config) -> bool:
    """Whether a run of the first config may go on to the length of the second: both in steps or both in epochs.

    Blocks that train one after the other have had their time, each by the length of the whole.
    """
    old, new = saved.train.length, wanted.train.length
    in_sequence = getattr(wanted.scope, "plan", None) == "sequential"
    return old.unit == new.unit and old.amount < new.amount and not in_sequence


def settings(configs: Sequence[Config]) -> dict[str, list[Any]]:
    """The fields in which configs differ, each with its value in every config; None where a config lacks it."""
    trees = [leaves(config.model_dump(mode="json")) for config in configs]
    columns = {name: [tree.get(name) for tree in trees] for name in dict.fromkeys(n for tree in trees for n in tree)}
    return {
        name: values
        for name, values in columns.items()
        if name not in NOT_OF_TRAINING
        and any(value != values[0] for value in values)
        and not (name in PATHS and all(same_places(value, values[0]) for value in values))
    }


def not_of_this_run(config: Config, meta: Mapping[str, Any]) -> str:
    """In which fields a file, by what it says of itself, is of another config; nothing where it is of this one."""
    try:
        return "; ".join(differences(from_yaml(meta["config"]), config, True)) if "config" in meta else ""
    except ValueError:
        return "its config is damaged"


def _open(name: str, fields: dict[str, Any]) -> bool:
    """Whether a field is left to data and machine: a null crop is a choice, and so is the width of a named encoder."""
    if name == "encoder.width" and fields.get("encoder.kind") != "auto":
        return False
    if name == "train.length":
        return Duration.of_run(fields[name]).on_the_clock
    if name == "encoder.weights":
        return fields.get(name) == "pretrained"  # which ones that were is kept
    if name in OPEN_BY_WORD:
        return isinstance(fields.get(name), str)
    return name in fields and fields[name] == (None if name in OPEN_BY_NULL else "auto")


def leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A nested tree as `a.b.c` -> value."""
    if isinstance(tree, dict) and tree:
        return {k: v for key, value in tree.items() for k, v in leaves(value, f"{prefix}{key}.").items()}
    if isinstance(tree, list) and tree and isinstance(tree[0], dict):
        return {k: v for i, value in enumerate(tree) for k, v in leaves(value, f"{prefix}{i}.").items()}
    return {prefix.rstrip("."): tree}
