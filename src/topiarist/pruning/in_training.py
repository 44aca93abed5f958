"""The cuts of a request one by one, of a network that somebody else trains between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from topiarist.architecture import Architecture
from topiarist.budget import Budget, Cost, cost
from topiarist.errors import TopiaristError
from topiarist.graph import Graph
from topiarist.measure import Loss, collect, cross_entropy, first_batch
from topiarist.pruning.examples import DataOrBatches, batches_of
from topiarist.pruning.iterative import Remaining, Share, composed_keep, kept_after
from topiarist.pruning.pipeline import Pipeline, prepared
from topiarist.pruning.refusals import check_reachable, statistics_needed
from topiarist.pruning.request import Pruning
from topiarist.surgery import carry_over, check_training, plan


@dataclass(eq=False)
class Cuts:
    """Cuts a network again and again while it trains.

    Attributes:
        work: the request, and the units of the network as it was given.
        keep: what all cuts so far keep of these, group name → bool ``(units,)``.
        remaining: what that is now.
        done: how many cuts there were.
    """

    work: Pipeline
    keep: Mapping[str, Tensor]
    remaining: Remaining
    done: int = 0

    @classmethod
    def of(
        cls,
        model: nn.Module,
        example_inputs: Any,
        request: Pruning,
        data: DataOrBatches | None = None,
        *,
        loss: Loss | None = None,
        more_inputs: Sequence[Any] = (),
    ) -> Cuts:
        """Prepares the cuts of a network; the arguments are those of `topiarist.prune`.

        Raises:
            TopiaristError: the request trains or rewinds the network itself, or `prune` would refuse it; a method that
                measures is tried on one batch.
        """
        if request.trains or request.rewind:
            raise TopiaristError(
                "the network is trained by somebody else here: leave training, sparse_training and rewind out"
            )
        work = prepared(model, example_inputs, request, data, loss=loss, more_inputs=more_inputs)
        if work.request.budget is not None:
            check_reachable(request.method, work.units, work.request.budget, request.steps.count)
        _check_measurable(model, work)
        whole = Remaining(work.units, {group.name: group.name for group in work.units.groups})
        return cls(work, work.units.full(), whole)

    @property
    def is_weights(self) -> bool:
        """Returns whether weights are pruned one by one, so that the network keeps its shape."""
        return self.work.units.kind == "weight"

    @property
    def complete(self) -> bool:
        """Returns whether all cuts are done, or nothing can be cut any more."""
        return self.done >= self.work.request.steps.count or not self.remaining.graph.groups

    @property
    def units(self) -> Graph:
        """Returns the units of the network as it is now."""
        return self.work.units if self.is_weights else self.remaining.graph

    @property
    def excluded(self) -> tuple[Any, ...]:
        """Returns what the budget leaves alone, as it is called now."""
        share = self._share(1)
        return () if share is None else share.exclude

    @property
    def architecture(self) -> Architecture:
        """Returns the shape that all cuts so far give the network as it was."""
        return Architecture.of(self.work.units, self.keep)

    @property
    def costs(self) -> tuple[Cost, Cost]:
        """Returns what the network cost as it was given, and what it costs now; zero weights cost nothing."""
        return cost(self.work.units), cost(self.work.units, self.keep)

    def check(self, model: nn.Module, *training: Any) -> None:
        """Raises where `next` would refuse what trains a network; nothing is changed."""
        units = self.remaining.graph
        check_training(model, plan(units, units.full()), training)

    def next(self, model: nn.Module, *training: Any) -> nn.Module:
        """Cuts once more.

        Args:
            model: the network as it is now; it stays as it is.
            training: its optimisers and averages, which continue with the smaller one (see `topiarist.cut`).

        Returns:
            The smaller network.

        Raises:
            TopiaristError: what a method or a budget refuses, the cut cannot be proved, or an optimiser cannot be cut.
        """
        step, work = self.done + 1, self.work
        smaller, graph, chosen = work.step(model, self.remaining.graph, self.keep, self._share(step), step)
        keep = dict(chosen) if step == 1 else composed_keep(work.units, self.keep, graph, chosen)
        carry_over(model, smaller, plan(graph, chosen), training)
        self.keep, self.done = keep, step
        self._look_at(smaller)
        return smaller

    def resume(self, model: nn.Module, architecture: Architecture, done: int) -> nn.Module:
        """Returns the network as it was after earlier cuts; its weights are those that it has here.

        Args:
            model: the network as it was given.
            architecture: what these cuts gave.
            done: how many they were.

        Raises:
            TopiaristError: the architecture is of another network.
        """
        units = {group.name: group.units for group in self.work.units.groups}
        if any(units.get(name) != len(kept) for name, kept in architecture.keep.items()):
            raise TopiaristError(
                "the cuts of this checkpoint are of another network: make the model with the options that it had"
            )
        smaller = architecture.apply(model)
        groups = tuple(group for group in self.work.units.groups if group.name in architecture.keep)
        self.work.units = replace(self.work.units, groups=groups)  # what was pinned then is pinned now
        self.keep, self.done = dict(architecture.keep), done
        self._look_at(smaller)
        return smaller

    def _look_at(self, model: nn.Module) -> None:
        """Sees what can still be pruned of the network as it is now."""
        if self.is_weights or not self.complete:
            self.remaining = Remaining.of(self.work.units, self.keep, model, self.work)

    def _share(self, step: int) -> Budget | Share | None:
        """Returns what a cut may keep of what is there."""
        request, units = self.work.request, self.work.units
        if request.budget is None or request.steps.count == 1:
            return request.budget
        kept = partial(kept_after(request.method, request.steps), step)
        return Share(request.budget, request.method.allocation, kept, units, self.keep, self.remaining)


def _check_measurable(model: nn.Module, work: Pipeline) -> None:
    """Raises where what a cut measures could not be measured: on one batch, since the cuts come late."""
    needed = statistics_needed(work.request) - {"weights", "training"}
    if not needed:
        return
    batches = batches_of(work.data, work.run.batch_size, work.run.seed)
    if batches is None:
        raise TopiaristError(
            f"a cut by {work.request.method.name} is measured on data: give data=, such as a DataLoader"
        )
    collect(model, work.units, [first_batch(batches, "data")], needed, loss=work.loss or cross_entropy)
