"""From finished cells to a table, paired comparisons and a conclusion: the plain values of ``results.json``."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

from topiarist.errors import TopiaristError
from topiarist.files import read_json, write_json
from topiarist.studies import published
from topiarist.studies.cell_results import said
from topiarist.studies.cells import Cell, failure, finished, folder, no_result, unfold
from topiarist.studies.conclusion import SCRATCH, conclude, overall, prunings, same
from topiarist.studies.executors.local import default_workers
from topiarist.studies.statistics import paired, summarise, verdict
from topiarist.studies.study import ARMS, BUILT, Row, Study, latency_cell, latency_cells

SPOKEN = {
    "unpruned": "the unpruned network",
    "pruned": "the pruned network without retraining",
    "finetune": "fine-tuning",
    "scratch_e": "Scratch-E",
    "scratch_b": "Scratch-B",
    "lottery": "the lottery ticket",
    "lottery_random": "the redrawn ticket",
    "uniform": "the uniform network",
    "guided": "the guided pattern",
    "transferred": "the transferred pattern",
}
"""Arm → what a sentence calls it."""

PAIRS = (
    ("finetune", "unpruned"),
    ("finetune", "scratch_e"),
    ("finetune", "scratch_b"),
    ("scratch_b", "uniform"),
    ("lottery", "lottery_random"),
    *((arm, other) for arm in ("guided", "transferred") for other in ("uniform", *SCRATCH)),
)
"""Arms of one pruning that are compared seed by seed."""

Table = Sequence[Mapping[str, Any]]

NEEDED = ("title", "study", "conclusion", "rows", "comparisons", "failed", "environment")
"""What the results of a study hold."""


def gather(study: Study, out: Path) -> dict[str, Any]:
    """Read the cells of a study and say what they show.

    Args:
        study: whose cells to read; those that are not there are left out of the means.
        out: folder of the study.

    Returns:
        Plain values: ``title``, ``study``, ``note``, ``conclusion`` (sentences, the first one leads), ``rows``,
        ``overall`` (pairs of arms over all prunings and by method), ``comparisons`` (pruning by pruning), ``failed``,
        ``environment``.
    """
    rows = [
        {
            **_row(row, study.label(row.pruning) if row.pruning else "none", out),
            "published": published.find(study.published, row.network, row.data, row.pruning, row.arm),
        }
        for row in study.rows()
    ]
    _relate(rows)
    comparisons = list(_comparisons(rows))
    pooled = list(overall(rows, PAIRS, spoken))
    failed = _failed(study, out)
    return {
        "topiarist": version("topiarist"),
        "title": study.title,
        "study": study.as_json(),
        "note": study.note,
        "conclusion": conclude(comparisons, pooled, failed, spoken),
        "rows": rows,
        "overall": pooled,
        "comparisons": comparisons,
        "failed": failed,
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "machine": platform.machine(),
            "system": platform.system(),
            "processors": default_workers(),
        },
    }


def _failed(study: Study, out: Path) -> dict[str, str]:
    """Key of every cell that is not there → why."""
    cells = unfold(study.cells())
    clocks = [clock for clock in latency_cells(cells) if finished(out, clock.needs[0])]
    missing = [cell for cell in unfold([*cells, *clocks]) if not finished(out, cell)]
    return {cell.key: failure(out, cell) or "not computed yet" for cell in missing}


def _row(row: Row, method: str, out: Path) -> dict[str, Any]:
    there = {seed: cell for seed, cell in row.cells.items() if finished(out, cell)}
    found = {seed: said(folder(out, cell), "accuracy") for seed, cell in there.items()}
    forms = {seed: _form(values) for seed, values in found.items()}
    if odd := [seed for seed, form in forms.items() if form != next(iter(forms.values()))]:
        raise no_result(folder(out, there[odd[0]]))  # of the same network, so one of the two is damaged
    clocks = [latency_cell(cell) for cell in there.values()]
    times = [said(folder(out, clock), "latency_ms")["latency_ms"] for clock in clocks if finished(out, clock)]
    accuracy = {seed: float(values["accuracy"]) for seed, values in found.items()}
    spread = asdict(summarise(list(accuracy.values()))) if accuracy else {"mean": None, "std": None, "n": 0}

    def mean(name: str) -> float | None:
        numbers = [values[name] for values in found.values() if values.get(name) is not None]
        return fmean(numbers) if numbers else None

    return {
        "network": row.network,
        "data": row.data,
        "method": method,
        "goal": row.pruning.goal if row.pruning else "",
        "arm": row.arm,
        "label": _label(row),
        "accuracy": {**spread, "seeds": {str(seed): value for seed, value in accuracy.items()}},
        **{name: mean(name) for name in ("macs", "params", "bytes", "epochs", "seconds")},
        "latency_ms": median(times) if times else None,
        "proof": max((values["proof"] for values in found.values() if "proof" in values), default=None),
        "widths": _widths([values["widths"] for values in found.values() if "widths" in values]),
        "kernels": _kernels([values["kernels"] for values in found.values() if "kernels" in values]),
        "scores": next(({"seed": seed, **v["scores"]} for seed, v in found.items() if "scores" in v), None),
        "cells": {str(seed): cell.key for seed, cell in there.items()},
        "equal": row.pruning.equal if row.pruning and row.arm in BUILT else None,
        "design": _design(there.values(), out),
    }


def _form(values: Mapping[str, Any]) -> list[Any]:
    """What the seeds of a row have in common: the groups with their units, and the kernels with their positions."""
    widths, kernels = values.get("widths", {}), values.get("kernels", {})
    groups = sorted((name, units) for name, (_, units) in widths.items())
    return [*groups, *sorted((stage, size, len(kept)) for stage, of in kernels.items() for size, kept in of.items())]


def _design(cells: Iterable[Cell], out: Path) -> dict[str, Any] | None:
    """The design pattern that the networks of a row were built by: one for all seeds."""
    need = next((need for cell in cells for need in cell.needs if need.arm == "pattern"), None)
    if need is None or not finished(out, need):
        return None
    told = said(folder(out, need)).get("pattern")
    stages = told.get("stages") if isinstance(told, dict) else None
    return {"cell": need.key, "stages": stages if isinstance(stages, dict) else {}}


def _label(row: Row) -> str:
    """What tables call a row's arm."""
    if row.arm == "unpruned" and row.pruning:
        return "before pruning"
    if row.arm == "uniform" and row.pruning and row.pruning.granularity == "weight":
        return "uniform sparsity"
    return ARMS[row.arm]


def _widths(seeds: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, list[float]]:
    """Mean number of kept units and number of units, by group, over the seeds."""
    if not seeds:
        return {}
    return {name: [fmean(widths[name][0] for widths in seeds), seeds[0][name][1]] for name in seeds[0]}


def _kernels(seeds: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Stage → size of the kernels → the fraction kept at each of their positions, the mean over the seeds."""
    if not seeds:
        return {}
    return {
        stage: {size: [fmean(each) for each in zip(*(of[stage][size] for of in seeds), strict=True)] for size in sizes}
        for stage, sizes in seeds[0].items()
    }


def _relate(rows: list[dict[str, Any]]) -> None:
    """Add to each row its MACs and parameters as fractions of the unpruned network's."""
    for row in rows:
        whole = next(other for other in rows if other["arm"] == "unpruned" and _place(other) == _place(row))
        for name in ("macs", "params"):
            row[f"{name}_ratio"] = row[name] / whole[name] if row[name] is not None and whole[name] else None


def _place(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["network"], row["data"]


def _comparisons(rows: Table) -> Iterator[dict[str, Any]]:
    arms = prunings(rows)
    for (network, data, method, goal), here in arms.items():
        for a, b in PAIRS:
            if a in here and b in here and not same(here[a], here[b]):
                yield from _compare(here[a], here[b], spoken(a), spoken(b))
        control = arms.get((network, data, "random", goal), {}) if method != "random" else {}
        for arm, when in (("pruned", "before any retraining"), ("finetune", "after fine-tuning")):
            if arm in control and arm in here:
                yield from _compare(here[arm], control[arm], method, "random", when)


def spoken(arm: str) -> str:
    """What a sentence calls an arm."""
    return SPOKEN.get(arm, ARMS.get(arm, arm))


def _compare(
    a: Mapping[str, Any], b: Mapping[str, Any], name_a: str, name_b: str, when: str = ""
) -> Iterator[dict[str, Any]]:
    """The comparison of two rows, if they share a seed."""
    left, right = ({int(seed): value for seed, value in row["accuracy"]["seeds"].items()} for row in (a, b))
    if not left.keys() & right.keys():
        return
    difference = paired(left, right)
    told = verdict(name_a, name_b, difference)
    yield {
        "network": a["network"],
        "data": a["data"],
        "method": a["method"],
        "goal": a["goal"],
        "when": when,
        "a": a["arm"] if not when else name_a,
        "b": b["arm"] if not when else name_b,
        **asdict(difference),
        "resolved": difference.resolved,
        "verdict": f"{when}, {told}" if when else told,
    }


def read_results(folder: Path) -> dict[str, Any]:
    """Read the ``results.json`` of a folder.

    Raises:
        TopiaristError: if there is none, or if it is not one of ours.
    """
    path = Path(folder) / "results.json"
    if not path.exists():
        raise TopiaristError(f"there is no results.json in {folder}: run a study with this output folder first")
    results = read_json(path, "the results", "delete the file and run the study again, which reuses what is done")
    if not isinstance(results, dict) or any(name not in results for name in NEEDED):
        raise TopiaristError(f"{path} holds no results of a study: name the output folder of a study.")
    return results


def results_of(folder: str | Path) -> dict[str, Any]:
    """The results in a study's folder: from the cells that are finished or, without cells, from ``results.json``.

    Returns:
        The plain values of ``results.json``.

    Raises:
        TopiaristError: if the folder holds no study.
    """
    folder = Path(folder)
    file = folder / "study.json"
    if not file.exists():
        results = read_results(folder)
    else:
        settings = read_json(file, "the study", "run the study again, it reuses what is done")
        try:
            study = Study.of(settings)
            results = gather(study, folder)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise TopiaristError(
                f"The study in {folder} is damaged ({error}): run it again, it reuses what is done."
            ) from error
        if not any(row["cells"] for row in results["rows"]) and (folder / "results.json").exists():
            results = read_results(folder)  # the cells are gone, what they said is not
    write_results(folder, results)
    return results


def write_results(out: Path, results: Mapping[str, Any]) -> None:
    """Write ``results.json`` into the folder of a study.

    Raises:
        TopiaristError: the results hold what no JSON file can, or the folder cannot be written.
    """
    try:
        write_json(Path(out) / "results.json", results)
    except (TypeError, ValueError) as error:
        raise TopiaristError(
            f"The results in {out} are damaged ({error}): delete results.json and run the study again, which reuses "
            "what is done."
        ) from error
