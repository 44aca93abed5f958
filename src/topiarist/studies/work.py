"""Computes the cells of a study: each by what its arm says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from topiarist.studies.arms import ARMS
from topiarist.studies.cells import Cell
from topiarist.studies.data_paths import placed
from topiarist.studies.design_patterns import average
from topiarist.studies.job import Job, Result

RUN: Mapping[str, Callable[[Job], Result]] = {
    **{name: arm.run for name, arm in ARMS.items()},
    "pattern": average,
}
"""Arm → what computes its cells; ``pattern`` is no arm of the table but what it rests on."""


@dataclass(frozen=True)
class ArmWork:
    """Computes cells into their folders (see `topiarist.studies.cells.Work`).

    Attributes:
        data_folder: where relative paths of data begin; by default where the process is.
        dry_run: whether cells are only to show that they can be computed (see `Study.dry_run`).
    """

    data_folder: Path | None = None
    dry_run: bool = False

    def __call__(self, cell: Cell, folder: Path, needs: tuple[Path, ...]) -> Result:
        """Does what the cell's arm says."""
        cell = replace(cell, data=placed(cell.data, self.data_folder))
        return RUN[cell.arm](Job.of(cell, folder, needs, self.dry_run))


work = ArmWork()
"""Computes a cell, with data where the process is."""
