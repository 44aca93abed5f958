"""Inputs and outputs of any model: nested values, and the tensors in them."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from topiarist.errors import TopiaristError
from topiarist.files import shown

Inputs = Tensor | Sequence[Any] | Mapping[str, Any]
"""What a model is called with: one tensor, positional arguments, or keyword arguments."""

Arguments = Sequence[Any]
"""Positional arguments of a call."""
Keywords = Mapping[str, Any]
"""Keyword arguments of a call."""


def call_model(model: nn.Module, inputs: Inputs) -> Any:
    """Calls a model with one tensor, with the entries of a tuple or list, or with a dict of keyword arguments."""
    args, kwargs = arguments_of(inputs)
    return model(*args, **kwargs)


def arguments_of(inputs: Inputs) -> tuple[Arguments, Keywords]:
    """Returns the positional and the keyword arguments that inputs are."""
    if isinstance(inputs, dict):
        return (), inputs
    return (inputs if isinstance(inputs, (tuple, list)) else (inputs,)), {}


@dataclass(frozen=True, eq=False)
class Form:
    """What a call of a network is like: its mode, and its arguments without the values of tensors.

    Attributes:
        training: whether the network is in training mode.
        arguments: by name, a tensor's shape, a plain value, or the type of another one; what is None is left out.
    """

    training: bool
    arguments: Mapping[str, object]

    def likeness(self, other: Form) -> tuple[bool, ...]:
        """Returns how alike two calls are: the larger, the more so."""
        mine, theirs = self.arguments, other.arguments
        return (
            self.training == other.training,
            mine.keys() == theirs.keys(),
            _plain(mine) == _plain(theirs),
            _behind_batch(mine) == _behind_batch(theirs),
            mine == theirs,
        )


def _plain(arguments: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in arguments.items() if not isinstance(value, torch.Size)}


def _behind_batch(arguments: Mapping[str, object]) -> dict[str, object]:
    return {name: shape[1:] for name, shape in arguments.items() if isinstance(shape, torch.Size)}


def form_of(forward: Callable[..., Any], args: Arguments, kwargs: Keywords, *, training: bool) -> Form:
    """Returns what a call of a network's forward is like, however its arguments are passed."""
    try:
        bound = inspect.signature(forward).bind(*args, **kwargs)
        bound.apply_defaults()
        given: Mapping[str, object] = bound.arguments
    except (TypeError, ValueError):  # built in, or called as it cannot be
        given = {**{str(k): value for k, value in enumerate(args)}, **kwargs}
    return Form(training, dict(_forms("", given)))


def _forms(name: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Tensor):
        yield name, value.shape
    elif isinstance(value, (dict, tuple, list)):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, entry in entries:
            yield from _forms(f"{name}.{key}", entry)
    elif value is not None:
        yield name, value if isinstance(value, (bool, int, float, str)) else type(value)


def tensors_in(value: object) -> list[Tensor]:
    """Returns the tensors of a nested value, in order: tuples, lists, dicts and dataclasses."""
    if isinstance(value, Tensor):
        return [value]
    if value is None or isinstance(value, (int, float, str)):
        return []
    if isinstance(value, dict):
        return [t for entry in value.values() for t in tensors_in(entry)]
    if isinstance(value, (tuple, list)):
        return [t for entry in value for t in tensors_in(entry)]
    if hasattr(value, "__dataclass_fields__"):
        return [t for key in value.__dataclass_fields__ for t in tensors_in(getattr(value, key))]
    return []


def check_plain(values: object, what: str) -> None:
    """Raises where a tensor in nested values is none that every operator takes: dense, with values of a common type.

    Args:
        values: nested, as for `tensors_in`.
        what: what the message calls them, with its verb: ``"the example input is"``.

    Raises:
        TopiaristError: a tensor is nested, sparse, quantised, without values, or of floats of 8 bits or fewer.
    """
    for tensor in tensors_in(values):
        if (fault := _fault(tensor)) is not None:
            raise TopiaristError(f"{what} {fault}")


def _fault(tensor: Tensor) -> str | None:
    """Returns what is odd about a tensor, and what to give instead; ``None`` where nothing is."""
    if tensor.is_nested:
        return "a nested tensor: give a padded one, as tensor.to_padded_tensor(0.0) returns"
    if tensor.layout != torch.strided:
        return f"a tensor of the layout {tensor.layout}: give a dense one, as tensor.to_dense() returns"
    if tensor.is_meta:
        return "a meta tensor, which has no values: give one that has them"
    if tensor.is_quantized:
        return "a quantised tensor: give numbers, as tensor.dequantize() returns"
    if tensor.is_floating_point() and tensor.element_size() == 1:
        return f"a tensor of {tensor.dtype}, which few operators take: give numbers, as tensor.float() returns"
    return None


def map_tensors(inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Returns the same inputs with their tensors changed."""
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, dict):
        return {key: map_tensors(value, change) for key, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        changed = [map_tensors(value, change) for value in inputs]
        return type(inputs)(*changed) if hasattr(inputs, "_fields") else type(inputs)(changed)
    return inputs


def map_floats(inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Returns the same inputs with their floating-point tensors changed."""
    return map_tensors(inputs, lambda tensor: change(tensor) if tensor.is_floating_point() else tensor)


def converted(inputs: Inputs, dtype: torch.dtype) -> Any:
    """Returns the same inputs with their floating-point tensors in another precision."""
    return map_floats(inputs, lambda tensor: tensor.to(dtype))


def twice_the_batch(inputs: Inputs) -> Any:
    """Returns the same inputs with twice the batch, the second half with other values.

    The batch is the first axis of every tensor that has as many positions there as the first tensor.
    """

    def doubled(tensor: Tensor) -> Tensor:
        other = tensor.flip(-1) if tensor.ndim > 1 else tensor
        return torch.cat([tensor, 0.5 * other if tensor.is_floating_point() else other])

    return _map_batch(inputs, doubled)


def batch_of(inputs: Inputs, size: int) -> Any:
    """Returns the same inputs with a batch of this size: their examples in turn, as often as it takes.

    The batch is the first axis of every tensor that has as many positions there as the first tensor.

    Raises:
        TopiaristError: the inputs hold no example, or there is no memory for so many.
    """
    if any(tensor.ndim and not len(tensor) for tensor in tensors_in(inputs)[:1]):
        raise TopiaristError("the example input holds no example (its first axis is empty): give one that does")

    def resized(tensor: Tensor) -> Tensor:
        return tensor if len(tensor) == size else tensor[torch.arange(size, device=tensor.device) % len(tensor)]

    try:
        return _map_batch(inputs, resized)
    except (RuntimeError, OverflowError, MemoryError) as error:
        raise TopiaristError(f"there is no memory for a batch of {shown(size)}: give a smaller one") from error


def _map_batch(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Any:
    """Returns the same inputs with those tensors changed that have the batch as their first axis."""
    batch = next((t.shape[0] for t in tensors_in(inputs) if t.ndim), 0)
    return map_tensors(inputs, lambda tensor: change(tensor) if tensor.ndim and len(tensor) == batch else tensor)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Context after which random numbers go on as if nothing had been drawn: torch's, NumPy's and Python's."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    numbers, python = np.random.get_state(), random.getstate()  # noqa: NPY002  (what networks draw from)
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        np.random.set_state(numbers)  # noqa: NPY002
        random.setstate(python)


def seed_all(seed: int) -> None:
    """Seeds the random numbers of torch, NumPy and Python, from which networks draw in training."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """Returns the modules of a model by name, each once, as `torch.nn.Module.named_modules` does, in linear time."""
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()
    waiting = [("", model)]
    while waiting:
        name, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        found[name] = module
        inside = f"{name}." if name else ""
        waiting += [(inside + key, held) for key, held in reversed(module._modules.items()) if held is not None]
    return found


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Returns the parameters, buffers and constants of a model by name, tied ones once."""
    found: dict[int, tuple[str, Tensor]] = {}
    modules = modules_of(model)
    for kind in ("_parameters", "_buffers"):
        for prefix, module in modules.items():
            for name, tensor in getattr(module, kind).items():
                if tensor is not None:
                    found.setdefault(id(tensor), (f"{prefix}.{name}".lstrip("."), tensor))
    return {**dict(found.values()), **constants(model)}


def constants(model: nn.Module) -> dict[str, Tensor]:
    """Returns floating-point tensors that are plain attributes of modules, such as a table of positions, by name.

    No file holds them: a module makes them when it is built.
    """
    return {
        f"{prefix}.{name}".lstrip("."): value
        for prefix, module in modules_of(model).items()
        for name, value in vars(module).items()
        if type(value) is Tensor and value.is_floating_point() and not value.requires_grad
    }
