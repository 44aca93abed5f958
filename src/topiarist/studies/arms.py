"""The arms: what is done to fill a cell. Each reads the folders of the cells it needs and writes its own.

Folders hold a network (``model.safetensors`` and ``architecture.json``, which `topiarist.load` reads) and, where
something was trained, ``history.json``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from topiarist import methods
from topiarist.architecture import Architecture, save
from topiarist.budget import Budget, cost
from topiarist.guided import KernelPattern
from topiarist.measure import evaluate, latency
from topiarist.pruning import Pruned, prune
from topiarist.studies.bench import Bench, Folders, Result, mask_of, network_in, recipe_of, shape_in, size_of, train
from topiarist.studies.built import built, pattern
from topiarist.studies.cell_results import said
from topiarist.studies.cells import Cell
from topiarist.studies.data_paths import placed
from topiarist.studies.histogram import histogram
from topiarist.train import Recipe, reinitialise, scratch_b

ROUNDS = 5
"""Times that a latency is measured."""


@dataclass(frozen=True)
class Arms:
    """Fills the folders of cells (see `topiarist.studies.cells.Work`).

    Attributes:
        data_folder: where relative paths of data begin; by default where the process is.
        rehearses: whether cells are only to show that they can be filled (see `Study.rehearsal`).
    """

    data_folder: Path | None = None
    rehearses: bool = False

    def __call__(self, cell: Cell, folder: Path, needs: Folders) -> Result:
        """Do what the cell's arm says."""
        cell = replace(cell, data=placed(cell.data, self.data_folder))
        return STEPS[cell.arm](Bench.of(cell, self.rehearses), cell, folder, needs)


work = Arms()
"""Fills the folder of a cell, with data where the process is."""


def unpruned(bench: Bench, cell: Cell, folder: Path, needs: Folders) -> Result:
    """Train the network, with the penalty or gates of a method that asks for them."""
    graph = bench.graph(cell)
    method = None if cell.method == "none" else methods.make(cell.method, **cell.settings["fields"])
    model = bench.start(cell.settings["seed"])
    total = cost(graph)
    shape = {"macs": total.macs, "params": total.params}
    whole = Architecture.of(graph, graph.full())
    return train(cell, folder, bench.data, model, whole, recipe_of(cell), shape, method=method, graph=graph)


def pruned(bench: Bench, cell: Cell, folder: Path, needs: Folders) -> Result:
    """Prune the trained network; no training follows."""
    model = network_in(needs[0], bench)
    seed = cell.settings["seed"]
    chance = {"seed": seed} if "seed" in (entry.name for entry in fields(methods.get(cell.method))) else {}
    method = methods.make(cell.method, **{**chance, **cell.settings["fields"]})
    if bench.rehearses:
        method = method.dry_run()
    budget = Budget(**cell.budget) if cell.budget else None
    options: dict[str, Any] = {
        key: cell.settings[key] for key in ("repair", "steps", "schedule") if key in cell.settings
    }
    if "between" in cell.settings:
        options["between"] = Recipe(**cell.settings["between"])
    if cell.settings.get("rewind"):
        options["rewind"] = bench.start(seed).state_dict()
    done = prune(model, bench.data.example(), method, budget, data=bench.data, seed=seed, **options)
    save(done.model, done.architecture, folder)
    return {
        "accuracy": evaluate(done.model, bench.data),
        "macs": done.after.macs,
        "params": done.after.params,
        "ratio": done.before.macs / max(1, done.after.macs),
        "bytes": size_of(folder),
        "proof": done.proof.max_rel_diff,
        "widths": done.architecture.widths,
        **_pictured(done),
    }


def _pictured(done: Pruned) -> Result:
    """What the report draws of a pruning: its scores, and where in their kernels weights stay."""
    found: Result = {}
    if (scores := histogram(done.choice)) is not None:
        found["scores"] = scores
    if done.graph.groups[0].of_weights:
        found["kernels"] = KernelPattern.of(done.architecture).to_json()["stages"]
    return found


def finetune(bench: Bench, cell: Cell, folder: Path, needs: Folders) -> Result:
    """Train the pruned network on from the weights that it inherits."""
    mask = mask_of(bench, cell, needs[0])
    model = network_in(needs[0], bench)
    architecture = shape_in(needs[0])
    return train(cell, folder, bench.data, model, architecture, recipe_of(cell), said(needs[0]), **mask)


def scratch(bench: Bench, cell: Cell, folder: Path, needs: Folders) -> Result:
    """Train the pruned shape from random weights: Scratch-E, or Scratch-B where the cell has a cap."""
    shape = said(needs[0])
    recipe = recipe_of(cell)
    if "cap" in cell.settings:
        recipe = scratch_b(recipe, max(1.0, shape["ratio"]), cell.settings["cap"])
    mask = mask_of(bench, cell, needs[0])
    architecture = shape_in(needs[0])
    torch.manual_seed(cell.settings["seed"])
    model = architecture.build(bench.make)
    if mask:
        model = reinitialise(model, **mask, seed=cell.settings["seed"], make_model=bench.make)
    return train(cell, folder, bench.data, model, architecture, recipe, shape, **mask)


def ticket(bench: Bench, cell: Cell, folder: Path, needs: Folders) -> Result:
    """Train what pruning left from initial weights, without a change to them: a lottery ticket (Frankle & Carbin 2019).

    ``start`` is their seed: that of the trained network rewinds the survivors to the values that they began with;
    another one redraws them, which is what the ticket is compared with. All else is the same for both.
    """
    architecture = shape_in(needs[0])
    model = architecture.apply(bench.start(cell.settings["start"]))
    mask = mask_of(bench, cell, needs[0])
    return train(cell, folder, bench.data, model, architecture, recipe_of(cell), said(needs[0]), **mask)


def clock(bench: Bench, cell: Cell, folder: Path, needs: Folders) -> Result:
    """Measure how long the network takes for one example: the best of several medians, the least disturbed one."""
    model, example = network_in(needs[0], bench), bench.data.example()
    return {"latency_ms": min(latency(model, example) for _ in range(ROUNDS))}


STEPS: Mapping[str, Callable[[Bench, Cell, Path, Folders], Result]] = {
    "unpruned": unpruned,
    "pruned": pruned,
    "finetune": finetune,
    "scratch_e": scratch,
    "scratch_b": scratch,
    "lottery": ticket,
    "lottery_random": ticket,
    "uniform": built,
    "guided": built,
    "transferred": built,
    "pattern": pattern,
    "latency": clock,
}
"""Arm → what fills its cells; ``pattern`` and ``latency`` are no arms of the table but what it rests on."""
