"""What a run has found so far, as plain values, and what can be concluded from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from plan import BUDGETS, PEER, SCRATCH, Setting, base, pruned, scratch, timed, trains

from topiarist.studies import Cell, Difference, paired
from topiarist.studies.cells import failure, finished, result

Record = dict[str, Any]
"""A method on a network at a budget and a seed, and what came out; see `gather`."""


def gather(out: Path, settings: Iterable[Setting], names: Iterable[str], seeds: Iterable[int]) -> dict[str, Any]:
    """The finished cells of a run: ``base``, ``pruned`` and ``scratch``, each a list of records."""
    settings, names, seeds = tuple(settings), tuple(names), tuple(seeds)
    bases, rows = [], []
    for setting in settings:
        for seed in seeds:
            cell = base(setting, seed)
            if not finished(out, cell):
                continue
            whole = {"network": setting.title, "seed": seed, **result(out, cell)}
            bases.append(whole)
            for name in names:
                rows += list(_records(out, setting, name, whole))
    plans = scratch_plan(out, settings, names, seeds)
    arms = [
        {"network": setting.title, "method": name, "macs": macs, "seed": seed, cell.arm: result(out, cell)}
        | {"training": cell.key}
        for (setting, name, macs, seed), cells in plans
        for cell in cells
        if finished(out, cell)
    ]
    return {"base": bases, "pruned": rows, "scratch": arms}


def _records(out: Path, setting: Setting, name: str, whole: Record) -> Iterator[Record]:
    for macs in BUDGETS:
        cell = pruned(setting, name, macs, whole["seed"])
        told = result(out, cell) if finished(out, cell) else {"failed": _why(out, cell)}
        if told == {"failed": ""}:
            continue  # not tried yet
        told.pop("widths", None)
        told.pop("prune_seconds", None)  # taken beside other cells
        if finished(out, clock := timed(setting, name, macs, whole["seed"])):
            told |= {key: value for key, value in result(out, clock).items() if key == "prune_seconds"}
        if "after" in told:
            told |= {"macs_kept": told.pop("macs") / whole["macs"], "params_kept": told.pop("params") / whole["params"]}
        identity = {"network": setting.title, "method": name, "budget": macs, "seed": whole["seed"]}
        yield {**identity, "extra_epochs": setting.extra["epochs"] if trains(name) else 0, **told}


def _why(out: Path, cell: Cell) -> str:
    return failure(out, cell) or next((told for need in cell.needs if (told := _why(out, need))), "")


def scratch_plan(
    out: Path, settings: Iterable[Setting], names: Iterable[str], seeds: Iterable[int]
) -> list[tuple[tuple[Setting, str, float, int], tuple[Cell, Cell]]]:
    """The trainings from scratch that the finished prunings ask for: one for each distinct shape of a network."""
    found, names, seeds = [], tuple(names), tuple(seeds)
    for setting in settings:
        known: dict[tuple[tuple[str, int], ...], tuple[Cell, Cell]] = {}
        for macs, count in setting.scratch.items():
            for seed in seeds[:count]:
                for name in (name for name in SCRATCH if name in names):
                    cell = pruned(setting, name, macs, seed)
                    widths = result(out, cell).get("widths") if finished(out, cell) else None
                    if widths:
                        arms = known.setdefault(tuple(sorted(widths.items())), scratch(setting, widths, seed))
                        found.append(((setting, name, macs, seed), arms))
    return found


def holds(record: Record) -> bool:
    """Whether the method was driven to the budget."""
    return "after" in record and record["macs_kept"] <= record["budget"] * (1 + 1e-9)


def by_seed(rows: Iterable[Record], value: Callable[[Record], float]) -> dict[str, dict[int, float]]:
    """Method → seed → a value of its record."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        found.setdefault(row["method"], {})[row["seed"]] = value(row)
    return found


def best(rows: list[Record], seeds: set[int], part: str) -> dict[bool, str]:
    """The best method of each side (``True``: Torch-Pruning's) by its mean after fine-tuning.

    Args:
        rows: of one network and budget.
        seeds: which a method must have, all of them.
        part: ``"test"``, or ``"held"`` to choose without a look at the test images.
    """
    means = {
        name: fmean(values.values())
        for name, values in by_seed(filter(holds, rows), lambda row: row["after"][part]).items()
        if seeds <= set(values)
    }
    sides = {side: [name for name in means if name.startswith(PEER) is side] for side in (False, True)}
    return {side: max(names, key=lambda name: means[name]) for side, names in sides.items() if names}


def duel(rows: list[Record], part: str) -> tuple[str, str, Difference] | None:
    """Our best and its best, and their difference on the test images, paired by seed.

    While a run is under way only the seeds count at which all methods are done, if there are such.
    """
    done: dict[int, set[str]] = {}
    for row in rows:
        done.setdefault(row["seed"], set()).add(row["method"])
    everyone = set().union(*done.values())
    seeds = {seed for seed, names in done.items() if names == everyone} or set(done)
    rows = [row for row in rows if row["seed"] in seeds]
    chosen = best(rows, seeds, part)
    if len(chosen) < 2:
        return None
    accuracy = by_seed(rows, lambda row: row.get("after", {}).get("test", 0.0))
    return chosen[False], chosen[True], paired(accuracy[chosen[False]], accuracy[chosen[True]])


def finalists(found: dict[str, Any], settings: Iterable[Setting]) -> Iterator[tuple[Setting, float, str, str]]:
    """Our best and its best of each network and budget, which meet on more seeds."""
    for setting in settings:
        for macs in BUDGETS:
            rows = [row for row in found["pruned"] if (row["network"], row["budget"]) == (setting.title, macs)]
            if rows and (fight := duel(rows, "test")) is not None:
                yield setting, macs, *fight[:2]


def finals(out: Path, found: dict[str, Any], settings: Iterable[Setting], seeds: Iterable[int]) -> list[Record]:
    """What the finalists did at all seeds, those by which they were chosen too."""
    seeds, rows = tuple(seeds), []
    for setting, macs, mine, its in finalists(found, settings):
        for seed in seeds:
            if finished(out, cell := base(setting, seed)):
                whole = {"network": setting.title, "seed": seed, **result(out, cell)}
                records = (row for name in (mine, its) for row in _records(out, setting, name, whole))
                rows += [row for row in records if row["budget"] == macs and holds(row)]
    return rows


def against_random(rows: list[Record], when: str) -> dict[str, Difference]:
    """Method → accuracy ``"before"`` or ``"after"`` fine-tuning less random's, over all that both have; paired by seed.

    A seed's value is the mean over networks and budgets.
    """
    usable = [row for row in rows if holds(row)]
    chance = {_place(row): row[when]["test"] for row in usable if row["method"] == "random"}
    gains: dict[str, dict[int, list[float]]] = {}
    for row in usable:
        if row["method"] != "random" and _place(row) in chance:
            lead = row[when]["test"] - chance[_place(row)]
            gains.setdefault(row["method"], {}).setdefault(row["seed"], []).append(lead)
    means = {name: {seed: fmean(values) for seed, values in seeds.items()} for name, seeds in gains.items()}
    return {name: paired(seeds, dict.fromkeys(seeds, 0.0)) for name, seeds in means.items()}


def _place(row: Record) -> tuple[str, float, int]:
    return row["network"], row["budget"], row["seed"]
