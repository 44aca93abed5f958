"""Batches of data on their way into a model: their parts, their device, and the mode that the model is in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from topiarist.graph import tensors_in

Inputs = Any
"""What a model is called with: a tensor, a tuple of arguments, or a dict of keyword arguments."""

Target = Any
"""What a loss compares the output with: a tensor in most cases."""

Batch = Any
"""Inputs, or a pair of inputs and target."""


def inputs_and_target(batch: Batch) -> tuple[Inputs, Target]:
    """Returns the two parts of a batch; the target is ``None`` where there is none.

    A pair with names, such as a named tuple of two tensors, is inputs and target too.
    """
    if isinstance(batch, Mapping) and not isinstance(batch, dict):
        return dict(batch), None  # such as what tokenizers return
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, tuple | list) and len(batch) == 1:
        return batch[0], None
    return batch, None


def batch_size(inputs: Inputs) -> int:
    """Returns how many examples there are in the inputs of a batch."""
    return len(tensors_in(inputs)[0])


def first_examples(batches: Iterable[Batch], count: int) -> Iterator[Batch]:
    """Yields the batches that hold the first ``count`` examples, the last of them cut to size."""
    for batch in batches:
        size = batch_size(inputs_and_target(batch)[0])
        yield batch if size <= count else map_tensors(batch, itemgetter(slice(count)))
        count -= size
        if count <= 0:
            return


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Returns the same nested value with each of its tensors changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(entry, change) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        entries = [map_tensors(entry, change) for entry in value]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    return value


def to_device(value: Any, device: torch.device) -> Any:
    """Returns the same nested value with its tensors on a device."""
    return map_tensors(value, lambda tensor: tensor.to(device))


def device_of(model: nn.Module) -> torch.device:
    """Returns the device of a model's first parameter or buffer, the CPU where it has none."""
    return next((tensor.device for tensor in chain(model.parameters(), model.buffers())), torch.device("cpu"))


@contextmanager
def mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Puts a model in train or eval mode; afterwards each module has its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, former in modes:
            module.training = former
