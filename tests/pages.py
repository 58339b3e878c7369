"""Reads the code blocks of a page, and runs them as a reader would, with less work in each run."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import twinblock
from twinblock import cli
from twinblock.config.recipes import compose
from twinblock.core.errors import InputError
from twinblock.nn.vgg import LAYOUTS

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted(p for p in (ROOT / "docs").rglob("*.md") if not {"_build", "_generated"} & {*p.parts}),
]
BLOCK = re.compile(r"(?:<!-- not run: ([^>]+?) -->\n+)?^( *)```([\w{}-]*)[^\n]*\n(.*?)^\2```", re.MULTILINE | re.DOTALL)
RUN = ("python", "sh")
NOT_CODE = ("text", "yaml", "toctree", "image", "include", "")


@dataclass
class Block:
    """A block of code: its language, its text, and why it is not run, if it is not."""

    language: str
    text: str
    reason: str


def blocks(page: Path) -> Iterator[Block]:
    for reason, _, language, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        yield Block(language.strip("{}"), text, reason)


def files(page: Path) -> dict[str, str]:
    """The files that a page tells the reader to make: `<!-- file: NAME -->` before a block."""
    found = re.findall(r"<!-- file: (\S+) -->\n+```\w+\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return dict(found)


def shrunk(recipe: str, overrides: list[str], given: dict) -> list[str]:
    """Overrides that make a run take a second: added behind those of the page."""
    named = " ".join([*overrides, *(f"{key}={value}" for key, value in given.items() if isinstance(value, str | dict))])
    data = [x for x in overrides if x.partition("=")[0] in ("data", "data.source")]
    cifar = any(x.endswith(("cifar10", "cifar100", "stl10")) for x in data)
    kept = [x for x in overrides if not (cifar and x.startswith(("data.root", "data=", "data.source=")))]
    small = [f"train.length={4 if 'sequential' in named else 2}steps", "data.batch=16"]
    config = compose(recipe, None, kept) if Path(recipe).suffix == "" else None
    ours = config is not None and config.learner is not None and ":" not in config.learner.kind
    siamese = not ours and "learner" not in given and "learner=" not in named
    if ours:
        plain = config.encoder.kind in LAYOUTS
        small += ["encoder.kind=test_vit"] if "vit" in config.encoder.kind else ["encoder.width=8"] if plain else []
    elif "encoder" not in given and not re.search(r"encoder(\.kind)?=(vit|torchvision)", named):
        small += ["encoder.kind=resnet10", "encoder.width=8"]
    if siamese and config is not None:
        last = "classes" if config.labelled else "8"
        small += [f"projector.dims=[16,{last}]"]
        small += ["predictor.dims=[16,8]"] if config.predictor or "predictor" in named else []
    if "scope.expand=" not in named and config is not None and getattr(config.scope, "expand", None):
        small += ["scope.expand=16"]
    fixed = re.search("vit|convnext", named) or config is None or hasattr(config.learner, "stride")
    return [*kept, *small, *([] if fixed else ["data.size=16"])]


def run_shell(text: str) -> None:
    """Run the commands of a block: twinblock's in this process, others by the shell."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["twinblock"]:
            command(words[1:])
        elif words:
            shell = line.replace("python ", f"{sys.executable} ", 1) if words[0] == "python" else line
            subprocess.run(["bash", "-ec", shell], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


def command(words: list[str]) -> None:
    if words[0] in ("pretrain", "estimate"):
        words = [words[0], words[1], *shrunk(words[1], words[2:], {})]
    try:
        cli.app(words, standalone_mode=False)
    except SystemExit as stop:
        if stop.code:
            pytest.fail(f"twinblock {' '.join(words)} exits with {stop.code}")
    except InputError as error:
        pytest.fail(f"twinblock {' '.join(words)}: {error}")


def with_less_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `twinblock.pretrain` take two steps of a small network, whoever calls it."""
    pretrain = twinblock.pretrain

    def small(recipe, *, overrides=(), **given):
        return pretrain(recipe, overrides=shrunk(str(recipe), list(overrides), given), quiet=True, **given)

    monkeypatch.setattr(twinblock, "pretrain", small, raising=False)
