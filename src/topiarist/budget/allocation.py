"""From scores and a budget to what is kept.

Both allocations are one ordered list of removals. Within a group the lowest score goes first; between groups it is
the turn of the group that has lost the smallest fraction so far (uniform), or that has the lowest score left (global).
The budget takes the shortest prefix of the list that meets it, found by bisection, since a longer prefix never costs
more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from topiarist.budget.budget import Allocation, Budget, matching
from topiarist.budget.n_of_m import in_pattern
from topiarist.errors import TopiaristError
from topiarist.graph import Graph, Group, Keep, Scores

if TYPE_CHECKING:
    from topiarist.budget.costs import Cost

_SLACK = 1e-9
"""Fractions typed in decimals are not exact in binary: 0.29 * 100 is 28.999999999999996."""


def allocate(
    graph: Graph,
    scores: Scores,
    budget: Budget,
    allocation: Allocation = "uniform",
    *,
    cost: Callable[[Keep], Cost] | None = None,
) -> Keep:
    """Removes the lowest scores until the budget is met, and no more.

    Args:
        graph: the network's groups.
        scores: group name → ``(units,)``, high = keep; groups without scores stay whole.
        budget: what may stay.
        allocation: how it is shared out where the budget does not say.
        cost: MACs and parameters of a keep; `topiarist.cost` unless given.

    Returns:
        Group name → bool ``(units,)``, True where the unit stays; at least one in every group. The budget is never
        exceeded, and met within one step (a unit, or ``multiple`` units) of the group cut last. A pattern is met in
        every block of every tensor that it fits.

    Raises:
        TopiaristError: the budget asks for nothing or for less than floor, exclusions and pins leave (the sentence
            names the least), a pattern matches no group, or scores are missing, misshapen or NaN.
    """
    if not budget.asks:
        raise TopiaristError("the budget names no amount: give macs, params, ratio or ratios, the fractions that stay")
    _check_scores(graph, scores)
    if budget.pattern is not None:
        return in_pattern(graph, scores, budget)
    shares = _shares(graph, scores, budget)
    keep = {group.name: torch.ones(group.units, dtype=torch.bool) for group in graph.groups if group.name in shares}
    free = []
    for group in graph.groups:
        ratio = shares.get(group.name)
        if group.name in shares and ratio is None:
            continue
        ladder = _Ladder.of(group, scores[group.name], budget)
        if ratio is None:
            free.append(ladder)
        else:
            keep[group.name] = ladder.keep(ladder.climb(ratio))
    removals = _Removals.of(free, budget.allocation or allocation)
    return _Search(graph, budget, keep, removals, cost).run()


def quota(graph: Graph, groups: Collection[str], budget: Budget | None) -> dict[str, int]:
    """How many units each of some groups keeps, whichever they are: for methods that select the units themselves.

    Args:
        graph: the network's groups.
        groups: names of those that the method can select in; all others stay whole.
        budget: what may stay, shared out uniformly unless it says otherwise.

    Raises:
        TopiaristError: there is no budget, or `allocate` refuses it.
    """
    if budget is None:
        raise TopiaristError("this method needs a budget: give macs, params or ratio, the fraction that stays")
    scores = {group.name: torch.zeros(group.units) for group in graph.groups if group.name in groups}
    keep = allocate(graph, scores, budget)
    return {name: int(keep[name].sum()) for name in scores}


@dataclass(frozen=True, eq=False)
class _Ladder:
    """The removals of one group, worst unit first, in steps that keep counts at the budget's multiple.

    Attributes:
        group: name of the group.
        units: its size.
        order: ``(units,)`` its units from the lowest score to the highest.
        ranked: ``(units,)`` the scores in that order.
        first: units that the first step removes, down to the next multiple.
        step: units that each further step removes.
        steps: how many steps the floor allows.
        alike: all units cost the same, whichever they are (single weights of one tensor).
    """

    group: str
    units: int
    order: Tensor
    ranked: Tensor
    first: int
    step: int
    steps: int
    alike: bool

    @staticmethod
    def of(group: Group, scores: Tensor, budget: Budget) -> _Ladder:
        units = group.units
        step = budget.multiple if units >= budget.multiple else 1
        low = math.ceil(budget.floor * units - _SLACK) if budget.floor < 1 else int(budget.floor)
        first = units - step * ((units - 1) // step)
        steps = max(0, (units - first - max(low, 1)) // step + 1)
        ranked, order = torch.sort(scores.detach().cpu(), stable=True)
        return _Ladder(group.name, units, order, ranked, first, step, steps, group.kind == "weight")

    def gone(self, taken: int) -> int:
        """How many units are gone after so many steps."""
        return self.first + (taken - 1) * self.step if taken else 0

    def climb(self, ratio: float) -> int:
        """The fewest steps that leave at most this fraction of the group; one unit may always stay."""
        allowed = int(ratio * self.units + _SLACK)
        least = self.units - self.gone(self.steps)
        if least > max(allowed, 1):
            raise TopiaristError(
                f"the group {self.group!r} cannot keep {ratio:g} of its {self.units} units: "
                f"floor and multiple leave at least {_up(least / self.units):g}"
            )
        excess = self.units - max(allowed, 1)
        return 0 if excess <= 0 else min(self.steps, 1 + max(0, math.ceil((excess - self.first) / self.step)))

    def keys(self, allocation: Allocation) -> Tensor:
        """``(steps,)`` ascending: when it is each step's turn."""
        if allocation == "uniform":
            before = torch.arange(self.steps, dtype=torch.float64)
            return ((self.first + (before - 1) * self.step) / self.units).clamp(min=0)
        if self.step == 1:
            return self.ranked[: self.steps]
        removed = self.ranked.double()[: self.gone(self.steps)]
        first, rest = removed[: self.first], removed[self.first :]
        return torch.cat([first.mean()[None], rest.view(-1, self.step).mean(1)])[: self.steps]

    def keep(self, taken: int, *, count_only: bool = False) -> Tensor:
        """The units that stay after so many steps; with ``count_only`` just as many, quicker."""
        keep = torch.ones(self.units, dtype=torch.bool)
        gone = self.gone(taken)
        if count_only and self.alike:
            keep[:gone] = False
        else:
            keep[self.order[:gone]] = False
        return keep


@dataclass(frozen=True, eq=False)
class _Removals:
    """The steps of all ladders in the order in which they are taken.

    Attributes:
        ladders: the groups that are free to give.
        owner: ``(steps,)`` the ladder that each step belongs to.
        keys: ``(steps,)`` ascending; under uniform allocation the fraction of the group gone before the step.
        uniform: which allocation it is.
    """

    ladders: list[_Ladder]
    owner: Tensor
    keys: Tensor
    uniform: bool

    @staticmethod
    def of(ladders: list[_Ladder], allocation: Allocation) -> _Removals:
        uniform = allocation == "uniform"
        # Equal keys go in this order: larger groups first, which lose the smaller fraction by the step.
        ladders = sorted(ladders, key=lambda ladder: -ladder.units)
        if not ladders:
            return _Removals([], torch.zeros(0, dtype=torch.int32), torch.zeros(0), uniform)
        kind = torch.int16 if len(ladders) < 2**15 else torch.int32
        owner = torch.cat([torch.full((ladder.steps,), at, dtype=kind) for at, ladder in enumerate(ladders)])
        keys = torch.cat([ladder.keys(allocation) for ladder in ladders])
        if not uniform and not all(ladder.alike for ladder in ladders):
            # Equal scores in several groups (scales that are all zero, or not yet trained) go in turn.
            turn = torch.cat([ladder.keys("uniform") for ladder in ladders]).argsort(stable=True)
            owner, keys = owner[turn], keys[turn]
        keys, order = torch.sort(keys, stable=True)
        return _Removals(ladders, owner[order], keys, uniform)

    def taken(self, prefix: int) -> list[int]:
        """Steps taken of each ladder in a prefix of the list."""
        counts: list[int] = torch.bincount(self.owner[:prefix], minlength=len(self.ladders)).tolist()
        return counts

    def least(self, ratio: float | None) -> int:
        """The prefix that brings every group to its ratio under uniform allocation, as far as its floor allows."""
        if ratio is None or not self.uniform:
            return 0
        return int(torch.searchsorted(self.keys, torch.tensor(1 - ratio - _SLACK, dtype=self.keys.dtype)))


@dataclass(frozen=True, eq=False)
class _Search:
    """The shortest prefix of the removals that meets a budget.

    Attributes:
        graph: the network's groups.
        budget: what may stay.
        settled: keep of the groups that do not take part.
        removals: the steps of all other groups.
        measure: MACs and parameters of a keep, if the caller has a function of his own.
    """

    graph: Graph
    budget: Budget
    settled: Keep
    removals: _Removals
    measure: Callable[[Keep], Cost] | None

    def run(self) -> Keep:
        """Bisects between a prefix that is too short (at first none) and one that is long enough."""
        asked = {name: getattr(self.budget, name) for name in _WORDS}
        asked = {name: fraction for name, fraction in asked.items() if fraction is not None}
        if "ratio" in asked and not self.removals.ladders:
            raise TopiaristError("no group is left for the ratio to cut: exclude fewer, or leave the ratio out")
        full = self._amounts(self.graph.full(), 0, asked)
        low, high = self.removals.least(self.budget.ratio) - 1, len(self.removals.owner)
        if asked:
            self._check_reachable(asked, full)
        while asked and high - low > 1:
            middle = (low + high) // 2
            left = self._amounts(self._keep(middle, count_only=True), middle, asked)
            if all(_fits(left[name], fraction, full[name]) for name, fraction in asked.items()):
                high = middle
            else:
                low = middle
        return self._keep(high if asked else 0)

    def _amounts(self, keep: Keep, prefix: int, names: Collection[str]) -> dict[str, float]:
        """MACs and parameters of a keep, and the units that a prefix leaves to the groups that take part."""
        spent: Cost | None = None
        if "macs" in names or "params" in names:
            spent = self._cost(keep)
        taken = zip(self.removals.ladders, self.removals.taken(prefix), strict=True)
        units = sum(ladder.units - ladder.gone(steps) for ladder, steps in taken)
        return {name: units if name == "ratio" else getattr(spent, name) for name in names}

    def _cost(self, keep: Keep) -> Cost:
        if self.measure is not None:
            return self.measure(keep)
        from topiarist.budget.costs import cost

        return cost(self.graph, keep)

    def _keep(self, prefix: int, *, count_only: bool = False) -> Keep:
        taken = zip(self.removals.ladders, self.removals.taken(prefix), strict=True)
        freed = {ladder.group: ladder.keep(steps, count_only=count_only) for ladder, steps in taken}
        return {group.name: (freed if group.name in freed else self.settled)[group.name] for group in self.graph.groups}

    def _check_reachable(self, asked: Mapping[str, float], full: Mapping[str, float]) -> None:
        everything = len(self.removals.owner)
        least = self._amounts(self._keep(everything, count_only=True), everything, asked)
        for name, fraction in asked.items():
            if not _fits(least[name], fraction, full[name]):
                raise TopiaristError(
                    f"the budget keeps {fraction:g} of the {_WORDS[name]}, but floor, multiple, exclusions and layers "
                    f"that cannot be cut leave at least {_up(least[name] / full[name]):g}: ask for that, or loosen them"
                )


_WORDS = {"macs": "MACs", "params": "parameters", "ratio": "units"}


def _fits(amount: float, fraction: float, full: float) -> bool:
    return amount <= fraction * full * (1 + 1e-12)


def _up(fraction: float) -> float:
    """Rounded up to four digits, so that asking for what an error names succeeds."""
    return min(1.0, math.ceil(fraction * 1e4 - 1e-6) / 1e4)


def _check_scores(graph: Graph, scores: Scores) -> None:
    units = {group.name: group.units for group in graph.groups}
    for name, values in scores.items():
        if name not in units:
            raise TopiaristError(f"the scores name a group {name!r} that the graph lacks: score this graph again")
        if values.shape != (units[name],):
            raise TopiaristError(
                f"the scores of {name!r} have shape {tuple(values.shape)}: give one for each of {units[name]} units"
            )
        if values.isnan().any():
            raise TopiaristError(
                f"the scores of the group {name!r} hold NaN, as its weights or statistics do: restore a good checkpoint"
            )
    if not scores:
        raise TopiaristError("no group has a score, so nothing can be cut: take another method, or inspect the model")


def _shares(graph: Graph, scores: Scores, budget: Budget) -> dict[str, float | None]:
    """Groups that do not take part in the search → their own ratio, ``None`` where they stay whole."""
    names = [group.name for group in graph.groups]
    shares: dict[str, float | None] = {name: None for name in names if name not in scores}
    for pattern, ratio in budget.ratios.items():
        shares |= dict.fromkeys(matching(pattern, names), ratio)
    for pattern in budget.exclude:
        shares |= dict.fromkeys(matching(pattern, names), None)
    if budget.macs is None and budget.params is None and budget.ratio is None:
        shares |= {name: None for name in names if name not in shares}
    for name, share in shares.items():
        if share is not None and name not in scores:
            raise TopiaristError(f"the group {name!r} has a ratio, but this method does not score it: exclude it")
    return shares
