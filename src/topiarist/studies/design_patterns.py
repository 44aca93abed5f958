"""The design pattern that a study's prunings give: a cell that built arms need, and no arm of the table."""

from __future__ import annotations

from topiarist import guided
from topiarist.studies.cells import Cell
from topiarist.studies.job import PATTERN_FILE, Job, Result, architecture_in


def pattern_cell(pruned: tuple[Cell, ...]) -> Cell:
    """Returns the cell of the average over the pruned networks of all seeds."""
    first = pruned[0]
    return Cell("pattern", first.network, first.data, 0, first.method, first.budget, needs=pruned)


def average(job: Job) -> Result:
    """Averages what the prunings of all seeds keep into a design pattern."""
    pattern = guided.of(*(architecture_in(path) for path in job.needs))
    pattern.save(job.folder / PATTERN_FILE)
    return {"pattern": pattern.to_json(), "prunings": len(job.needs)}
