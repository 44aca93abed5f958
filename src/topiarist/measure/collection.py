"""Measuring what methods need: one pass over the data, sums that merge.

The statistics of `topiarist.measure` add to float64 sums, one set for each group. Sums of one batch, of ten, or of
several machines add up to the same numbers, so that batches, micro-batches and processes share the code.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Literal

import torch
from torch import Tensor, nn

from topiarist.errors import TopiaristError
from topiarist.files import shown, suggestion
from topiarist.graph import Graph, call_model, check_finite, check_plain, unwrapped
from topiarist.measure.batches import Batch, batch_size, device_of, inputs_and_target, mode, read, running, to_device
from topiarist.measure.evaluation import Loss, cross_entropy, one_number
from topiarist.measure.processes import batches_of_rank, rank_and_world_size, sum_over_processes
from topiarist.measure.statistics import STATISTICS, Statistic, Watch

Sums = Mapping[tuple[str, str], Tensor]
"""``(group, key)`` → float64 sum over all that was seen; the statistics name their keys."""

OnStep = Callable[[str, int, int], object]
"""Called while a method works for long, with what it does, how many steps are done, and of how many."""


@dataclass(frozen=True, eq=False)
class Stats:
    """Holds a model's tensors and what was measured of it.

    Attributes:
        tensors: every parameter and buffer by name, detached.
        sums: ``(group, key)`` → float64 sum over all that was seen; the statistics name their keys.
        model: the model itself, for methods that must run it in their own way.
        batches: the data that was measured, likewise.
        on_step: called by methods that work for long.
        loss: whose gradients were measured, for methods that run the model in their own way.
    """

    tensors: Mapping[str, Tensor]
    sums: Sums = field(default_factory=dict)
    model: nn.Module | None = None
    batches: Iterable[Batch] | None = None
    on_step: OnStep | None = None
    loss: Loss = cross_entropy

    def report(self, what: str, done: int, total: int) -> None:
        """Calls ``on_step``, where there is one, with how far a method is."""
        if self.on_step is not None:
            self.on_step(what, done, total)

    def tensor(self, name: str) -> Tensor:
        """Returns a parameter or buffer, detached.

        Raises:
            TopiaristError: the model has none of this name.
        """
        if name not in self.tensors:
            hint = suggestion(name, self.tensors, "collect the statistics of the traced model")
            raise TopiaristError(f"the model has no tensor {shown(name)}: {hint}")
        return self.tensors[name]

    def sum(self, group: str, key: str) -> Tensor:
        """Returns one sum of one group.

        Raises:
            TopiaristError: it was not measured.
        """
        if (group, key) not in self.sums:
            raise TopiaristError(
                f"{key!r} of the group {group!r} was not measured: collect what the method needs, on data it sees"
            )
        return self.sums[group, key]

    def mean(self, group: str, key: str) -> Tensor:
        """Returns a sum divided by how often it was added to, ``key`` with its last part replaced by ``count``."""
        return self.sum(group, key) / self.sum(group, f"{key.rpartition('.')[0]}.count")

    def merge(self, other: Stats) -> Stats:
        """Merges two as if measured together: sums are added, data follow, tensors are the first one's."""
        batches = [each for each in (self.batches, other.batches) if each is not None]
        return replace(self, sums=_added(self.sums, other.sums), batches=_Chain(batches) if batches else None)


@dataclass(frozen=True, eq=False)
class _Chain:
    """Yields sets of batches, one after the other, any number of times."""

    parts: list[Iterable[Batch]]

    def __iter__(self) -> Iterator[Batch]:
        return read(chain.from_iterable(self.parts), "data")


def merge(first: Stats, *others: Stats) -> Stats:
    """Merges the statistics of all, whatever the order; see `Stats.merge`."""
    for other in others:
        first = first.merge(other)
    return first


def covariance(stats: Stats, group: str, pool: Literal["max", "mean"] = "max") -> Tensor:
    """Returns ``E[z z^T] - E[z] E[z]^T`` of a group's pooled responses, ``(units, units)``.

    Raises:
        TopiaristError: `Covariance` was not measured.
    """
    mean = stats.mean(group, f"covariance-{pool}.sum")
    return stats.mean(group, f"covariance-{pool}.products") - torch.outer(mean, mean)


_ELSEWHERE = ("weights", "training", "evaluations")
"""What a method may need that no statistic measures."""


def collect(
    model: nn.Module,
    graph: Graph,
    batches: Iterable[Batch] | None = None,
    needs: Collection[str | Statistic] = frozenset(),
    *,
    loss: Loss = cross_entropy,
    on_step: OnStep | None = None,
    distributed: bool = False,
) -> Stats:
    """Measures all that is needed in one pass over the data, in eval mode; the model is left as it was.

    Args:
        model: the traced model.
        graph: its groups.
        batches: inputs, or pairs ``(inputs, target)``; inputs are a tensor, a tuple of arguments (in a pair) or a dict
            of keyword arguments. They go to the model's device. May be left out if nothing has to be measured.
        needs: names in `STATISTICS` or statistics; ``"weights"``, ``"training"`` and ``"evaluations"`` need no
            statistic.
        loss: of the model's output and the target of a batch, the mean over its examples, for statistics that need
            gradients; where a batch has no target it gets ``None``: ``lambda output, _: output.loss``.
        on_step: handed to the method, which calls it if it works for long.
        distributed: share the pass among the processes of ``torch.distributed``, as torchrun starts them: each sees
            every n-th batch, the sums of all are added, and all get the same. All of them call this, with the same
            model and the same batches.

    Returns:
        The model's tensors and the sums.

    Raises:
        TopiaristError: a tensor holds NaN, there is no such statistic, data or targets are missing, or there are no
            other processes to share with.
    """
    model = unwrapped(model)
    tensors = {name: tensor.detach() for name, tensor in _named_tensors(model)}
    check_finite(model)
    wanted = _statistics(needs)
    loss = cross_entropy if loss is nn.functional.cross_entropy else loss
    for statistic in wanted if loss is not cross_entropy else ():
        if getattr(statistic, "of_cross_entropy", False):
            raise TopiaristError(
                f"{statistic.name} is that of the cross entropy: leave loss out, or use another method"
            )
    watch = Watch()
    rank, world_size = rank_and_world_size() if distributed else (0, 1)
    if wanted:
        if batches is None:
            raise TopiaristError(
                f"{wanted[0].name} must be measured: give data, as a topiarist.Data or batches (inputs, target)"
            )
        _measure(model, graph, batches_of_rank(read(batches, "data"), rank, world_size), wanted, watch, loss)
    sums = sum_over_processes(watch.sums, device_of(model)) if world_size > 1 else watch.sums
    return Stats(tensors, sums, model, None if batches is None else _Chain([batches]), on_step, loss)


def _measure(
    model: nn.Module,
    graph: Graph,
    batches: Iterable[tuple[Batch, bool]],
    wanted: list[Statistic],
    watch: Watch,
    loss: Loss,
) -> None:
    """Runs the model over the data with the statistics hooked in; a batch that does not count adds zeros."""
    backward = any(statistic.gradients for statistic in wanted)
    device = device_of(model)
    seen = 0
    with (
        _frozen_again(model),
        mode(model, training=False),
        torch.enable_grad() if backward else torch.no_grad(),
        ExitStack() as handles,
    ):
        for statistic in wanted:
            for handle in statistic.watch(model, graph, watch):
                handles.callback(handle.remove)
        for batch, counts in batches:
            inputs, target = inputs_and_target(batch)
            check_plain(batch, "a batch of the data is")
            seen += 1
            with running(batch, seen):
                output = call_model(model, to_device(inputs, device))
            if backward:
                if target is None and loss is cross_entropy:
                    raise TopiaristError(
                        "gradients need targets: pass batches as pairs (inputs, target), or loss= where the model "
                        "computes it, as lambda output, _: output.loss"
                    )
                with running(batch, seen):
                    watch.backward(one_number(loss(output, to_device(target, device))) * batch_size(inputs))
            del output  # and the graph with it, before the next batch needs the memory
            if not counts:
                watch.sums = {key: torch.zeros_like(total) for key, total in watch.sums.items()}
    if not seen:
        raise TopiaristError("there is no batch in the data: pass at least one")


def _statistics(needs: Collection[str | Statistic]) -> list[Statistic]:
    statistics: dict[str, Statistic] = {}
    for need in needs:
        if isinstance(need, str) and need not in STATISTICS:
            if need in _ELSEWHERE:
                continue
            raise TopiaristError(f"there is no statistic {shown(need)}: {suggestion(need, STATISTICS)}")
        statistic = STATISTICS[need] if isinstance(need, str) else need
        statistics[statistic.name] = statistic
    return [statistics[name] for name in sorted(statistics)]


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _added(first: Sums, second: Sums) -> Sums:
    both = {key: first[key] + second[key] for key in first if key in second}
    return {**first, **second, **both}


@contextmanager
def _frozen_again(model: nn.Module) -> Iterator[None]:
    """Freezes the parameters again that were frozen before, whatever a statistic did."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
