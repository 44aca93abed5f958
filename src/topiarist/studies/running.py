"""A study from its settings to its report."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from topiarist.data import load_data
from topiarist.errors import TopiaristError
from topiarist.files import write_json
from topiarist.models import make_model
from topiarist.studies.arms import Arms
from topiarist.studies.cells import Cell, Work, finished, unfold
from topiarist.studies.data_paths import missing, placed
from topiarist.studies.executors.base import Executor
from topiarist.studies.progress import Live
from topiarist.studies.queue import locked, run_cells
from topiarist.studies.results import gather, write_results
from topiarist.studies.study import Study, latency_cells

PRELOAD = ("lightning_fabric", "safetensors.torch", "sklearn.datasets")
"""What the arms load late and every cell of the demo would otherwise load anew."""


def run(
    study: Study | str | Path,
    out: str | Path,
    *,
    executor: Executor | None = None,
    workers: int = 1,
    quiet: bool = False,
    work: Work | None = None,
    scale: str | None = None,
    data_folder: str | Path | None = None,
) -> dict[str, Any]:
    """Run a study, or go on with it, and write ``results.json``; `topiarist.report.write_report` makes its report.

    Args:
        study: a study, or a YAML file that holds one.
        out: folder of the study; what is finished there is reused.
        executor: where cells are computed, for example a `topiarist.studies.RayCluster`; by default on this machine.
        workers: cells computed at a time, without an executor.
        quiet: show no progress.
        work: what computes a cell; the arms by default.
        scale: which scale of the file, where it has several.
        data_folder: where relative paths of data begin; by default the current directory.

    Returns:
        The plain values of ``results.json``; ``failed`` in it is empty if every cell is there.

    Raises:
        TopiaristError: for a study that cannot be, or a folder that cannot be used. Before the first cell all arms are
            rehearsed at one seed, without training and on a few examples.
    """
    if isinstance(study, Study):
        if scale is not None:
            raise TopiaristError("A scale is one of a file: give the path of the study, or leave the scale out.")
    else:
        study = Study.load(Path(study), scale)
    out, source = Path(out), None if data_folder is None else Path(data_folder).absolute()
    cells = unfold(study.cells())
    if work is None:
        work = Arms(source)
        if not all(finished(out, cell) for cell in cells):
            _check_names(cells, source)
        if not any(finished(out, cell) for cell in cells):
            _rehearse(study, Arms(source, rehearses=True), quiet)
    clocks = latency_cells(cells)
    with locked(out):  # no run that is at work there has its study changed
        write_json(out / "study.json", study.as_json())
    with Live(len(cells) + len(clocks), quiet) as live:
        outcome = run_cells(cells, out, work, executor=executor, workers=workers, preload=PRELOAD, progress=live)
        timed = [clock for clock in clocks if clock.needs[0].key not in outcome.failed]
        run_cells(timed, out, work, progress=live.only("latency"))  # one after the other, when nothing else runs
    results = gather(study, out)
    write_results(out, results)
    return results


def _check_names(cells: Sequence[Cell], data_folder: Path | None) -> None:
    """Meet a wrong name once, before the first cell."""
    for network in dict.fromkeys(cell.network for cell in cells):
        make_model(network)
    for data in dict.fromkeys(cell.data for cell in cells):
        if data_folder is None and (lost := missing(data)):
            raise TopiaristError(f"There is no {lost} here: say in which folder the data lie, --data-folder DIR.")
        load_data(placed(data, data_folder))


def _rehearse(study: Study, work: Work, quiet: bool) -> None:
    """Meet what cannot be done, a budget out of reach for instance, before anything has been trained for it."""
    cells = unfold(study.rehearsal().cells())
    shown = Console(stderr=True, quiet=quiet).status("rehearsing without training")
    with shown, tempfile.TemporaryDirectory(prefix="topiarist-") as folder:
        failed = run_cells(cells, Path(folder), work).failed
    for cell in cells:
        if cell.key in failed:
            by = "" if cell.method == "none" else f" by {cell.method}"
            raise TopiaristError(
                f"The study cannot be run; a rehearsal without training failed at {cell.arm} of {cell.network} "
                f"on {cell.data}{by}: {failed[cell.key]}"
            )
