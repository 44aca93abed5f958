"""A metric of the user's own, measured over batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeGuard, runtime_checkable

import torch
from torch import nn

from topiarist.errors import TopiaristError
from topiarist.files import one_line, shown
from topiarist.graph import call_model
from topiarist.measure.batches import Batch, Target, batch_size, device_of, inputs_and_labels, mode, read, running


@runtime_checkable
class Accumulator(Protocol):
    """A metric that adds up by itself, as those of torchmetrics do."""

    def update(self, output: Any, target: Target) -> object:
        """Adds a batch."""

    def compute(self) -> Any:
        """Returns the value over all batches since the last ``reset``."""

    def reset(self) -> object:
        """Forgets all batches."""


Metric = Callable[[Any, Target], Any] | Accumulator
"""``(output, target)`` → the mean over the examples of the batch, a number; or an accumulator."""


def measured(model: nn.Module, batches: Iterable[Batch], metric: Metric) -> float:
    """Runs a model over batches, in eval mode, and returns a metric of all its outputs.

    Of a function: ``sum(n_b * metric(output_b, target_b)) / sum(n_b)``, with the number of examples ``n_b`` of a batch.

    Args:
        model: its output is given to the metric as it is.
        batches: pairs ``(inputs, target)``; of a batch that is a dict of arguments, the target is its ``labels``.
        metric: a function of output and target, or an object with ``update``, ``compute`` and ``reset``.

    Raises:
        TopiaristError: the metric fails or yields no number, or there is no example.
    """
    if is_accumulator(metric):
        _guarded(metric.reset)
        for output, target, _ in _outputs(model, batches):
            _guarded(metric.update, output, target)
        return _number(_guarded(metric.compute))
    function = check_function(metric, "metric")
    total, seen = 0.0, 0
    for output, target, size in _outputs(model, batches):
        total += size * _number(_guarded(function, output, target))
        seen += size
    return total / seen


def is_accumulator(metric: object) -> TypeGuard[Accumulator]:
    """Returns whether a metric adds up by itself; a class of such does not."""
    return isinstance(metric, Accumulator) and not isinstance(metric, type)


def check_function(value: Any, name: str) -> Callable[..., Any]:
    """Returns a loss or metric; raises where it is no function of output and targets."""
    if isinstance(value, type):
        kind = value.__name__
        raise TopiaristError(f"{name} is the class {kind}: give an object of it, as {kind}() makes")
    if not callable(value):
        raise TopiaristError(f"{name} must be a function of the model's output and the targets, but got {shown(value)}")
    function: Callable[..., Any] = value
    return function


@torch.no_grad()
def _outputs(model: nn.Module, batches: Iterable[Batch]) -> Iterator[tuple[Any, Target, int]]:
    """Yields what the model returns for each batch in eval mode, the targets, and how many examples there are."""
    device, empty = device_of(model), True
    with mode(model, training=False):
        for number, batch in enumerate(read(batches, "data", device), 1):
            inputs, target = inputs_and_labels(batch)
            size = batch_size(inputs)
            if not size:
                continue
            empty = False
            with running(batch, number):
                output = call_model(model, inputs)
            yield output, target, size
    if empty:
        raise TopiaristError("there is no example to evaluate the network on: pass at least one batch")


def _guarded(step: Callable[..., Any], *values: Any) -> Any:
    """Returns what a step of the metric does; whatever it raises becomes one sentence."""
    try:
        return step(*values)
    except Exception as error:  # the user's own code fails in any way
        raise TopiaristError(
            f"the metric fails ({type(error).__name__}: {one_line(error)}): it gets the model's output as it is, and "
            "the targets of the same batch"
        ) from error


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TopiaristError(
            f"the metric must return one number, the mean over the examples, but it returned {shown(value)}"
        ) from error
    return number if math.isfinite(number) else math.nan
