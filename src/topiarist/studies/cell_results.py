"""The result of a cell, whose form is checked before anything is computed from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from topiarist.studies.cells import damaged_result, read_result

NUMBERS = ("accuracy", "macs", "params", "ratio", "bytes", "epochs", "seconds", "latency_ms", "proof")
"""The keys whose values are numbers, where a result has them."""

LARGEST = 1e30
"""No number is larger, not even the bytes and MACs of the largest networks."""


def checked_result(path: Path, needed: str = "") -> dict[str, Any]:
    """Returns the result in the folder of a finished cell.

    Args:
        path: the folder.
        needed: a key that it must have.

    Raises:
        TopiaristError: the file cannot be read, or holds what no cell of a study gives.
    """
    values = read_result(path)
    if not _is_result(values) or (needed and values.get(needed) is None):
        raise damaged_result(path)
    return values


def _is_result(values: dict[str, Any]) -> bool:
    """Returns whether what reports read of a result has the form that it should have."""
    if not all(_is_number(values[name]) for name in NUMBERS if values.get(name) is not None):
        return False
    widths, kernels, scores = (values.get(name, {}) for name in ("widths", "kernels", "scores"))
    latency = values.get("latency", {})
    if not all(isinstance(each, dict) for each in (widths, kernels, scores, latency)):
        return False
    if not all(isinstance(each, dict) and all(map(_is_number, _numbers(each))) for each in latency.values()):
        return False
    if not all(isinstance(sizes, dict) for sizes in kernels.values()):
        return False
    counts = [scores[name] for name in ("edges", "kept", "removed") if name in scores]
    lists = [*widths.values(), *(kept for sizes in kernels.values() for kept in sizes.values()), *counts]
    return (
        0 <= (values.get("accuracy") or 0) <= 100
        and all(isinstance(each, list) and all(map(_is_number, each)) for each in lists)
        and all(len(pair) == 2 for pair in widths.values())
    )


def _numbers(reading: dict[str, Any]) -> list[Any]:
    """Returns the median and its interval of a latency on a target, where it was measured."""
    return [reading[name] for name in ("value", "low", "high") if reading.get(name) is not None]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
