"""A network and its pruned copy, run side by side: what the copy's layers read, and what their outputs lack."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from topiarist.graph import Graph, Keep, call_model
from topiarist.measure import Args, Batch, Func, FunctionMode, Inputs, Kwargs, Layer, mode, watching
from topiarist.methods._reconstruction import Locations, Sample, output_at


class Residual(NamedTuple):
    """Holds one call of a layer of the pruned network, at the sampled locations of one batch.

    Attributes:
        name: of the layer.
        layer: in the pruned network.
        x: ``(locations, inputs, entries)`` what it reads.
        residual: float64 ``(locations, outputs)``, the original network less the pruned one. Where the layer's output,
            as it is or behind a batch norm, is added to something of its shape, it is that of the sum: ``scale *
            (y - y') + shortcut - shortcut'``. Elsewhere it is that of the output, ``y - y'``.
        scale: float64 ``(outputs,)``, by how much the layer's outputs are multiplied in ``residual``: the scale of the
            batch norm, or 1.
    """

    name: str
    layer: Layer
    x: Tensor
    residual: Tensor
    scale: Tensor


def residuals(
    original: nn.Module, pruned: nn.Module, names: Sequence[str], locations: Locations, batches: Iterable[Batch]
) -> Iterator[Residual]:
    """Runs both networks over the data, in eval mode, and compares some layers.

    Args:
        original: as it was trained.
        pruned: a network of the same modules; masked, and perhaps repaired in part.
        names: of the layers.
        locations: where they are sampled.
        batches: the data.
    """
    for inputs in locations.batches(batches, original):
        before = _calls(original, names, locations, inputs)
        after = before if pruned is original else _calls(pruned, names, locations, inputs)
        for old, new in zip(before, after, strict=True):
            residual = old.output - new.output
            if old.added is not None and new.added is not None:
                residual = new.scale * residual + (old.added - new.added)
            yield Residual(new.name, new.layer, new.x, residual, new.scale)


def kept_positions(graph: Graph, keep: Keep, tensor: str, axis: int) -> Tensor:
    """Returns bool ``(positions,)``: what is kept on an axis of a tensor."""
    kept = torch.ones(graph.shapes[tensor][axis], dtype=torch.bool)
    for group in graph.groups:
        for part in group.slices:
            if (part.tensor, part.axis) == (tensor, axis):
                kept[part.positions[~keep[group.name].cpu()].flatten()] = False
    return kept


@dataclass(eq=False)
class _Call:
    """Holds one call of a layer at the sampled locations, and what is added to its output."""

    name: str
    layer: Layer
    x: Tensor
    sample: Sample
    output: Tensor
    scale: Tensor
    added: Tensor | None = None


def _calls(model: nn.Module, names: Sequence[str], locations: Locations, inputs: Inputs) -> list[_Call]:
    """Returns the calls of some layers in one forward pass, in order."""
    calls: list[_Call] = []
    sums = _Sums()

    def record(name: str, layer: Layer, x: Tensor, output: Tensor) -> None:
        sampled = locations.patches(name, layer, x)
        if sampled is not None:
            y = output_at(layer, output, sampled[1])
            calls.append(_Call(name, layer, *sampled, y, y.new_ones(y.shape[1])))
            sums.open[id(output)] = (output, calls[-1])

    layers = [(name, model.get_submodule(name)) for name in names]
    with watching(layers, record), mode(model, training=False), torch.no_grad(), sums:
        call_model(model, inputs)
    for call in calls:
        if call.added is None:
            call.scale = torch.ones_like(call.scale)
    return calls


class _Sums(FunctionMode):
    """Sees what is added to the outputs of layers, as they are or behind a batch norm.

    Attributes:
        open: by id, the tensors that still carry nothing but a layer's output, and that call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.open: dict[int, tuple[Tensor, _Call]] = {}

    def call(self, name: str, func: Func, args: Args, kwargs: Kwargs) -> Any:
        """Inspects the call and makes it."""
        if name in ("add", "iadd", "radd") and len(args) == 2 and not kwargs:
            self._add(args[0], args[1])
            self._add(args[1], args[0])
        result = func(*args, **kwargs)
        self.open.pop(id(result), None)  # written in place, it carries something else
        if name == "batch_norm" and id(args[0] if args else kwargs["input"]) in self.open:
            self._normalised(result, args, kwargs)
        return result

    def _add(self, mine: object, other: object) -> None:
        if id(mine) in self.open and isinstance(other, Tensor):
            output, call = self.open[id(mine)]
            if other.shape == output.shape:
                del self.open[id(mine)]
                call.added = output_at(call.layer, other, call.sample)

    def _normalised(self, result: Tensor, args: Args, kwargs: Kwargs) -> None:
        given = signature(torch.nn.functional.batch_norm).bind(*args, **kwargs).arguments
        if given.get("training") or given["running_var"] is None:
            return
        _, call = self.open.pop(id(given["input"]))
        scale = (given["running_var"].double() + given.get("eps", 1e-5)).rsqrt()
        call.scale = scale if given.get("weight") is None else scale * given["weight"].double()
        self.open[id(result)] = (result, call)
