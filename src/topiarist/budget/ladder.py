"""The removals of one group: its units from the lowest score to the highest, in steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from topiarist.budget.budget import Allocation, Budget
from topiarist.errors import TopiaristError
from topiarist.files import shown
from topiarist.graph import Group

SLACK = 1e-9
"""Fractions typed in decimals are not exact in binary: 0.29 * 100 is 28.999999999999996."""


@dataclass(frozen=True, eq=False)
class Ladder:
    """Orders the removals of one group, worst unit first, in steps that keep counts at the budget's multiple.

    Attributes:
        group: name of the group.
        units: its size.
        order: ``(units,)`` its units from the lowest score to the highest.
        ranked: ``(units,)`` the scores in that order.
        first: units that the first step removes, down to the next multiple.
        step: units that each further step removes.
        steps: how many steps the floor allows.
        alike: all units cost the same, whichever they are (weights of one tensor).
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
    def of(group: Group, scores: Tensor, budget: Budget, whole: Tensor | None) -> Ladder:
        """Orders the removals; units that are excluded come last, behind the last step."""
        units, held = group.units, 0 if whole is None else int(whole.sum())
        step = budget.multiple if units >= budget.multiple else 1
        low = math.ceil(budget.floor * units - SLACK) if budget.floor < 1 else int(budget.floor)
        first = units - step * ((units - 1) // step)
        steps = max(0, (units - first - max(low, 1, held)) // step + 1)
        ranked, order = torch.sort(scores.detach().cpu(), stable=True)
        if whole is not None:
            last = torch.cat([(~whole[order]).nonzero(), whole[order].nonzero()]).flatten()
            ranked, order = ranked[last], order[last]
        return Ladder(group.name, units, order, ranked, first, step, steps, group.kind == "weight")

    def removed(self, taken: int) -> int:
        """Returns how many units are removed after so many steps."""
        return self.first + (taken - 1) * self.step if taken else 0

    def climb(self, ratio: float) -> int:
        """Returns the fewest steps that leave at most this fraction of the group, or one unit."""
        allowed = int(ratio * self.units + SLACK)
        least = self.units - self.removed(self.steps)
        if least > max(allowed, 1):
            raise TopiaristError(
                f"the group {shown(self.group)} cannot keep {ratio:g} of its {self.units} units: "
                f"floor and multiple leave at least {rounded_up(least / self.units):g}"
            )
        excess = self.units - max(allowed, 1)
        return 0 if excess <= 0 else min(self.steps, 1 + max(0, math.ceil((excess - self.first) / self.step)))

    def keys(self, allocation: Allocation, ratio: float | None = None) -> Tensor:
        """Returns ``(steps,)`` ascending: when it is each step's turn.

        Under uniform allocation a step from b to a units removed has the key (a + b) / 2 units, so that one of two
        heads is removed when the other groups have lost a quarter. Steps that a ratio asks for come before all others:
        their keys are negative.
        """
        if allocation == "uniform":
            after = self.first + torch.arange(self.steps, dtype=torch.float64) * self.step
            before = (after - self.step).clamp(min=0) / self.units
            asked = before < (0 if ratio is None else 1 - ratio - SLACK)
            return (before + after / self.units) / 2 - asked.double()
        if self.step == 1:
            return self.ranked[: self.steps]
        removed = self.ranked.double()[: self.removed(self.steps)]
        first, rest = removed[: self.first], removed[self.first :]
        return torch.cat([first.mean()[None], rest.view(-1, self.step).mean(1)])[: self.steps]

    def keep(self, taken: int, *, count_only: bool = False) -> Tensor:
        """Returns the units kept after so many steps; with ``count_only`` just as many, quicker."""
        keep = torch.ones(self.units, dtype=torch.bool)
        removed = self.removed(taken)
        keep[slice(removed) if count_only and self.alike else self.order[:removed]] = False
        return keep

    def best(self, count: int) -> Tensor:
        """Returns the keep of so many units of highest score."""
        keep = torch.ones(self.units, dtype=torch.bool)
        keep[self.order[: self.units - count]] = False
        return keep


def rounded_up(fraction: float) -> float:
    """Returns the fraction rounded up to four digits, so that asking for what an error names succeeds."""
    return min(1.0, math.ceil(fraction * 1e4 - 1e-6) / 1e4)
