"""The scripts of `benchmarks/` can be run: what they import is there, and the one of memory measures."""

import importlib.util
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from twinblock.config.recipes import recipes

SCRIPTS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_what_it_imports_is_there(script, monkeypatch):
    monkeypatch.syspath_prepend(script.parent)
    spec = importlib.util.spec_from_file_location(f"benchmark_{script.stem}", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # as dataclasses need it
    spec.loader.exec_module(module)


def test_the_script_for_gpus_names_what_is_there():
    script = SCRIPTS[0].parent / "gpu.sh"
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    words = script.read_text().split()
    named = [word for word in words if word.startswith(("tests/", "benchmarks/")) and word != "benchmarks/gpu.sh"]
    assert len(named) > 8
    assert [word for word in named if not (script.parents[1] / word).exists()] == []
    chosen = {after for word, after in pairwise(words) if word == "pretrain"}
    assert chosen and chosen <= recipes().keys()


@pytest.mark.slow
def test_memory_is_measured():
    memory = next(script for script in SCRIPTS if script.name == "memory.py")
    words = [sys.executable, str(memory), "--models", "resnet18", "--batch", "2", "--size", "32", "--repeats", "0"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "| resnet18 | end to end |" in done.stdout
