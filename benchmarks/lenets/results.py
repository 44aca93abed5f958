"""What has been computed: the finished cells of this run, and of earlier ones, as ``lenets.json`` keeps them.

A result is found by its cell's key, which follows from all that the cell is made of: what has changed is computed anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from bench import Result

from topiarist.files import write_json
from topiarist.studies import Cell
from topiarist.studies.cells import finished, result, unfold

Results = dict[str, Result]
"""Key of a cell → its result."""


def load(file: Path) -> Results:
    """The results that a file keeps; none where there is no file."""
    if not file.exists():
        return {}
    found: Results = json.loads(file.read_text())
    return found


def add(known: Results, out: Path, cells: Iterable[Cell]) -> None:
    """Take in what a run has finished of these cells and of all that they need."""
    known.update({cell.key: result(out, cell) for cell in unfold(cells) if finished(out, cell)})


def save(known: Results, file: Path) -> None:
    """Write them in one step."""
    write_json(file, known)
