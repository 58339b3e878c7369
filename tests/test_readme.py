"""The README says what is: its table is made from the recipes, and its Python runs."""

import re
from pathlib import Path

from PIL import Image

import twinblock
from twinblock.config.recipes import recipe_rows

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def markdown(rows: list[dict[str, str]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *[list(row.values()) for row in rows]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def test_the_table_of_methods_is_that_of_the_recipes():
    table = README.split("<!-- recipes -->\n")[1].split("<!-- /recipes -->")[0]
    assert table == markdown(recipe_rows())


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    """With fewer steps and a smaller network than a reader would take."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TWINBLOCK_CACHE", str(tmp_path / "cache"))
    small = [
        "encoder.width=8",
        "data.batch=64",
        "train.length=2steps",
        "projector.dims=[16,8]",
        "predictor.dims=[16,8]",
    ]
    Image.new("RGB", (40, 30)).save(tmp_path / "photo.jpg")
    pretrain, evaluate = twinblock.pretrain, twinblock.evaluate
    monkeypatch.setattr(
        twinblock,
        "pretrain",
        lambda recipe, data, out: pretrain(recipe, data="photodigits", out=out, overrides=small),
        raising=False,
    )
    monkeypatch.setattr(twinblock, "evaluate", lambda run, data: evaluate(run), raising=False)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, {})
    assert (tmp_path / "runs" / "a" / "evaluation.json").is_file()


def test_links_of_the_pages_lead_somewhere():
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_reading_of_byol_is_short():
    """Six files and fewer than 700 lines tell the whole method."""
    files = re.search(r"To read one method.*?\n\n", README, re.DOTALL)
    paths = re.findall(r"\]\((twinblock/[^)]+)\)", files[0])
    assert len(paths) == 6
    assert sum(len((ROOT / path).read_text().splitlines()) for path in paths) < 700
