"""Layers: what kernels compute; and the operators of torch that they are made of."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from topiarist.sparse.capture import Captured, value_of

aten = torch.ops.aten

Pair = tuple[int, int]
BATCH_NORMS = {aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default}
ADDITIONS = {aten.add.Tensor}
RESHAPES = {
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
}
PLAIN = {getattr(aten, name).default: name for name in ("relu", "relu6", "sigmoid", "silu", "hardswish")}
SAME = {
    aten.dropout.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.alias.default,
    aten.feature_dropout.default,
}
"""Operators that return what they are given, in evaluation."""


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}
"""Those that kernels know, as torch computes them."""
SAMPLE = 1 << 16
"""Weights that are looked at for what outputs share."""


@dataclass(frozen=True, eq=False)
class Layer:
    """y = activation(weight ∗ x + bias + added).

    Attributes:
        name: of the module that holds the weight.
        node: the operator whose result it is, the last one that is folded in.
        source: what it reads.
        weight: (outputs, inputs / groups, rows, columns); of a linear layer rows and columns are 1.
        bias: (outputs,).
        stride, padding, dilation: in rows and columns.
        groups: of the convolution.
        tokens: it is linear: channels are the last axis of what it reads.
        added: a tensor that is added before the activation, or none.
        activation: its name in `ACTIVATIONS`, or none.
        pooled: not a sum but the largest: max pooling of what is never negative.
        rounds_up: the pooling has windows that end outside.
        epsilon: of a layer norm over the channels of each token, whose factors are the weight; none of other layers.
    """

    name: str
    node: Node
    source: Node
    weight: Tensor
    bias: Tensor
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    tokens: bool = False
    added: Node | None = None
    activation: str = ""
    pooled: bool = False
    rounds_up: bool = False
    epsilon: float | None = None

    @cached_property
    def density(self) -> float:
        """Returns the fraction of weights that are not zero."""
        return float(self.weight.count_nonzero()) / max(1, self.weight.numel())

    @property
    def window(self) -> bool:
        """Returns whether it takes the largest, or the mean, of windows without gaps."""
        plain = self.groups == len(self.weight) and self.weight.shape[1] == 1 and self.dilation == (1, 1)
        alike = plain and bool((self.weight == self.weight[:1, :, :1, :1]).all()) and not bool(self.bias.any())
        return alike and self.added is None and not self.activation

    def filled(self, together: int) -> float:
        """Returns the fraction of nonzeros where neighbouring outputs, so many together, share their places.

        Of a large weight some groups of outputs stand for all.
        """
        outputs = self.weight.shape[0]
        if outputs // self.groups % together:
            return 0.0
        apart = -(-self.weight.numel() // SAMPLE)
        marks = (self.weight.reshape(outputs // together, together, -1)[::apart] != 0).numpy()
        return float(marks.sum()) / max(1, together * int(np.logical_or.reduce(marks, 1).sum()))

    def dense(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """Computes the layer in torch."""
        if self.pooled:
            window = (self.weight.shape[2:], self.stride, self.padding, self.dilation, self.rounds_up)
            return F.max_pool2d(x, *window)
        if self.tokens:
            y = F.linear(x, self.weight[:, :, 0, 0], self.bias)
        elif x.ndim == 3:
            one = (self.weight[:, :, 0], self.bias, self.stride[1], self.padding[1], self.dilation[1], self.groups)
            y = F.conv1d(x, *one)
        else:
            y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        y = y if added is None else y + added
        return ACTIVATIONS[self.activation](y) if self.activation else y


def passed(node: Any) -> Any:
    """Returns what a node's value is, behind operators that return what they are given."""
    while isinstance(node, Node) and _passes(node):
        node = node.args[0]
    return node


def _passes(node: Node) -> bool:
    if node.target is operator.getitem:  # a batch norm as torch decomposes it returns three
        return node.args[1] == 0 and isinstance(node.args[0], Node) and node.args[0].target in BATCH_NORMS
    return node.target in SAME


def inside(layer: Layer) -> list[Node]:
    """Returns the operators that are folded into a layer, but for the last."""
    waiting, found = [layer.node], list[Node]()
    outside = {passed(layer.source), passed(layer.added)}
    while waiting:
        node = waiting.pop()
        if node is not layer.node:
            found.append(node)
        for operand in node.args:
            before = passed(operand)
            if isinstance(before, Node) and before.op == "call_function" and before not in outside:
                waiting.append(before)
    return found


def batch_norm(network: Captured, node: Node) -> tuple[Tensor, Tensor] | None:
    """Returns a batch norm's factor and what it adds, by channel; none where it is not a constant one."""
    given = arguments_of_operator(node)
    mean, variance = (network.constants.get(given[name]) for name in ("running_mean", "running_var"))
    if mean is None or variance is None or given.get("training"):
        return None
    one, none = torch.ones_like(mean), torch.zeros_like(mean)
    gamma = one if given["weight"] is None else network.constants.get(given["weight"])
    beta = none if given["bias"] is None else network.constants.get(given["bias"])
    if gamma is None or beta is None:
        return None
    scale = gamma / torch.sqrt(variance + given["eps"])
    return scale, beta - mean * scale


def with_addition(node: Node, layer: Layer, at: int) -> Layer | None:
    """Folds an addition of a tensor of the same shape."""
    if node.target not in ADDITIONS or layer.added is not None or layer.activation or layer.pooled:
        return None
    if layer.epsilon is not None or value_of(node.args[at]).shape != value_of(node).shape:
        return None
    if node.kwargs.get("alpha", 1) != 1:
        return None
    other = node.args[1 - at]
    if not isinstance(other, Node) or other is node.args[at] or value_of(other).shape != value_of(node).shape:
        return None
    if value_of(other).dtype != torch.float32:
        return None
    return replace(layer, node=node, added=other)


def activation(node: Node) -> str:
    """Returns the activation that a node is, as kernels know it; empty where it is another operator."""
    if node.target is aten.gelu.default:
        return {"none": "gelu", "tanh": "gelu_tanh"}.get(arguments_of_operator(node)["approximate"], "")
    if node.target in PLAIN:
        return PLAIN[node.target]
    if node.target in (aten.hardtanh.default, aten.clamp.default):
        bounds = tuple(node.args[1:3])
        return "relu6" if bounds == (0, 6) else "relu" if bounds == (0,) else ""
    return ""


def arguments_of_operator(node: Node) -> Mapping[str, Any]:
    """Returns an operator's arguments by name, defaults too."""
    schema = node.target._schema.arguments
    return {
        a.name: node.args[k] if k < len(node.args) else node.kwargs.get(a.name, a.default_value)
        for k, a in enumerate(schema)
    }


def pair_of(value: Any, dimensions: int, first: int | None = None) -> Pair:
    """Returns rows and columns of an argument; of a weight with three dimensions the rows are 1, or `first`."""
    entries = list(value) if isinstance(value, (list, tuple)) else [value]
    if dimensions == 3:
        return (1 if first is None else first, entries[-1])
    return (entries[0], entries[-1])
