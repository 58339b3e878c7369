"""The site builds without a warning, and its reference says what each field means."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from twinblock.config.schema import Config

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "docs" / "_ext"))
import reference  # noqa: E402


def test_the_site_builds_without_a_warning(tmp_path: Path):
    pytest.importorskip("furo")
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "--keep-going", "-q", str(ROOT / "docs"), str(tmp_path)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    assert (tmp_path / "reference" / "fields.html").is_file()


def forms(model: type[BaseModel]) -> set[type[BaseModel]]:
    below = {inner for field in model.model_fields.values() for inner in reference.models(field.annotation)}
    return {model}.union(*(forms(inner) for inner in below))


def test_every_field_has_a_meaning():
    """In its own words, or in those of its part."""
    for form in forms(Config):
        for name, field in form.model_fields.items():
            said = field.description or (name in (form.__doc__ or "")) or name in ("kind", "scale")
            assert said, f"{form.__name__}.{name} has no meaning"


def test_the_reference_names_every_field_command_and_recipe(tmp_path: Path):
    reference.write(tmp_path)
    fields, cli, recipes = ((tmp_path / f"{name}.md").read_text() for name in ("fields", "cli", "recipes"))
    for field in (
        "data.batch",
        "views.0.crop",
        "target.momentum",
        "objective.temperature",
        "scope.expand",
        "train.length",
    ):
        assert f"| `{field}` |" in fields
    assert "at least 1, at most 2^20" in fields and "`100epochs`" in fields
    for command in ("pretrain", "evaluate", "embed", "diagnose", "reproduce", "recipes", "show"):
        assert f"## `twinblock {command}`" in cli
    for recipe in reference.recipes():
        assert f"(recipe-{recipe})=" in recipes
