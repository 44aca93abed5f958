"""The front door: trace, measure, score, allocate, repair, cut and prove, in one call."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from topiarist.allocation import Budget, choose
from topiarist.architecture import Architecture
from topiarist.costs import Cost, cost
from topiarist.errors import TopiaristError
from topiarist.graph import Graph, check_finite, trace
from topiarist.methods import Method, make
from topiarist.methods.base import Gate, Penalty, Proximal, Repair, Rule, Selector, Soft
from topiarist.proof import TOLERANCE, Proof, prove
from topiarist.stats import Stats, collect
from topiarist.surgery import copied, cut, mask, with_values

if TYPE_CHECKING:
    from topiarist.data import Data
    from topiarist.training.history import Progress
    from topiarist.training.recipe import Recipe


@dataclass(frozen=True, eq=False)
class Pruned:
    """What pruning gave; `print` shows it as a table.

    Attributes:
        model: the smaller model, with the weights that survived.
        architecture: its shape.
        proof: that the cut computes what the mask does.
        before: MACs and parameters of the model that was given.
        after: those of the smaller one (nonzero ones, where single weights were removed).
        graph: of the model that was given.
        keep: group name → bool ``(units,)``.
        method: with its hyper-parameters.
        trained: the model that was cut: the given one, or its copy trained with the method's penalty.
    """

    model: nn.Module
    architecture: Architecture
    proof: Proof
    before: Cost
    after: Cost
    graph: Graph
    keep: Mapping[str, Tensor]
    method: Method
    trained: nn.Module

    @property
    def left_alone(self) -> dict[str, str]:
        """Layer → why it is as wide as it was; layers whose output shrank are left out."""
        cut_axes = {
            (part.tensor, part.axis)
            for group in self.graph.groups
            for part in group.slices
            if not bool(self.keep[group.name].all())
        }
        reasons = {(p.tensor, p.axis): p.reason for p in self.graph.pinned}
        known = {(part.tensor, part.axis) for group in self.graph.groups for part in group.slices}
        found: dict[str, str] = {}
        for name in self.graph.parameters:
            shape = self.graph.shapes[name]
            if len(shape) < 2:
                continue
            axes = [axis for axis in range(len(shape)) if shape[axis] > 1][:2]
            whole = (name, None)
            if whole in known:
                if whole not in cut_axes:
                    found[name] = "keeps every weight"
            elif whole not in cut_axes and axes and not any((name, a) in cut_axes for a in axes[:1]):
                axis = axes[0]
                found[name.removesuffix(".weight")] = reasons.get((name, axis), "the budget keeps every unit")
        return found

    def __str__(self) -> str:
        table = Table(title=f"{self.method.name}: what each group keeps", title_justify="left")
        for heading in ("group", "feature map", "kept", "of", "share"):
            table.add_column(heading, justify="left" if heading in ("group", "feature map") else "right")
        for group in self.graph.groups:
            kept = int(self.keep[group.name].sum())
            table.add_row(group.name, group.stage, f"{kept:,}", f"{group.units:,}", f"{kept / group.units:.0%}")
        text = io.StringIO()
        console = Console(file=text, width=110)
        console.print(table)
        if self.left_alone:
            console.print("Layers left alone:")
            for layer, reason in self.left_alone.items():
                console.print(f"  {layer}: {reason}", highlight=False)
        for operator in self.graph.unknown:
            console.print(f"Operator without a rule: {operator} (what it touches is pinned)", highlight=False)
        for name, old, new in (
            ("MACs", self.before.macs, self.after.macs),
            ("parameters", self.before.params, self.after.params),
        ):
            console.print(f"{name}: {old:,} → {new:,} ({new / max(old, 1):.1%})", highlight=False)
        if self.graph.groups and self.graph.groups[0].of_weights:
            console.print("weights are set to zero, tensors keep their size: MACs and parameters count nonzeros")
        told = self.proof.reason or "cut and mask agree"
        console.print(f"proof: {told}; largest relative difference {self.proof.max_rel_diff:.1e} in float64")
        return text.getvalue().rstrip()


def prune(
    model: nn.Module,
    example_inputs: Any,
    method: str | Method,
    budget: Budget | Mapping[str, Any] | float | None = None,
    data: Data | None = None,
    *,
    graph: Graph | None = None,
    recipe: Recipe | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> Pruned:
    """Prunes a network by a method to a budget, and proves the cut.

    Args:
        model: any trained `torch.nn.Module`; it stays as it is.
        example_inputs: a tensor, a tuple of arguments, or a dict of keyword arguments.
        method: registered name, such as ``"l1"``, or a method with its fields.
        budget: what may stay; a plain number is the fraction of MACs (of weights, for methods that remove single
            ones), a mapping gives the fields of `Budget`. Left out where the method brings its own rule.
        data: needed by methods that measure or train.
        graph: the model's graph, where it was traced before (options of `trace` go there).
        recipe: trains a copy with the method's penalty before it is scored (Network Slimming); without one the model
            is taken to be trained that way already.
        batch_size: of what is measured.
        seed: of the training.
        progress: called after each epoch of that training.

    Returns:
        The smaller model with its architecture, its proof and its costs.

    Raises:
        TopiaristError: bad input, an impossible budget, or a cut that cannot be proved.
    """
    method = make(method)
    wish = _budget(budget, method)
    check_finite(model)
    if wish is None and not isinstance(method, (Rule, Selector)):
        raise TopiaristError(f"{method.name} needs a budget: give macs, params or ratio, the fraction that stays")
    graph = trace(model, example_inputs) if graph is None else graph
    if not graph.groups:
        raise TopiaristError("nothing in this network can be pruned; `topiarist inspect` says what pins each layer")
    units = graph.weights() if method.granularity == "weight" and not graph.groups[0].of_weights else graph
    trained = _trained(model, units, method, data, recipe, seed, progress)
    batches = None if data is None else _Batches(data, batch_size)
    stats = collect(trained, units, batches, method.needs)
    keep = choose(method, units, stats, wish, cost=partial(cost, units))
    proof = prove(trained, units, keep, example_inputs)
    if not math.isfinite(proof.change):
        raise TopiaristError(proof.reason or "the network's outputs are not finite on the example input")
    if not proof.max_rel_diff <= TOLERANCE:  # pin what cannot be proved, and choose again
        units.check(trained, example_inputs)
        keep = choose(method, units, stats, wish, cost=partial(cost, units))
        proof = prove(trained, units, keep, example_inputs)
        if not proof.max_rel_diff <= TOLERANCE:
            raise TopiaristError(f"the cut cannot be proved: {proof.reason}; exclude its groups from the budget")
    smaller = cut(_repaired(trained, units, keep, method, stats), units, keep)
    return Pruned(
        smaller, Architecture.of(units, keep), proof, cost(units), cost(units, keep), units, keep, method, trained
    )


class _Batches:
    """The training batches of a data set, as often as they are asked for."""

    def __init__(self, data: Data, batch_size: int) -> None:
        self.data, self.batch_size = data, batch_size

    def __iter__(self) -> Any:
        return self.data.batches("train", self.batch_size)


def _budget(budget: Budget | Mapping[str, Any] | float | None, method: Method) -> Budget | None:
    if budget is None or isinstance(budget, Budget):
        return budget
    if isinstance(budget, Mapping):
        try:
            return Budget(**budget)
        except TypeError as error:
            raise TopiaristError(f"a budget has the fields of topiarist.Budget: {error}") from error
    return Budget(ratio=budget) if method.granularity == "weight" else Budget(macs=budget)


def _trained(
    model: nn.Module,
    graph: Graph,
    method: Method,
    data: Data | None,
    recipe: Recipe | None,
    seed: int,
    progress: Progress | None,
) -> nn.Module:
    """A copy trained the method's way, where a recipe says how."""
    if recipe is None or not isinstance(method, (Penalty, Proximal, Gate, Soft)):
        return model
    if data is None:
        raise TopiaristError(f"{method.name} trains the network in its own way; give data")
    from topiarist.train import fit

    copy = copied(model)
    fit(copy, data, recipe, seed=seed, method=method, graph=graph, progress=progress)
    return copy


def _repaired(model: nn.Module, graph: Graph, keep: Mapping[str, Tensor], method: Method, stats: Stats) -> nn.Module:
    """The masked model with new values for what is left, where the method repairs."""
    if not isinstance(method, Repair):
        return model
    masked = mask(model, graph, keep)
    method.repair(masked, graph, keep, stats)
    return with_values(model, masked)


__all__ = ["Pruned", "prune"]
