"""Which single changes of the code pass its tests: `python benchmarks/mutants.py FILE... --tests PATH...`.

Operators, comparisons, numbers and truth values are changed one at a time, in a temporary copy of the repository; the
tests run until the first failure. Prints each change that no test notices, as `file:line: before -> after`, then the
counts. A survivor is a missing test, or a change that means nothing. Messages, annotations and docstrings are left out.
Each run is a fork of a process that has imported the libraries, so it needs Linux or macOS.
"""

import argparse
import ast
import copy
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pytest", "jaxtyping", "beartype", "pydantic", "sklearn", "PIL")
LEFT_OUT = {".git", ".venv", "runs"}  # of the repository itself
OTHER = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


def mutants(node: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, ast.expr | ast.stmt]]:
    """The changes below a node, each as the expression or statement and what stands in its place."""
    match node:
        case ast.Raise() | ast.JoinedStr() | ast.Import() | ast.ImportFrom():
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
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "msg", "slice") and not isinstance(node, ast.Subscript):
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


def passes(copy_of_repository: Path, tests: list[str], limit: float) -> bool:
    """Whether the tests pass, in a process of their own and within `limit` seconds."""
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(copy_of_repository)
        sys.path.insert(0, str(copy_of_repository))
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        import pytest

        os._exit(pytest.main(["-x", "-q", "--assert=plain", *tests]))
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def survivors(copy_of_repository: Path, file: str, tests: list[str]) -> tuple[list[str], int]:
    """The changes of a file that its tests do not notice, and how many were made."""
    path = copy_of_repository / file
    source, found, count = path.read_text(encoding="utf-8"), [], 0
    start = time.monotonic()
    if not passes(copy_of_repository, tests, 600):
        sys.exit(f"the tests of {file} fail before any change")
    limit = 10 + 5 * (time.monotonic() - start)
    for old, new in mutants(ast.parse(source)):
        path.write_text(with_change(source, old, new), encoding="utf-8")
        count += 1
        if passes(copy_of_repository, tests, limit):
            found.append(f"{file}:{old.lineno}: {ast.unparse(old)} -> {ast.unparse(new)}")
            print(found[-1], flush=True)
    path.write_text(source, encoding="utf-8")
    return found, count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="modules to change, relative to the repository")
    parser.add_argument("--tests", nargs="+", required=True, help="what pytest runs for each change")
    given = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    for library in LIBRARIES:
        __import__(library)
    with TemporaryDirectory() as folder:
        copied = Path(folder) / "repository"
        shutil.copytree(ROOT, copied, ignore=lambda at, _: LEFT_OUT if Path(at) == ROOT else {"__pycache__"})
        os.environ["PYTHONPATH"] = str(copied)  # for the processes that tests start
        results = [survivors(copied, file, given.tests) for file in given.files]
    lost, made = sum(len(found) for found, _ in results), sum(count for _, count in results)
    print(f"{lost} of {made} changes survive ({lost / max(made, 1):.1%})")


if __name__ == "__main__":
    main()
