"""Batches of data on their way into a model: their parts, their device, and the mode that the model is in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from topiarist.errors import TopiaristError
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


def inputs_and_labels(batch: Batch) -> tuple[Inputs, Target]:
    """Returns the two parts of a batch; the target of a dict of arguments is its entry ``labels``."""
    inputs, target = inputs_and_target(batch)
    return inputs, inputs.get("labels") if target is None and isinstance(inputs, dict) else target


def batches_in(data: Iterable[Batch], size: int, *, shuffled: bool = False) -> Iterable[Batch]:
    """Returns the batches of a loader or list as they are, and those that a data set of single examples is split into.

    Args:
        data: batches that can be read several times, or a map-style `torch.utils.data.Dataset` or ``datasets.Dataset``.
        size: examples in a batch, where they are batched here.
        shuffled: whether their order is drawn anew for each pass, from torch's random state.

    Raises:
        TopiaristError: it is neither, or can be read once only.
    """
    kind = type(data).__name__
    if isinstance(data, str | bytes | Tensor | Mapping) or not (hasattr(data, "__iter__") or isinstance(data, Dataset)):
        raise TopiaristError(
            f"data must be a topiarist.Data or batches, but got {kind}: use load_data, Data.of with your own tensors, "
            "or a DataLoader or list of pairs (inputs, target)"
        )
    if isinstance(data, tuple) and all(isinstance(entry, Tensor) for entry in data):
        raise TopiaristError(
            "the data are a tuple of tensors: give TensorDataset(inputs, targets), or [(inputs, targets)] as one batch"
        )
    if hasattr(data, "with_format"):  # of datasets.Dataset, whose examples are lists of numbers before that
        return DataLoader(data.with_format("torch"), batch_size=size, shuffle=shuffled)
    if not isinstance(data, Dataset):
        if isinstance(data, Iterator):  # asking a loader for one would start its workers
            raise TopiaristError(f"data are read more than once, and a {kind} only once: give a DataLoader or a list")
        return data
    return DataLoader(data, batch_size=size, shuffle=shuffled and not isinstance(data, IterableDataset))


def batch_size(inputs: Inputs) -> int:
    """Returns how many examples there are in the inputs of a batch.

    Raises:
        TopiaristError: they hold no tensor of examples.
    """
    tensors = tensors_in(inputs)
    if not tensors or not tensors[0].ndim:
        kind = "a number" if tensors else f"of type {type(inputs).__name__} without a tensor"
        raise TopiaristError(f"the inputs of a batch are {kind}: yield tensors with the examples along the first axis")
    return len(tensors[0])


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
