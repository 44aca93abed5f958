"""One cell of a study: what is to be computed, as a value, and the folder that keeps what came out.

A cell names its settings and the cells it builds on; its key follows from both, so that a changed setting gives a new
key to the cell and to everything downstream of it, and nothing stale is ever reused. A finished cell is a folder
``OUT/cells/KEY`` that appears in one step (`os.replace`): either all of it is there or nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from topiarist.errors import TopiaristError
from topiarist.files import read_json, remove_drafts, write_json

FORMAT = 1
"""Part of every key: raised when a cell of the same settings comes to mean something else."""


@dataclass(frozen=True)
class Cell:
    """One result that a study wants: one arm of one pruning of one network at one seed.

    Attributes:
        arm: what is done, a name of `topiarist.studies.arms.ARMS`, for example ``"scratch_e"``.
        network: the network's name, for example ``"zoo:resnet56"``.
        data: the data set's name, for example ``"digits"``.
        seed: seed of initial weights, order of examples and random choices.
        method: the pruning method, ``"none"`` where there is none.
        budget: fields of `topiarist.Budget`.
        settings: everything else that the arm reads: recipes, fields of the method, keyword arguments of the network.
        needs: the cells that this one builds on.

    All values are plain (JSON), so that a cell can be written down, compared and sent to another machine.
    """

    arm: str
    network: str
    data: str
    seed: int
    method: str = "none"
    budget: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[Cell, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The cell as plain values; the cells it needs are given by their keys."""
        return {
            "format": FORMAT,
            "arm": self.arm,
            "network": self.network,
            "data": self.data,
            "seed": self.seed,
            "method": self.method,
            "budget": dict(self.budget),
            "settings": dict(self.settings),
            "needs": [need.key for need in self.needs],
        }

    @cached_property
    def key(self) -> str:
        """A readable name and a short hash of all settings: the name of the cell's folder."""
        text = json.dumps(self.as_json(), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        method = "" if self.method == "none" else "-".join([self.method, *map(_word, sorted(self.budget.items()))])
        words = (self.network.split(":")[-1], self.data, method, self.arm, f"s{self.seed}")
        return "-".join([*(re.sub(r"[^A-Za-z0-9.]+", "_", word)[:32] for word in words if word), digest])

    def __hash__(self) -> int:
        return hash(self.key)


def _word(item: tuple[str, Any]) -> str:
    return f"{item[0]}{item[1]}" if isinstance(item[1], (int, float)) else item[0]


Work = Callable[[Cell, Path, tuple[Path, ...]], Mapping[str, Any]]
"""Computes a cell: ``work(cell, folder, needs)`` writes its files into ``folder``, reads those of the cells it needs
from the folders ``needs`` (in the order of ``cell.needs``) and returns the result as plain values."""


def unfold(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """All cells and all that they need, each once, needs first; otherwise in the order given."""
    order: dict[str, Cell] = {}

    def visit(cell: Cell) -> None:
        if cell.key not in order:
            for need in cell.needs:
                visit(need)
            order[cell.key] = cell

    for cell in cells:
        visit(cell)
    return tuple(order.values())


def folder(out: Path, cell: Cell) -> Path:
    """Where the finished cell is kept."""
    return out / "cells" / cell.key


def finished(out: Path, cell: Cell) -> bool:
    """Whether the cell has been computed."""
    return (folder(out, cell) / "result.json").is_file()


def result(out: Path, cell: Cell) -> dict[str, Any]:
    """The result of a finished cell; errors as of `read_result`."""
    return read_result(folder(out, cell))


def read_result(place: Path) -> dict[str, Any]:
    """The result in the folder of a finished cell.

    Raises:
        TopiaristError: if the file cannot be read, or holds no result.
    """
    path = place / "result.json"
    values = read_json(path, "the result", f"delete the folder {place} and run the study again")
    if not isinstance(values, dict):
        raise no_result(place)
    return values


def no_result(place: Path) -> TopiaristError:
    """What is said of a folder whose result is none."""
    return TopiaristError(f"{place / 'result.json'} is no result: delete the folder {place} and run the study again.")


def compute(cell: Cell, out: Path, work: Work) -> None:
    """Compute one cell and put its folder in place; do nothing if it is there.

    The work is done in ``OUT/drafts/KEY``, which survives a killed process: what the work left there (a checkpoint) is
    there when the cell is computed again. One process at a time works there: a worker that its run has given up for
    lost may still be at it.
    """
    if finished(out, cell):
        return
    draft, final = out / "drafts" / cell.key, folder(out, cell)
    draft.mkdir(parents=True, exist_ok=True)
    with held(draft):
        if finished(out, cell):  # by whoever held the draft until now
            with suppress(OSError):
                draft.rmdir()
            return
        remove_drafts(draft)
        start, processor = time.perf_counter(), time.process_time()
        values = dict(work(cell, draft, tuple(folder(out, need) for need in cell.needs)))
        values["seconds"] = round(time.perf_counter() - start, 3)
        values["processor_seconds"] = round(time.process_time() - processor, 3)
        write_json(draft / "cell.json", cell.as_json())
        write_json(draft / "result.json", values)
        publish(draft, final)


def publish(draft: Path, final: Path) -> None:
    """Put a finished folder in its place, in one step."""
    if final.exists():  # a folder without a result: somebody's leftovers
        shutil.rmtree(final)
    os.replace(draft, final)


@contextmanager
def held(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a file or folder for this process alone; the system lets go of it however the process ends.

    Raises:
        BlockingIOError: another process holds it, and ``wait`` is off.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except (ImportError, OSError):  # no such locks on this system: two runs at once are the user's care
            pass
        yield
    finally:
        os.close(handle)


def failure(out: Path, cell: Cell) -> str:
    """Why the cell failed when it was last tried, in one sentence; empty if it did not."""
    try:
        return (out / "drafts" / cell.key / "error.txt").read_text().partition("\n")[0]
    except OSError:
        return ""


def prepare(out: Path) -> None:
    """Make the folder of a study.

    Raises:
        TopiaristError: if it cannot be written.
    """
    try:
        (out / "cells").mkdir(parents=True, exist_ok=True)
        (out / "drafts").mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise TopiaristError(
            f"The folder {out} cannot be written ({error.strerror}): mend that, or choose another one."
        ) from error
