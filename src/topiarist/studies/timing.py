"""The latency of a study's networks: cells that are computed when nothing else runs, and no arms of the table."""

from __future__ import annotations

from collections.abc import Iterable

from topiarist.measure import latency
from topiarist.studies.arms import ARMS
from topiarist.studies.cells import Cell, unfold
from topiarist.studies.job import Job, Result

REPEATS = 5
"""Times that a latency is measured."""


def latency_cell(cell: Cell) -> Cell:
    """Returns the cell that times a network: arms that train one pruned shape share it."""
    pruned = (need for need in cell.needs if need.arm == "pruned" and ARMS[cell.arm].shape == "pruned")
    return Cell("latency", cell.network, cell.data, cell.seed, cell.method, cell.budget, needs=(next(pruned, cell),))


def latency_cells(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """Returns the cells that time the networks of these cells and of all that they need, each once."""
    return tuple(dict.fromkeys(latency_cell(cell) for cell in unfold(cells) if cell.arm in ARMS))


def measure_latency(job: Job) -> Result:
    """Measures how long the network takes for one example: the best of several medians, the least disturbed one."""
    model, example = job.network(job.needs[0]), job.data.example()
    return {"latency_ms": min(latency(model, example) for _ in range(REPEATS))}
