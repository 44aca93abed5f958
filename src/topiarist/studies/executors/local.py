"""Cells computed on this machine: in this process, or in several."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from topiarist.studies.cells import Cell, Work, failure, finished
from topiarist.studies.executors.base import Ended, Pool, attempt


@dataclass(frozen=True)
class Local:
    """Cells are computed on this machine.

    Attributes:
        workers: how many cells at a time; 1 computes them in this process, more in as many processes. Where one
            crashes, only its cell fails.
    """

    workers: int = 1

    def pool(self, out: Path, work: Work, preload: Sequence[str] = ()) -> Pool:
        """Returns the workers that compute the cells."""
        return _Processes(out, work, self.workers, preload) if self.workers > 1 else _ThisProcess(out, work)


class _ThisProcess:
    """Computes cells in this process, one at a time."""

    def __init__(self, out: Path, work: Work) -> None:
        self.out, self.work = out, work
        self._ended: list[Ended] = []

    @property
    def running(self) -> int:
        return len(self._ended)

    @property
    def free(self) -> int:
        return 1 - self.running

    def start(self, cell: Cell) -> None:
        begin = time.perf_counter()
        error = attempt(cell, self.out, self.work)
        self._ended.append(Ended(cell, time.perf_counter() - begin, error))

    def wait(self) -> list[Ended]:
        ended, self._ended = self._ended, []
        return ended

    def stop(self) -> None:
        pass


@dataclass(eq=False)
class _Worker:
    """A process that computes one cell after the other: it gets the cell through the pipe, and sends why it failed."""

    process: BaseProcess
    pipe: Connection
    cell: Cell | None = None
    begin: float = field(default=0.0)

    def start(self, cell: Cell) -> None:
        self.cell, self.begin = cell, time.perf_counter()
        self.pipe.send(cell)


class _Processes:
    """Computes cells in processes that are forked from a server which has the libraries loaded."""

    def __init__(self, out: Path, work: Work, workers: int, preload: Sequence[str]) -> None:
        self.out, self.work, self.workers = out, work, workers
        self.threads = max(1, default_workers() // workers)
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self.context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            self.context.set_forkserver_preload([work.__module__, *preload])
            with _interrupts_held():
                importlib.import_module("multiprocessing.forkserver").ensure_running()  # which some systems lack
        self.idle: list[_Worker] = []
        self.busy: dict[Connection, _Worker] = {}

    @property
    def running(self) -> int:
        return len(self.busy)

    @property
    def free(self) -> int:
        return self.workers - self.running

    def start(self, cell: Cell) -> None:
        worker = self.idle.pop() if self.idle else self._new_worker()
        worker.start(cell)
        self.busy[worker.pipe] = worker

    def wait(self) -> list[Ended]:
        return [self._receive(self.busy.pop(pipe)) for pipe in wait(list(self.busy)) if pipe in self.busy]

    def stop(self) -> None:
        workers = [*self.busy.values(), *self.idle]
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join()
            worker.pipe.close()

    def _new_worker(self) -> _Worker:
        mine, theirs = self.context.Pipe()
        process = self.context.Process(target=_serve, args=(theirs, self.out, self.work, self.threads), daemon=True)
        process.start()
        theirs.close()  # so that the pipe ends when the process does
        return _Worker(process, mine)

    def _receive(self, worker: _Worker) -> Ended:
        cell, seconds = worker.cell, time.perf_counter() - worker.begin
        assert cell is not None, "only a worker with a cell is running"
        try:
            error = worker.pipe.recv()
            self.idle.append(worker)
        except (EOFError, OSError):  # it has crashed
            worker.process.join()
            worker.pipe.close()
            status = worker.process.exitcode
            ended = f"its process ended with exit status {status} (negative: killed by that signal)"
            error = failure(self.out, cell) or ended
        return Ended(cell, seconds, "" if error and finished(self.out, cell) else error)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Holds back Ctrl-C until the end, and from processes that start here for good, even while they load modules.

    A terminal sends it to the whole group. One that comes here is not lost: the parent gets it afterwards.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    importlib.import_module("multiprocessing.resource_tracker").ensure_running()  # which lets Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: Connection, out: Path, work: Work, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)  # each on its own processors: more threads only get in the way
    with suppress(EOFError, OSError):  # the parent is gone
        while True:
            pipe.send(attempt(pipe.recv(), out, work))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()  # a killed parent cannot stop its children; without this they would go on beside the next run
        os._exit(1)


def default_workers() -> int:
    """Returns the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
