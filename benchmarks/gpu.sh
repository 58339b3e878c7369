#!/usr/bin/env bash
# All that waits for a GPU, in about ten minutes on one of them. First what must be right, then what it takes.
#
#     benchmarks/gpu.sh [OUT] [CIFAR10]
#
# OUT: a new folder for the logs (default runs/gpu). CIFAR10: the folder of cifar-10-batches-py; without it the runs on
# CIFAR-10 are left out. PYTHON names the interpreter (default .venv/bin/python); LIMIT the seconds of a part at the most
# (default: its own). The last lines say of each part whether it ended well, failed, or was stopped for time.
# Beyond ten minutes, for docs/results: the commands at the end of this file.
set -u
cd "$(dirname "$0")/.."
OUT=${1:-runs/gpu} CIFAR10=${2:-} PYTHON=${PYTHON:-.venv/bin/python}
mkdir -p "$OUT"
: > "$OUT/summary.txt"

part() { # NAME SECONDS COMMAND...
    local name=$1 seconds=${LIMIT:-$2} began=$SECONDS
    shift 2
    timeout --kill-after=10 "$seconds" "$@" > "$OUT/$name.log" 2>&1
    local code=$?
    case $code in 0) code=ended ;; 124 | 137) code="stopped after $seconds s" ;; *) code="failed with $code" ;; esac
    printf '%-22s %5s s  %s\n' "$name" $((SECONDS - began)) "$code" | tee -a "$OUT/summary.txt"
}

part machine 20 sh -c 'nvidia-smi; "$0" -c "import torch; print(torch.__version__, torch.cuda.is_available())"' "$PYTHON"

# right: views, losses, steps, kills and every recipe for some steps, on the GPU that the tests find
part tests 120 "$PYTHON" -m pytest -q -p no:cacheprovider -m "not slow" \
    tests/views tests/test_optim.py tests/training/test_step.py tests/training/test_resume.py tests/nn/test_layers.py \
    tests/core/test_distributed.py tests/evaluation/test_features.py
part deterministic 60 sh -c '
    for i in 1 2; do
        "$0" -m twinblock pretrain demo train.length=60steps train.deterministic=true out="$1/deterministic-$i" || exit 1
    done
    "$0" - "$1" <<CODE
import sys
import torch
import twinblock
a, b = (twinblock.load_encoder(f"{sys.argv[1]}/deterministic-{i}").state_dict() for i in (1, 2))
different = [name for name in a if not torch.equal(a[name], b[name])]
print("equal" if not different else f"different: {different[:3]}")
sys.exit(bool(different))
CODE' "$PYTHON" "$OUT"

# what it takes
part throughput 180 "$PYTHON" benchmarks/throughput.py --steps 20 --rounds 5 --batch 512 --compiled
part memory 60 "$PYTHON" benchmarks/memory.py --models resnet50 --batch 32 --repeats 5 --memory 80
part monitor 40 "$PYTHON" benchmarks/monitor.py demo byol
part pruned 40 "$PYTHON" benchmarks/pruned.py encoder.kind=resnet18
part estimate 30 "$PYTHON" -m twinblock estimate simclr
if [ -n "$CIFAR10" ]; then
    part cifar10_epochs 120 "$PYTHON" -m twinblock pretrain simclr data=cifar10 data.root="$CIFAR10" \
        encoder=resnet18 encoder.stem=cifar data.batch=512 train.length=5epochs out="$OUT/cifar10"
    part cifar10_evaluate 60 "$PYTHON" -m twinblock evaluate "$OUT/cifar10"
fi
if [ "$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')" -gt 1 ]; then
    part two_processes 60 "$PYTHON" -m torch.distributed.run --nproc-per-node 2 -m twinblock pretrain demo \
        encoder.norm=sync train.length=60steps out="$OUT/two"
    part blocks 60 "$PYTHON" -m torch.distributed.run --nproc-per-node 2 -m twinblock pretrain demo \
        scope=blockwise train.parallel=blocks train.length=60steps out="$OUT/blocks"
fi
echo "logs: $OUT"

# Longer runs of the ledger, each resumable by the same command (ROOT: data.root=... of the data):
#   twinblock pretrain simclr data=cifar10 ROOT encoder=resnet18 encoder.stem=cifar train.length=100epochs
#     published by others at 100 epochs: 85.6 % linear; expect 4 to 5.5 minutes on an H100
#   twinblock pretrain simclr data=cifar10 ROOT ... scope=blockwise scope.pool=l2 scope.grid=2 train.length=100epochs
#   twinblock pretrain sdclr_cifar100_lt ROOT train.length=2000epochs    published: 55.0 against 50.7 of SimCLR
#   twinblock reproduce byol-norms data=cifar10 ROOT    twinblock reproduce longtail data=cifar10 ROOT
