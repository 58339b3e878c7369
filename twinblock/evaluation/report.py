"""What `evaluate` says of its rows: errors beside accuracies, the sizes of the sets, groups of classes, a hint."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from twinblock.evaluation.depth import BLOCK
from twinblock.runs.run import Run

ENCODER = "encoder"
NOT_ACCURACIES = ("rank %",)


def standard_error(percent: float, tested: int) -> float:
    """Of an accuracy in percent on so many test images, in points: that of a binomial share."""
    return 100 * math.sqrt(percent / 100 * (1 - percent / 100) / tested)


def table(rows: Sequence[Mapping[str, Any]], tested: int) -> list[dict[str, Any]]:
    """Rows to print: each accuracy with its standard error on `tested` images."""

    def cell(name: str, value: Any) -> Any:
        if not isinstance(value, float) or not name.endswith("%") or name in NOT_ACCURACIES:
            return value
        return f"{value:5.1f} ± {standard_error(value, tested):.1f}"

    return [{name: cell(name, value) for name, value in row.items()} for row in rows]


def sizes(report: Mapping[str, Any]) -> str:
    """How many images the probes of a report were fitted to and tested on, and what its errors are."""
    counts = f"probes fitted to {report['train']:,} images, tested on {report['test']:,}"
    return f"{counts}; ±: standard error of the accuracy on that many test images"


def better_block(report: Mapping[str, Any]) -> str | None:
    """A hint where the linear probe of an earlier block is better than the last one's by two standard errors."""
    blocks = [row for row in report["rows"] if row["features"].startswith(BLOCK)]
    if len(blocks) < 2 or report.get("pooling"):
        return None
    best, last = max(blocks, key=lambda row: row["linear %"]), blocks[-1]
    errors = (standard_error(row["linear %"], report["test"]) for row in (best, last))
    if best["linear %"] - last["linear %"] <= 2 * math.hypot(*errors):
        return None
    number = best["features"].removeprefix(BLOCK)
    return (
        f"block {number} is better than the last one (linear {best['linear %']:.1f} against {last['linear %']:.1f} %): "
        f"embed and load_encoder take its features with block={number}"
    )


def group_rows(run: Run) -> list[dict[str, Any]]:
    """The groups that the last `evaluate` wrote, of the encoder, as a table; none after training on equal classes."""
    return groups_of(run.evaluation or {})


def groups_of(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The groups of a report, of the encoder."""
    return [
        {"evaluator": group["evaluator"], "groups": name, **group["groups"][name]}
        for group in report.get("groups", [])
        if group["features"] == ENCODER
        for name in group["groups"]
    ]
