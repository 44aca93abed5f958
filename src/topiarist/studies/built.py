"""Arms whose shapes are built to the budget of a pruning: uniform ones, and those of a design pattern."""

from __future__ import annotations

from glob import escape
from typing import TYPE_CHECKING, Any

import torch

from topiarist import guided
from topiarist.architecture import Architecture
from topiarist.budget import Budget, allocate, cost
from topiarist.graph import Graph, Keep, trace
from topiarist.studies.bench import (
    PATTERN_FILE,
    Bench,
    Folders,
    Result,
    method_of,
    pattern_in,
    recipe_of,
    shape_in,
    train,
)
from topiarist.studies.cell_results import said
from topiarist.train import reinitialise, scratch_b

if TYPE_CHECKING:
    from pathlib import Path

    from topiarist.studies.cells import Cell


def pattern(bench: Bench, cell: Cell, folder: Path, needs: Folders) -> Result:
    """Average what the prunings of all seeds keep into a design pattern."""
    found = guided.of(*(shape_in(need) for need in needs))
    found.save(folder / PATTERN_FILE)
    return {"pattern": found.to_json(), "prunings": len(needs)}


def built(bench: Bench, cell: Cell, folder: Path, needs: Folders) -> Result:
    """Train a network of the pruning's budget from random weights, as Scratch-B.

    A uniform network keeps the same fraction of every group's units, or of every kernel's weights at random places;
    guided and transferred ones share the budget out as a pattern says. All of them have the MACs or the parameters that
    the pruning left at this seed, or those that its budget names; layers whose single weights the pruning left whole
    stay whole.
    """
    graph = trace(bench.make(), bench.data.example())
    found = None if cell.arm == "uniform" else pattern_in(needs[0]).on(graph)
    reference = needs[-1] if cell.needs and cell.needs[-1].arm == "pruned" else None
    budget = Budget(**cell.budget) if reference is None else _as_large(cell, graph, reference)
    seed = cell.settings["seed"]
    sparse = reference is not None and method_of(cell).granularity == "weight"
    if sparse:
        kernels = guided.KernelPattern.uniform(graph) if found is None else found
        assert isinstance(kernels, guided.KernelPattern), "single weights give patterns of kernels"
        graph, keep = graph.weights(), kernels.keep(graph, budget, seed=seed)
    else:
        keep = _uniform(graph, budget) if found is None else found.keep(graph, budget)
    before, after = cost(graph), cost(graph, keep)
    recipe = scratch_b(recipe_of(cell), max(1.0, before.macs / max(1, after.macs)), cell.settings["cap"])
    architecture = Architecture.of(graph, keep)
    torch.manual_seed(seed)
    model = architecture.build(bench.make)
    mask: dict[str, Any] = {"graph": graph, "keep": keep} if sparse else {}
    if sparse:
        reinitialise(model, **mask, seed=seed, make_model=bench.make)
    size = {"macs": after.macs, "params": after.params, "widths": architecture.widths}
    return {**train(cell, folder, bench.data, model, architecture, recipe, size, **mask), "equal": _equal(cell)}


def _equal(cell: Cell) -> str:
    """What the network has in common with the pruned one: ``"macs"`` or ``"params"``."""
    return str(cell.settings.get("equal", "macs"))


def _as_large(cell: Cell, graph: Graph, reference: Path) -> Budget:
    """The budget that the pruned network in a folder has used up; the rest of it as the cell says.

    Of single weights, tensors that the pruning left whole stay whole: it may be one of convolutions alone.
    """
    name = _equal(cell)
    share = min(1.0, said(reference)[name] / getattr(cost(graph), name))
    limits = {key: cell.budget[key] for key in ("exclude", "floor", "multiple") if key in cell.budget}
    if method_of(cell).granularity == "weight":
        keep = shape_in(reference).keep
        limits = {"exclude": tuple(escape(group) for group, kept in keep.items() if bool(kept.all()))}
    return Budget(**{name: share}, **limits)


def _uniform(graph: Graph, budget: Budget) -> Keep:
    """The first units of every group, the same fraction of each."""
    first = {group.name: -torch.arange(group.units, dtype=torch.float64) for group in graph.groups}
    return allocate(graph, first, budget, allocation="uniform")
