"""A network as runtimes see it: a function of named tensors that returns tensors."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from topiarist.errors import TopiaristError
from topiarist.files import one_line
from topiarist.graph import Inputs, call_model, fast_path_off, map_tensors, tensors_in
from topiarist.measure import mode

Axes = Mapping[int, str]
"""Axis of a tensor → the name of its size, for the axes whose size may change."""

EXPORTERS = ("torchscript", "dynamo")
"""How torch reads a network: by running it and noting its operators, or by `torch.export`, which knows of symbols."""


class Flat(nn.Module):
    """Calls a network with its tensors in order; what else the inputs hold is part of it.

    It returns a tensor where the network does, else all tensors that it returns, in order.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.model, self.training = model, model.training  # exporters return all of it to this mode
        self._inputs = map_tensors(inputs, lambda tensor: tensor[..., :0] if tensor.ndim else tensor)  # its form alone

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Runs the network once."""
        rest = iter(tensors)
        outputs = call_model(self.model, map_tensors(self._inputs, lambda _: next(rest)))
        return outputs if isinstance(outputs, Tensor) else tuple(tensors_in(outputs))


@dataclass(frozen=True, eq=False)
class Draft:
    """A file to be written.

    Attributes:
        module: the network, as a function of its tensors in order.
        tensors: example inputs.
        names: of them.
        axes: of each, those whose size may change.
        exporter: one of `EXPORTERS`.
        metadata: what the file says about itself, as JSON; nothing where it is empty.
    """

    module: nn.Module
    tensors: tuple[Tensor, ...]
    names: tuple[str, ...]
    axes: tuple[Axes, ...]
    exporter: str = EXPORTERS[0]
    metadata: str = ""

    @classmethod
    def of(cls, model: nn.Module, inputs: Inputs) -> Draft:
        """Returns the draft of a file for exactly these shapes."""
        tensors = tuple(tensors_in(inputs))
        return cls(Flat(model, inputs), tensors, input_names(model, inputs), tuple({} for _ in tensors))


def input_names(model: nn.Module, inputs: Inputs) -> tuple[str, ...]:
    """Returns the names of the tensors in inputs: the parameters of the network's forward, and keys behind them."""
    if isinstance(inputs, dict):
        return tuple(_names("", inputs))
    args = inputs if isinstance(inputs, tuple | list) else (inputs,)
    try:
        parameters = list(inspect.signature(model.forward).bind(*args).arguments.items())
    except (TypeError, ValueError):  # built in, or called as it cannot be
        parameters = [(f"input_{at}", value) for at, value in enumerate(args)]
    return tuple(name for key, value in parameters for name in _names(key, value))


def _names(name: str, value: object) -> Iterator[str]:
    if isinstance(value, Tensor):
        yield name
    elif isinstance(value, dict | tuple | list):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, entry in entries:
            yield from _names(f"{name}_{key}".lstrip("_"), entry)


@dataclass(frozen=True)
class Entry:
    """An input of a file.

    Attributes:
        name: the input's.
        dtype: of its numbers; ``None`` where torch has no such type.
        shape: its sizes; text where the size is free.
    """

    name: str
    dtype: torch.dtype | None
    shape: tuple[int | str, ...]


def fitted(inputs: Inputs, entries: Sequence[Entry]) -> list[Tensor]:
    """Returns the tensors of inputs in the order of a file's own; those of a dict are found by name.

    Raises:
        TopiaristError: their number, names, types or shapes are not the file's.
    """
    tensors, names = tensors_in(inputs), [entry.name for entry in entries]
    if isinstance(inputs, dict):
        given = dict(zip(_names("", inputs), tensors, strict=True))
        if set(given) != set(names):
            raise TopiaristError(f"the file takes {_listed(names)}, but got {_listed(list(given))}: give these names")
        tensors = [given[name] for name in names]
    if len(tensors) != len(names):
        number = f"{len(tensors)} tensor{'' if len(tensors) == 1 else 's'}"
        raise TopiaristError(f"the file takes {_listed(names)}, but got {number}: give one tensor for each")
    for entry, tensor in zip(entries, tensors, strict=True):
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise TopiaristError(f"the file takes {entry.name} as a dense tensor with values: convert it")
        _check(entry, tensor)
    return [tensor.detach().cpu().contiguous() for tensor in tensors]


def as_array(tensor: Tensor) -> NDArray[Any]:
    """Returns the numbers of a tensor.

    Raises:
        TopiaristError: numpy has no such type, as bfloat16.
    """
    try:
        return tensor.numpy()
    except TypeError as error:
        raise TopiaristError(
            f"this runtime takes no {tensor.dtype} inputs ({one_line(error)}): convert them"
        ) from error


def _check(entry: Entry, tensor: Tensor) -> None:
    if tensor.dtype != entry.dtype:
        wanted, got = (str(dtype).removeprefix("torch.") for dtype in (entry.dtype, tensor.dtype))
        raise TopiaristError(f"the file takes {entry.name} as {wanted}, but got {got}: convert it")
    fits = len(entry.shape) == tensor.ndim and all(
        isinstance(wanted, str) or wanted == size for wanted, size in zip(entry.shape, tensor.shape, strict=True)
    )
    if not fits:
        wanted, got = (",".join(map(str, sizes)) or "()" for sizes in (entry.shape, tensor.shape))
        raise TopiaristError(
            f"the file takes {entry.name} of shape {wanted}, but got {got}: change it, or export again"
        )


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names) or "no tensors"


@contextmanager
def as_exported(model: nn.Module) -> Iterator[None]:
    """Context in which a network is as a file will hold it: in eval mode, without gradients, by plain operators."""
    with mode(model, training=False), fast_path_off(), torch.no_grad():
        yield
