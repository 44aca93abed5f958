"""Runs the cells of a study, skipping what is done, going on where one fails.

Everything that a run knows is in the folders of the finished cells, so a run may be stopped in any way and at any
moment; the next one goes on. Who computes the cells, here or elsewhere, talks through these folders alone.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from topiarist.errors import TopiaristError
from topiarist.studies.cells import Cell, Work, finished, held, prepare, unfold
from topiarist.studies.executors.base import LOCK, Crew, Executor
from topiarist.studies.executors.local import Local

State = Literal["reused", "started", "finished", "failed", "blocked"]


@dataclass(frozen=True)
class Event:
    """What happened to a cell; ``blocked``: not tried, for a cell that it needs has failed."""

    cell: Cell
    state: State
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the keys of cells that were there, that were computed, and that failed (with one sentence)."""

    reused: tuple[str, ...] = ()
    finished: tuple[str, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every cell is there now."""
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
    """Compute cells and all that they need.

    Args:
        cells: what is wanted, in any order.
        out: folder of the study.
        work: computes one cell; with several workers a function of a module, for it is sent to other processes.
        executor: where the cells are computed; by default on this machine.
        workers: without an executor, how many cells are computed at a time; 1 computes them in this process.
        preload: modules that the processes share, loaded once.
        progress: called with every `Event`.

    Raises:
        TopiaristError: if the folder cannot be written or another run is at work in it.
        KeyboardInterrupt: after the processes have been stopped; run again to go on.
    """
    wanted = unfold(cells)
    tell = progress or (lambda event: None)
    with locked(out):
        reused = [cell for cell in wanted if finished(out, cell)]
        for cell in reused:
            tell(Event(cell, "reused"))
        there = tuple(cell.key for cell in reused)
        queue = _Queue(wanted, reused)
        if not queue.ready:
            return Outcome(there)
        done, failed = _drain(queue, (executor or Local(workers)).crew(out, work, preload), tell)
    return Outcome(there, tuple(done), failed)


class _Queue:
    """The cells that are to do, in their order; a cell is ready once the cells that it needs are there."""

    def __init__(self, cells: Sequence[Cell], there: Iterable[Cell]) -> None:
        done = {cell.key for cell in there}
        todo = [cell for cell in cells if cell.key not in done]
        self.place = {cell.key: number for number, cell in enumerate(todo)}
        self.cells = todo
        self.lacks = {cell.key: {need.key for need in cell.needs} - done for cell in todo}
        self.above: defaultdict[str, list[Cell]] = defaultdict(list)
        for cell in todo:
            for key in self.lacks[cell.key]:
                self.above[key].append(cell)
        self.ready = [self.place[cell.key] for cell in todo if not self.lacks[cell.key]]

    def next(self) -> Cell:
        """The first cell that is ready."""
        return self.cells[heapq.heappop(self.ready)]

    def finished(self, cell: Cell) -> None:
        """A cell is there: what waited for it alone is ready."""
        for other in self.above[cell.key]:
            if other.key not in self.lacks:
                continue  # another cell that it needs has failed
            self.lacks[other.key].discard(cell.key)
            if not self.lacks[other.key]:
                heapq.heappush(self.ready, self.place[other.key])

    def failed(self, cell: Cell) -> list[Cell]:
        """All cells that cannot be without this one, each told once."""
        lost = [other for other in self.above[cell.key] if other.key in self.lacks]
        for other in lost:
            del self.lacks[other.key]
        return [each for other in lost for each in (other, *self.failed(other))]


def _drain(queue: _Queue, crew: Crew, tell: Progress) -> tuple[list[str], dict[str, str]]:
    done: list[str] = []
    failed: dict[str, str] = {}
    try:
        while queue.ready or crew.busy:
            while queue.ready and crew.room > 0:
                cell = queue.next()
                tell(Event(cell, "started"))
                crew.start(cell)
            for cell, seconds, error in crew.ended():
                if not error:
                    done.append(cell.key)
                    queue.finished(cell)
                    tell(Event(cell, "finished", seconds))
                    continue
                failed[cell.key] = error
                tell(Event(cell, "failed", seconds, error))
                for other in queue.failed(cell):
                    failed[other.key] = "not tried, because a cell that it needs has failed"
                    tell(Event(other, "blocked", error=failed[other.key]))
    finally:
        crew.stop()
    return done, failed


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the study's folder for this run alone."""
    prepare(out)
    (out / LOCK).touch()
    with ExitStack() as stack:
        try:
            stack.enter_context(held(out / LOCK, wait=False))
        except BlockingIOError as error:
            raise TopiaristError(f"Another run is at work in {out}: wait for it or choose another folder.") from error
        yield
