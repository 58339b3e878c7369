"""What `twinblock estimate` says beside what then happens: seconds and memory, each in a process of its own.

    python benchmarks/estimate.py [--length 60steps] [--only TEXT] [--json FILE]

Each case is estimated, trained, and estimated again: the mean of the two estimates is compared, as a machine that
others use is not equally fast all the time. Seconds are those that the run notes in `environment.json`; memory is the
peak of the process (`ru_maxrss`).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from twinblock.studies.study import markdown

CASES = {
    "SimCLR, ResNet-10": ("simclr", ["data=photodigits"]),
    "BYOL, ResNet-18, 64 px": ("byol", ["data=photodigits", "data.size=64", "data.batch=64", "encoder=resnet18"]),
    "block by block": ("simclr", ["data=photodigits", "data.size=64", "data.batch=64", "scope=blockwise"]),
    "in parts": ("simclr", ["data=photodigits", "data.size=64", "data.batch=128", "train.micro_batch=32"]),
}
PEAK = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
ESTIMATE = "import json, sys, twinblock; print(json.dumps(twinblock.estimate(sys.argv[1], overrides=sys.argv[2:])))"
TRAIN = f"import sys, twinblock; twinblock.pretrain(sys.argv[1], overrides=sys.argv[2:], quiet=True); {PEAK}"


def run(code: str, *words: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, text=True)
    return done.stdout.splitlines()[-1]


def measure(name: str, length: str) -> dict[str, str | float]:
    recipe, fields = CASES[name]
    words = [recipe, *fields, f"train.length={length}"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        before = json.loads(run(ESTIMATE, *words))
        peak = int(run(TRAIN, *words, f"out={out}"))
        after = json.loads(run(ESTIMATE, *words))
        took = json.loads((out / "environment.json").read_text())["starts"][0]["seconds"]
        disk = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    said = (before["seconds"] + after["seconds"]) / 2
    memory = (before["memory"]["peak"] + after["memory"]["peak"]) / 2
    return {
        "run": name,
        "seconds said": round(said, 1),
        "took": took,
        "ratio": round(said / took, 2),
        "GiB said": round(memory / 2**30, 2),
        "held": round(peak / 2**30, 2),
        "ratio ": round(memory / peak, 2),
        "MiB on disk said": round(after["disk"] / 2**20, 1),
        "lay there": round(disk / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", default="60steps")
    parser.add_argument("--only", default="", help="take the cases whose name holds this text")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [measure(name, options.length) for name in CASES if options.only in name]
    print(markdown(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
