"""The rows of a study's table: each an arm of a pruning, averaged over the finished cells of its seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, median
from typing import Any

from topiarist.studies import published
from topiarist.studies.arms import ARMS
from topiarist.studies.cell_results import checked_result
from topiarist.studies.cells import Cell, Json, damaged_result, finished, folder
from topiarist.studies.statistics import summarise
from topiarist.studies.study import Row, Study
from topiarist.studies.timing import latency_cell

Kernels = Mapping[str, Mapping[str, Sequence[float]]]
"""Stage → size of the kernels → the fraction kept at each of their positions."""


def table(study: Study, out: Path) -> list[dict[str, Any]]:
    """Returns the rows of a study, with MACs and parameters also as fractions of the unpruned network's.

    Raises:
        TopiaristError: the result of a cell is damaged.
    """
    readings: dict[str, Json] = {}
    rows = [_row(study, row, out, readings) for row in study.rows()]
    unpruned = {(row["network"], row["data"]): row for row in reversed(rows) if row["arm"] == "unpruned"}
    for row in rows:
        reference = unpruned[row["network"], row["data"]]
        for name in ("macs", "params"):
            known = row[name] is not None and reference[name]
            row[f"{name}_ratio"] = row[name] / reference[name] if known else None
    return rows


def _row(study: Study, row: Row, out: Path, readings: dict[str, Json]) -> dict[str, Any]:
    arm, pruning = ARMS[row.arm], row.pruning
    cells = {seed: cell for seed, cell in row.cells.items() if finished(out, cell)}
    results = {seed: checked_result(folder(out, cell), "accuracy") for seed, cell in cells.items()}
    _check_alike(results, {seed: folder(out, cell) for seed, cell in cells.items()})
    accuracy = {seed: float(values["accuracy"]) for seed, values in results.items()}
    spread = asdict(summarise(list(accuracy.values()))) if accuracy else {"mean": None, "std": None, "n": 0}

    def known(name: str) -> list[Any]:
        return [values[name] for values in results.values() if values.get(name) is not None]

    numbers = {name: known(name) for name in ("macs", "params", "bytes", "epochs", "seconds")}
    return {
        "network": row.network,
        "data": row.data,
        "method": study.label(pruning) if pruning else "none",
        "goal": pruning.goal if pruning else "",
        "arm": arm.name,
        "label": arm.labelled(pruning),
        "accuracy": {**spread, "seeds": {str(seed): value for seed, value in accuracy.items()}},
        **{name: fmean(values) if values else None for name, values in numbers.items()},
        **_latency(cells.values(), out, readings),
        "proof": max(known("proof"), default=None),
        "widths": _widths(known("widths")),
        "kernels": _kernels(known("kernels")),
        "scores": next(({"seed": seed, **of["scores"]} for seed, of in results.items() if "scores" in of), None),
        "cells": {str(seed): cell.key for seed, cell in cells.items()},
        "equal": pruning.equal if pruning and arm.shape == "built" else None,
        "design": _design(cells.values(), out),
        "published": published.find(study.published, row.network, row.data, pruning, row.arm),
    }


def _check_alike(results: Mapping[int, Json], folders: Mapping[int, Path]) -> None:
    """Raises where seeds differ in their groups and units or kernels and positions: they are of one network."""
    forms = {seed: _form(values) for seed, values in results.items()}
    for seed, form in forms.items():
        if form != next(iter(forms.values())):
            raise damaged_result(folders[seed])


def _form(values: Json) -> list[Any]:
    widths, kernels = values.get("widths", {}), values.get("kernels", {})
    groups = sorted((name, units) for name, (_, units) in widths.items())
    return [*groups, *sorted((stage, size, len(kept)) for stage, of in kernels.items() for size, kept in of.items())]


def _latency(cells: Iterable[Cell], out: Path, readings: dict[str, Json]) -> dict[str, Any]:
    """Returns the latencies of a row by target, medians over the seeds, and the shapes of its networks.

    Args:
        cells: of the row.
        out: folder of the study.
        readings: shape → its reading, the first one that was met: after a merge there may be several; and the same for
            each target, where a runtime that zeros make faster has shapes of its own.
    """
    timed = [cell for cell in map(latency_cell, cells) if finished(out, cell)]
    own = {cell.key: checked_result(folder(out, cell), "latency_ms") for cell in timed}
    found = [readings.setdefault(values.get("shape", key), values) for key, values in own.items()]
    by_target = [
        {
            name: readings.setdefault(f"{values.get('zeros', {}).get(name, values.get('shape', key))} {name}", values)
            .get("latency", {})
            .get(name, of)
            for name, of in values.get("latency", {}).items()
        }
        for key, values in own.items()
    ]
    return {
        "latency_ms": median(values["latency_ms"] for values in found) if found else None,
        "latency": {name: _on_target([of[name] for of in by_target if name in of]) for name in _names(by_target)},
        "shapes": sorted({values["shape"] for values in found if "shape" in values}),
    }


def _names(mappings: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for each in mappings for name in each))


def _on_target(seeds: Sequence[Json]) -> dict[str, float | None]:
    """Returns the median over the seeds of a latency and of the ends of its interval."""
    known = {name: [of[name] for of in seeds if of.get(name) is not None] for name in ("value", "low", "high")}
    return {name: median(values) if values else None for name, values in known.items()}


def _design(cells: Iterable[Cell], out: Path) -> dict[str, Any] | None:
    """Returns the design pattern that the networks of a row were built by: one for all seeds."""
    need = next((need for cell in cells for need in cell.needs if need.arm == "pattern"), None)
    if need is None or not finished(out, need):
        return None
    pattern = checked_result(folder(out, need)).get("pattern")
    stages = pattern.get("stages") if isinstance(pattern, dict) else None
    return {"cell": need.key, "stages": stages if isinstance(stages, dict) else {}}


def _widths(seeds: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, list[float]]:
    """Returns group → mean number of kept units over the seeds, and number of units."""
    if not seeds:
        return {}
    return {name: [fmean(widths[name][0] for widths in seeds), units] for name, (_, units) in seeds[0].items()}


def _kernels(seeds: Sequence[Kernels]) -> dict[str, dict[str, list[float]]]:
    """Returns the mean over the seeds."""
    if not seeds:
        return {}
    return {
        stage: {size: [fmean(each) for each in zip(*(of[stage][size] for of in seeds), strict=True)] for size in sizes}
        for stage, sizes in seeds[0].items()
    }
