"""Who computes the cells of a run, and how one of them is tried: the same here and elsewhere."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from topiarist.errors import TopiaristError
from topiarist.studies.cells import Cell, Work, compute

LOCK = ".lock"
"""The file of a study's folder that its run holds."""


class Crew(Protocol):
    """Who computes the cells of one run."""

    @property
    def busy(self) -> int:
        """How many cells have been started and not yet been returned by `ended`."""

    @property
    def room(self) -> int:
        """How many more cells may be started now; at least one where nothing is running."""

    def start(self, cell: Cell) -> None:
        """Begin a cell."""

    def ended(self) -> list[tuple[Cell, float, str]]:
        """Cells that ended since the last call: seconds taken and why it failed, empty for success. Waits for one."""

    def stop(self) -> None:
        """Stop what is running."""


class Executor(Protocol):
    """Where cells are computed: in processes of this machine (`Local`), on a cluster (`RayCluster`), or elsewhere."""

    def crew(self, out: Path, work: Work, preload: Sequence[str] = ()) -> Crew:
        """Who computes the cells of a study in the folder ``out``; ``preload``: modules that the work will import."""


def attempt(cell: Cell, out: Path, work: Work) -> str:
    """Compute a cell; return nothing, or why it failed in one sentence (the whole story goes to its draft)."""
    note = out / "drafts" / cell.key / "error.txt"
    try:
        note.unlink(missing_ok=True)
        compute(cell, out, work)
    except Exception as error:
        told = str(error) if isinstance(error, TopiaristError) else f"{type(error).__name__}: {error}"
        told = " ".join(told.split())
        with suppress(OSError):  # a full disk takes no note either; the reason is returned all the same
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(f"{told}\n{traceback.format_exc()}")
        return told
    return ""
