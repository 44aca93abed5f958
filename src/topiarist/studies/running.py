"""Runs a study: from its settings to its results."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from topiarist.data import load_data
from topiarist.deploy import make_target
from topiarist.errors import TopiaristError
from topiarist.files import locked, remove_drafts, write_json
from topiarist.models import make_model
from topiarist.studies.cells import Cell, Work, finished, prepare, unfold
from topiarist.studies.data_paths import missing, placed
from topiarist.studies.executors.base import Executor
from topiarist.studies.executors.local import Local
from topiarist.studies.progress import Live
from topiarist.studies.queue import compute_cells, run_cells
from topiarist.studies.results import gather, write_results
from topiarist.studies.study import Study
from topiarist.studies.timing import latency_cells, time_together
from topiarist.studies.work import ArmWork

PRELOAD = ("lightning_fabric", "safetensors.torch", "sklearn.datasets")
"""Modules that the arms import late; without this every process would load them anew."""


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
    """Runs a study, or goes on with it, and writes ``results.json``; `topiarist.report.write_report` makes its report.

    Args:
        study: a study, or a YAML file that holds one.
        out: folder of the study; finished cells there are reused.
        executor: where cells are computed, for example a `topiarist.studies.RayCluster`; by default on this machine.
        workers: cells computed at a time, without an executor.
        quiet: show no progress.
        work: what computes a cell; the arms by default.
        scale: which scale of the file, where it has several.
        data_folder: where relative paths of data begin; by default the current directory.

    Returns:
        The plain values of ``results.json``; ``failed`` in it is empty if all cells are finished.

    Raises:
        TopiaristError: the study is impossible, or the folder cannot be used. Before the first cell all arms
            are tried at one seed in a dry run, without training and on a few examples.
    """
    if isinstance(study, Study):
        if scale is not None:
            raise TopiaristError("only a file has scales; give the path of the study, or leave the scale out")
    else:
        study = Study.load(Path(study), scale)
    out, source = Path(out), None if data_folder is None else Path(data_folder).absolute()
    cells = unfold(study.cells())
    if work is None:
        work = ArmWork(source)
        for target in study.targets:
            make_target(target).imported()
        if not all(finished(out, cell) for cell in cells):
            _check_names(cells, source)
        if not any(finished(out, cell) for cell in cells):
            _dry_run(study, ArmWork(source, dry_run=True), quiet)
    timed = latency_cells(cells)
    prepare(out)
    with locked(out):
        remove_drafts(out)
        write_json(out / "study.json", study.as_json())
        with Live(len(cells) + len(timed), quiet) as live:
            outcome = compute_cells(cells, out, work, executor or Local(workers), PRELOAD, live)
            timed = tuple(cell for cell in timed if cell.needs[0].key not in outcome.failed)
            if isinstance(work, ArmWork):  # when nothing else runs
                time_together(timed, out, study.targets, live, source)
            else:
                compute_cells(timed, out, work, Local(), (), live.only("latency"))
        results = gather(study, out)
        write_results(out, results)
    return results


def _check_names(cells: Sequence[Cell], data_folder: Path | None) -> None:
    """Raises for a wrong name once, before the first cell."""
    for network in dict.fromkeys(cell.network for cell in cells):
        make_model(network)
    for data in dict.fromkeys(cell.data for cell in cells):
        if data_folder is None and (lost := missing(data)):
            raise TopiaristError(f"there is no {lost} here; give the folder of the data, --data-folder DIR")
        load_data(placed(data, data_folder))


def _dry_run(study: Study, work: Work, quiet: bool) -> None:
    """Raises for what is impossible, a budget out of reach for instance, before anything has been trained for it."""
    cells = unfold(study.dry_run().cells())
    shown = Console(stderr=True, quiet=quiet).status("trying every arm without training")
    with shown, tempfile.TemporaryDirectory(prefix="topiarist-") as folder:
        failed = run_cells(cells, Path(folder), work).failed
    for cell in cells:
        if cell.key in failed:
            by = "" if cell.method == "none" else f" by {cell.method}"
            raise TopiaristError(
                f"the study is impossible; a dry run without training failed at {cell.arm} of {cell.network} on "
                f"{cell.data}{by}: {failed[cell.key]}"
            )
