"""Which single changes of the code pass its tests: `python benchmarks/mutants.py FILE... --tests PATH...`.

Operators, comparisons, conditions, numbers and truth values are changed, arguments and calls left out, one at a time.
For each, the tests that ran the changed lines are run, the quickest first, until one fails; where none ran them, all.
Prints each change that no test notices, as `file:line: before -> after`, then the counts. A survivor is a missing test,
or a change that means nothing. Messages, annotations, decorators and docstrings are left out.

The tests are collected once. A change is made in a fork of that process, in the functions and constants that are there,
and in a copy of the repository, for processes that tests start; where that is not enough (fields of a schema, say), the
tests are collected anew. So it needs Linux or macOS.
"""

import argparse
import ast
import builtins
import copy
import gc
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import CodeType, FunctionType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "torchvision", "timm", "numpy", "jaxtyping", "beartype", "pydantic", "sklearn", "PIL")
LEFT_OUT = {".git", ".venv", "runs"}  # of the repository itself
OTHER = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
PLAIN = (ast.Name, ast.Attribute, ast.Call)  # conditions without an operator of their own

Change = tuple[ast.expr | ast.stmt, ast.expr | ast.stmt]
Report = dict[str, Any]
Live = dict[str, list[FunctionType]]

ANEW = 77  # exit status: the change cannot be made in an imported module


def mutants(node: ast.AST) -> Iterator[Change]:
    """The changes below a node, each as the expression or statement and what stands in its place."""
    match node:
        case ast.Raise() | ast.JoinedStr() | ast.Import() | ast.ImportFrom() | ast.keyword(arg="strict"):
            return
        case ast.Compare():
            for i, operator in enumerate(node.ops):
                yield node, changed(node, ops=[*node.ops[:i], OTHER[type(operator)](), *node.ops[i + 1 :]])
        case ast.BinOp() | ast.AugAssign() | ast.BoolOp() if type(node.op) in OTHER:
            yield node, changed(node, op=OTHER[type(node.op)]())
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield node, node.operand
        case ast.Constant(value=bool()):
            yield node, ast.Constant(not node.value)
        case ast.Constant(value=int()):
            yield node, ast.Constant(node.value + 1)
        case ast.Constant(value=float()):
            yield node, ast.Constant(node.value * 1.5 or 1.0)
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test) if isinstance(test, PLAIN):
            yield test, ast.UnaryOp(ast.Not(), test)
        case ast.Expr(value=ast.Call()):
            yield node, ast.Pass()
    if isinstance(node, ast.Call):
        for i in range(1, len(node.args)):
            yield node, changed(node, args=[*node.args[:i], *node.args[i + 1 :]])
        for keyword in (k for k in node.keywords if k.arg not in ("strict", "device")):  # assertions, and GPUs
            yield node, changed(node, keywords=[other for other in node.keywords if other is not keyword])
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "msg"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from mutants(child)


def changed(node: ast.AST, **fields):
    other = copy.copy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


def with_change(source: str, old: ast.expr | ast.stmt, new: ast.expr | ast.stmt) -> str:
    lines = source.encode().splitlines(keepends=True)  # columns count bytes
    assert old.end_lineno is not None and old.end_col_offset is not None
    start = sum(map(len, lines[: old.lineno - 1])) + old.col_offset
    end = sum(map(len, lines[: old.end_lineno - 1])) + old.end_col_offset
    text = ast.unparse(new) if isinstance(new, ast.stmt) else f"({ast.unparse(new)})"
    whole = source.encode()
    return (whole[:start] + text.encode() + whole[end:]).decode()


# ---- a change in a process that has imported the module


def functions_of(code: CodeType) -> dict[str, list[CodeType]]:
    """The functions and methods of a module or class, by name; those inside of them go with them."""
    functions: dict[str, list[CodeType]] = {}
    for inner in (constant for constant in code.co_consts if isinstance(constant, CodeType)):
        if inner.co_flags & 2:  # CO_NEWLOCALS: a function
            functions.setdefault(inner.co_qualname, []).append(inner)
        else:
            functions |= functions_of(inner)
    return functions


def apply(file: "File", old: ast.expr | ast.stmt, new: ast.expr | ast.stmt) -> bool:
    """Make a change in a module that is imported, and in what others took from it; False where that cannot be."""
    path, where = str(file.path), [ast.parse(file.source)]
    while not isinstance(where[-1], ast.FunctionDef):
        inner = (child for child in ast.iter_child_nodes(where[-1]) if _holds(child, old))
        if (child := next(inner, None)) is None:
            break
        where.append(child)
    whole = with_change(file.source, old, new)
    if isinstance(function := where[-1], ast.FunctionDef):
        inside = any(_holds(part, old) for part in function.body)
        return inside and _swap_code(file.live, compile(whole, path, "exec"))
    if len(where) > 1 and isinstance(where[1], ast.Assign | ast.AnnAssign):
        return _swap_constants(file.module, whole)
    return False


def _holds(node: ast.AST, part: ast.expr | ast.stmt) -> bool:
    first, last = getattr(node, "lineno", None), getattr(node, "end_lineno", None)
    if first is None or last is None:
        return any(_holds(child, part) for child in ast.iter_child_nodes(node))
    start, end = (first, node.col_offset), (last, node.end_col_offset)  # pyright: ignore
    return start <= (part.lineno, part.col_offset) and (part.end_lineno, part.end_col_offset) <= end


def functions_in(path: str) -> Live:
    """The functions that were defined in this file, by name."""
    live: Live = {}
    for thing in gc.get_objects():
        if type(thing) is FunctionType and thing.__code__.co_filename == path:
            live.setdefault(thing.__code__.co_qualname, []).append(thing)
    return live


def _swap_code(live: Live, code: CodeType) -> bool:
    for name, codes in functions_of(code).items():
        there = live.get(name, [])
        if len(codes) > 1 or not there or any(f.__code__.co_freevars != codes[0].co_freevars for f in there):
            return False
        for function in there:
            function.__code__ = codes[0]
    return True


def _swap_constants(module: Any, whole: str) -> bool:
    scope = dict(vars(module))
    for statement in ast.parse(whole).body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and not isinstance(
            getattr(statement, "value", None), ast.Call
        ):
            exec(compile(ast.Module([statement], []), module.__file__, "exec"), scope)
    for name in vars(module).copy():
        before, now = vars(module)[name], scope[name]
        if before is not now:
            for other in [m for m in list(sys.modules.values()) if getattr(m, "__dict__", {}).get(name) is before]:
                setattr(other, name, now)
    return True


def noting(tree: ast.Module, file: int) -> ast.Module:
    """The module with a note of its line before each statement."""
    for node in list(ast.walk(tree)):
        for part in ("body", "orelse", "finalbody"):
            if isinstance(statements := getattr(node, part, None), list) and not isinstance(node, ast.ClassDef):
                notes = [ast.parse(f"ran_line({file}, {statement.lineno})").body[0] for statement in statements]
                setattr(node, part, [one for pair in zip(notes, statements, strict=True) for one in pair])
    return ast.fix_missing_locations(tree)


def lines_with(tree: ast.Module, part: ast.expr | ast.stmt) -> set[int]:
    """The lines of statements whose tests notice a change: of its own; of a default or a constant all that may use it.

    That is the whole function, or the whole module.
    """
    holding = [node for node in ast.walk(tree) if isinstance(node, ast.stmt) and _holds(node, part)]
    own = max(holding, key=lambda node: (node.lineno, node.col_offset))
    functions = [node for node in holding if isinstance(node, ast.FunctionDef)]
    if isinstance(own, ast.FunctionDef) or functions:
        inside = any(_holds(statement, part) for node in functions for statement in node.body)
        return (
            {own.lineno} if inside else {node.lineno for node in ast.walk(functions[-1]) if isinstance(node, ast.stmt)}
        )
    return {node.lineno for node in ast.walk(tree) if isinstance(node, ast.stmt)}


# ---- tests


def in_a_fork(work: Callable[[], int], seconds: float) -> int:
    """What `work` gives, in a process of its own; 1 where it fails or takes more of the processor's time."""
    child = os.fork()
    if child == 0:
        os.setsid()
        if seconds < 1e6:
            used = time.process_time()  # of this process alone: a fork begins at 0
            resource.setrlimit(resource.RLIMIT_CPU, (int(used + seconds) + 1, resource.RLIM_INFINITY))
        status = 1
        try:
            status = work()
        finally:
            os._exit(status)
    end = time.monotonic() + 30 * seconds  # one that sleeps
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return abs(os.waitstatus_to_exitcode(status))
        time.sleep(0.005)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 1


def anew(repository: Path, tests: Sequence[str], plugins: Sequence[object] = ()) -> int:
    os.chdir(repository)
    sys.path.insert(0, str(repository))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    options = ["-x", "-q", "--assert=plain", f"--basetemp={repository.parent / 'tmp'}"]
    return int(pytest.main([*options, *tests], plugins=list(plugins)))


@dataclass
class File:
    """A module to change: its copy, its source, and the changes to try."""

    path: Path
    source: str
    changes: list[Change]
    module: Any = None
    live: Live = field(default_factory=dict)


class Collected:
    """A pytest plugin: in place of running the tests that are collected, tries every change with those that matter."""

    def __init__(self, files: Sequence[File], report: Path, quick: float):
        self.files, self.report, self.quick = files, report, quick

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        for item in session.items:
            if "golden" in item.fixturenames:  # read once, and not in every fork
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=session)
                break
        modules = {getattr(m, "__file__", None): m for m in list(sys.modules.values())}
        for file in self.files:
            file.module, file.live = modules[str(file.path)], functions_in(str(file.path))
        self.noting = [compile(noting(ast.parse(f.source), i), f.path, "exec") for i, f in enumerate(self.files)]
        gc.collect()
        gc.freeze()
        runs = [self.lines_of(item) for item in session.items]
        with self.report.open("w") as report:
            for i, file in enumerate(self.files):
                tree = ast.parse(file.source)
                for old, new in file.changes:
                    ran = {(i, line) for line in lines_with(tree, old)}
                    there = sorted((seconds, j) for j, (seconds, lines) in enumerate(runs) if ran & lines)
                    report.write(json.dumps(self.tried(file, old, new, [session.items[j] for _, j in there])) + "\n")
                    report.flush()
                file.path.write_text(file.source, encoding="utf-8")
        return True

    def tried(self, file: File, old: ast.expr | ast.stmt, new: ast.expr | ast.stmt, items: list[pytest.Item]) -> Report:
        """Whether a change survives these tests, or that they have to be collected anew to know."""
        file.path.write_text(with_change(file.source, old, new), encoding="utf-8")

        def work() -> int:
            try:
                made = apply(file, old, new)
            except Exception:
                made = False
            return self.run(items) if made else ANEW

        if not items:
            return {"survives": True, "ran": False}
        status = in_a_fork(work, self.quick * (5 + len(items)))
        if status == ANEW:
            return {"anew": [item.nodeid for item in items]}
        return {"survives": status == 0, "ran": True}

    def run(self, items: Sequence[pytest.Item]) -> int:
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if item.session.testsfailed:
                return 1
        return 0

    def lines_of(self, item: pytest.Item) -> tuple[float, set[tuple[int, int]]]:
        """How long a test takes, and which statements it runs: file, first line. None of a test that takes too long."""
        out = self.report.with_suffix(".lines")
        out.write_text("[0, []]")  # of one that takes too long

        def work() -> int:
            ran: set[tuple[int, int]] = set()
            builtins.ran_line = lambda file, line: ran.add((file, line))  # pyright: ignore[reportAttributeAccessIssue]
            for file, code in zip(self.files, self.noting, strict=True):
                _swap_code(file.live, code)
            start = time.process_time()
            failed = self.run([item])
            out.write_text(json.dumps([time.process_time() - start, sorted(ran)]))
            return failed

        if in_a_fork(work, self.quick) == 1:
            with self.report.with_suffix(".failed").open("a") as failed:
                failed.write(f"{item.nodeid} fails before any change\n")
        seconds, lines = json.loads(out.read_text())
        return seconds, {(file, line) for file, line in lines}


def chosen(path: Path, most: int | None) -> tuple[File, int]:
    """A file with the changes to try, and how many there are."""
    source = path.read_text(encoding="utf-8")
    changes = list(mutants(ast.parse(source)))
    places = range(len(changes))
    if most and most < len(changes):
        places = sorted(random.Random(0).sample(places, most))
    return File(path, source, [changes[i] for i in places]), len(changes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="modules to change, relative to the repository")
    parser.add_argument("--tests", nargs="+", required=True, help="what pytest runs for each change")
    parser.add_argument("--most", type=int, help="of each file, so many changes, drawn with a fixed seed")
    parser.add_argument("--quick", type=float, default=3.0, help="leave out tests of more seconds of processor time")
    given = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    for library in LIBRARIES:
        __import__(library)
    with TemporaryDirectory() as folder:
        copied, report = Path(folder).resolve() / "repository", Path(folder).resolve() / "report"
        shutil.copytree(ROOT, copied, ignore=lambda at, _: LEFT_OUT if Path(at) == ROOT else {"__pycache__"})
        os.environ["PYTHONPATH"] = str(copied)  # for the processes that tests start
        files = {name: chosen(copied / name, given.most) for name in given.files}
        plugin = Collected([file for file, _ in files.values()], report, given.quick)
        in_a_fork(lambda: anew(copied, given.tests, [plugin]), 1e6)
        if (failed := report.with_suffix(".failed")).exists():
            sys.exit(failed.read_text())
        results = iter(map(json.loads, report.read_text().splitlines()))
        lost = made = 0
        for name, (file, count) in files.items():
            survivors = [text for old, new in file.changes if (text := outcome(copied, file, old, new, next(results)))]
            print(*(f"{name}:{text}" for text in survivors), sep="\n")
            print(f"{name}: {len(survivors)} of {len(file.changes)} survive; there are {count} changes", flush=True)
            lost, made = lost + len(survivors), made + len(file.changes)
    print(f"{lost} of {made} changes survive ({lost / max(made, 1):.1%})")


def outcome(repository: Path, file: File, old: ast.expr | ast.stmt, new: ast.expr | ast.stmt, result: Report) -> str:
    """The change in words if it survives, else nothing."""
    if result.get("anew"):
        file.path.write_text(with_change(file.source, old, new), encoding="utf-8")
        result = {"survives": in_a_fork(lambda: anew(repository, result["anew"]), 120) == 0, "ran": True}
        file.path.write_text(file.source, encoding="utf-8")
    unseen = "" if result.get("ran") else "  (no test runs this line)"
    return f"{old.lineno}: {ast.unparse(old)} -> {ast.unparse(new)}{unseen}" if result.get("survives", True) else ""


if __name__ == "__main__":
    main()
