"""A latency budget: the knapsack over a graph, with all other amounts that are asked for beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NoReturn

import numpy as np

from topiarist.budget.budget import AMOUNTS, Allocation, Budget, PricedBudget
from topiarist.budget.costs import Cost
from topiarist.budget.knapsack import Knapsack, Rungs, global_loss, macs_of, uniform_loss, widths
from topiarist.budget.ladder import Ladder, rounded_up
from topiarist.budget.latency import LatencyTable
from topiarist.budget.zeros import ZerosTable, densities_for, levels
from topiarist.errors import TopiaristError
from topiarist.graph import Graph, Keep, Scores

HELD = "floor, multiple, exclusions and layers that cannot be cut"
"""What a budget cannot go below."""
NO_ZEROS = "floor, exclusions and what no zero makes faster, such as small layers and pooling,"
"""The same, where weights are pruned."""
HALVINGS = 40
"""Steps of the search for the lowest price of a millisecond."""


class UnreachableError(TopiaristError):
    """An amount that a budget asks for is out of reach.

    Attributes:
        asked: what the budget keeps, in words.
        least: the fraction that can be reached.
        unscored: groups that keep all units since they have no score.
    """

    unscored: tuple[str, ...] = ()

    def __init__(self, asked: float, amount: str, least: float, held: str = HELD) -> None:
        self.asked, self.least = f"the budget keeps {asked:g} of the {amount}", rounded_up(least)
        super().__init__(f"{self.asked}, but {held} leave at least {self.least:g}: ask for that, or loosen them")


class OutOfReachError(UnreachableError):
    """The latency that a budget asks for is out of reach."""

    def __init__(self, asked: float, least: float, target: str, held: str = HELD) -> None:
        super().__init__(asked, f"latency on {target}", least, held)


@dataclass(frozen=True, eq=False)
class Trade:
    """What milliseconds are traded for.

    Attributes:
        graph: the network's groups.
        budget: how much is kept.
        settled: keep of the groups that do not take part.
        ladders: of those that do.
        scores: of their units.
        allocation: what a loss is: of shares, or of scores.
        cost: costs of a keep.
    """

    graph: Graph
    budget: Budget
    settled: Keep
    ladders: Sequence[Ladder]
    scores: Scores
    allocation: Allocation
    cost: Callable[[Keep], Cost]

    @cached_property
    def whole(self) -> Cost:
        """Returns the costs of the whole network."""
        return self.cost(self.graph.full())

    def rungs(self, ladder: Ladder, table: LatencyTable) -> Rungs:
        """Returns the widths that a group may take, with their losses."""
        least = ladder.units - ladder.removed(ladder.steps)
        multiple = self.budget.multiple if ladder.units >= self.budget.multiple else 1
        kept = np.array([w for w in reversed(widths(ladder.units, multiple)) if w >= least], dtype=np.int64)
        best_first = self.scores[ladder.group].detach().cpu()[ladder.order.flip(0)]
        uniform = self.allocation == "uniform"
        loss = uniform_loss(best_first, macs_of(table, ladder.group)) if uniform else global_loss(best_first)
        return Rungs(ladder.group, ladder.units, kept, loss(kept))

    def keep(self, counts: Mapping[str, int]) -> Keep:
        """Returns the keep of the units of highest score, so many of each group."""
        freed = {ladder.group: ladder.best(counts[ladder.group]) for ladder in self.ladders}
        return {group.name: (freed if group.name in freed else self.settled)[group.name] for group in self.graph.groups}

    def amounts(self, keep: Keep) -> dict[str, float]:
        """Returns all that the budget asks for beside the latency, as fractions of the whole network's."""
        asked = [name for name in self.budget.amounts if name != "latency"]
        spent = self.cost(keep) if asked else self.whole
        taking_part = [ladder.group for ladder in self.ladders]
        units = sum(int(keep[name].sum()) for name in taking_part) / max(1, sum(len(keep[n]) for n in taking_part))
        return {
            name: units if name == "ratio" else getattr(spent, name) / max(getattr(self.whole, name), 1)
            for name in asked
        }


def keep_by_latency(trade: Trade) -> Keep:
    """Returns the keep that loses least for the milliseconds that it frees, and holds all other amounts too.

    Raises:
        TopiaristError: there is no table, or the least that can be reached is more than the budget.
    """
    budget = trade.budget
    table = budget.table if isinstance(budget, PricedBudget) else None
    if table is None:
        raise TopiaristError(
            "a latency budget needs a table of latencies: use topiarist.prune, which measures it, or "
            "allocate(graph, scores, budget.priced(table))"
        )
    if isinstance(table, ZerosTable):
        return _keep_by_zeros(trade, table)
    shares = {name: float(kept.double().mean()) for name, kept in trade.settled.items()}
    knapsack = Knapsack(table, [trade.rungs(ladder, table) for ladder in trade.ladders], shares)

    def fits() -> bool:
        fast = table.fraction(knapsack.shares) <= (budget.latency or 0.0)
        return fast and all(
            amount <= getattr(budget, name) * (1 + 1e-12)
            for name, amount in trade.amounts(trade.keep(knapsack.counts)).items()
        )

    if not knapsack.run(fits):
        _refuse(trade, table, knapsack)
    return trade.keep(knapsack.counts)


def _keep_by_zeros(trade: Trade, table: ZerosTable) -> Keep:
    """Returns the weights that lose least for the milliseconds that their zeros free, and holds all other amounts.

    Each layer takes the density that minimises ``loss + price · milliseconds``; the price is the lowest at which
    everything fits. Under global allocation a loss is the sum of the scores of the zeros. Under uniform allocation it
    is ``milliseconds of the whole layer / share of its scores that is kept``, so that all layers keep one share where
    time falls as weights do.
    """
    least = {ladder.group: ladder.units - ladder.removed(ladder.steps) for ladder in trade.ladders}
    losses = {ladder.group: _lost(ladder, table, trade.allocation) for ladder in trade.ladders}
    scale = sum(float(np.median(loss)) for loss in losses.values()) / table.whole

    def counts(strictness: float) -> dict[str, int]:
        price = scale * 10.0 ** (16 * strictness - 8) if strictness else 0.0
        chosen = densities_for(price, losses, table)
        units = {ladder.group: ladder.units for ladder in trade.ladders}
        return {name: max(low, int(chosen.get(name, 1.0) * units[name])) for name, low in least.items()}

    def fits(strictness: float) -> bool:
        keep = trade.keep(counts(strictness))
        others = trade.amounts(keep).items()
        return table.of(keep) <= (trade.budget.latency or 0.0) and all(
            amount <= getattr(trade.budget, name) * (1 + 1e-12) for name, amount in others
        )

    if not fits(1.0):
        fewest = trade.keep(least)
        if table.of(fewest) > (trade.budget.latency or 0.0):
            raise OutOfReachError(trade.budget.latency or 0.0, table.of(fewest), table.target, NO_ZEROS)
        _refuse_amounts(trade, fewest)
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return trade.keep(counts(0.0 if fits(0.0) else high))


def _lost(ladder: Ladder, table: ZerosTable, allocation: Allocation) -> np.ndarray:
    """Returns what is lost at each of the densities that a layer may take, ascending."""
    scores = ladder.ranked.double().numpy()
    removed = np.concatenate([[0.0], np.cumsum(scores)])
    lost = removed[ladder.units - (levels(ladder.units) * ladder.units).astype(np.int64)]
    if allocation == "global":
        return np.asarray(lost)
    share = 1 - lost / removed[-1] if removed[-1] else levels(ladder.units)
    whole = next((float(layer.at(1.0)) for layer in table.layers if layer.group == ladder.group), 0.0)
    return np.asarray(whole / np.maximum(share, 1e-12))


def _refuse(trade: Trade, table: LatencyTable, knapsack: Knapsack) -> NoReturn:
    """Raises, and names the least of each amount that is out of reach."""
    fastest = knapsack.lowest
    if fastest > (trade.budget.latency or 0.0):
        raise OutOfReachError(trade.budget.latency or 0.0, fastest, table.target)
    knapsack.narrow()
    _refuse_amounts(trade, trade.keep(knapsack.counts))


def _refuse_amounts(trade: Trade, fewest: Keep) -> NoReturn:
    """Raises, and names the amount that is out of reach."""
    for name, amount in trade.amounts(fewest).items():
        asked = getattr(trade.budget, name)
        if amount > asked:
            raise UnreachableError(asked, AMOUNTS[name], amount)
    raise TopiaristError("the latency and the other amounts of the budget cannot be met together: loosen one of them")
