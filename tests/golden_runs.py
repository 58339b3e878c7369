"""Short runs of every target, objective, scope and precision, and what they give to the last bit.

`python tests/golden_runs.py check` compares with `tests/golden/runs.json`; `record` writes that file. A refactoring
changes no bit: record before it, check after every step. Bits depend on the processor and on torch, so a digest stands
beside the machine that it was recorded on; elsewhere the numbers beside it are compared within rounding.
"""

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

FILE = Path(__file__).parent / "golden" / "runs.json"
SMALL = ("data.batch=32", "encoder.kind=resnet10", "encoder.width=8", "encoder.stem=cifar")
SHORT = ("train.length=7steps", "train.checkpoint_every=3steps", "optim.warmup=2steps", "projector.dims=[24,8]")
LAYERED = ("projector.norm=layer", "predictor.norm=layer")
PREDICTED = ("predictor.dims=[24,8]",)
VGG = "encoder={kind: vgg6, width: 8, norm: batch, stem: standard}"
BLOCKWISE, FP64 = "scope.kind=blockwise", "train.precision=fp64"
CROPS = "views=[{crop: [0.4, 1.0], count: 2}, {like: 0, crop: [0.1, 0.4], size: 16, count: 2}]"
PRUNED = ("target={kind: pruned, ratio: 0.5, every: 2steps, random: 0.1}",)
EMA = ("target={kind: ema, momentum: 0.9}",)

LAYERS = "encoder={kind: mlp, width: [24, 16], stem: standard, norm: rms}"
PROBABILITIES = "encoder={kind: sigmoid_mlp, width: [24, 16], stem: standard, norm: none}"
REFLECTED = "encoder={kind: convs, width: [8, 12], stem: standard, norm: standard}"
GRID = ("learner.patch=8", "learner.stride=4", "learner.steps=1")

# name: recipe, overrides
RUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "simclr fp32": ("simclr", ("train.precision=fp32",)),
    "simclr bf16": ("simclr", ("train.precision=bf16",)),
    "simclr fp64": ("simclr", (FP64,)),
    "simclr blockwise": ("simclr", (FP64, BLOCKWISE, "scope.cuts=blocks")),
    "byol": ("byol", (*PREDICTED, FP64)),
    "byol averaged buffers, fp32": ("byol", (*PREDICTED, "train.precision=fp32", "target.buffers=average")),
    "byol sequential": ("byol", (*PREDICTED, FP64, BLOCKWISE, "scope.plan=sequential")),
    "byol overlapping": ("byol", (*PREDICTED, FP64, "scope.kind=overlapping")),
    "byol pruned": ("byol", (*PREDICTED, FP64, *PRUNED)),
    "simsiam": ("simsiam", (*PREDICTED, FP64, "optim.clip=1.0")),
    "moco": ("moco_v2", (FP64, "objective.queue=80")),
    "moco pruned, blockwise": ("moco_v2", (FP64, "objective.queue=80", BLOCKWISE, *PRUNED)),
    "moco without norms": ("moco_v2", (FP64, "objective.queue=80", "encoder.norm=none")),
    "sdclr": ("sdclr", ("train.precision=fp32", "target.every=2steps")),
    "sdclr with standardised weights": ("sdclr", (FP64, "encoder.norm=group8+ws", "target.random=0.2")),
    "barlow twins": ("barlow_twins", (FP64,)),
    "barlow twins, expansion and noise": (
        "barlow_twins",
        (FP64, "scope={kind: blockwise, expand: 160, noise: 0.25, pool: l2, grid: 2}"),
    ),
    "vicreg sequential": ("vicreg", (FP64, BLOCKWISE, "scope.plan=sequential")),
    "vicreg ema": ("vicreg", (FP64, *EMA)),
    "supervised": ("supervised", (FP64, "projector.dims=[classes]")),
    "supervised overlapping": ("supervised", (FP64, "scope.kind=overlapping", "projector.dims=[classes]")),
    "moco v3": ("moco_v3", (*PREDICTED, FP64)),
    "nnclr": ("nnclr", (*PREDICTED, FP64, "objective.queue=80")),
    "dcl": ("dcl", (FP64,)),
    "sup con": ("sup_con", (FP64,)),
    "pcl": ("pcl", (FP64, "objective.queue=20", "objective.clusters=[10,60]", "objective.warmup=0epochs")),
    "dino, small crops": (
        "dino",
        (
            *(FP64, "projector.prototypes=12", "objective.first_temperature=0.08", "objective.warmup=3steps"),
            *("optim.freeze_prototypes=2steps", "optim.weight_decay_end=0.01", "optim.clip_each=1.0", CROPS),
        ),
    ),
    "swav with a queue, blockwise": ("swav", (FP64, "objective.prototypes=12", "objective.queue=80", BLOCKWISE)),
    "lpl in blocks": ("lpl", (FP64, VGG)),
    "hinge, soft, in blocks": ("clapp_pp", (FP64, VGG, "objective.soft=true", "predictor.dims=[same]")),
    "forward-forward": ("forward_forward", (FP64, LAYERS, "learner.threshold=1.0")),
    "scff sequential": ("scff", (FP64, REFLECTED, "scope.plan=sequential", "learner.penalty=[0.01]")),
    "dbn": ("dbn", (FP64, PROBABILITIES, "learner.chains=6", "learner.steps=2")),
    "dbn of real pixels": (
        "dbn",
        (FP64, PROBABILITIES, "learner.chains=null", "learner.visible=gaussian", "data.mean=auto", "data.std=auto"),
    ),
    "vae": ("vae", (FP64, LAYERS, "learner.code=4", "learner.decoder_width=12")),
    "greedy infomax": ("greedy_infomax", (FP64, "encoder.norm=none", *GRID, "learner.negatives=5")),
    "clapp": ("clapp", (FP64, "encoder.norm=none", *GRID)),
    "local losses": (
        "local_losses",
        (FP64, "encoder={kind: vgg8b, width: 8, norm: batch, stem: standard}", "learner.inputs=64"),
    ),
    "direct feedback": ("direct_feedback_simclr", (FP64, VGG)),
    "drtp, fp32": ("direct_feedback", ("train.precision=fp32", VGG, "scope.credit=drtp", "projector.dims=[classes]")),
    "feedback alignment": ("byol", (*PREDICTED, FP64, "scope.credit=feedback_alignment")),
    "settings of a block": (
        "simclr",
        (FP64, "scope={kind: blockwise, per_block: {2: {objective: {temperature: 0.5}, optim: {lr: 0.01}}}}"),
    ),
    "a ViT in blocks": (
        "simclr",
        (FP64, "encoder={kind: vit_tiny_patch16_224, width: null, stem: standard}", BLOCKWISE, "scope.cuts=[blocks.6]"),
    ),
}
# norms that agree on any number of processes
ON_TWO = {
    "simclr, two processes": ("simclr", (FP64, "encoder.norm=sync", "projector.norm=sync")),
    "byol in blocks, two processes": (
        "byol",
        (
            *PREDICTED,
            FP64,
            BLOCKWISE,
            "encoder.norm=group8",
            "projector.norm=layer",
            "predictor.norm=layer",
            "optim.lr=0.2",
        ),
    ),
    "sdclr, two processes": (
        "sdclr",
        (FP64, "encoder.norm=sync", "projector.norm=sync", "target.every=2steps"),
    ),
}


def machine() -> str:
    """What the last bits depend on."""
    flags = torch.backends.cpu.get_cpu_capability()
    fast = [name for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported") if getattr(torch.cpu, name)()]
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    return f"{model.partition(': ')[2]}, {platform.machine()}, {flags}, {' '.join(fast)}, torch {torch.__version__}"


def overrides(name: str, photos: Path) -> list[str]:
    _, own = (RUNS | ON_TWO)[name]
    return [f"data={photos}", *SMALL, *short(own)]


def short(own: tuple[str, ...]) -> list[str]:
    """The overrides of a run with what makes it short; learners that are not siamese have no projector."""
    siamese = not any(word.startswith("learner.") for word in own)
    return [*(word for word in SHORT if siamese or not word.startswith("projector.")), *own]


def make_photos(folder: Path) -> Path:
    """96 images of 16 px of three classes, each of another mean colour."""
    rng = np.random.Generator(np.random.PCG64(0))
    for i in range(96):
        pixels = rng.integers(0, 120, (16, 16, 3), dtype=np.uint8)
        pixels[:, :, i % 3] += 100
        (folder / f"class{i % 3}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"class{i % 3}" / f"{i:02}.png")
    return folder


def outcome(run: Path) -> dict[str, Any]:
    """Digests of weights, checkpoint and metrics of a finished run, and some numbers that other machines come near."""
    from safetensors.torch import load_file

    weights = load_file(run / "encoder.safetensors")
    saved = load_file(run / "checkpoint" / "last.safetensors")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    looks = [(row["step"], row["diagnosis"]) for row in rows if "diagnosis" in row]
    return {
        "weights": _digest(f"{name} {_bytes(tensor)}" for name, tensor in sorted(weights.items())),
        # names may change, tensors may not
        "checkpoint": _digest(sorted(_bytes(tensor) for tensor in saved.values())),
        "metrics": _digest([json.dumps(losses), json.dumps(looks, sort_keys=True)]),
        "losses": losses,
        "norms": {name: float(tensor.double().norm()) for name, tensor in sorted(weights.items())},
    }


def _bytes(tensor: torch.Tensor) -> str:
    content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(content).hexdigest()}"


def _digest(parts: Any) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def carry_out(name: str, folder: Path) -> dict[str, Any]:
    """Train and give the outcome; runs of two processes start them."""
    out, photos = folder / re.sub(r"\W+", "-", name), folder / "photos"
    recipe, _ = (RUNS | ON_TWO)[name]
    if not photos.is_dir():
        make_photos(photos)
    if name in RUNS:
        import twinblock

        torch.set_num_threads(1)
        twinblock.pretrain(recipe, overrides=overrides(name, photos), out=out, quiet=True)
    else:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
        command = [*torchrun, "-m", "twinblock", "pretrain", recipe, *overrides(name, photos), f"out={out}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, capture_output=True, env=environment, timeout=300)
    return outcome(out)


def differences(expected: dict[str, Any], found: dict[str, Any], exact: bool, double: bool) -> list[str]:
    """What is not as recorded: any bit on the machine of the record, else any number beyond rounding."""
    if exact:
        return [part for part in ("weights", "checkpoint", "metrics") if expected[part] != found[part]]
    # views are made in float32, whose last bit depends on the processor; training makes more of it with every step
    first, later = (1e-6, 2e-3) if double else (2e-3, 5e-2)
    rows = [[*zip(x, y, strict=True)] for x, y in zip(expected["losses"], found["losses"], strict=True)]
    assert expected["norms"].keys() == found["norms"].keys()
    rows.append([(expected["norms"][key], found["norms"][key]) for key in expected["norms"]])
    return [
        f"{a} was {b}"
        for i, pairs in enumerate(rows)
        for a, b in pairs
        if abs(a - b) > (later if i else first) * max(1.0, abs(a))
    ]


def main(verb: str, names: list[str]) -> int:
    names = names or [*RUNS, *ON_TWO]
    record = json.loads(FILE.read_text()) if FILE.exists() else {}
    bad = 0
    with TemporaryDirectory() as folder:
        for name in names:
            found = carry_out(name, Path(folder))
            if verb == "record":
                record[name] = {"machine": machine(), **found}
                FILE.write_text(json.dumps(record, indent=1) + "\n")
                print("recorded", name, flush=True)
                continue
            double = FP64 in (RUNS | ON_TWO)[name][1]
            wrong = differences(record[name], found, record[name]["machine"] == machine(), double)
            bad += bool(wrong)
            print("FAIL" if wrong else "same", name, *wrong[:3], flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
