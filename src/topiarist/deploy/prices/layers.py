"""The layers of a network as a runtime sees them, each one able to be built alone at any width."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from topiarist.budget import Axis, axis_of, places_of
from topiarist.graph import Contraction, Graph, Inputs, call_model, labelled, random_state_kept, tensors_in
from topiarist.measure import mode

_CONVOLUTIONS = {
    (1, False): nn.Conv1d,
    (2, False): nn.Conv2d,
    (3, False): nn.Conv3d,
    (1, True): nn.ConvTranspose1d,
    (2, True): nn.ConvTranspose2d,
    (3, True): nn.ConvTranspose3d,
}


@dataclass(frozen=True)
class Convolution:
    """A convolution without its widths; one whose channels each have a filter of their own has no width of inputs."""

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    depthwise: bool
    transposed: bool
    batch: int

    def build(self, reads: int, makes: int) -> tuple[nn.Module, Tensor]:
        """Returns the layer at these widths, and an input for it; widths of inputs are those of one group."""
        groups = makes if self.depthwise else min(self.groups, makes)
        reads = makes if self.depthwise else reads * groups
        kind = _CONVOLUTIONS[len(self.size), self.transposed]
        layer = kind(
            reads,
            makes - makes % groups,
            self.kernel,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=groups,
        )
        return layer, torch.randn(self.batch, reads, *self.size)


@dataclass(frozen=True)
class Linear:
    """A linear layer without its widths."""

    rows: int
    batch: int

    def build(self, reads: int, makes: int) -> tuple[nn.Module, Tensor]:
        """Returns the layer at these widths, and an input for it."""
        tokens = self.rows // self.batch
        shape = (self.batch, reads) if tokens <= 1 else (self.batch, tokens, reads)
        return nn.Linear(reads, makes), torch.randn(shape)


@dataclass(frozen=True)
class Attention:
    """Products of attention without their widths: of heads, and of how many there are."""

    queries: int
    keys: int
    batch: int

    def build(self, reads: int, makes: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
        """Returns attention over ``makes`` heads of width ``reads``, and inputs for it."""
        lengths = (self.queries, self.keys, self.keys)
        return _Products(), tuple(torch.randn(self.batch, makes, n, reads) for n in lengths)


class _Products(nn.Module):
    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)


@dataclass(frozen=True)
class Call:
    """One activation of one number: what a run costs before anything is computed."""

    def build(self, reads: int, makes: int) -> tuple[nn.Module, Tensor]:
        """Returns the activation and its input, whatever the widths."""
        return nn.ReLU(), torch.zeros(1, 1)


Shape = Convolution | Linear | Attention | Call


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer of a network: its shape but for its widths, and the axes that decide these.

    Attributes:
        name: of its module.
        shape: builds it alone.
        inputs: the axis that it reads: of one group of a convolution; of attention the width of a head.
        outputs: the axis that it produces; of attention the heads.
        positions: outputs that one channel holds, times the batch.
        macs: multiply-accumulates of the whole layer in one run.
    """

    name: str
    shape: Shape
    inputs: Axis
    outputs: Axis
    positions: float
    macs: float


def layers_of(model: nn.Module, graph: Graph, inputs: Inputs) -> list[Layer]:
    """Returns the layers whose cost is measured alone: convolutions, linear layers, attention.

    Args:
        model: the network.
        graph: traced from it.
        inputs: of the batch that is run.
    """
    record, seen = graph.solution.record, _inputs_of_convolutions(model, inputs)
    batch = next((t.shape[0] for t in tensors_in(inputs) if t.ndim), 1)
    reader = _Reader(graph, places_of(graph), {(s.tensor, s.axis): s.labels for s in record.sources}, batch)
    layers: list[Layer] = []
    products: list[Contraction] = []
    for product in record.contractions:
        if product.weight is None:
            products.append(product)
            continue
        owner = model.get_submodule(product.weight.rpartition(".")[0])
        if isinstance(owner, nn.modules.conv._ConvNd):
            sizes = seen[product.module]
            layers += [reader.convolution(product, owner, sizes.pop(0))] if sizes else []
        elif len(graph.shapes[product.weight]) == 2:
            layers.append(reader.linear(product))
    return [*layers, *reader.attention(products)]


@dataclass(frozen=True, eq=False)
class _Reader:
    """Reads layers out of what a trace noted."""

    graph: Graph
    places: Mapping[str, NDArray[np.bool_]]
    labels: Mapping[tuple[str, int], NDArray[np.int64]]
    batch: int

    def convolution(self, product: Contraction, owner: nn.modules.conv._ConvNd, size: tuple[int, ...]) -> Layer:
        """Returns a convolution."""
        weight, transposed = str(product.weight), owner.transposed
        per_group = self.graph.shapes[weight][1] == 1 and owner.groups > 1
        makes, reads = (1, 0) if transposed else (0, 1)
        depthwise = per_group and owner.groups == owner.in_channels == owner.out_channels
        shape = Convolution(
            size,
            owner.kernel_size,
            owner.stride,
            owner.padding,
            owner.dilation,
            owner.groups,
            depthwise,
            transposed,
            self.batch,
        )
        outputs = self.axis(weight, 0 if depthwise else makes)
        inputs = Axis(((1, ()),)) if depthwise else self.axis(weight, reads)
        return Layer(
            product.module, shape, inputs, outputs, _length(product.factors[1]) * self.batch, self.macs(product)
        )

    def linear(self, product: Contraction) -> Layer:
        """Returns a linear layer; all factors of the product but its two axes are rows."""
        weight = str(product.weight)
        makes, reads = self.graph.shapes[weight]
        traced = self.graph.solution.record.batch
        rows = prod(map(_length, product.factors)) // max(1, makes * reads) * self.batch // traced
        inputs, outputs = self.axis(weight, 1), self.axis(weight, 0)
        shape = Linear(rows, self.batch)
        return Layer(product.module, shape, inputs, outputs, float(max(rows, 1)), self.macs(product))

    def attention(self, products: Sequence[Contraction]) -> Iterator[Layer]:
        """Yields attention, which a trace notes as two products that follow each other in one module."""
        for first, second in zip(products[::2], products[1::2], strict=False):
            if first.module != second.module or len(first.factors) != 5:
                continue
            queries, keys, _, heads, width = first.factors
            shape = Attention(_length(queries), _length(keys), self.batch)
            inputs, outputs = (axis_of(self.graph, _plain(factor), self.places) for factor in (width, heads))
            yield Layer(first.module, shape, inputs, outputs, 0.0, self.macs(first) + self.macs(second))

    def macs(self, product: Contraction) -> float:
        """Returns the multiply-accumulates of a product, of the batch that is run."""
        return prod(map(_length, product.factors)) * self.batch / self.graph.solution.record.batch

    def axis(self, weight: str, axis: int) -> Axis:
        """Returns an axis of a weight."""
        labels = self.labels.get((weight, axis))
        return axis_of(self.graph, self.graph.shapes[weight][axis] if labels is None else labels, self.places)


def _length(factor: int | NDArray[np.int64]) -> int:
    return factor if isinstance(factor, int) else len(factor)


def _plain(factor: int | NDArray[np.int64]) -> int | NDArray[np.int64]:
    return factor if labelled(factor) else _length(factor)  # type: ignore[arg-type]


def _inputs_of_convolutions(model: nn.Module, inputs: Inputs) -> dict[str, list[tuple[int, ...]]]:
    """Returns the sizes of the maps that each convolution reads, call by call."""
    seen: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    handles = [
        module.register_forward_pre_hook(
            lambda _, args, kwargs, name=name: seen[name].append(tuple((args or (kwargs["input"],))[0].shape[2:])),
            with_kwargs=True,
        )
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.conv._ConvNd)
    ]
    try:
        with mode(model, training=False), torch.no_grad(), random_state_kept():
            call_model(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen
