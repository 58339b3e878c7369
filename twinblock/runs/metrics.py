"""The rows of `metrics.jsonl`: what a line holds, and what the monitor measured of a Learner."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

BESIDE = "agreement", "untrained"  # what a row of metrics holds of each Learner beside `diagnosis`

VECTORS = "encoder", "projector", "predictor", "prototypes", "reconstruction", "pixels"  # of which there are indicators


def history_of(rows: Iterable[Mapping[str, Any]], learner: int, start: int = 0) -> list[dict[str, Any]]:
    """What the monitor measured of one Learner since its training began, in order of time, as `verdict` takes it."""
    history = []
    for row in rows:
        if "diagnosis" in row and row["step"] >= start:
            beside = {name: row[name][learner] for name in BESIDE if row.get(name) and row[name][learner]}
            history.append({"step": row["step"], **row["diagnosis"][learner], **beside})
    return history


def parsed(line: str) -> dict[str, Any] | None:
    """A line of the metrics; None where it is none: the last one of a killed process may be cut."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        return None
    for name, valid in (
        ("loss", _is_number),
        ("lr", _is_number),
        ("diagnosis", _is_measurement),
        ("agreement", _is_pair),
        ("untrained", _is_untrained),
    ):
        values = row.get(name)
        if name in row and not (isinstance(values, list) and values and all(map(valid, values))):
            return None
    return row


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _is_measurement(row: Any) -> bool:
    """Whether it is what the monitor writes of a Learner: numbers of its outputs by name, and perhaps means, as kNN."""
    if not isinstance(row, dict) or "encoder" not in row:
        return False
    return all(
        all(map(_is_number, value.values())) if isinstance(value, dict) else _is_number(value) and name not in VECTORS
        for name, value in row.items()
    )


def _is_pair(value: Any) -> bool:
    """Whether it is a number and its error."""
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


def _is_untrained(value: Any) -> bool:
    """Whether it is what the monitor writes of an untrained Learner; null for one that begins at another step."""
    if value is None:
        return True
    return isinstance(value, dict) and _is_pair(value.get("agreement")) and _is_number(value.get("centred_rank"))
