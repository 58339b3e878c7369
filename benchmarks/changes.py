"""Single changes of a module: which there are, and how one is made in a process that has imported it.

Operators, comparisons, conditions, numbers and truth values are changed, arguments and calls left out, one at a time.
Messages, annotations, decorators, assertions and docstrings are left out.
"""

import ast
import copy
import gc
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

OTHER = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
PLAIN = (ast.Name, ast.Attribute, ast.Call)  # conditions without an operator of their own

Change = tuple[ast.expr | ast.stmt, ast.expr | ast.stmt]
Live = dict[str, list[FunctionType]]


@dataclass
class File:
    """A module to change: its copy, its source, and the changes to try."""

    path: Path
    source: str
    changes: list[Change]
    module: Any = None
    live: Live = field(default_factory=dict)


def chosen(path: Path, most: int | None) -> tuple[File, int]:
    """A file with the changes to try, and how many there are."""
    source = path.read_text(encoding="utf-8")
    changes = list(mutants(ast.parse(source)))
    places = range(len(changes))
    if most and most < len(changes):
        places = sorted(random.Random(0).sample(places, most))
    return File(path, source, [changes[i] for i in places]), len(changes)


def mutants(node: ast.AST) -> Iterator[Any]:
    """The changes (`Change`) below a node, each as the expression or statement and what stands in its place."""
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
        case ast.Constant(value=int(number)):
            yield node, ast.Constant(number + 1)
        case ast.Constant(value=float(number)):
            yield node, ast.Constant(number * 1.5 or 1.0)
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
        if inner.co_name.startswith("<"):  # a comprehension, which has run
            continue
        if inner.co_flags & 2:  # CO_NEWLOCALS: a function
            functions.setdefault(inner.co_qualname, []).append(inner)
        else:
            functions |= functions_of(inner)
    return functions


def apply(file: File, old: ast.expr | ast.stmt, new: ast.expr | ast.stmt) -> bool:
    """Make a change in a module that is imported, and in what others took from it; False where that cannot be."""
    path = str(file.path)
    where: list[ast.AST] = [ast.parse(file.source)]
    while not isinstance(where[-1], ast.FunctionDef):
        inner = (child for child in ast.iter_child_nodes(where[-1]) if _holds(child, old))
        if (child := next(inner, None)) is None:
            break
        where.append(child)
    whole = with_change(file.source, old, new)
    if isinstance(function := where[-1], ast.FunctionDef):
        inside = any(_holds(part, old) for part in function.body)
        return inside and swap_code(file.live, compile(whole, path, "exec"))
    if len(where) > 1 and _is_constant(where[1]):
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


def swap_code(live: Live, code: CodeType) -> bool:
    for name, codes in functions_of(code).items():
        there = live.get(name, [])
        if len(codes) > 1 or not there or any(f.__code__.co_freevars != codes[0].co_freevars for f in there):
            return False
        for function in there:
            function.__code__ = codes[0]
    return True


def _is_constant(statement: ast.AST) -> bool:
    """Whether this sets a name to what is no call: what that makes, such as a class or a lock, others hold already."""
    return isinstance(statement, ast.Assign | ast.AnnAssign) and not isinstance(statement.value, ast.Call)


def _swap_constants(module: Any, whole: str) -> bool:
    scope = dict(vars(module))
    for statement in ast.parse(whole).body:
        if _is_constant(statement):
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
