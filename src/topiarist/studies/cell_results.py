"""What a cell of a study says: a result whose form is checked, before anything counts with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from topiarist.studies.cells import no_result, read_result

NUMBERS = ("accuracy", "macs", "params", "ratio", "bytes", "epochs", "seconds", "latency_ms", "proof")
"""What results say in a number, where they say it."""

MOST = 1e30
"""What no number is beyond: not even the bytes and MACs of the largest networks."""


def checked_result(place: Path, needed: str = "") -> dict[str, Any]:
    """The result in the folder of a finished cell.

    Args:
        place: the folder.
        needed: a number that has to be there.

    Raises:
        TopiaristError: if the file cannot be read, or holds what no cell of a study says.
    """
    values = read_result(place)
    if not _is_result(values) or (needed and values.get(needed) is None):
        raise no_result(place)
    return values


def _is_result(values: dict[str, Any]) -> bool:
    """Whether what reports read of a result has the form that it should have."""
    if not all(map(_is_number, (values.get(name) for name in NUMBERS))):
        return False
    if not 0 <= (values.get("accuracy") or 0) <= 100:
        return False
    widths, kernels, scores = (values.get(name, {}) for name in ("widths", "kernels", "scores"))
    if not all(isinstance(each, dict) for each in (widths, kernels, scores)):
        return False
    if not all(isinstance(sizes, dict) for sizes in kernels.values()):
        return False
    counts = [scores[name] for name in ("edges", "kept", "removed") if name in scores]
    lines = [*widths.values(), *(kept for sizes in kernels.values() for kept in sizes.values()), *counts]
    return all(isinstance(line, list) and None not in line and all(map(_is_number, line)) for line in lines) and all(
        len(pair) == 2 for pair in widths.values()
    )


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MOST)
