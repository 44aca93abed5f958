"""The commands of studies: `topiarist.cli.commands` has them beside the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from topiarist.cli import show
from topiarist.cli.inputs import writable_folder
from topiarist.errors import TopiaristError
from topiarist.studies import RayCluster

if TYPE_CHECKING:
    from topiarist.studies import Executor


def demo(*, out: Path = Path("runs/demo"), seeds: int = 3, workers: int | None = None, json: bool = False) -> int:
    """Train a small network on scikit-learn's digits, prune it four ways, compare the results and write a report.

    Args:
        out: folder for report.html, results.json and the pruned models; finished cells there are reused.
        seeds: how often all of it is repeated, each time from other initial weights.
        workers: trainings that run at the same time; by default one for each processor.
        json: print the results as JSON.
    """
    from topiarist import studies

    writable_folder(out)
    return _report(studies.demo(out, seeds, workers=workers, quiet=json), out, json)


def study(
    file: Path,
    *,
    out: Path | None = None,
    scale: str | None = None,
    data_folder: Path | None = None,
    workers: int | None = None,
    executor: Literal["local", "ray"] = "local",
    ray: RayCluster = RayCluster(),  # noqa: B008  a frozen value
    json: bool = False,
) -> int:
    """Run the study that a YAML file describes: networks x data x methods x budgets x seeds, and the arms of each.

    A dry run without training comes first, so that what cannot be done is reported at once.

    Args:
        file: the YAML file.
        out: folder for the results; by default runs/ with the names of file and scale; finished cells there are reused.
        scale: which scale of the file, where it has several: mini, cpu and paper in the ready studies.
        data_folder: where relative paths of data begin; by default the current directory.
        workers: cells that run at the same time; 1 by default, and on a Ray cluster as many as it has room for.
        executor: where cells run: in processes of this machine, or on a Ray cluster.
        ray: the cluster, and what each cell gets of it.
        json: print the results as JSON.
    """
    from topiarist import studies

    if executor == "local" and ray != RayCluster():
        raise TopiaristError("the options of --ray are for a cluster: add --executor ray, or leave them out")
    if workers is not None and workers < 1:
        raise TopiaristError(f"the number of workers is {workers}: give at least 1")
    folder = out or Path("runs") / (f"{file.stem}-{scale}" if scale else file.stem)
    plan = studies.Study.load(file, scale)
    writable_folder(folder)
    cluster = replace(ray, workers=workers or ray.workers)
    where: Executor = cluster if executor == "ray" else studies.Local(workers or 1)
    results = studies.run(plan, folder, executor=where, quiet=json, data_folder=data_folder)
    return _report(results, folder, json)


def merge(first: Path, second: Path, *, out: Path, json: bool = False) -> int:
    """Merge two studies into one: of other seeds, methods, arms, networks or data, with the same recipes.

    Args:
        first: the output folder of a study.
        second: the output folder of another one.
        out: folder for the study of both; it may be one of them.
        json: print the results as JSON.
    """
    from topiarist import studies

    writable_folder(out)
    return _report(studies.merge([first, second], out), out, json)


def report(folder: Path, *, json: bool = False) -> int:
    """Rewrite the report of a demo or a study, and print its tables.

    Args:
        folder: the output folder of a demo or a study.
        json: print the results as JSON.
    """
    from topiarist.report import rewrite

    return _report(rewrite(folder), folder, json)


def _report(results: Mapping[str, Any], out: Path, as_json: bool) -> int:
    """Writes and prints the report of a study; returns the exit status, 1 where a cell failed or is missing."""
    from topiarist.report import show as show_report
    from topiarist.report import write_report

    write_report(out, results)
    if as_json:
        show.json(results)
    else:
        show_report(results, show.console())
        print(f"\nreport: {out / 'report.html'}")
    return 1 if results.get("failed") else 0
