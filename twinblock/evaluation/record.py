"""What was measured of a run, on its disk: a file for each source of images, and the last report.

`evaluation.json` is the last report. `evaluations/<source>.json` is the last one on this source, and under `measured`
all that was ever measured on it, by a digest of weights, images and protocol. A kept encoder has files of its own.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from twinblock.core.errors import InputError
from twinblock.runs.run import Run, evaluation_file


def hash_weights(digest: Any, network: nn.Module) -> None:
    """Add names and bytes of all tensors of a network to a digest of hashlib's."""
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def measured(run: Run, source: str, step: int | None = None) -> dict[str, Any]:
    """What was measured of a run on a source, by digest; with the `step` of a kept encoder also what was of that."""
    of_step = {} if step is None else run.evaluation_of(source, step) or {}
    return {**(run.evaluation_of(source) or {}).get("measured", {}), **of_step.get("measured", {})}


def write(run: Run, report: Mapping[str, Any], measures: Mapping[str, Any], step: int | None = None) -> None:
    """Write a report, and keep what it was made of beside what was measured before.

    That of a kept encoder, with its `step`, has a file of its own, and is not the run's last one.
    """
    file = evaluation_file(report["data"], step)
    try:
        (run.path / file).parent.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {run.path / file}: {error.strerror}") from None
    run.write_json(file, {**report, "measured": {**measured(run, report["data"], step), **measures}})
    if step is None:
        run.write_json("evaluation.json", report)
