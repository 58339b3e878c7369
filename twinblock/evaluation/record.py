"""What was measured of a run, on its disk: a file for each source of images, and the last report.

`evaluation.json` is the last report. `evaluations/<source>.json` is the last one on this source, and under `measured`
all that was ever measured on it, by a digest of weights, images and protocol.
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


def measured(run: Run, source: str) -> dict[str, Any]:
    """What was measured of a run on a source, by digest."""
    return (run.evaluation_of(source) or {}).get("measured", {})


def write(run: Run, source: str, report: Mapping[str, Any], measures: Mapping[str, Any]) -> None:
    """Write a report, and keep what it was made of beside what was measured before."""
    file = evaluation_file(source)
    try:
        (run.path / file).parent.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {run.path / file}: {error.strerror}") from None
    run.write_json(file, {**report, "measured": {**measured(run, source), **measures}})
    run.write_json("evaluation.json", report)
