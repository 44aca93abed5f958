"""From scores and a budget to what is kept.

Both allocations are one ordered list of removals. Within a group the lowest score is removed first; between groups it
is the turn of the group that has lost the smallest fraction, half of the step included (uniform), or that has the
lowest score left (global).
The budget takes the shortest prefix of the list that meets it, found by bisection, since a longer prefix never costs
more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from topiarist.budget.budget import AMOUNTS, Allocation, Budget
from topiarist.budget.by_latency import Trade, UnreachableError, keep_by_latency
from topiarist.budget.costs import Cost
from topiarist.budget.costs import cost as cost_of
from topiarist.budget.ladder import Ladder
from topiarist.budget.n_of_m import keep_n_of_m
from topiarist.errors import TopiaristError
from topiarist.files import shown
from topiarist.graph import Graph, Keep, Scores

KEEPS_ITS_MEMORY = "unstructured pruning makes weights zero and tensors keep their size: leave memory out of the budget"


def allocate(
    graph: Graph,
    scores: Scores,
    budget: Budget,
    allocation: Allocation = "uniform",
    *,
    cost: Callable[[Keep], Cost] | None = None,
) -> Keep:
    """Removes the lowest scores until the budget is met, and no more.

    Under a latency budget groups step from width to width, as its table shows what each of them costs (see
    `topiarist.budget.knapsack`), or weights take the densities that lose least (see `topiarist.budget.zeros`).

    Args:
        graph: the network's groups.
        scores: group name → ``(units,)``, high = keep; groups without scores are not pruned.
        budget: how much is kept.
        allocation: how it is shared out where the budget does not say.
        cost: of a keep; `topiarist.cost` unless given.

    Returns:
        Group name → bool ``(units,)``, True where the unit is kept; at least one in every group. The budget is never
        exceeded, and met within one step (a unit, or ``multiple`` units) of the group pruned last. N:M sparsity is met
        in every block of M weights.

    Raises:
        TopiaristError: the budget asks for nothing or for less than floor, exclusions and pins leave (the sentence
            names the least), it limits the memory of an unstructured network, a name means nothing here, or scores are
            missing, misshapen or NaN.
    """
    if not budget.asks:
        raise TopiaristError(
            "the budget names no amount: give macs, params, memory, ratio or ratios, the fractions kept"
        )
    if budget.memory is not None and graph.kind == "weight":
        raise TopiaristError(KEEPS_ITS_MEMORY)
    _check_scores(graph, scores)
    whole = budget.excluded(graph)
    if budget.n_of_m is not None:
        return keep_n_of_m(graph, scores, budget.n_of_m, whole)
    excluded = {name for name, units in whole.items() if units.all()}
    shares = _shares(graph, scores, budget, excluded)
    keep = {group.name: torch.ones(group.units, dtype=torch.bool) for group in graph.groups if group.name in shares}
    free = []
    for group in graph.groups:
        ratio = shares.get(group.name)
        if group.name in shares and ratio is None:
            continue
        ladder = Ladder.of(group, scores[group.name], budget, whole.get(group.name))
        if ratio is None:
            free.append(ladder)
        else:
            keep[group.name] = ladder.keep(ladder.climb(ratio))
    by_zeros = budget.latency is not None and graph.kind == "weight"
    kind = budget.allocation or ("uniform" if by_zeros else allocation)
    try:
        if budget.latency is not None:
            return keep_by_latency(Trade(graph, budget, keep, free, scores, kind, cost or partial(cost_of, graph)))
        return _Search(graph, budget, keep, _Removals.of(free, kind, budget.ratio), cost).run()
    except UnreachableError as error:
        error.unscored = tuple(name for name in shares if name not in scores and name not in excluded)
        raise


def quota(graph: Graph, groups: Collection[str], budget: Budget | None) -> dict[str, int]:
    """Returns how many units each of some groups keeps: for methods that select the units themselves.

    Args:
        graph: the network's groups.
        groups: names of those that the method can select in; all others are not pruned.
        budget: how much is kept, shared out uniformly unless it says otherwise.

    Raises:
        TopiaristError: there is no budget, or `allocate` refuses it.
    """
    if budget is None:
        raise TopiaristError("this method needs a budget: give macs, params or ratio, the fraction kept")
    scores = {group.name: torch.zeros(group.units) for group in graph.groups if group.name in groups}
    keep = allocate(graph, scores, budget)
    return {name: int(keep[name].sum()) for name in scores}


@dataclass(frozen=True, eq=False)
class _Removals:
    """Orders the steps of all ladders as they are taken.

    Attributes:
        ladders: of the groups that take part.
        owner: ``(steps,)`` the ladder that each step belongs to.
        keys: ``(steps,)`` ascending, as `Ladder.keys` gives them.
        uniform: which allocation it is.
    """

    ladders: list[Ladder]
    owner: Tensor
    keys: Tensor
    uniform: bool

    @staticmethod
    def of(ladders: list[Ladder], allocation: Allocation, ratio: float | None = None) -> _Removals:
        uniform = allocation == "uniform"
        # Equal keys go in this order: larger groups first, which lose the smaller fraction by the step.
        ladders = sorted(ladders, key=lambda ladder: -ladder.units)
        if not ladders:
            return _Removals([], torch.zeros(0, dtype=torch.int32), torch.zeros(0), uniform)
        kind = torch.int16 if len(ladders) < 2**15 else torch.int32
        owner = torch.cat([torch.full((ladder.steps,), at, dtype=kind) for at, ladder in enumerate(ladders)])
        keys = torch.cat([ladder.keys(allocation, ratio) for ladder in ladders])
        if not uniform and not all(ladder.alike for ladder in ladders):
            # Equal scores in several groups (scales that are all zero, or not yet trained) are removed in turn.
            turn = torch.cat([ladder.keys("uniform") for ladder in ladders]).argsort(stable=True)
            owner, keys = owner[turn], keys[turn]
        keys, order = torch.sort(keys, stable=True)
        return _Removals(ladders, owner[order], keys, uniform)

    def taken(self, prefix: int) -> list[int]:
        """Returns the steps taken of each ladder in a prefix of the list."""
        counts: list[int] = torch.bincount(self.owner[:prefix], minlength=len(self.ladders)).tolist()
        return counts

    @property
    def least(self) -> int:
        """Returns the prefix that brings every group to its ratio under uniform allocation, as far as floors allow."""
        return int((self.keys < 0).sum()) if self.uniform else 0


@dataclass(frozen=True, eq=False)
class _Search:
    """Finds the shortest prefix of the removals that meets a budget.

    Attributes:
        graph: the network's groups.
        budget: how much is kept.
        settled: keep of the groups that do not take part.
        removals: the steps of all other groups.
        measure: costs of a keep, if not in closed form.
    """

    graph: Graph
    budget: Budget
    settled: Keep
    removals: _Removals
    measure: Callable[[Keep], Cost] | None

    def run(self) -> Keep:
        """Bisects between a prefix that is too short (at first none) and one that is long enough."""
        asked = self.budget.amounts
        if "ratio" in asked and not self.removals.ladders:
            raise TopiaristError("the ratio applies to no group: exclude fewer, or leave the ratio out")
        full = self._amounts(self.graph.full(), 0, asked)
        low, high = self.removals.least - 1, len(self.removals.owner)
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
        """Returns the costs of a keep, and the units that a prefix leaves to the groups that take part."""
        spent: Cost | None = None
        if any(name != "ratio" for name in names):
            spent = self._cost(keep)
        taken = zip(self.removals.ladders, self.removals.taken(prefix), strict=True)
        units = sum(ladder.units - ladder.removed(steps) for ladder, steps in taken)
        return {name: units if name == "ratio" else getattr(spent, name) for name in names}

    def _cost(self, keep: Keep) -> Cost:
        return cost_of(self.graph, keep) if self.measure is None else self.measure(keep)

    def _keep(self, prefix: int, *, count_only: bool = False) -> Keep:
        taken = zip(self.removals.ladders, self.removals.taken(prefix), strict=True)
        freed = {ladder.group: ladder.keep(steps, count_only=count_only) for ladder, steps in taken}
        return {group.name: (freed if group.name in freed else self.settled)[group.name] for group in self.graph.groups}

    def _check_reachable(self, asked: Mapping[str, float], full: Mapping[str, float]) -> None:
        everything = len(self.removals.owner)
        least = self._amounts(self._keep(everything, count_only=True), everything, asked)
        for name, fraction in asked.items():
            if not _fits(least[name], fraction, full[name]):
                raise UnreachableError(fraction, AMOUNTS[name], least[name] / full[name])


def _fits(amount: float, fraction: float, full: float) -> bool:
    return amount <= fraction * full * (1 + 1e-12)


def _check_scores(graph: Graph, scores: Scores) -> None:
    units = {group.name: group.units for group in graph.groups}
    for name, values in scores.items():
        if name not in units:
            raise TopiaristError(f"the scores name a group {shown(name)} that the graph lacks: score this graph again")
        if values.shape != (units[name],):
            raise TopiaristError(
                f"the scores of {shown(name)} have shape {tuple(values.shape)}: give one for each of {units[name]} "
                "units"
            )
        if values.isnan().any():
            raise TopiaristError(
                f"the scores of the group {shown(name)} hold NaN, as its weights or statistics do: restore a good "
                "checkpoint"
            )
    if not scores:
        raise TopiaristError("no group has a score, so nothing can be pruned: use another method, or inspect the model")


def _shares(graph: Graph, scores: Scores, budget: Budget, excluded: Collection[str]) -> dict[str, float | None]:
    """Returns the groups that do not take part in the search → their own ratio, ``None`` where they are not pruned."""
    names = [group.name for group in graph.groups]
    shares: dict[str, float | None] = {name: None for name in names if name not in scores}
    shares |= budget.own_ratios(graph)
    shares |= dict.fromkeys(excluded, None)
    if not budget.amounts:
        shares |= {name: None for name in names if name not in shares}
    for name, share in shares.items():
        if share is not None and name not in scores:
            raise TopiaristError(f"the group {shown(name)} has a ratio, but this method does not score it: exclude it")
    return shares
