"""What methods need measured: one pass over the data, sums that merge.

The statistics of `topiarist.measure` add to float64 sums, one set for each group. Sums of one batch, of ten, or of
several machines add up to the same numbers, so that batches, micro-batches and ranks share the code.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from topiarist.errors import TopiaristError
from topiarist.files import suggestion
from topiarist.graph import Graph, check_finite, run, tensors_in
from topiarist.measure.processes import added, ranks, share
from topiarist.measure.statistics import STATISTICS, Statistic, Watch

__all__ = [
    "STATISTICS",
    "Loss",
    "OnStep",
    "Statistic",
    "Stats",
    "Watch",
    "collect",
    "covariance",
    "cross_entropy",
    "merge",
]

Loss = Callable[[Any, Any], Tensor]
"""``(output, target)`` → the mean over the examples of the batch, a scalar."""

OnStep = Callable[[str, int, int], object]
"""Called while a method works for long: what it does, how many steps are done, and of how many."""


@dataclass(frozen=True, eq=False)
class Stats:
    """A model's tensors and what was measured of it.

    Attributes:
        tensors: every parameter and buffer by name, detached.
        sums: ``(group, key)`` → float64 sum over all that was seen; the statistics name their keys.
        model: the model itself, for methods that must run it in their own way.
        batches: the data that was measured, likewise.
        on_step: who wants to know how far a method is that works for long.
    """

    tensors: Mapping[str, Tensor]
    sums: Mapping[tuple[str, str], Tensor] = field(default_factory=dict)
    model: nn.Module | None = None
    batches: Iterable[Any] | None = None
    on_step: OnStep | None = None

    def tell(self, what: str, done: int, total: int) -> None:
        """Says how far a method is, to whoever wants to know."""
        if self.on_step is not None:
            self.on_step(what, done, total)

    def tensor(self, name: str) -> Tensor:
        """A parameter or buffer, detached.

        Raises:
            TopiaristError: the model has none of this name.
        """
        if name not in self.tensors:
            hint = suggestion(name, self.tensors, "collect the statistics of the traced model")
            raise TopiaristError(f"the model has no tensor {name!r}: {hint}")
        return self.tensors[name]

    def sum(self, group: str, key: str) -> Tensor:
        """One sum of one group.

        Raises:
            TopiaristError: it was not measured.
        """
        if (group, key) not in self.sums:
            raise TopiaristError(
                f"{key!r} of the group {group!r} was not measured: collect what the method needs, on data it sees"
            )
        return self.sums[group, key]

    def mean(self, group: str, key: str) -> Tensor:
        """A sum divided by how often it was added to, ``key`` with its last part replaced by ``count``."""
        return self.sum(group, key) / self.sum(group, f"{key.rpartition('.')[0]}.count")

    def merge(self, other: Stats) -> Stats:
        """The statistics of both, as if measured together: sums are added, data follow, tensors are the first one's."""
        batches = [each for each in (self.batches, other.batches) if each is not None]
        return replace(self, sums=_added(self.sums, other.sums), batches=_Chain(batches) if batches else None)


@dataclass(frozen=True, eq=False)
class _Chain:
    """Several sets of batches, one after the other, as often as they are asked for."""

    parts: list[Iterable[Any]]

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(self.parts)


def merge(first: Stats, *others: Stats) -> Stats:
    """The statistics of all, whatever the order; see `Stats.merge`."""
    for other in others:
        first = first.merge(other)
    return first


def covariance(stats: Stats, group: str, pool: Literal["max", "mean"] = "max") -> Tensor:
    """``E[z z^T] - E[z] E[z]^T`` of a group's pooled responses, ``(units, units)``.

    Raises:
        TopiaristError: `Covariance` was not measured.
    """
    mean = stats.mean(group, f"covariance-{pool}.sum")
    return stats.mean(group, f"covariance-{pool}.products") - torch.outer(mean, mean)


_ELSEWHERE = ("weights", "training", "evaluations")
"""What a method may need that is not measured here."""


def cross_entropy(output: Any, target: Any) -> Tensor:
    """Mean cross entropy of the class scores in a model's output."""
    return F.cross_entropy(class_scores(output), target)


def class_scores(output: Any) -> Tensor:
    """The first tensor in a model's output (its ``logits`` where it has some): ``(N, classes, ...)``."""
    output = output.get("logits", output) if isinstance(output, Mapping) else getattr(output, "logits", output)
    return tensors_in(output)[0]


def collect(
    model: nn.Module,
    graph: Graph,
    batches: Iterable[Any] | None = None,
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
        needs: names in `STATISTICS` or statistics; ``"weights"``, ``"training"`` and ``"evaluations"`` ask nothing of
            this function.
        loss: mean over the examples of a batch, for statistics that need gradients.
        on_step: handed to the method, which tells it how far it is if it works for long.
        distributed: share the pass among the processes of ``torch.distributed``, as torchrun starts them: each sees
            every n-th batch, the sums of all are added, and all get the same. All of them call this, with the same
            model and the same batches.

    Returns:
        The model's tensors and the sums.

    Raises:
        TopiaristError: a tensor holds NaN, there is no such statistic, data or targets are missing, or there are no
            other processes to share with.
    """
    tensors = {name: tensor.detach() for name, tensor in _named_tensors(model)}
    check_finite(model)
    wanted = _statistics(needs)
    watch = Watch()
    rank, count = ranks() if distributed else (0, 1)
    if wanted:
        if batches is None:
            raise TopiaristError(
                f"{wanted[0].name} must be measured: pass data, to collect batches of "
                "inputs or (inputs, target), to prune a topiarist.Data"
            )
        _measure(model, graph, share(batches, rank, count), wanted, watch, loss)
    sums = added(watch.sums, _device(model)) if count > 1 else watch.sums
    return Stats(tensors, sums, model, batches, on_step)


def _measure(
    model: nn.Module,
    graph: Graph,
    batches: Iterable[tuple[Any, bool]],
    wanted: list[Statistic],
    watch: Watch,
    loss: Loss,
) -> None:
    """Runs the model over the data with the statistics hooked in; a batch that does not count leaves zeros."""
    backward = any(statistic.gradients for statistic in wanted)
    device = _device(model)
    handles: list[RemovableHandle] = []
    seen = 0
    with _frozen_again(model), eval_mode(model), torch.enable_grad() if backward else torch.no_grad():
        try:
            for statistic in wanted:
                handles += statistic.watch(model, graph, watch)
            for batch, counts in batches:
                inputs, target = parted(batch)
                output = run(model, moved(inputs, device))
                seen += 1
                if backward:
                    if target is None:
                        raise TopiaristError("gradients need targets: pass batches as pairs (inputs, target)")
                    examples = len(tensors_in(inputs)[0])
                    watch.backward(loss(output, moved(target, device)) * examples)
                del output  # and the graph with it, before the next batch needs the memory
                if not counts:
                    watch.sums = {key: torch.zeros_like(total) for key, total in watch.sums.items()}
        finally:
            for handle in handles:
                handle.remove()
    if not seen:
        raise TopiaristError("there is no batch in the data: pass at least one")


def _statistics(needs: Collection[str | Statistic]) -> list[Statistic]:
    found: dict[str, Statistic] = {}
    for need in needs:
        if isinstance(need, str) and need not in STATISTICS:
            if need in _ELSEWHERE:
                continue
            raise TopiaristError(f"there is no statistic {need!r}: {suggestion(need, STATISTICS)}")
        statistic = STATISTICS[need] if isinstance(need, str) else need
        found[statistic.name] = statistic
    return [found[name] for name in sorted(found)]


def parted(batch: Any) -> tuple[Any, Any]:
    """Inputs and target of a batch; the target is ``None`` where there is none."""
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, tuple | list) and len(batch) == 1:
        return batch[0], None
    return batch, None


def moved(value: Any, device: torch.device) -> Any:
    """The same value with its tensors on a device."""
    return mapped(value, lambda tensor: tensor.to(device))


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nested value with each of its tensors changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: mapped(entry, change) for key, entry in value.items()}
    return type(value)(mapped(entry, change) for entry in value) if isinstance(value, tuple | list) else value


def _device(model: nn.Module) -> torch.device:
    return next((tensor.device for _, tensor in _named_tensors(model)), torch.device("cpu"))


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _added(first: Mapping[tuple[str, str], Tensor], second: Mapping[tuple[str, str], Tensor]) -> dict[Any, Tensor]:
    both = {key: first[key] + second[key] for key in first if key in second}
    return {**first, **second, **both}


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode, and afterwards each module's own mode as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _frozen_again(model: nn.Module) -> Iterator[None]:
    """Afterwards the parameters are frozen that were so before, whatever a statistic asked for."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
