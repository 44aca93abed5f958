"""Pruning in several steps with training between them, whose keeps compose into one keep of the original network.

Each step prunes what the one before left: it measures, scores and cuts the smaller network, or, where single weights
go, the weights that are still there. Two cuts in turn are one cut of the composed keep, so that in the end a single
keep of the original graph says it all, and is proved like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from glob import escape
from typing import Protocol

import torch
from torch import Tensor, nn

from topiarist.budget import Allocation, Budget, cost, matching
from topiarist.data import Data
from topiarist.errors import TopiaristError
from topiarist.graph import Graph, Keep
from topiarist.methods import SCHEDULES, Gate, Method, Penalty, Proximal, Schedule, Soft
from topiarist.surgery import copied, plan
from topiarist.train import Epoch, Progress, Recipe


class Work(Protocol):
    """What is done in each step."""

    def step(
        self, model: nn.Module, graph: Graph, held: Keep, wish: Share | None, step: int
    ) -> tuple[nn.Module, Graph, Keep]:
        """Trains a network the method's way and prunes it; the smaller one, the checked graph, what it keeps of it."""

    def again(self, model: nn.Module, graph: Graph, held: Keep) -> nn.Module:
        """The smaller network with the values to which it is rewound; itself, where it is not."""

    def rest(self, model: nn.Module, graph: Graph, held: Keep, step: int) -> nn.Module:
        """Trains the smaller network before the next step."""

    def trace(self, model: nn.Module, graph: Graph) -> Graph:
        """Traces the smaller network as the original one was."""


def check_steps(
    method: Method,
    steps: int,
    schedule: str | None,
    *,
    trains: bool = False,
    data: Data | None = None,
    **recipes: Recipe | None,
) -> None:
    """Raises where steps are asked for that cannot be, before any work is done."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise TopiaristError(f"steps must be a whole number of at least 1, the cuts to make, but got {steps!r}")
    if schedule is not None and (not isinstance(schedule, str) or schedule not in SCHEDULES):
        raise TopiaristError(f"there is no schedule {schedule!r}: take {' or '.join(SCHEDULES)}, or leave it out")
    for what, recipe in recipes.items():
        if recipe is not None and not isinstance(recipe, Recipe):
            raise TopiaristError(f"{what} must be a topiarist.Recipe, but got {recipe!r}")
    if trains and data is None:
        raise TopiaristError(f"{method.name} is to train the network: give data")


def acts(method: Method) -> bool:
    """Whether a method takes part in training."""
    return isinstance(method, Penalty | Proximal | Gate | Soft)


def kept_after(method: Method, schedule: str | None, steps: int) -> Callable[[int, float], float]:
    """(step, target) → the fraction kept after a step: the method's schedule unless another one is named."""
    if schedule is None and isinstance(method, Schedule):
        own = method
        return lambda step, target: own.kept(step, steps, target)
    chosen = SCHEDULES[schedule or "linear"]
    return lambda step, target: chosen(step, steps, target)


class Told:
    """Tells of the epochs of several trainings as if they were one."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    @classmethod
    def of(
        cls, progress: Progress | None, method: Method, recipe: Recipe | None, between: Recipe | None, steps: int
    ) -> Told:
        """What `prune` trains in so many steps."""
        before = recipe.epochs if recipe is not None and acts(method) else 0
        after = between.epochs if between is not None else 0
        return cls(progress, steps * before + (steps - 1) * after)

    def __call__(self, epoch: int, epochs: int, row: Epoch) -> None:
        """After each epoch of each training."""
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total, row)


def in_steps(
    model: nn.Module,
    graph: Graph,
    budget: Budget | None,
    allocation: Allocation,
    kept: Callable[[int, float], float],
    steps: int,
    work: Work,
) -> tuple[nn.Module, Graph, dict[str, Tensor]]:
    """Prunes in several steps.

    Args:
        model: the network; it stays as it is.
        graph: its graph.
        budget: what may stay in the end; ``None`` where the method says so itself in every step. A ``floor`` below 1
            is a fraction of what the step found.
        allocation: how the method shares a budget out.
        kept: (step, fraction) → the fraction that stays after a step, where the fraction is asked for in the end.
        steps: how many.
        work: what each step does.

    Returns:
        The network in its original size, with the values that the smaller one ended with where units survive; its
        graph, checked where a cut could not be proved; and what it keeps.

    Raises:
        TopiaristError: what a step raises, or a step found units that the original network has not.
    """
    if budget is not None and budget.pattern is not None:
        raise TopiaristError("a pattern is cut in one step: leave steps out")
    keep = graph.full()
    small, left = model, Left(graph, {group.name: group.name for group in graph.groups})
    for step in range(1, steps + 1):
        wish = None if budget is None else Share(budget, allocation, partial(kept, step), graph, keep, left)
        small, checked, chosen = work.step(small, left.graph, keep, wish, step)
        graph, keep = (checked, dict(chosen)) if step == 1 else (graph, composed(graph, keep, checked, chosen))
        small = work.again(small, graph, keep)
        if step == steps:
            break
        left = Left.of(graph, keep, small, work)
        if not left.graph.groups:
            break  # every group is down to one unit
        small = work.rest(small, left.graph, keep, step)
    return lifted(model, small, graph, keep), graph, keep


@dataclass(frozen=True, eq=False)
class Left:
    """What earlier steps left.

    Attributes:
        graph: of the smaller network; where single weights go, of the weights that are still there.
        origin: its groups → those of the original graph.
    """

    graph: Graph
    origin: Mapping[str, str]

    @classmethod
    def of(cls, graph: Graph, keep: Keep, small: nn.Module, work: Work) -> Left:
        """The units that are left; those of the smaller network that the original one lacks stay out of it."""
        if graph.kind == "weight":
            groups = []
            for group in graph.groups:
                (part,) = group.slices
                rest = replace(part, positions=part.positions[keep[group.name]])
                groups.append(replace(group, units=len(rest.positions), slices=(rest,)))
            many = tuple(group for group in groups if group.units > 1)
            return cls(replace(graph, groups=many), {group.name: group.name for group in many})
        found = work.trace(small, graph)
        places = {key: torch.nonzero(axis).flatten() for key, axis in graph.kept(keep).items()}
        origin: dict[str, str] = {}
        for group in found.groups:
            mine = [
                (part.tensor, part.axis, places[part.tensor, part.axis][part.positions])
                for part in group.slices
                if (part.tensor, part.axis) in places
            ]
            name = _name_of_origin(group.name, mine[0], graph, keep) if len(mine) == len(group.slices) else None
            if name is not None:
                origin[group.name] = name
        return cls(replace(found, groups=tuple(g for g in found.groups if g.name in origin)), origin)


def _name_of_origin(name: str, place: tuple[str, int | None, Tensor], graph: Graph, keep: Keep) -> str | None:
    """The group of the original graph whose units sit at a place and can still lose some; of several the namesake."""
    tensor, axis, positions = place
    found = [
        group.name
        for group in graph.groups
        if int(keep[group.name].sum()) > 1
        for part in group.slices
        if (part.tensor, part.axis) == (tensor, axis) and bool(torch.isin(positions, part.positions).all())
    ]
    return name if name in found else found[0] if len(set(found)) == 1 else None


@dataclass(frozen=True, eq=False)
class Share:
    """A budget of the original network as one of what is left of it, after some step.

    Attributes:
        budget: what may stay in the end.
        allocation: how it is shared out.
        kept: fraction that stays in the end → fraction that stays after this step.
        graph: the original one.
        keep: what earlier steps left of it.
        left: what that is now.
    """

    budget: Budget
    allocation: Allocation
    kept: Callable[[float], float]
    graph: Graph
    keep: Keep
    left: Left

    def on(self, graph: Graph) -> Share:
        """The same of the checked graph, which has fewer groups."""
        first = self.graph is self.left.graph
        return replace(self, graph=graph if first else self.graph, left=replace(self.left, graph=graph))

    def __call__(self, names: Collection[str]) -> Budget:
        """The budget of this step, for the groups of these names."""
        wish, whole = self.budget, [group.name for group in self.graph.groups]
        here = {g.name: self.left.origin[g.name] for g in self.left.graph.groups if g.name in self.left.origin}
        own = {name: ratio for pattern, ratio in wish.ratios.items() for name in matching(pattern, whole)}
        excluded = {name for pattern in wish.exclude for name in matching(pattern, whole)}
        ratios = {name: self.kept(ratio) for name, ratio in own.items() if name not in excluded}
        shared = [name for name, o in here.items() if name in names and o not in own and o not in excluded]
        uniform = (wish.allocation or self.allocation) == "uniform"
        ratio = wish.ratio
        if ratio is not None and uniform and wish.macs is None and wish.params is None:
            ratios |= {self.left.origin[name]: self.kept(ratio) for name in shared}
            ratio = None
        return replace(
            wish,
            ratios={escape(n): self._of_group(o, ratios[o]) for n, o in here.items() if o in ratios},
            exclude=tuple(escape(n) for n, o in here.items() if o in excluded),
            macs=self._of_network("macs"),
            params=self._of_network("params"),
            ratio=None if ratio is None else self._of_units(ratio, shared, {*own, *excluded}),
        )

    def _of_group(self, name: str, fraction: float) -> float:
        """A fraction of all units of a group as one of those that are left."""
        return min(1.0, fraction * len(self.keep[name]) / int(self.keep[name].sum()))

    def _of_network(self, what: str) -> float | None:
        """A fraction of the original cost as one of today's."""
        fraction: float | None = getattr(self.budget, what)
        if fraction is None:
            return None
        then = getattr(cost(self.graph, self.graph.full()), what)
        now = getattr(cost(self.left.graph, self.left.graph.full()), what)
        return min(1.0, self.kept(fraction) * then / max(now, 1))

    def _of_units(self, fraction: float, shared: Collection[str], others: Collection[str]) -> float:
        """A fraction of all units that take part; groups that are down to one unit took part before."""
        origins = {self.left.origin[name] for name in shared}
        gone = set(self.keep) - set(self.left.origin.values()) - set(others)
        units = sum(len(self.keep[name]) for name in origins | gone)
        now = sum(int(self.keep[name].sum()) for name in origins)
        alone = sum(int(self.keep[name].sum()) for name in gone)
        return min(1.0, max(0.0, (self.kept(fraction) * units - alone) / max(now, 1)))


def composed(graph: Graph, keep: Keep, left: Graph, chosen: Keep) -> dict[str, Tensor]:
    """The keep of a graph that does what a first keep of it and then one of what it left do.

    Args:
        graph: of the original network.
        keep: the first keep.
        left: graph of the network that was cut by it (of the weights that are left, where single weights go).
        chosen: the second keep.
    """
    alive = graph.kept(keep)
    for key, stays in left.kept(chosen).items():
        if key[1] is None:
            alive[key] &= stays  # weights keep their places
        elif key in alive:
            whole = alive[key]
            whole[torch.nonzero(whole).flatten()[~stays]] = False
    lead = {group.name: group.slices[0] for group in graph.groups}
    return {name: alive[part.tensor, part.axis][part.positions].any(1) for name, part in lead.items()}


def lifted(model: nn.Module, small: nn.Module, graph: Graph, keep: Keep) -> nn.Module:
    """A copy of the original network with the values of the smaller one where units survive.

    Raises:
        TopiaristError: the smaller network is not what this keep leaves of the original one.
    """
    whole = copied(model)
    survivors = plan(graph, keep).kept
    values = dict(small.named_parameters()) | dict(small.named_buffers())
    with torch.no_grad():
        for name, tensor in [*whole.named_parameters(), *whole.named_buffers()]:
            value = values[name].detach()
            axes = [survivors.get(name, {}).get(axis, torch.arange(n)) for axis, n in enumerate(tensor.shape)]
            if value.shape != tuple(map(len, axes)):
                raise TopiaristError(
                    f"the steps do not add up to one cut of the original network ({name} is {tuple(value.shape)} after "
                    f"them, and {tuple(map(len, axes))} in one); prune in one step"
                )
            if survivors.get(name):
                grid = [k.view([-1 if d == axis else 1 for d in range(len(axes))]) for axis, k in enumerate(axes)]
                tensor[tuple(k.to(tensor.device) for k in grid)] = value.to(tensor)
            else:
                tensor.copy_(value)
    return whole
