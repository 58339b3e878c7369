"""Every code block and command of the README and the docs runs, or says why it is not run."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pages
import pytest

import twinblock

ID = [str(page.relative_to(pages.ROOT)) for page in pages.PAGES]
FAST = ("README.md", "docs/tutorial.md", "docs/howto/data.md")  # the others take minutes on two cores: `make test-all`
RUN = [
    pytest.param(page, id=name, marks=[] if name in FAST else pytest.mark.slow)
    for page, name in zip(pages.PAGES, ID, strict=True)
]


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A folder as the pages expect it: photographs, labelled ones, a finished run of each."""
    folder = tmp_path_factory.mktemp("home")
    script = str(pages.ROOT / "examples" / "pictures.py")
    for words in (["photos", "48"], ["labelled", "48", "--folders", "--seed", "1"]):
        subprocess.run([sys.executable, script, *words], check=True, cwd=folder)
    shutil.copy(folder / "photos" / "roof-0006.jpg", folder / "photo.jpg")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TWINBLOCK_CACHE", str(folder / "cache"))
        pages.command(["pretrain", "simclr", "data=photos/", "out=runs/photos"])
        pages.command(["pretrain", "blockwise", "data=labelled/", "out=runs/blocks"])
    return folder


@pytest.mark.parametrize("page", RUN)
def test_the_code_of_a_page_runs(page: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code = [block for block in pages.blocks(page) if block.language in pages.RUN and not block.reason]
    if not code:
        return
    text = page.read_text(encoding="utf-8")
    for name in ("photos", "labelled"):
        (tmp_path / name).symlink_to(home / name)
    shutil.copy(home / "photo.jpg", tmp_path)
    for run in re.findall(r"<!-- needs: (\S+) -->", text):
        shutil.copytree(home / run, tmp_path / run)
    for name, content in pages.files(page).items():
        (tmp_path / name).write_text(content)
        monkeypatch.delitem(sys.modules, Path(name).stem, raising=False)
    monkeypatch.syspath_prepend(tmp_path)  # as a notebook and a script have it
    shutil.copytree(pages.ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TWINBLOCK_CACHE", str(home / "cache"))
    monkeypatch.setenv("MPLBACKEND", "agg")
    pages.with_less_work(monkeypatch)
    names = {"__name__": "__page__", "twinblock": twinblock}
    for block in code:
        if block.language == "sh":
            pages.run_shell(block.text)
        else:
            exec(compile(block.text, f"{page.name}", "exec"), names)


@pytest.mark.parametrize("page", pages.PAGES, ids=ID)
def test_every_block_has_a_language(page: Path):
    for block in pages.blocks(page):
        assert block.language in (*pages.RUN, *pages.NOT_CODE), f"{block.language!r}: {block.text[:80]}"
        assert block.language or block.reason or not re.search(r"^(twinblock|import) ", block.text, re.MULTILINE)


def test_a_page_that_does_not_run_is_noticed(tmp_path: Path):
    """The reading of pages finds blocks, their languages and reasons."""
    page = tmp_path / "page.md"
    page.write_text("```python\n1 / 0\n```\n\n<!-- not run: long -->\n```sh\ntwinblock x\n```\n")
    python, shell = pages.blocks(page)
    assert (python.language, python.text, python.reason) == ("python", "1 / 0\n", "")
    assert (shell.language, shell.reason) == ("sh", "long")


def test_links_of_the_pages_lead_somewhere():
    for page in pages.PAGES:
        prose = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", prose):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
