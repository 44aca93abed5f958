"""Runs the cells of a study: skips those that are finished, and goes on where one fails.

The folders of the finished cells are the whole state of a run, so a run may be stopped in any way and at any moment;
the next one goes on. Workers, on this machine or elsewhere, share these folders and nothing else.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from topiarist.files import locked
from topiarist.studies.cells import Cell, Work, finished, prepare, unfold
from topiarist.studies.executors.base import Executor, Pool
from topiarist.studies.executors.local import Local

State = Literal["reused", "started", "finished", "failed", "blocked"]


@dataclass(frozen=True)
class Event:
    """A change in the state of a cell; ``blocked``: not tried, for a cell that it needs has failed."""

    cell: Cell
    state: State
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: keys of cells that were there, that were computed, and that failed (with one sentence each)."""

    reused: tuple[str, ...] = ()
    finished: tuple[str, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether all cells are finished."""
        return not self.failed


Progress = Callable[[Event], None]


def run_cells(
    cells: Iterable[Cell],
    out: Path,
    work: Work,
    *,
    executor: Executor | None = None,
    workers: int = 1,
    preload: Sequence[str] = (),
    progress: Progress | None = None,
) -> Outcome:
    """Computes cells and all that they need.

    Args:
        cells: in any order.
        out: folder of the study.
        work: computes one cell; with several workers a function of a module, for it is sent to other processes.
        executor: where the cells are computed; by default on this machine.
        workers: without an executor, how many cells are computed at a time; 1 computes them in this process.
        preload: modules that the processes share, loaded once.
        progress: called with every `Event`.

    Raises:
        TopiaristError: the folder cannot be written, or another run is using it.
        KeyboardInterrupt: after the processes have been stopped; run again to go on.
    """
    prepare(out)
    with locked(out):
        return compute_cells(cells, out, work, executor or Local(workers), preload, progress or (lambda event: None))


def compute_cells(
    cells: Iterable[Cell], out: Path, work: Work, executor: Executor, preload: Sequence[str], report: Progress
) -> Outcome:
    """Does what `run_cells` does, in a folder that is prepared and that the caller has locked."""
    wanted = unfold(cells)
    reused = [cell for cell in wanted if finished(out, cell)]
    for cell in reused:
        report(Event(cell, "reused"))
    keys = tuple(cell.key for cell in reused)
    queue = _Queue([cell for cell in wanted if cell.key not in keys], set(keys))
    if not queue.ready:
        return Outcome(keys)
    done, failed = _compute_all(queue, executor.pool(out, work, preload), report)
    return Outcome(keys, tuple(done), failed)


class _Queue:
    """Cells to compute, in their order; a cell is ready once the cells that it needs are finished."""

    def __init__(self, cells: Sequence[Cell], done: set[str]) -> None:
        self.cells = cells
        self.order = {cell.key: number for number, cell in enumerate(cells)}
        self.missing = {cell.key: {need.key for need in cell.needs} - done for cell in cells}
        self.dependents: defaultdict[str, list[Cell]] = defaultdict(list)
        for cell in cells:
            for key in self.missing[cell.key]:
                self.dependents[key].append(cell)
        self.ready = [self.order[cell.key] for cell in cells if not self.missing[cell.key]]

    def next(self) -> Cell:
        """Returns the first cell that is ready."""
        return self.cells[heapq.heappop(self.ready)]

    def finished(self, cell: Cell) -> None:
        """Makes the cells ready that waited for this one alone."""
        for other in self.dependents[cell.key]:
            if other.key not in self.missing:
                continue  # another cell that it needs has failed
            self.missing[other.key].discard(cell.key)
            if not self.missing[other.key]:
                heapq.heappush(self.ready, self.order[other.key])

    def failed(self, cell: Cell) -> list[Cell]:
        """Removes all cells that depend on this one, and returns them, each once."""
        lost = [other for other in self.dependents[cell.key] if other.key in self.missing]
        for other in lost:
            del self.missing[other.key]
        return [each for other in lost for each in (other, *self.failed(other))]


def _compute_all(queue: _Queue, pool: Pool, report: Progress) -> tuple[list[str], dict[str, str]]:
    """Computes the cells of a queue; returns the keys of those that are finished, and key → reason of the others."""
    done: list[str] = []
    failed: dict[str, str] = {}
    try:
        while queue.ready or pool.running:
            while queue.ready and pool.free > 0:
                cell = queue.next()
                report(Event(cell, "started"))
                pool.start(cell)
            for cell, seconds, error in pool.wait():
                if not error:
                    done.append(cell.key)
                    queue.finished(cell)
                    report(Event(cell, "finished", seconds))
                    continue
                failed[cell.key] = error
                report(Event(cell, "failed", seconds, error))
                for other in queue.failed(cell):
                    failed[other.key] = "not tried, because a cell that it needs has failed"
                    report(Event(other, "blocked", error=failed[other.key]))
    finally:
        pool.stop()
    return done, failed
