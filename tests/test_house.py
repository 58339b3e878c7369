"""The shape of the house: arrows point downward, functions are short, and there is one way for each thing."""

import ast
import subprocess
import sys
from pathlib import Path

import twinblock

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "twinblock").rglob("*.py"))
LONGEST, MOST = 60, 7  # lines of a function, its parameters

# functions with more parameters, and why
MANY = {
    "pretrain": "the front door: every part of a run by its name",
    "evaluate": "the front door: every choice by its name",
    "build_encoder": "every choice of a network, by its name",
    "embed": "the front door: every choice by its name",
    "feature_rows": "how images are seen",
    "finetune": "the front door: every choice by its name",
    "fit": "what is trained, on what, how",
    "sgd_probe": "every constant of the published probe",
    "Learner.__init__": "the parts of a method",
    "LARS.__init__": "every constant of an optimizer",
    "Learner": "the parts of a method",
    "Views.__call__": "where in the run the views are drawn",
}


def functions():
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                yield file, node


def test_no_room_imports_one_above_it():
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout


def test_functions_are_short():
    long = [(file.name, f.name, f.end_lineno - f.lineno + 1) for file, f in functions()]
    assert [row for row in long if row[2] > LONGEST] == []


def test_functions_take_few_parameters_or_say_why():
    many = {}
    for file, f in functions():
        names = [a.arg for a in (*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs) if a.arg not in ("self", "cls")]
        if len(names) > MOST and file.parent.name != "cli":  # there an option is a parameter
            many[f.name] = names
    assert set(many) <= {name.rpartition(".")[2] for name in MANY}, many


def test_there_is_one_way_for_each_thing():
    homes = {
        "difflib": {"errors.py"},  # near matches
        "torch.distributed as": {"distributed.py", "stages.py"},
        'torch.device("cuda" if': {"device.py"},
        "os.replace(": {"files.py", "checkpoint.py"},  # the latter renames what is written already
    }
    for text, allowed in homes.items():
        users = {file.name for file in FILES if text in file.read_text(encoding="utf-8")}
        assert users <= allowed, (text, users - allowed)


def test_every_command_is_a_public_function():
    from twinblock.cli import app

    # `views` is draw_views, since twinblock.views is a package; all others have one name
    commands = {command.callback.__name__ for command in app.registered_commands if not command.hidden}
    assert {command.name for command in app.registered_commands} == {None, "views"}
    assert commands <= set(dir(twinblock))
    for name in commands:
        assert (getattr(twinblock, name).__doc__ or "").strip()


def test_a_part_of_the_package_is_one_file_and_one_recipe(tmp_path, monkeypatch):
    """An objective in a file of its own is found, with its fields, and nothing else names it."""
    from twinblock.methods import objectives
    from twinblock.methods.objectives import Objective
    from twinblock.methods.parts import discover, form_of

    (tmp_path / "cosine.py").write_text(
        "from twinblock.methods.objectives.objective import Objective\n"
        "class Cosine(Objective):\n"
        "    def __init__(self, weight: float = 2.0):\n"
        "        super().__init__()\n"
        "        self.weight = weight\n"
    )
    monkeypatch.setattr(objectives, "__path__", [*objectives.__path__, str(tmp_path)])
    kinds = discover(objectives, Objective)
    assert kinds.keys() - objectives.KINDS.keys() == {"cosine"}
    form = form_of("cosine", kinds["cosine"])
    assert form(kind="cosine").weight == 2.0


def test_a_learner_of_the_package_is_one_file_and_training_does_not_know_it(tmp_path, monkeypatch):
    from twinblock.methods import learners
    from twinblock.methods.learners.alone import Alone
    from twinblock.methods.parts import discover, form_of

    (tmp_path / "greedy.py").write_text(
        "from torch import nn\n"
        "from twinblock.methods.learners.alone import Alone\n"
        "class Greedy(Alone):\n"
        "    def __init__(self, blocks: nn.Module, prefix: int, margin: float = 2.0):\n"
        "        super().__init__()\n"
    )
    monkeypatch.setattr(learners, "__path__", [*learners.__path__, str(tmp_path)])
    kinds = discover(learners, Alone)
    assert kinds.keys() - learners.KINDS.keys() == {"greedy"}
    assert form_of("greedy", kinds["greedy"])(kind="greedy").model_dump() == {"kind": "greedy", "margin": 2.0}
    names = {word for kind, cls in learners.KINDS.items() for word in (f'"{kind}"', f".{kind} ", cls.__name__)}
    for file in (*(ROOT / "twinblock" / "training").glob("*.py"), *(ROOT / "twinblock" / "assembly").glob("*.py")):
        assert not [name for name in names if name in file.read_text(encoding="utf-8")], file
