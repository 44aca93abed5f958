"""Allocation by milliseconds: what costs most time for the least score is pruned first.

``minimise Σ_groups loss(kept)  subject to  latency(kept) ≤ budget`` is a knapsack whose prices change with every
choice, since what a layer costs depends on both of its widths. As in HALP (Shen et al. 2022) and NetAdapt (Yang et al.
2018) it is solved greedily: the step that frees most milliseconds for its loss is taken, the prices around it are read
again from the table, and so on. A group steps from width to width where the table has its steps, and may pass over
widths that pay nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from topiarist.budget.latency import Floats, LatencyTable, LayerLatency

_TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Rungs:
    """The widths that a group may take, widest first, and what each of them loses.

    Attributes:
        group: its name.
        units: how many it has.
        kept: ``(rungs,)`` units kept, descending from all of them.
        loss: ``(rungs,)`` what is lost there, ascending from 0.
    """

    group: str
    units: int
    kept: NDArray[np.int64]
    loss: Floats


def macs_of(table: LatencyTable, group: str) -> float:
    """Returns the MACs of all layers that a group makes narrower."""
    return max(sum(layer.macs for layer in table.layers if group in layer.groups), 1.0)


def widths(units: int, multiple: int = 1) -> list[int]:
    """Returns the widths that are worth a look, ascending: runtimes step at multiples of 4, 8 or 16.

    Every width of a group of at most 8 units; else 1, 2 in a group of at most 16, multiples of 4 up to 32, of 8 up to
    64, of 16 up to 256, of 32 beyond; of these the multiples of ``multiple``; and all units.
    """
    steps = [(8 if units <= 8 else 0, 1), (32, 4), (64, 8), (256, 16), (units, 32)]
    offered = {width for limit, step in steps for width in range(step, min(limit, units) + 1, step)}
    offered |= {1, 2} if units <= 16 else set()
    return sorted({width for width in offered if width % multiple == 0} | {units})


POWER = 1.0
"""How strongly uniform allocation under a latency budget holds all groups to about the same share."""


def uniform_loss(scores: Tensor, macs: float, power: float = POWER) -> Callable[[NDArray[np.int64]], Floats]:
    """Returns the loss under uniform allocation: ``MACs · ((kept share of the scores)^-power - 1)``.

    It grows the faster the less is left. Where time falls as MACs do, all groups lose the same share, as under a MACs
    budget; those whose MACs take longer lose more.

    Args:
        scores: ``(units,)`` from the best to the worst, high = keep.
        macs: of all layers that the group makes narrower.
        power: how close to the same share.
    """
    values = np.clip(scores.double().numpy(), 0, None)
    values = values + (values.mean() * 1e-3 if values.any() else 1.0)
    shares = np.concatenate([[0.0], np.cumsum(values) / values.sum()])
    return lambda kept: macs * (shares[kept] ** -power - 1)


def global_loss(scores: Tensor) -> Callable[[NDArray[np.int64]], Floats]:
    """Returns the loss under global allocation: the sum of the scores that are removed.

    Args:
        scores: ``(units,)`` from the best to the worst, high = keep.
    """
    values = np.clip(scores.double().numpy(), 0, None)
    left = np.concatenate([[0.0], np.cumsum(values)])
    return lambda kept: left[-1] - left[kept]


@dataclass(eq=False)
class Knapsack:
    """Takes steps until all amounts fit.

    Attributes:
        table: what each layer costs.
        groups: that may be pruned.
        shares: fraction kept of each group, those that are settled too.
        at: group → the rung where it stands.
        lowest: the least latency on the way, as a fraction: the narrowest layers need not be the fastest.
    """

    table: LatencyTable
    groups: Sequence[Rungs]
    shares: dict[str, float]
    at: dict[str, int] = field(init=False)
    lowest: float = field(default=math.inf, init=False)

    def __post_init__(self) -> None:
        self._rungs = {rungs.group: rungs for rungs in self.groups}
        self._layers: dict[str, list[LayerLatency]] = {name: [] for name in self._rungs}
        for layer in self.table.layers:
            for name in layer.groups & self._rungs.keys():
                self._layers[name].append(layer)
        self.at = dict.fromkeys(self._rungs, 0)

    @property
    def counts(self) -> dict[str, int]:
        """Returns the units kept of each group."""
        return {name: int(rungs.kept[self.at[name]]) for name, rungs in self._rungs.items()}

    def run(self, fits: Callable[[], bool]) -> bool:
        """Takes steps until all amounts fit, then gives back what still fits; returns whether they do."""
        best = {name: self._best(name) for name in self._rungs}
        while not fits():
            self._note()
            name = max(best, key=lambda each: best[each][0], default="")
            if not name or best[name][0] < 0:
                return False
            before = self.at[name]
            self._move(name, best[name][1])
            if fits():
                self._shorten(name, before, fits)
                break
            for other in self._near(name):
                best[other] = self._best(other)
        self._give_back(fits)
        return True

    def narrow(self) -> None:
        """Takes every group to its last rung."""
        for name, rungs in self._rungs.items():
            self._move(name, len(rungs.kept) - 1)

    def _note(self) -> None:
        """Notes the least latency so far."""
        self.lowest = min(self.lowest, self.table.fraction(self.shares))

    def _best(self, name: str) -> tuple[float, int]:
        """Returns the most milliseconds for a unit of loss that any lower rung frees, and that rung."""
        rungs, at = self._rungs[name], self.at[name]
        if at + 1 >= len(rungs.kept):
            return -1.0, at
        below = np.arange(at + 1, len(rungs.kept))
        saved = self._cost(name, np.array([at])) - self._cost(name, below)
        # Loss alone decides where nothing is saved: other amounts, such as parameters, may still ask for it.
        rate = np.maximum(saved, 1e-9 * self.table.whole) / (rungs.loss[below] - rungs.loss[at] + _TINY)
        first = int(np.argmax(rate))
        return float(rate[first]), int(below[first])

    def _cost(self, name: str, at: NDArray[np.int64]) -> Floats:
        """Returns the milliseconds of all layers that a group touches, with the group at each of these rungs."""
        rungs = self._rungs[name]
        shares: Mapping[str, float | Floats] = {**self.shares, name: rungs.kept[at] / rungs.units}
        total = np.zeros(len(at))
        for layer in self._layers[name]:
            total = total + self.table.layer(layer, shares)
        return total

    def _move(self, name: str, rung: int) -> None:
        self.at[name] = rung
        self.shares[name] = float(self._rungs[name].kept[rung]) / self._rungs[name].units

    def _shorten(self, name: str, before: int, fits: Callable[[], bool]) -> None:
        """Stops the last step at the widest rung that fits."""
        last = self.at[name]
        for rung in range(before + 1, last + 1):
            self._move(name, rung)
            if fits():
                return

    def _give_back(self, fits: Callable[[], bool]) -> None:
        """Widens groups again where all amounts still fit, those that lost most first."""
        for name in sorted(self._rungs, key=lambda each: -self._rungs[each].loss[self.at[each]]):
            for rung in range(self.at[name] + 1):  # the widest first: a rung between may be slower than those around
                self._move(name, rung)
                if fits():
                    break

    def _near(self, name: str) -> set[str]:
        """Returns the groups whose prices a group's width changes, itself among them."""
        return {other for layer in self._layers[name] for other in layer.groups & self._rungs.keys()} | {name}
