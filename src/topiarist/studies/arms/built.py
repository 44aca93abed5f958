"""Arms whose shapes are built to the budget of a pruning: uniform ones, and those of a design pattern."""

from __future__ import annotations

from dataclasses import replace
from glob import escape
from typing import Any

import torch

from topiarist import guided
from topiarist.architecture import Architecture
from topiarist.budget import Budget, allocate, cost
from topiarist.graph import Graph, Keep, trace
from topiarist.studies.arms.base import Arm, Case
from topiarist.studies.arms.pruned import PRUNED
from topiarist.studies.cell_results import checked_result
from topiarist.studies.cells import Cell
from topiarist.studies.design_patterns import pattern_cell
from topiarist.studies.job import Job, Result, architecture_in, pattern_in
from topiarist.studies.prunings import StudyPruning
from topiarist.train import reinitialise, scratch_b


def train_built(job: Job) -> Result:
    """Trains a network of the pruning's budget from random weights, as Scratch-B.

    A uniform network keeps the same fraction of every group's units, or of every kernel's weights at random positions;
    guided and transferred ones share the budget out as a pattern says. All of them have the MACs or the parameters that
    the pruned network has at this seed, or those that the budget names; layers of which unstructured pruning removed
    nothing keep all weights.
    """
    cell, graph = job.cell, trace(job.make(), job.data.example())
    pattern = pattern_in(job.need("pattern")).on(graph) if job.needs_a("pattern") else None
    measured = job.needs_a("pruned")
    budget = _as_large_as_pruned(job, graph) if measured else Budget(**cell.budget)
    seed, unstructured = cell.settings["seed"], measured and job.unstructured
    if unstructured:
        kernels = guided.KernelPattern.uniform(graph) if pattern is None else pattern
        assert isinstance(kernels, guided.KernelPattern), "unstructured pruning gives patterns of kernels"
        graph, keep = graph.weights(), kernels.keep(graph, budget, seed=seed)
    else:
        keep = _uniform(graph, budget) if pattern is None else pattern.keep(graph, budget)
    before, after = cost(graph), cost(graph, keep)
    recipe = scratch_b(job.recipe, max(1.0, before.macs / max(1, after.macs)), cell.settings["cap"])
    architecture = Architecture.of(graph, keep)
    torch.manual_seed(seed)
    model = architecture.build(job.make)
    mask: dict[str, Any] = {"graph": graph, "keep": keep} if unstructured else {}
    if unstructured:
        reinitialise(model, **mask, seed=seed, make_model=job.make)
    size = {"macs": after.macs, "params": after.params, "widths": architecture.widths}
    return {**job.train(model, architecture, recipe, size, **mask), "equal": _equal(cell)}


def _equal(cell: Cell) -> str:
    """Returns what the network has in common with the pruned one: ``"macs"`` or ``"params"``."""
    return str(cell.settings.get("equal", "macs"))


def _as_large_as_pruned(job: Job, graph: Graph) -> Budget:
    """Returns the budget that the pruned network has used; the rest of it as the cell says.

    In unstructured pruning, tensors of which nothing was pruned keep all weights: it may be one of convolutions alone.
    """
    path, equal, budget = job.need("pruned"), _equal(job.cell), job.cell.budget
    share = min(1.0, checked_result(path)[equal] / getattr(cost(graph), equal))
    limits = {key: budget[key] for key in ("exclude", "floor", "multiple") if key in budget}
    if job.unstructured:
        keep = architecture_in(path).keep
        limits = {"exclude": tuple(escape(group) for group, kept in keep.items() if bool(kept.all()))}
    return Budget(**{equal: share}, **limits)


def _uniform(graph: Graph, budget: Budget) -> Keep:
    """Returns a keep of the first units of every group, the same fraction of each."""
    first = {group.name: -torch.arange(group.units, dtype=torch.float64) for group in graph.groups}
    return allocate(graph, first, budget, allocation="uniform")


def settings(case: Case) -> dict[str, str]:
    """Returns what the network has in common with the pruned one, where it is not MACs."""
    return {"equal": "params"} if case.pruned_by.equal == "params" else {}


def pruned_if_measured(case: Case) -> tuple[Cell, ...]:
    """Returns the pruned network, unless the budget alone says how large the built one is.

    Then one cell of uniform widths serves all methods.
    """
    return (PRUNED.cell(case),) if case.pruned_by.measured else ()


def own_pattern(case: Case) -> tuple[Cell, ...]:
    """Returns the design pattern of what the pruning keeps at all seeds, and the pruned network as far as needed."""
    pruned = tuple(PRUNED.cell(replace(case, seed=seed)) for seed in case.study.seeds)
    return (pattern_cell(pruned), *pruned_if_measured(case))


def pattern_of_source(case: Case) -> tuple[Cell, ...]:
    """Returns the design pattern of the study's ``source``, and the pruned network as far as needed."""
    pruning, source = case.pruned_by, {"network": case.network, "data": case.data, **case.study.source}
    there = pruning.with_budget(source["budget"]) if "budget" in source else pruning
    pattern, *_ = own_pattern(replace(case, network=source["network"], data=source["data"], pruning=there))
    return (pattern, *pruned_if_measured(case))


def uniform_label(pruning: StudyPruning) -> str:
    """Returns what is uniform: the widths of layers, or the sparsity of weights."""
    return "uniform sparsity" if pruning.granularity == "weight" else "uniform widths"


UNIFORM = Arm(
    name="uniform",
    order=7,
    label="uniform widths",
    phrase="the uniform network",
    how="Uniform: trained like Scratch-B, with the same width ratio in all layers or, in unstructured pruning, the "
    "same sparsity at random positions; the baseline for the choice of widths or weights.",
    mark="v",
    colours=("#b06f1c", "#e2a856"),
    run=train_built,
    needs=pruned_if_measured,
    settings=settings,
    capped=True,
    shape="built",
    from_scratch=True,
    label_of=uniform_label,
)

GUIDED = Arm(
    name="guided",
    order=8,
    label="guided pattern",
    phrase="the guided pattern",
    how="Guided pattern: trained like Scratch-B; the shape is the average, stage by stage, of what the method keeps at "
    "all seeds.",
    mark="^",
    colours=("#b5432f", "#f08a76"),
    run=train_built,
    needs=own_pattern,
    settings=settings,
    capped=True,
    shape="built",
    from_scratch=True,
    compared_with=("uniform", "scratch_b", "scratch_e"),
)

TRANSFERRED = Arm(
    name="transferred",
    order=9,
    label="transferred pattern",
    phrase="the transferred pattern",
    how="Transferred pattern: like the guided one, with the pattern of another network or of other data.",
    mark=">",
    colours=("#7c7a16", "#c9c65a"),
    run=train_built,
    needs=pattern_of_source,
    settings=settings,
    capped=True,
    shape="built",
    from_scratch=True,
    compared_with=("uniform", "scratch_b", "scratch_e"),
)
