"""Where the cells of a run are computed, and how one of them is tried: the same on this machine and elsewhere."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from topiarist.errors import TopiaristError
from topiarist.files import one_line
from topiarist.studies.cells import Cell, Work, compute, note_failure


class Ended(NamedTuple):
    """A cell that is no longer running: the seconds it took, and why it failed (empty for success)."""

    cell: Cell
    seconds: float
    error: str


class Pool(Protocol):
    """Workers that compute the cells of one run."""

    @property
    def running(self) -> int:
        """How many cells have been started and not yet been returned by `wait`."""

    @property
    def free(self) -> int:
        """How many more cells may be started now; at least one where nothing is running."""

    def start(self, cell: Cell) -> None:
        """Starts a cell."""

    def wait(self) -> list[Ended]:
        """Waits for a cell to end, and returns those that ended since the last call."""

    def stop(self) -> None:
        """Stops what is running."""


class Executor(Protocol):
    """Where cells are computed: in processes of this machine (`Local`), on a cluster (`RayCluster`), or elsewhere."""

    def pool(self, out: Path, work: Work, preload: Sequence[str] = ()) -> Pool:
        """Returns the workers for a study in the folder ``out``; ``preload``: modules that the work will import."""


def attempt(cell: Cell, out: Path, work: Work) -> str:
    """Computes a cell; returns why it failed in one sentence, or nothing (its draft holds the traceback)."""
    note = out / "drafts" / cell.key / "error.txt"
    try:
        note.unlink(missing_ok=True)
        compute(cell, out, work)
    except Exception as error:
        ours = isinstance(error, TopiaristError)
        reason = " ".join(str(error).split()) if ours else f"{type(error).__name__}: {one_line(error)}"
        note_failure(out, cell, f"{reason}\n{traceback.format_exc().rstrip()}")
        return reason
    return ""
