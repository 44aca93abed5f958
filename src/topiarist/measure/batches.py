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
from topiarist.files import one_line, shortened, shown
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
        TopiaristError: it is neither, can be read once only, or has no such batches.
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
    formatted = hasattr(data, "with_format")  # of datasets.Dataset, whose examples are lists of numbers before that
    if not formatted and not isinstance(data, Dataset):
        if isinstance(data, Iterator):  # asking a loader for one would start its workers
            raise TopiaristError(f"data are read more than once, and a {kind} only once: give a DataLoader or a list")
        return data
    try:
        examples: Any = data.with_format("torch") if formatted else data  # type: ignore[attr-defined]
        return DataLoader(examples, batch_size=size, shuffle=shuffled and not isinstance(examples, IterableDataset))
    except Exception as error:  # a data set runs the user's code
        raise TopiaristError(
            f"the {kind} cannot be read in batches of {size} ({one_line(error)}): give a whole number above 0, and a "
            "data set with __len__ and __getitem__"
        ) from error


def read(batches: Iterable[Batch], what: str, device: torch.device | None = None) -> Iterator[Batch]:
    """Yields batches; whatever a loader raises becomes one sentence.

    Args:
        batches: a loader or list.
        what: what the message calls them: ``"train data"``.
        device: they are moved to it, if one is given.

    Raises:
        TopiaristError: a batch cannot be read; the sentence says which.
    """
    number = 1
    try:
        for batch in batches:
            yield batch if device is None else to_device(batch, device)
            number += 1
    except TopiaristError:
        raise
    except Exception as error:  # the user's own code fails in any way
        text = str(error).strip()
        in_worker = "Original Traceback" in text
        reason = shortened(text.splitlines()[-1]) if in_worker else f"{type(error).__name__}: {one_line(error)}"
        raise TopiaristError(f"the {what} fail at batch {number} ({reason}): mend the loader") from error


def first_batch(batches: Iterable[Batch], what: str) -> Batch:
    """Returns the first batch with examples; torch's random state and that of a loader's own generator stay.

    Raises:
        TopiaristError: it cannot be read, or there is none.
    """
    own: Any = getattr(batches, "generator", None)
    state = own.get_state() if isinstance(own, torch.Generator) else None
    try:
        with torch.random.fork_rng():
            first = next((batch for batch in read(batches, what) if _has_examples(batch)), None)
    finally:
        if state is not None:
            own.set_state(state)
    if first is None:
        raise TopiaristError(f"there is no batch in the {what}: pass at least one")
    return first


def _has_examples(batch: Batch) -> bool:
    tensors = tensors_in(inputs_and_target(batch)[0])
    return not tensors or tensors[0].numel() > 0


@contextmanager
def running(batch: Batch, number: int) -> Iterator[None]:
    """Turns whatever a model or its loss raises of a batch into one sentence.

    Raises:
        TopiaristError: it has raised.
    """
    try:
        yield
    except TopiaristError:
        raise
    except Exception as error:  # the user's own code fails in any way
        tensors = tensors_in(inputs_and_target(batch)[0])
        shapes = ", ".join("nested" if tensor.is_nested else str(tuple(tensor.shape)) for tensor in tensors)
        remedy = "yield pairs (inputs, target) that fit the model, or dicts of its arguments"
        if "more than 1 value per channel" in str(error):  # of batch norm
            remedy = "drop a last batch that is too small, as DataLoader(drop_last=True) does"
        raise TopiaristError(
            f"the model or its loss fails on batch {number}, inputs of shape {shapes or 'none'} ({one_line(error)}): "
            f"{remedy}"
        ) from error


def batch_size(inputs: Inputs) -> int:
    """Returns how many examples there are in the inputs of a batch.

    Raises:
        TopiaristError: they hold no tensor of examples.
    """
    tensors = tensors_in(inputs)
    if not tensors or tensors[0].is_nested or not tensors[0].ndim:
        kind = (
            ("a nested tensor" if tensors[0].is_nested else "a number")
            if tensors
            else f"of type {type(inputs).__name__} without a tensor"
        )
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
    """Returns the device of a model's first parameter or buffer, the CPU where it has none.

    Raises:
        TopiaristError: it is no module.
    """
    if not isinstance(model, nn.Module):
        raise TopiaristError(f"the model must be a torch.nn.Module, but got {shown(model)}: give a network")
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
