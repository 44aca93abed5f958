"""One cell of a study: what is to be computed, as a value, and the folder that holds its result.

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
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from topiarist.errors import TopiaristError
from topiarist.files import read_json, remove_drafts, waiting_lock, write_json

Json = Mapping[str, Any]
"""Plain values, as JSON holds them."""

FORMAT = 1
"""Part of every key: raised when a cell of the same settings comes to mean something else."""


@dataclass(frozen=True)
class Cell:
    """One result of a study: one arm of one pruning of one network at one seed.

    Attributes:
        arm: what is done, a name of `topiarist.studies.ARMS`, for example ``"scratch_e"``.
        network: the network's name, for example ``"zoo:resnet56"``.
        data: the data set's name, for example ``"digits"``.
        seed: seed of initial weights, order of examples and random choices.
        method: the pruning method, ``"none"`` where there is none.
        budget: fields of `topiarist.Budget`.
        settings: everything else that the arm reads: recipes, fields of the method, the seed of its training.
        needs: the cells that this one builds on.

    All values are plain (JSON), so that a cell can be stored, compared and sent to another machine.
    """

    arm: str
    network: str
    data: str
    seed: int
    method: str = "none"
    budget: Json = field(default_factory=dict)
    settings: Json = field(default_factory=dict)
    needs: tuple[Cell, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Returns the cell as plain values; the cells it needs are given by their keys."""
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
        method = "" if self.method == "none" else "-".join([self.method, *map(_amount, sorted(self.budget.items()))])
        words = (self.network.split(":")[-1], self.data, method, self.arm, f"s{self.seed}")
        return "-".join([*(re.sub(r"[^A-Za-z0-9.]+", "_", word)[:32] for word in words if word), digest])

    def __hash__(self) -> int:
        return hash(self.key)


def _amount(item: tuple[str, Any]) -> str:
    return f"{item[0]}{item[1]}" if isinstance(item[1], (int, float)) else item[0]


Work = Callable[[Cell, Path, tuple[Path, ...]], Json]
"""Computes a cell: ``work(cell, folder, needs)`` writes its files into ``folder``, reads those of the cells it needs
from the folders ``needs`` (in the order of ``cell.needs``) and returns the result as plain values."""


def unfold(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """Returns all cells and all that they need, each once, needs first; otherwise in the order given."""
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
    """Returns the folder of the finished cell."""
    return out / "cells" / cell.key


def finished(out: Path, cell: Cell) -> bool:
    """Returns whether the cell has been computed."""
    return (folder(out, cell) / "result.json").is_file()


def result(out: Path, cell: Cell) -> dict[str, Any]:
    """Returns the result of a finished cell; errors as of `read_result`."""
    return read_result(folder(out, cell))


def read_result(path: Path) -> dict[str, Any]:
    """Returns the result in the folder of a finished cell.

    Raises:
        TopiaristError: the file cannot be read, or holds no result.
    """
    values = read_json(path / "result.json", "the result", f"delete the folder {path} and run the study again")
    if not isinstance(values, dict):
        raise damaged_result(path)
    return values


def damaged_result(path: Path) -> TopiaristError:
    """Returns the error for a folder whose result cannot be used."""
    return TopiaristError(f"{path / 'result.json'} is damaged; delete the folder {path} and run the study again")


def compute(cell: Cell, out: Path, work: Work) -> None:
    """Computes one cell and moves its folder into place; does nothing if it is there.

    The work is done in ``OUT/drafts/KEY``, which outlives a killed process: a checkpoint that the work wrote there is
    there when the cell is computed again. One process at a time works there: a worker that its run has given up as
    lost may still be running.
    """
    if finished(out, cell):
        return
    draft, final = out / "drafts" / cell.key, folder(out, cell)
    draft.mkdir(parents=True, exist_ok=True)
    with waiting_lock(draft):
        if finished(out, cell):  # by the process that had the lock until now
            with suppress(OSError):
                draft.rmdir()
            return
        remove_drafts(draft)
        start, processor = time.perf_counter(), time.process_time()
        values = dict(work(cell, draft, tuple(folder(out, need) for need in cell.needs)))
        values["seconds"] = round(time.perf_counter() - start, 3)
        values["processor_seconds"] = round(time.process_time() - processor, 3)
        _write(cell, values, draft)
        publish(draft, final)


def store(cell: Cell, out: Path, values: Json) -> None:
    """Writes the result of a cell that needs no work of its own, in the place of a former one."""
    draft = out / "drafts" / cell.key
    draft.mkdir(parents=True, exist_ok=True)
    (draft / "error.txt").unlink(missing_ok=True)
    _write(cell, values, draft)
    publish(draft, folder(out, cell))


def _write(cell: Cell, values: Json, draft: Path) -> None:
    write_json(draft / "cell.json", cell.as_json())
    write_json(draft / "result.json", values)


def publish(draft: Path, final: Path) -> None:
    """Moves a finished folder into place, in one step."""
    if final.exists():  # without a result, or with a former one
        shutil.rmtree(final)
    os.replace(draft, final)


def failure(out: Path, cell: Cell) -> str:
    """Returns why the cell failed when it was last tried, in one sentence; empty if it did not."""
    try:
        note = (out / "drafts" / cell.key / "error.txt").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return note.partition("\n")[0]


def note_failure(out: Path, cell: Cell, reason: str) -> None:
    """Writes why a cell failed, its first line for `failure`; a full disk takes no note."""
    note = out / "drafts" / cell.key / "error.txt"
    with suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(f"{reason}\n", encoding="utf-8", errors="replace")


def prepare(out: Path) -> None:
    """Makes the folder of a study.

    Raises:
        TopiaristError: it cannot be written.
    """
    try:
        (out / "cells").mkdir(parents=True, exist_ok=True)
        (out / "drafts").mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise TopiaristError(f"cannot write to the folder {out}: {error.strerror}; choose another folder") from error
