"""Which single changes of the code pass its tests: `python benchmarks/mutants.py FILE... --tests PATH...`.

Prints each change that no test notices, as `file:line: before -> after`, then the counts. A survivor is a missing test,
or a change that means nothing. `changes.py` says what is changed.

The tests are collected once, and each is run once to see which statements it runs. For a change of a statement, those
tests run again, the quickest first, until one fails; for a change of a default, those of its function; for a change of
a constant, those of its module, and those that run nothing of it, as they may read it. It is made in a fork of that
process, in the functions and constants that are there, and in a copy of the repository, for processes that tests start;
where that is not enough (fields of a schema, say), the tests are collected anew. So it needs Linux or macOS.
"""

import argparse
import ast
import builtins
import gc
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from changes import Change, File, apply, chosen, functions_in, lines_with, noting, swap_code, with_change

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "torchvision", "timm", "numpy", "jaxtyping", "beartype", "pydantic", "sklearn", "PIL")
LEFT_OUT = {".git", ".venv", "runs"}  # of the repository itself
Report = dict[str, Any]
ANEW = 77  # exit status: the change cannot be made in an imported module


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
    end = time.monotonic() + 30 + 5 * seconds  # one that sleeps
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
    options = ["-x", "-q", "--assert=plain", "-m", "not slow", f"--basetemp={repository.parent / 'tmp'}"]
    return int(pytest.main([*options, *tests], plugins=list(plugins)))


class Collected:
    """A pytest plugin: in place of running the tests that are collected, tries every change with those that matter."""

    def __init__(self, files: Sequence[File], report: Path, quick: float):
        self.files, self.report, self.quick = files, report, quick

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        for item in session.items:
            if "golden" in getattr(item, "fixturenames", ()):  # read once, and not in every fork
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=session)
                break
        modules = {getattr(m, "__file__", None): m for m in list(sys.modules.values())}
        for file in self.files:
            file.module, file.live = modules[str(file.path)], functions_in(str(file.path))
        self.noting = [compile(noting(ast.parse(f.source), i), f.path, "exec") for i, f in enumerate(self.files)]
        gc.collect()
        gc.freeze()
        runs = [self.lines_of(item) for item in session.items]
        if self.report.with_suffix(".failed").exists():
            return True
        with self.report.open("w") as report:
            for i, file in enumerate(self.files):
                tree = ast.parse(file.source)
                every = {node.lineno for node in ast.walk(tree) if isinstance(node, ast.stmt)}
                for change in file.changes:
                    with_it = lines_with(tree, change[0])
                    constant = with_it == every  # a test may read it, and run nothing
                    ran = {(i, line) for line in with_it}
                    there = sorted(
                        (seconds, j)
                        for j, (seconds, lines) in enumerate(runs)
                        if ran & lines or (constant and seconds and not lines)
                    )
                    limit = 4 + 3 * sum(seconds for seconds, _ in there)
                    tried = self.tried(file, change, [session.items[j] for _, j in there], limit)
                    report.write(json.dumps(tried) + "\n")
                    report.flush()
                file.path.write_text(file.source, encoding="utf-8")
        return True

    def tried(self, file: File, change: Change, items: list[pytest.Item], limit: float) -> Report:
        """Whether a change survives these tests, or that they have to be collected anew to know."""
        file.path.write_text(with_change(file.source, *change), encoding="utf-8")

        def work() -> int:
            try:
                made = apply(file, *change)
            except Exception:
                made = False
            return self.run(items) if made else ANEW

        if not items:
            return {"survives": True, "ran": False}
        status = in_a_fork(work, limit)
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
                assert swap_code(file.live, code), file.path
            start = time.process_time()
            failed = self.run([item])
            out.write_text(json.dumps([time.process_time() - start, sorted(ran)]))
            return failed

        # processes that it starts have the same limit, and it may fail where they die of it
        if in_a_fork(work, self.quick) == 1 and in_a_fork(lambda: self.run([item]), 60) == 1:
            with self.report.with_suffix(".failed").open("a") as failed:
                failed.write(f"{item.nodeid} fails before any change\n")
        seconds, lines = json.loads(out.read_text())
        return seconds, {(file, line) for file, line in lines}


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
            survivors = [text for change in file.changes if (text := outcome(copied, file, change, next(results)))]
            print(*(f"{name}:{text}" for text in survivors), sep="\n")
            print(f"{name}: {len(survivors)} of {len(file.changes)} survive; there are {count} changes", flush=True)
            lost, made = lost + len(survivors), made + len(file.changes)
    print(f"{lost} of {made} changes survive ({lost / max(made, 1):.1%})")


def outcome(repository: Path, file: File, change: Change, result: Report) -> str:
    """The change in words if it survives, else nothing."""
    old, new = change
    if result.get("anew"):
        file.path.write_text(with_change(file.source, *change), encoding="utf-8")
        result = {"survives": in_a_fork(lambda: anew(repository, result["anew"]), 120) == 0, "ran": True}
        file.path.write_text(file.source, encoding="utf-8")
    unseen = "" if result.get("ran") else "  (no quick test runs this)"
    return f"{old.lineno}: {ast.unparse(old)} -> {ast.unparse(new)}{unseen}" if result.get("survives", True) else ""


if __name__ == "__main__":
    main()
