"""The arms: what is done to fill a cell. Each reads the folders of the cells it needs and writes its own.

Folders hold a network (``model.safetensors`` and ``architecture.json``, which `topiarist.load` reads) and, where
something was trained, ``history.json``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from topiarist import methods
from topiarist.allocation import allocate
from topiarist.architecture import SHAPE_FILE, WEIGHTS_FILE, Architecture, load, save
from topiarist.budget import Budget
from topiarist.costs import cost, latency
from topiarist.data import Data, load_data
from topiarist.graph import Graph, trace
from topiarist.guided import KernelPattern
from topiarist.methods import Method
from topiarist.models import fitting_options, make_model
from topiarist.pruned import Pruned
from topiarist.pruning import prune
from topiarist.studies.cells import Cell, write_json
from topiarist.studies.scores import histogram
from topiarist.train import Recipe, evaluate, fit, reinitialise, scratch_b

ROUNDS = 5
"""Times that a latency is measured."""

Result = dict[str, Any]
Folders = tuple[Path, ...]


def work(cell: Cell, folder: Path, needs: Folders) -> Result:
    """Fill the folder of a cell (see `topiarist.studies.cells.Work`)."""
    return STEPS[cell.arm](cell, folder, needs)


@dataclass(frozen=True)
class _Bench:
    """What all arms of a cell's network start from."""

    data: Data
    make: Callable[[], nn.Module]

    @staticmethod
    def of(cell: Cell) -> _Bench:
        data = load_data(cell.data)
        return _Bench(data, make_model(cell.network, **fitting_options(cell.network, data.input_shape, data.classes)))

    def start(self, seed: int) -> nn.Module:
        """The network with the initial weights of a seed."""
        torch.manual_seed(seed)
        return self.make()

    def graph(self, cell: Cell) -> Graph:
        """The units of the unpruned network that the cell's method works on."""
        graph = trace(self.make(), self.data.example())
        if cell.method == "none":
            return graph
        return _method(cell).units(graph)


def unpruned(cell: Cell, folder: Path, needs: Folders) -> Result:
    """Train the network, with the penalty or gates of a method that asks for them."""
    bench = _Bench.of(cell)
    graph = bench.graph(cell)
    method = None if cell.method == "none" else methods.make(cell.method, **cell.settings["fields"])
    model = bench.start(cell.settings["seed"])
    total = cost(graph)
    shape = {"macs": total.macs, "params": total.params}
    whole = Architecture.of(graph, graph.full())
    return _train(cell, folder, bench.data, model, whole, _recipe(cell), shape, method=method, graph=graph)


def pruned(cell: Cell, folder: Path, needs: Folders) -> Result:
    """Prune the trained network; no training follows."""
    bench = _Bench.of(cell)
    model = load(bench.make, needs[0])
    seed = cell.settings["seed"]
    chance = {"seed": seed} if "seed" in (entry.name for entry in fields(methods.get(cell.method))) else {}
    method = methods.make(cell.method, **{**chance, **cell.settings["fields"]})
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
        "bytes": _size(folder),
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


def finetune(cell: Cell, folder: Path, needs: Folders) -> Result:
    """Train the pruned network on from the weights that it inherits."""
    bench = _Bench.of(cell)
    mask = _mask(bench, cell, needs[0])
    model = load(bench.make, needs[0])
    architecture = Architecture.load(needs[0] / SHAPE_FILE)
    return _train(cell, folder, bench.data, model, architecture, _recipe(cell), _shape(needs[0]), **mask)


def scratch(cell: Cell, folder: Path, needs: Folders) -> Result:
    """Train the pruned shape from random weights: Scratch-E, or Scratch-B where the cell has a cap."""
    bench = _Bench.of(cell)
    shape = _shape(needs[0])
    recipe = _recipe(cell)
    if "cap" in cell.settings:
        recipe = scratch_b(recipe, max(1.0, shape["ratio"]), cell.settings["cap"])
    mask = _mask(bench, cell, needs[0])
    architecture = Architecture.load(needs[0] / SHAPE_FILE)
    torch.manual_seed(cell.settings["seed"])
    model = architecture.build(bench.make)
    if mask:
        model = reinitialise(model, **mask, seed=cell.settings["seed"], make_model=bench.make)
    return _train(cell, folder, bench.data, model, architecture, recipe, shape, **mask)


def ticket(cell: Cell, folder: Path, needs: Folders) -> Result:
    """Train what pruning left from initial weights, without a change to them: a lottery ticket (Frankle & Carbin 2019).

    ``start`` is their seed: that of the trained network rewinds the survivors to the values that they began with;
    another one redraws them, which is what the ticket is compared with. All else is the same for both.
    """
    bench = _Bench.of(cell)
    architecture = Architecture.load(needs[0] / SHAPE_FILE)
    model = architecture.apply(bench.start(cell.settings["start"]))
    mask = _mask(bench, cell, needs[0])
    return _train(cell, folder, bench.data, model, architecture, _recipe(cell), _shape(needs[0]), **mask)


def uniform(cell: Cell, folder: Path, needs: Folders) -> Result:
    """Train a network of the same MACs from random weights whose groups all keep the same fraction of their units."""
    bench = _Bench.of(cell)
    graph = trace(bench.make(), bench.data.example())
    budget = Budget(macs=1 / _shape(needs[0])["ratio"]) if needs else Budget(**cell.budget)
    first = {group.name: -torch.arange(group.units, dtype=torch.float64) for group in graph.groups}
    keep = allocate(graph, first, budget, allocation="uniform")
    before, after = cost(graph), cost(graph, keep)
    architecture = Architecture.of(graph, keep)
    recipe = scratch_b(_recipe(cell), max(1.0, before.macs / max(1, after.macs)), cell.settings["cap"])
    torch.manual_seed(cell.settings["seed"])
    model = architecture.build(bench.make)
    shape = {"macs": after.macs, "params": after.params, "widths": architecture.widths}
    return _train(cell, folder, bench.data, model, architecture, recipe, shape)


def clock(cell: Cell, folder: Path, needs: Folders) -> Result:
    """Measure how long the network takes for one example: the best of several medians, the least disturbed one."""
    bench = _Bench.of(cell)
    model, example = load(bench.make, needs[0]), bench.data.example()
    return {"latency_ms": min(latency(model, example) for _ in range(ROUNDS))}


STEPS: Mapping[str, Callable[[Cell, Path, Folders], Result]] = {
    "unpruned": unpruned,
    "pruned": pruned,
    "finetune": finetune,
    "scratch_e": scratch,
    "scratch_b": scratch,
    "lottery": ticket,
    "lottery_random": ticket,
    "uniform": uniform,
    "latency": clock,
}
"""Arm → what fills its cells; ``latency`` is no arm of the table but a measurement of its networks."""


def _train(
    cell: Cell,
    folder: Path,
    data: Data,
    model: nn.Module,
    architecture: Architecture,
    recipe: Recipe,
    shape: Mapping[str, Any],
    **role: Any,
) -> Result:
    """Train a network, going on from the checkpoint that a killed run left in the folder, and keep it.

    Args:
        cell: whose seed orders the examples.
        folder: where the network and its course are kept.
        data: what to train and test on.
        model: the network, trained in place.
        architecture: its shape.
        recipe: how.
        shape: what is known of the shape: MACs, parameters, widths.
        role: method, graph and keep, as `topiarist.fit` takes them.
    """
    checkpoint = folder / "checkpoint.pt"
    seed = cell.settings["seed"]
    history = fit(model, data, recipe, seed=seed, evaluate_every=0, checkpoint=checkpoint, **role)
    save(model, architecture, folder)
    write_json(folder / "history.json", asdict(history))
    checkpoint.unlink(missing_ok=True)
    known: Result = {name: shape[name] for name in ("macs", "params", "ratio", "widths") if name in shape}
    accuracy = history.epochs[-1].test_accuracy if history.epochs else evaluate(model, data)
    return {"accuracy": accuracy, **known, "bytes": _size(folder), "epochs": len(history.epochs)}


def _recipe(cell: Cell) -> Recipe:
    return Recipe(**cell.settings["recipe"])


def _method(cell: Cell) -> Method:
    """The cell's method, with the fields of the pruning that it belongs to."""
    told = (each.settings["fields"] for each in (cell, *cell.needs) if "fields" in each.settings)
    return methods.make(cell.method, **next(told, {}))


def _mask(bench: _Bench, cell: Cell, folder: Path) -> dict[str, Any]:
    """What keeps pruned weights at zero in training; nothing for a structure, whose units are gone."""
    if _method(cell).granularity != "weight":
        return {}
    return {"graph": bench.graph(cell), "keep": Architecture.load(folder / SHAPE_FILE).keep}


def _shape(folder: Path) -> Result:
    return dict(json.loads((folder / "result.json").read_text()))


def _size(folder: Path) -> int:
    return (folder / WEIGHTS_FILE).stat().st_size
