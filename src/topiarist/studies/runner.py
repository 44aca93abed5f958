"""Runs the cells of a study: in this process or in several, skipping what is done, going on where one fails.

Everything that a run knows is in the folders of the finished cells, so a run may be stopped in any way and at any
moment; the next one goes on. Processes talk through these folders alone, which is all that another executor needs.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, Protocol

from topiarist.errors import TopiaristError
from topiarist.studies.cells import Cell, Work, compute, failure, finished, prepare, unfold

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
    workers: int = 1,
    preload: Sequence[str] = (),
    progress: Progress | None = None,
) -> Outcome:
    """Compute cells and all that they need.

    Args:
        cells: what is wanted, in any order.
        out: folder of the study.
        work: computes one cell; with several workers a function of a module, for it is sent to other processes.
        workers: how many cells are computed at a time; 1 computes them in this process. Each cell of several workers
            gets a process of its own, so that one that crashes takes no other with it.
        preload: modules that the processes share, loaded once.
        progress: called with every `Event`.

    Raises:
        TopiaristError: if the folder cannot be written or another run is at work in it.
        KeyboardInterrupt: after the processes have been stopped; run again to go on.
    """
    queue = unfold(cells)
    tell = progress or (lambda event: None)
    with _locked(out):
        reused = [cell for cell in queue if finished(out, cell)]
        for cell in reused:
            tell(Event(cell, "reused"))
        there = {cell.key for cell in reused}
        todo = [cell for cell in queue if cell.key not in there]
        crew = _Processes(out, work, workers, preload) if workers > 1 else _Here(out, work)
        done, failed = _drain(todo, there, crew, max(1, workers), tell)
    return Outcome(tuple(cell.key for cell in reused), tuple(done), failed)


def _drain(
    todo: list[Cell], there: set[str], crew: Crew, workers: int, tell: Progress
) -> tuple[list[str], dict[str, str]]:
    done: list[str] = []
    failed: dict[str, str] = {}
    try:
        while todo or crew.busy:
            for cell in [cell for cell in todo if any(need.key in failed for need in cell.needs)]:
                todo.remove(cell)
                failed[cell.key] = "not tried, because a cell that it needs has failed"
                tell(Event(cell, "blocked", error=failed[cell.key]))
            ready = [cell for cell in todo if all(need.key in there for need in cell.needs)]
            for cell in ready[: workers - crew.busy]:
                todo.remove(cell)
                tell(Event(cell, "started"))
                crew.start(cell)
            for cell, seconds, error in crew.ended():
                if error:
                    failed[cell.key] = error
                else:
                    there.add(cell.key)
                    done.append(cell.key)
                tell(Event(cell, "failed" if error else "finished", seconds, error))
    finally:
        crew.stop()
    return done, failed


def attempt(cell: Cell, out: Path, work: Work) -> str:
    """Compute a cell; return nothing, or why it failed in one sentence (the whole story goes to its draft)."""
    note = out / "drafts" / cell.key / "error.txt"
    note.unlink(missing_ok=True)
    try:
        compute(cell, out, work)
    except Exception as error:
        told = str(error) if isinstance(error, TopiaristError) else f"{type(error).__name__}: {error}"
        told = " ".join(told.split())
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(f"{told}\n{traceback.format_exc()}")
        return told
    return ""


class Crew(Protocol):
    """Who computes the cells: here, in processes of this machine, or elsewhere."""

    @property
    def busy(self) -> int:
        """How many cells have been started and not yet been returned by `ended`."""

    def start(self, cell: Cell) -> None:
        """Begin a cell."""

    def ended(self) -> list[tuple[Cell, float, str]]:
        """Cells that ended since the last call: seconds taken and why it failed, empty for success. May wait a bit."""

    def stop(self) -> None:
        """Stop what is running."""


class _Here:
    """Computes cells in this process, one at a time."""

    def __init__(self, out: Path, work: Work) -> None:
        self.out, self.work = out, work
        self._ended: list[tuple[Cell, float, str]] = []

    @property
    def busy(self) -> int:
        return len(self._ended)

    def start(self, cell: Cell) -> None:
        begin = time.perf_counter()
        error = attempt(cell, self.out, self.work)
        self._ended.append((cell, time.perf_counter() - begin, error))

    def ended(self) -> list[tuple[Cell, float, str]]:
        ended, self._ended = self._ended, []
        return ended

    def stop(self) -> None:
        pass


class _Processes:
    """Computes each cell in a process of its own, forked from a server that has the libraries loaded."""

    def __init__(self, out: Path, work: Work, workers: int, preload: Sequence[str]) -> None:
        self.out, self.work = out, work
        self.threads = max(1, default_workers() // workers)
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self.context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            self.context.set_forkserver_preload([work.__module__, *preload])
        self.running: dict[BaseProcess, tuple[Cell, float]] = {}

    @property
    def busy(self) -> int:
        return len(self.running)

    def start(self, cell: Cell) -> None:
        process = self.context.Process(target=_child, args=(cell, self.out, self.work, self.threads), daemon=True)
        process.start()
        self.running[process] = (cell, time.perf_counter())

    def ended(self) -> list[tuple[Cell, float, str]]:
        if self.running:
            wait([process.sentinel for process in self.running])
        over = [process for process in self.running if process.exitcode is not None]
        return [self._farewell(process) for process in over]

    def _farewell(self, process: BaseProcess) -> tuple[Cell, float, str]:
        cell, begin = self.running.pop(process)
        process.join()
        seconds = time.perf_counter() - begin
        if finished(self.out, cell):
            return cell, seconds, ""
        told = (
            failure(self.out, cell)
            or f"its process ended with exit status {process.exitcode} (negative: killed by that signal)"
        )
        return cell, seconds, told

    def stop(self) -> None:
        for process in self.running:
            process.terminate()
        for process in self.running:
            process.join()


def _child(cell: Cell, out: Path, work: Work, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)  # each on its own processors: more threads only get in the way
    attempt(cell, out, work)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()  # a killed parent cannot stop its children; without this they would go on beside the next run
        os._exit(1)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the study's folder for this run alone; the system lets go of it however the process ends."""
    prepare(out)
    with (out / ".lock").open("w") as handle:
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # no such locks on this system: two runs at once are the user's care
            pass
        except OSError as error:
            raise TopiaristError(f"Another run is at work in {out}: wait for it or choose another folder.") from error
        yield


def default_workers() -> int:
    """As many workers as there are processors for this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
