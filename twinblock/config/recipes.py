"""The built-in recipes, how a recipe with the user's fields becomes a run, and a run as a recipe."""

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from twinblock.config.fields import WITH_WEIGHTS, Train
from twinblock.config.overrides import CHOICE, lay_over, merge, parse
from twinblock.config.presets import preset
from twinblock.config.published import recipes
from twinblock.config.schema import RENAMED, Config, check
from twinblock.core.errors import InputError, nearest
from twinblock.core.files import expanded
from twinblock.methods import learners
from twinblock.methods.parts import import_part

OWN = ("objective", "target", "learner", "encoder")  # parts that may be a class of the caller's own
SIAMESE = ("projector", "predictor", "target", "objective")


def compose(recipe: str | Path, fields: Mapping[str, Any] | None = None, overrides: Iterable[str] = ()) -> Config:
    """Compose the config of a run: a recipe by name or path, changed by nested `fields` and `a.b=c` overrides.

    Your own parts, named `package.module:Class`, are imported, from the current folder too. Raises InputError for a
    recipe or field that does not exist, and for a value out of range.
    """
    tree, overrides = _read(recipe), list(overrides)
    presets = tree.pop("presets", None) if isinstance(tree, dict) else None
    if presets is not None:
        train = _laid_over(copy.deepcopy(tree), fields, overrides).get("train", {})
        if isinstance(train, Mapping):  # `check` says what is wrong with another
            chosen = preset(presets, train.get("length", Train().length), Path(recipe).stem)
            lay_over(tree, [f"{name}={value}" for name, value in chosen.items()])
    of_file = dict(_own_kinds(tree))
    tree = _laid_over(tree, fields, overrides)
    for where, kind in _own_kinds(tree):
        if of_file.get(where) == kind and _of_a_run(Path(recipe)):
            raise InputError(
                f"{where}={kind}: a run's config.yaml imports nothing; name it on the command line or in a recipe"
            )
        import_part(kind, where)
    if isinstance(tree, dict) and tree.get("learner"):
        _leave_to_the_learner(
            tree, {*(fields or {}), *(text.partition("=")[0].partition(".")[0] for text in overrides)}
        )
    return check(tree)


def _own_kinds(tree: Any) -> Iterator[tuple[str, str]]:
    """The parts of a run that are named `package.module:Class`, and where; Python objects, in brackets, are not."""
    places = [("", tree)]
    if isinstance(tree, Mapping) and isinstance(tree.get("scope"), Mapping):
        blocks = tree["scope"].get("per_block")
        blocks = blocks.items() if isinstance(blocks, Mapping) else ()
        places += [(f"scope.per_block.{number}.", block) for number, block in blocks]
    for prefix, place in places:
        for part in OWN if isinstance(place, Mapping) else ():
            kind = place[part].get("kind") if isinstance(place.get(part), Mapping) else None
            if isinstance(kind, str) and ":" in kind and not kind.startswith(("<", *WITH_WEIGHTS)):
                yield f"{prefix}{part}.kind", kind


def _of_a_run(recipe: Path) -> bool:
    """Whether a file is not a recipe but lies in a run, which may be anybody's."""
    return recipe.name == "config.yaml" or (recipe.parent / "metrics.jsonl").exists()


def _leave_to_the_learner(tree: dict[str, Any], given: set[str]) -> None:
    """A learner that is not siamese has its own heads and loss: take away those of the recipe."""
    for part in SIAMESE:
        if part in given:
            raise InputError(f"{part}: it belongs to the siamese learner, and learner names another; leave {part} out")
        tree.pop(part, None)


def _laid_over(tree: Any, fields: Mapping[str, Any] | None, overrides: Iterable[str]) -> Any:
    for key, value in (fields or {}).items():
        merge(tree, key, value)
    return lay_over(tree, overrides)


def _read(recipe: str | Path) -> Any:
    names = recipes()
    path = names.get(str(recipe), expanded(recipe))
    if not path.is_file():
        if re.match(r"[a-z_.]+=", str(recipe)):
            raise InputError(f"{recipe}: name a recipe first, such as simclr; `twinblock recipes` lists them")
        near = nearest(recipe, names, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise InputError(f"no recipe {str(recipe)!r}{hint} Known: {', '.join(sorted(names))}, or a path to a YAML file")
    try:
        tree = parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the recipe {path}: {error}") from None
    for part in CHOICE.keys() & tree.keys() if isinstance(tree, dict) else ():
        merge(tree, part, tree[part])  # a word for a part, as on the command line
    return tree


def show(recipe: str | Path, overrides: Iterable[str] = ()) -> str:
    """Return a composed run as YAML, to save, to change and to pretrain from."""
    return to_yaml(compose(recipe, overrides=overrides))


def to_yaml(config: Config) -> str:
    """A run as a recipe: every field, and of a later view those that differ from the first."""
    tree = config.model_dump(mode="json")
    first, *others = tree["views"]
    tree["views"] = [first, *({"like": 0, **{k: v for k, v in view.items() if v != first[k]}} for view in others)]
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def from_yaml(text: str) -> Config:
    """What `to_yaml` wrote, in this version or an earlier one. Raises ValueError for all else; imports nothing."""
    try:
        tree = yaml.safe_load(text)
        if isinstance(tree, dict):
            tree = {RENAMED.get(name, name): part for name, part in tree.items()}
        return check(tree)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from None


FAMILIES = {  # of objectives and learners, in the order of the lists
    "contrast": "images attract their own other view and repel all others",
    "prediction": "a predictor tells the embedding of another view",
    "prototypes": "views of an image belong to the same of many prototypes",
    "decorrelation": "views agree, and no two numbers of an embedding say the same",
    "reconstruction": "what is hidden is told from what is left",
    "likelihood": "a model that makes images finds those it sees likely",
    "goodness": "true images excite a block, and false ones do not",
    "labels": "classes come from labels",
}


def recipe_rows() -> list[dict[str, str]]:
    """What each recipe is made of: the tables of recipes in the docs and of `twinblock recipes`, by family."""
    rows = []
    for name, path in sorted(recipes().items()):
        config = compose(name)
        siamese, ours = config.learner is None, config.objective_class
        rows.append(
            {
                "recipe": name,
                "family": ours.family if ours else learners.KINDS[config.learner.kind].family,
                "objective": config.objective.kind if siamese else f"{config.learner.kind} (a learner)",
                "target": config.target.kind if siamese else "none",
                "predictor": "yes" if config.predictor else "no",
                "norm of the heads": config.projector.norm if config.projector else "none",
                "optimizer": config.optim.kind,
                "in words": path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ").split(": ", 1)[1],
            }
        )
    return sorted(rows, key=lambda row: [*FAMILIES].index(row["family"]))
