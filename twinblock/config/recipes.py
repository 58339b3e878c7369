"""The built-in recipes, how a recipe with the user's fields becomes a run, and a run as a recipe."""

import copy
import difflib
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from twinblock.config.overrides import CHOICE, lay_over, merge, parse
from twinblock.config.presets import preset
from twinblock.config.schema import Config, Train, check
from twinblock.core.errors import InputError


def recipes() -> dict[str, Path]:
    """The built-in recipes by name."""
    folder = Path(str(files("twinblock") / "recipes"))
    return {path.stem: path for path in folder.iterdir() if path.suffix == ".yaml"}


def compose(recipe: str | Path, fields: Mapping[str, Any] | None = None, overrides: Iterable[str] = ()) -> Config:
    """A recipe by name or path, with nested `fields` and `a.b=c` overrides laid over it, checked."""
    tree, overrides = _read(recipe), list(overrides)
    presets = tree.pop("presets", None) if isinstance(tree, dict) else None
    if presets is not None:
        train = _laid_over(copy.deepcopy(tree), fields, overrides).get("train", {})
        if isinstance(train, Mapping):  # `check` says what is wrong with another
            chosen = preset(presets, train.get("length", Train().length), Path(recipe).stem)
            lay_over(tree, [f"{name}={value}" for name, value in chosen.items()])
    return check(_laid_over(tree, fields, overrides))


def _laid_over(tree: Any, fields: Mapping[str, Any] | None, overrides: Iterable[str]) -> Any:
    for key, value in (fields or {}).items():
        merge(tree, key, value)
    return lay_over(tree, overrides)


def _read(recipe: str | Path) -> Any:
    known = recipes()
    path = known.get(str(recipe), Path(recipe))
    if not path.is_file():
        near = difflib.get_close_matches(str(recipe), known, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise InputError(f"no recipe {str(recipe)!r}{hint} Known: {', '.join(sorted(known))}, or a path to a YAML file")
    try:
        tree = parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the recipe {path}: {error}") from None
    for part in CHOICE.keys() & tree.keys() if isinstance(tree, dict) else ():
        merge(tree, part, tree[part])  # a word for a part, as on the command line
    return tree


def to_yaml(config: Config) -> str:
    """A run as a recipe: every field, and of a later view those that differ from the first."""
    tree = config.model_dump(mode="json")
    first, *others = tree["views"]
    tree["views"] = [first, *({"like": 0, **{k: v for k, v in view.items() if v != first[k]}} for view in others)]
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def from_yaml(text: str) -> Config:
    """What `to_yaml` wrote. Raises ValueError for all else."""
    try:
        return check(yaml.safe_load(text))
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from None


def recipe_rows() -> list[dict[str, str]]:
    """What each recipe is made of: the table of methods in the README and of `twinblock recipes`."""
    rows = []
    for name, path in sorted(recipes().items()):
        config = compose(name)
        rows.append(
            {
                "recipe": name,
                "objective": config.objective.kind,
                "target": config.target.kind,
                "predictor": "yes" if config.predictor else "no",
                "norm of the heads": config.projector.norm,
                "optimizer": config.optim.kind,
                "in words": path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ").split(": ", 1)[1],
            }
        )
    return rows
