"""Pruning in several steps with training between them, whose keeps compose into one keep of the original network.

Each step prunes what the one before kept: it measures, scores and cuts the smaller network or, in unstructured pruning,
the weights that are still kept. Two cuts in turn are one cut of the composed keep, so that in the end a single keep of
the original graph describes the pruning, and is proved like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from glob import escape
from typing import Protocol

import torch
from torch import Tensor, nn

from topiarist.budget import Allocation, Budget, GroupName, cost
from topiarist.errors import TopiaristError
from topiarist.graph import Graph, Keep, broadcast_kept, named_tensors
from topiarist.methods import SCHEDULES, Method, Schedule
from topiarist.pruning.request import Pruning, Steps
from topiarist.surgery import copied
from topiarist.train import Epoch, Progress


class Work(Protocol):
    """Does what each step asks for."""

    def step(
        self, model: nn.Module, graph: Graph, keep: Keep, share: Share | None, step: int
    ) -> tuple[nn.Module, Graph, Keep]:
        """Trains a network the method's way and prunes it; returns the smaller one, the graph and its keep."""

    def rewind(self, model: nn.Module, keep: Keep) -> nn.Module:
        """Returns the smaller network with its initial values; itself where it is not rewound."""

    def retrain(self, model: nn.Module, graph: Graph, keep: Keep, share: Share | None, step: int) -> nn.Module:
        """Trains the smaller network before the next step, which gets this share."""

    def trace(self, model: nn.Module, graph: Graph) -> Graph:
        """Traces the smaller network as the original one was."""


def kept_after(method: Method, steps: Steps) -> Callable[[int, float], float]:
    """Returns (step, target) → the fraction kept after a step: the method's schedule unless another one is named."""
    if steps.schedule is None and isinstance(method, Schedule):
        own = method
        return lambda step, target: own.kept(step, steps.count, target)
    schedule = SCHEDULES[steps.schedule or "linear"]
    return lambda step, target: schedule(step, steps.count, target)


class EpochCounter:
    """Counts the epochs of several trainings as if they were one."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    @classmethod
    def of(cls, progress: Progress | None, request: Pruning) -> EpochCounter:
        """Counts all that a pruning trains."""
        steps, sparse = request.steps, request.sparse_training
        before = 0 if sparse is None else sparse.epochs
        between = 0 if steps.training is None else steps.training.epochs
        return cls(progress, steps.count * before + (steps.count - 1) * between)

    def __call__(self, epoch: int, epochs: int, row: Epoch) -> None:
        """Counts one epoch of one of the trainings, and reports it."""
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total, row)


def prune_in_steps(
    model: nn.Module, graph: Graph, request: Pruning, kept: Callable[[int, float], float], work: Work
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Prunes in several steps.

    Args:
        model: the network; it is not changed.
        graph: its graph.
        request: its budget is that of all steps together; without one the method decides in every step. A ``floor``
            below 1 is a fraction of what the step receives.
        kept: (step, fraction kept in the end) → fraction kept after the step.
        work: what each step does.

    Returns:
        The network in its original size, with the values that the smaller one ended with where units are kept; and
        what it keeps.

    Raises:
        TopiaristError: what a step raises, or a step pruned units that the original network lacks.
    """
    allocation, steps = request.method.allocation, request.steps.count
    keep = graph.full()
    small, remaining = model, Remaining(graph, {group.name: group.name for group in graph.groups})

    def share(step: int) -> Share | None:
        budget = request.budget
        return None if budget is None else Share(budget, allocation, partial(kept, step), graph, keep, remaining)

    for step in range(1, steps + 1):
        small, cut_graph, chosen = work.step(small, remaining.graph, keep, share(step), step)
        if step == 1:
            graph, keep = cut_graph, dict(chosen)  # what could not be proved is pinned by now
        else:
            keep = composed_keep(graph, keep, cut_graph, chosen)
        small = work.rewind(small, keep)
        if step == steps:
            break
        remaining = Remaining.of(graph, keep, small, work)
        if not remaining.graph.groups:
            break  # every group is down to one unit
        small = work.retrain(small, remaining.graph, keep, share(step + 1), step)
    return with_kept_values(model, small, graph, keep), keep


@dataclass(frozen=True, eq=False)
class Remaining:
    """Holds what earlier steps kept.

    Attributes:
        graph: of the smaller network; in unstructured pruning, of the weights that are still kept.
        origin: its groups → those of the original graph.
    """

    graph: Graph
    origin: Mapping[str, str]

    @classmethod
    def of(cls, graph: Graph, keep: Keep, small: nn.Module, work: Work) -> Remaining:
        """Returns what a keep leaves; units of the smaller network that the original one lacks are not part of it."""
        if graph.kind == "weight":
            groups = []
            for group in graph.groups:
                (part,) = group.slices
                rest = replace(part, positions=part.positions[keep[group.name]])
                groups.append(replace(group, units=len(rest.positions), slices=(rest,)))
            many = tuple(group for group in groups if group.units > 1)
            return cls(replace(graph, groups=many), {group.name: group.name for group in many})
        traced = work.trace(small, graph)
        kept = {place: torch.nonzero(positions).flatten() for place, positions in graph.kept(keep).items()}
        origin: dict[str, str] = {}
        for group in traced.groups:
            sites = [
                (part.tensor, part.axis, kept[part.tensor, part.axis][part.positions])
                for part in group.slices
                if (part.tensor, part.axis) in kept
            ]
            name = _name_of_origin(group.name, sites[0], graph, keep) if len(sites) == len(group.slices) else None
            if name is not None:
                origin[group.name] = name
        return cls(replace(traced, groups=tuple(g for g in traced.groups if g.name in origin)), origin)


def _name_of_origin(name: str, site: tuple[str, int | None, Tensor], graph: Graph, keep: Keep) -> str | None:
    """Returns the group of the original graph that has units at a site and can lose some; of several the namesake."""
    tensor, axis, positions = site
    names = [
        group.name
        for group in graph.groups
        if int(keep[group.name].sum()) > 1
        for part in group.slices
        if (part.tensor, part.axis) == (tensor, axis) and bool(torch.isin(positions, part.positions).all())
    ]
    return name if name in names else names[0] if len(set(names)) == 1 else None


@dataclass(frozen=True, eq=False)
class Share:
    """Converts a budget of the original network to one of what earlier steps kept of it.

    Attributes:
        budget: how much is kept in the end.
        allocation: how it is shared out.
        kept: fraction kept in the end → fraction kept after this step.
        graph: the original one.
        keep: what earlier steps kept of it.
        remaining: what that is now.
    """

    budget: Budget
    allocation: Allocation
    kept: Callable[[float], float]
    graph: Graph
    keep: Keep
    remaining: Remaining

    def __call__(self, names: Collection[str]) -> Budget:
        """Returns the budget of this step, for the groups of these names."""
        budget, origin, here = self.budget, self.remaining.origin, self.here
        if budget.only_excludes and not self.exclude:
            return budget  # no units lie on what it names
        own, excluded = budget.own_ratios(self.graph), budget.excluded(self.graph)
        ratios = {name: self.kept(ratio) for name, ratio in own.items() if name not in excluded}
        shared = [name for name, o in here.items() if name in names and o not in own and o not in excluded]
        uniform = (budget.allocation or self.allocation) == "uniform"
        ratio = budget.ratio
        if ratio is not None and uniform and (budget.macs, budget.params, budget.memory) == (None, None, None):
            ratios |= {origin[name]: self.kept(ratio) for name in shared}
            ratio = None
        return replace(
            budget,
            ratios={escape(n): self._of_group(o, ratios[o]) for n, o in here.items() if o in ratios},
            exclude=self.exclude,
            macs=self._of_network("macs"),
            params=self._of_network("params"),
            memory=self._of_network("memory"),
            ratio=None if ratio is None else self._of_units(ratio, shared, {*own, *excluded}),
        )

    @property
    def here(self) -> dict[str, str]:
        """Returns the groups of this step → those of the original network."""
        origin = self.remaining.origin
        return {group.name: origin[group.name] for group in self.remaining.graph.groups if group.name in origin}

    @property
    def exclude(self) -> tuple[GroupName, ...]:
        """Returns the groups of this step that stay whole."""
        excluded = self.budget.excluded(self.graph)
        return tuple(GroupName(name) for name, origin in self.here.items() if origin in excluded)

    def on(self, graph: Graph) -> Share:
        """Returns the same share for the step's graph after some of its units were pinned."""
        first = self.remaining.graph is self.graph
        return replace(self, graph=graph if first else self.graph, remaining=replace(self.remaining, graph=graph))

    def _of_group(self, name: str, fraction: float) -> float:
        """Converts a fraction of all units of a group to one of those that are kept."""
        return min(1.0, fraction * len(self.keep[name]) / int(self.keep[name].sum()))

    def _of_network(self, what: str) -> float | None:
        """Converts a fraction of the original cost to one of the present cost."""
        fraction: float | None = getattr(self.budget, what)
        if fraction is None:
            return None
        then = getattr(cost(self.graph, self.graph.full()), what)
        now = getattr(cost(self.remaining.graph, self.remaining.graph.full()), what)
        return min(1.0, self.kept(fraction) * then / max(now, 1))

    def _of_units(self, fraction: float, shared: Collection[str], others: Collection[str]) -> float:
        """Converts a fraction of all units that take part; groups that are down to one unit took part before."""
        origins = {self.remaining.origin[name] for name in shared}
        exhausted = set(self.keep) - set(self.remaining.origin.values()) - set(others)
        units = sum(len(self.keep[name]) for name in origins | exhausted)
        now = sum(int(self.keep[name].sum()) for name in origins)
        in_exhausted = sum(int(self.keep[name].sum()) for name in exhausted)
        return min(1.0, max(0.0, (self.kept(fraction) * units - in_exhausted) / max(now, 1)))


def composed_keep(graph: Graph, keep: Keep, smaller: Graph, chosen: Keep) -> dict[str, Tensor]:
    """Returns the keep of a graph that does what two keeps in turn do.

    Args:
        graph: of the original network.
        keep: the first keep.
        smaller: graph of the network that was cut by it; in unstructured pruning, of the weights that it keeps.
        chosen: the second keep.
    """
    kept = graph.kept(keep)
    for place, positions in smaller.kept(chosen).items():
        if place[1] is None:
            kept[place] &= positions  # individual weights are numbered as in the original tensor
        elif place in kept:
            kept[place] = kept[place].masked_scatter(kept[place], positions)
    first = {group.name: group.slices[0] for group in graph.groups}
    return {name: kept[part.tensor, part.axis][part.positions].any(1) for name, part in first.items()}


def with_kept_values(model: nn.Module, smaller: nn.Module, graph: Graph, keep: Keep) -> nn.Module:
    """Returns a copy of the original network with the values of the smaller one where units are kept.

    Raises:
        TopiaristError: the smaller network is not what this keep leaves of the original one.
    """
    made, values, kept = copied(model), named_tensors(smaller), graph.kept(keep)
    with torch.no_grad():
        for name, tensor in named_tensors(made).items():
            axes = [kept.get((name, axis), torch.ones(n, dtype=torch.bool)) for axis, n in enumerate(tensor.shape)]
            value, shape = values[name].detach(), tuple(int(positions.sum()) for positions in axes)
            if value.shape != shape:
                raise TopiaristError(
                    f"the steps do not add up to one cut of the original network ({name} is {tuple(value.shape)} after "
                    f"them, and {shape} in one); prune in one step"
                )
            selected = torch.ones(tensor.shape, dtype=torch.bool)
            for axis, positions in enumerate(axes):
                selected &= broadcast_kept(positions, axis, tensor.shape)
            tensor.masked_scatter_(selected.to(tensor.device), value.to(tensor))
    return made
