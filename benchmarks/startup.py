"""How long one waits for the first sign of life, and what an installation brings beside torch.

    python benchmarks/startup.py [--repeats 5]

`import`: with torch imported before. `first step`: from the command `twinblock pretrain demo` to the line of its first
step, the data packed by a first run, and the lines printed until then. Medians and extremes over the repeats, each in a
process of its own. Packages: all that `pip install twinblock` brings and torch with torchvision does not, with the
megabytes of their files.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

COMMAND = (sys.executable, "-m", "twinblock")
TIMED_IMPORT = "import torch, time; start = time.perf_counter(); import twinblock; print(time.perf_counter() - start)"


def importing() -> float:
    return float(subprocess.check_output((sys.executable, "-c", TIMED_IMPORT), text=True))


def helping() -> float:
    start = time.perf_counter()
    subprocess.check_output((*COMMAND, "--help"))
    return time.perf_counter() - start


def first_step(lines_before: set[int]) -> float:
    """Seconds until the line of a step; the run is then killed. Adds the number of lines before it."""
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        command = (*COMMAND, "pretrain", "demo", f"out={out}/run")
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
            assert run.stdout is not None
            said = []
            for line in run.stdout:
                if line.startswith("step "):
                    break
                said.append(line)
            else:
                raise SystemExit(f"no step was taken; the run said: {''.join(said)}")
            waited = time.perf_counter() - start
            run.kill()
    lines_before.add(len(said))
    return waited


def brought(name: str, found: dict[str, Distribution]) -> dict[str, Distribution]:
    """The installed package and all that it requires, by name."""
    name = canonicalize_name(name)
    if name in found:
        return found
    try:
        found[name] = distribution(name)
    except PackageNotFoundError:  # of another platform
        return found
    for text in found[name].requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            brought(requirement.name, found)
    return found


def megabytes(package: Distribution) -> float:
    paths = (Path(str(package.locate_file(file))) for file in package.files or ())
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


def report(name: str, measure: Callable[[], float], repeats: int) -> None:
    times = [measure() for _ in range(repeats)]
    print(f"{name:12} {statistics.median(times):6.2f} s ({min(times):.2f} to {max(times):.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description="Waiting for the first step, and the size of an installation.")
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TWINBLOCK_CACHE"] = cache
        lines: set[int] = set()
        first_step(lines)  # packs the data
        report("import", importing, repeats)
        report("--help", helping, repeats)
        report("first step", lambda: first_step(lines), repeats)
    print(f"lines before the first step: {max(lines)}")
    torch = brought("torchvision", brought("torch", {}))
    own = {name: package for name, package in brought("twinblock", {}).items() if name not in torch}
    sizes = sorted(((megabytes(package), name) for name, package in own.items()), reverse=True)
    largest = ", ".join(f"{name} {size:.0f}" for size, name in sizes[:5])
    print(f"beside torch and torchvision: {len(own)} packages, {sum(size for size, _ in sizes):.0f} MB ({largest})")


if __name__ == "__main__":
    main()
