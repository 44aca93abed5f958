"""A latency budget met: the table's choice is cut and measured, and the table corrected, until the milliseconds fit."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from topiarist.budget import NO_ZEROS, Budget, LatencyTable, OutOfReachError, ZerosTable
from topiarist.deploy import Session, Target, latency_table, make_target, ratio_of, zeros_table
from topiarist.errors import TopiaristError
from topiarist.files import one_line
from topiarist.graph import Graph, Keep, batch_of, call_model, random_state_kept
from topiarist.measure import OnStep
from topiarist.pruning.choice import Choice
from topiarist.surgery import copied, cut

ROUNDS = 5
"""Choices that are measured at most."""

OVER, UNDER = 1.01, 0.97
"""How far from the budget a measured latency is accepted at once."""

FAR = 1.05
"""How far above the budget a measured latency is not passed over in silence."""


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
        table: what each layer costs at each width, or at each density.
    """

    target: str
    threads: int
    batch: int
    before: float
    predicted: float
    measured: float
    table: LatencyTable | ZerosTable = field(repr=False, compare=False)

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
    table: LatencyTable | ZerosTable
    whole: Session = field(init=False)

    def __post_init__(self) -> None:
        self.whole = self.target.prepare(self.model, self.inputs)

    @staticmethod
    def of(model: nn.Module, graph: Graph, example_inputs: Any, budget: Budget, on_step: OnStep | None) -> Stopwatch:
        """Measures the table, or reads it from the cache.

        Raises:
            TopiaristError: there is no such runtime, its package is missing, or it does not take the network, or the
                network this batch.
        """
        target = make_target(budget.target, budget.threads)
        inputs, model = batch_of(example_inputs, budget.batch), copied(model).eval()
        _check_runs(model, inputs, budget.batch)
        try:
            measure = zeros_table if graph.kind == "weight" else latency_table
            table: LatencyTable | ZerosTable = measure(model, graph, inputs, target, on_step=on_step)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(
                "interrupted; the latencies that were measured are kept for the next time"
            ) from stop
        if not _prices(table):
            raise TopiaristError(
                "no layer that can be cut is a convolution, a linear layer or attention, so none can be priced: give "
                "macs or params instead of latency"
            )
        return Stopwatch(model, inputs, target, table)

    def choose(self, graph: Graph, budget: Budget, choice: Callable[[Budget], Choice]) -> tuple[Choice, Latency]:
        """Chooses, cuts, measures and corrects; returns the choice whose measured latency is nearest to the budget.

        Args:
            graph: the units that are pruned.
            budget: with its latency.
            choice: what a method keeps under a budget.

        Raises:
            TopiaristError: the budget is out of reach; the sentence names the least that was measured.
        """
        tried: list[tuple[float, Choice, Latency]] = []
        table, asked, refusal = self.table, budget.latency or 0.0, None
        for _ in range(ROUNDS):
            try:
                chosen = choice(budget.priced(table))
            except OutOfReachError as error:
                refusal = error
                if tried:
                    break
                chosen = choice(replace(budget, latency=error.least).priced(table))  # it may be faster than predicted
            latency = self._measured(graph, chosen.keep, table)
            off = latency.measured / asked if asked else math.inf
            tried.append((abs(off - 1) if off <= OVER else off, chosen, latency))
            if UNDER <= off <= OVER or _same(tried):
                break
            table = table.corrected(latency.predicted, latency.measured)
        _, chosen, latency = min(tried, key=lambda each: each[0])
        if latency.measured > FAR * asked:
            _complain(latency, asked, refusal)
        return chosen, latency

    def _measured(self, graph: Graph, keep: Keep, table: LatencyTable | ZerosTable) -> Latency:
        smaller = self.target.prepare(cut(self.model, graph, keep).eval(), self.inputs)
        measured = ratio_of(smaller, self.whole, self.inputs)
        return Latency(table.target, table.threads, table.batch, table.whole, table.of(keep), measured, table)


def _prices(table: LatencyTable | ZerosTable) -> bool:
    """Returns whether the table has a price for anything that is pruned."""
    return bool(table.layers) if isinstance(table, ZerosTable) else any(layer.groups for layer in table.layers)


def _check_runs(model: nn.Module, inputs: Any, batch: int) -> None:
    """Raises where the network does not take the batch that the budget names."""
    try:
        with torch.no_grad(), random_state_kept():
            call_model(model, inputs)
    except Exception as error:  # the network's own code
        raise TopiaristError(
            f"the network fails on a batch of {batch} ({one_line(error)}): give the budget another batch, and an "
            "example whose first axis is the batch"
        ) from error


def _complain(latency: Latency, asked: float, refusal: OutOfReachError | None) -> None:
    """Raises where the budget is out of reach, warns where steps or noise leave it exceeded."""
    if refusal is not None:
        held = (NO_ZEROS,) if isinstance(latency.table, ZerosTable) else ()
        measured = OutOfReachError(asked, 1.02 * latency.measured, latency.target, *held)
        measured.unscored = refusal.unscored
        raise measured
    warnings.warn(
        f"the latency that was measured is {latency.measured:.3f} of the whole network's, above the {asked:g} of the "
        "budget: close other programs and prune again, or give a smaller budget",
        stacklevel=2,
    )


def _same(tried: list[tuple[float, Choice, Latency]]) -> bool:
    """Returns whether the last correction changed nothing, as where only a few widths are offered."""
    if len(tried) < 2:
        return False
    (_, before, _), (_, after, _) = tried[-2:]
    return all(bool((before.keep[name] == kept).all()) for name, kept in after.keep.items())
