"""A network and its pruned copy, run side by side: what the copy's layers read, and what their outputs miss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from topiarist.graph import Graph, Keep, call_model
from topiarist.measure import Layer, mode, watching
from topiarist.methods._readers import Drawn, Places, output_at


class Reading(NamedTuple):
    """One call of a layer of the pruned network, at the sampled places of one batch.

    Attributes:
        name: of the layer.
        layer: in the pruned network.
        x: ``(places, inputs, entries)`` what it reads.
        missing: float64 ``(places, outputs)``, what the original network has more. Where the layer's output, as it is
            or behind a batch norm, is added to something of its shape, that is told of the sum: ``scale * (y - y') +
            shortcut - shortcut'``. Elsewhere it is told of the output, ``y - y'``.
        scale: float64 ``(outputs,)``, how much of an output arrives where ``missing`` is told: that of the batch norm,
            or 1.
    """

    name: str
    layer: Layer
    x: Tensor
    missing: Tensor
    scale: Tensor


def readings(
    original: nn.Module, pruned: nn.Module, names: Sequence[str], places: Places, batches: Iterable[Any]
) -> Iterator[Reading]:
    """Runs both networks over the data, in eval mode, and compares some layers.

    Args:
        original: as it was trained.
        pruned: a network of the same modules; masked, and perhaps repaired in part.
        names: of the layers.
        places: where they are watched.
        batches: the data.
    """
    for inputs in places.batches(batches, original):
        before = _calls(original, names, places, inputs)
        after = before if pruned is original else _calls(pruned, names, places, inputs)
        for old, new in zip(before, after, strict=True):
            missing = old.output - new.output
            if old.added is not None and new.added is not None:
                missing = new.scale * missing + (old.added - new.added)
            yield Reading(new.name, new.layer, new.x, missing, new.scale)


def alive(graph: Graph, keep: Keep, tensor: str, axis: int) -> Tensor:
    """Bool ``(positions,)``: what stays on an axis of a tensor."""
    return graph.kept(keep).get((tensor, axis), torch.ones(graph.shapes[tensor][axis], dtype=torch.bool))


@dataclass(eq=False)
class _Call:
    """One call of a layer at the sampled places, and what is added to its output."""

    name: str
    layer: Layer
    x: Tensor
    drawn: Drawn
    output: Tensor
    scale: Tensor
    added: Tensor | None = None


def _calls(model: nn.Module, names: Sequence[str], places: Places, inputs: Any) -> list[_Call]:
    """The calls of some layers in one forward pass, in order."""
    found: list[_Call] = []
    sums = _Sums()

    def see(name: str, layer: Layer, x: Tensor, output: Tensor) -> None:
        read = places.patches(name, layer, x)
        if read is not None:
            y = output_at(layer, output, read[1])
            found.append(_Call(name, layer, *read, y, y.new_ones(y.shape[1])))
            sums.open[id(output)] = (output, found[-1])

    layers = [(name, model.get_submodule(name)) for name in names]
    with watching(layers, see), mode(model, training=False), torch.no_grad(), sums:
        call_model(model, inputs)
    for call in found:
        if call.added is None:
            call.scale = torch.ones_like(call.scale)
    return found


class _Sums(TorchFunctionMode):
    """Sees what is added to the outputs of layers, as they are or behind a batch norm.

    Attributes:
        open: by id, the tensors that still carry nothing but a layer's output, and that call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.open: dict[int, tuple[Tensor, _Call]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Looks at the call and makes it."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").strip("_")
        if name in ("add", "iadd", "radd") and len(args) == 2 and not kwargs:
            self._add(args[0], args[1])
            self._add(args[1], args[0])
        result = func(*args, **kwargs)
        self.open.pop(id(result), None)  # written in place, it carries something else
        if name == "batch_norm" and id(args[0] if args else kwargs["input"]) in self.open:
            self._normalised(result, *args, **kwargs)
        return result

    def _add(self, mine: Any, other: Any) -> None:
        if id(mine) in self.open and isinstance(other, Tensor) and other.shape == mine.shape:
            _, call = self.open.pop(id(mine))
            call.added = output_at(call.layer, other, call.drawn)

    def _normalised(self, result: Tensor, *args: Any, **kwargs: Any) -> None:
        given = signature(torch.nn.functional.batch_norm).bind(*args, **kwargs).arguments
        if given.get("training") or given["running_var"] is None:
            return
        _, call = self.open.pop(id(given["input"]))
        scale = (given["running_var"].double() + given.get("eps", 1e-5)).rsqrt()
        call.scale = scale if given.get("weight") is None else scale * given["weight"].double()
        self.open[id(result)] = (result, call)
