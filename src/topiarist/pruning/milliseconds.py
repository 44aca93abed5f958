"""A latency budget met: the table's choice is cut and measured, and the table corrected, until the milliseconds fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from topiarist.budget import Budget, LatencyTable
from topiarist.deploy import Session, Target, latency_table, make_target, ratio_of
from topiarist.graph import Graph, Keep, batch_of
from topiarist.measure import OnStep
from topiarist.pruning.choice import Choice
from topiarist.surgery import cut

ROUNDS = 5
"""Choices that are measured at most."""

OVER, UNDER = 1.01, 0.97
"""How far from the budget a measured latency is accepted at once."""


@dataclass(frozen=True)
class Latency:
    """What a latency budget came to.

    Attributes:
        target: the runtime, with its version.
        threads: that one run uses.
        batch: examples in one run.
        before: milliseconds of the network that was given.
        predicted: fraction of them that the table predicted for the pruned one.
        measured: the fraction that was measured, both networks run in turns.
        table: what each layer costs at each width.
    """

    target: str
    threads: int
    batch: int
    before: float
    predicted: float
    measured: float
    table: LatencyTable = field(repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Returns plain values for `json`, without the table."""
        names = ("target", "threads", "batch", "before", "after", "predicted", "measured")
        return {name: getattr(self, name) for name in names}

    @property
    def after(self) -> float:
        """Returns the milliseconds of the pruned network."""
        return self.before * self.measured

    def __str__(self) -> str:
        setting = f"{self.threads} thread{'s' * (self.threads > 1)}, batch {self.batch}"
        return (
            f"latency on {self.target} ({setting}): {self.before:.3g} → {self.after:.3g} ms "
            f"({self.measured:.1%}), predicted {self.predicted:.1%}"
        )


@dataclass(eq=False)
class Stopwatch:
    """Prices a network once, and measures what is made of it.

    Attributes:
        model: the network that is pruned.
        inputs: of the batch that counts.
        target: the runtime.
        table: what its layers cost there.
        whole: the network, loaded.
    """

    model: nn.Module
    inputs: Any
    target: Target
    table: LatencyTable
    whole: Session = field(init=False)

    def __post_init__(self) -> None:
        self.whole = self.target.prepare(self.model, self.inputs)

    @staticmethod
    def of(model: nn.Module, graph: Graph, example_inputs: Any, budget: Budget, on_step: OnStep | None) -> Stopwatch:
        """Measures the table, or reads it from the cache.

        Raises:
            TopiaristError: there is no such runtime, its package is missing, or the network does not export.
        """
        target = make_target(budget.target, budget.threads)
        inputs = batch_of(example_inputs, budget.batch)
        return Stopwatch(model, inputs, target, latency_table(model, graph, inputs, target, on_step=on_step))

    def choose(self, graph: Graph, budget: Budget, choice: Callable[[Budget], Choice]) -> tuple[Choice, Latency]:
        """Chooses, cuts, measures and corrects; returns the choice whose measured latency is nearest to the budget.

        Args:
            graph: the units that are pruned.
            budget: with its latency.
            choice: what a method keeps under a budget.

        Raises:
            TopiaristError: the budget is out of reach; the sentence names the least.
        """
        tried: list[tuple[float, Choice, Latency]] = []
        table, asked = self.table, budget.latency or 0.0
        for _ in range(ROUNDS):
            chosen = choice(budget.priced(table))
            latency = self._measured(graph, chosen.keep, table)
            off = latency.measured / asked
            tried.append((abs(off - 1) if off <= OVER else off, chosen, latency))
            if UNDER <= off <= OVER or _same(tried):
                break
            table = table.corrected(latency.predicted, latency.measured)
        _, chosen, latency = min(tried, key=lambda each: each[0])
        return chosen, latency

    def _measured(self, graph: Graph, keep: Keep, table: LatencyTable) -> Latency:
        smaller = self.target.prepare(cut(self.model, graph, keep), self.inputs)
        measured = ratio_of(smaller, self.whole, self.inputs)
        return Latency(table.target, table.threads, table.batch, table.whole, table.of(keep), measured, table)


def _same(tried: list[tuple[float, Choice, Latency]]) -> bool:
    """Returns whether the last correction changed nothing, as where only a few widths are offered."""
    if len(tried) < 2:
        return False
    (_, before, _), (_, after, _) = tried[-2:]
    return all(bool((before.keep[name] == kept).all()) for name, kept in after.keep.items())
