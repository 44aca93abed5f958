"""Layers: what kernels compute, with what follows folded in: batch norm, an addition, an activation."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from topiarist.sparse.capture import Captured, value_of

aten = torch.ops.aten

Pair = tuple[int, int]
CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv1d.padding, aten.conv2d.padding}
LINEAR = {aten.linear.default}
BATCH_NORMS = {aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default}
POOLINGS = {aten.max_pool2d.default, aten.avg_pool2d.default}
PADDINGS = {aten.pad.default, aten.constant_pad_nd.default}
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
NEVER_NEGATIVE = ("relu", "relu6", "sigmoid")
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


def folded(network: Captured) -> dict[Node, Layer]:
    """Returns the network's layers, by the node whose result each one is.

    What reads layers and can be written as one is a layer too: a batch norm before an activation, a pooling, an
    addition. So activations stay in the layout of kernels.
    """
    layers: dict[Node, Layer] = {}
    for node in network.graph.nodes:
        if node.op != "call_function":
            continue
        made = _layer(network, node) or _followed(network, node, layers) or _between(network, node, layers)
        if made is not None:
            layers[node] = made
    return layers


def _between(network: Captured, node: Node, layers: Mapping[Node, Layer]) -> Layer | None:
    """Returns an operator between layers as a layer with a weight for each channel alone."""
    source = passed(node.args[0]) if node.args else None
    if not isinstance(source, Node) or not isinstance(value_of(source), Tensor):
        return None
    if node.target is aten.layer_norm.default:
        return _layer_norm(network, node, source, layers)
    if not _read_from_layers(source, layers):
        return None
    shape = value_of(source).shape
    if len(shape) != 4:
        return None
    ones, zeros = torch.ones(shape[1], 1, 1, 1), torch.zeros(shape[1])
    plain = Layer("", node, source, ones, zeros, groups=shape[1])
    if node.target in BATCH_NORMS and (affine := batch_norm(network, node)) is not None:
        return replace(plain, weight=affine[0][:, None, None, None], bias=affine[1])
    if node.target in POOLINGS:
        return _pooling(node, plain, layers)
    if node.target in PADDINGS:
        return _padded(node, plain)
    if node.target is aten.slice.Tensor:
        return _every(node, plain)
    if node.target in ADDITIONS:
        return _added(node, plain, 0)
    return replace(plain, activation=kind) if (kind := activation(node)) else None


def _layer_norm(network: Captured, node: Node, source: Node, layers: Mapping[Node, Layer]) -> Layer | None:
    """Returns the layer norm of what a linear layer computes, over its channels."""
    given, shape = arguments_of_operator(node), value_of(source).shape
    if (
        source not in layers
        or not layers[source].tokens
        or len(given["normalized_shape"]) != 1
        or shape[:-1].numel() < 2
    ):
        return None
    plain = torch.ones(shape[-1]), torch.zeros(shape[-1])
    gamma, beta = (
        default if given[name] is None else network.constants.get(given[name])
        for name, default in zip(("weight", "bias"), plain, strict=True)
    )
    if gamma is None or beta is None:
        return None
    weight = gamma[:, None, None, None]
    return Layer("", node, source, weight, beta, groups=shape[-1], tokens=True, epsilon=given["eps"])


def _read_from_layers(node: Node, layers: Mapping[Node, Layer]) -> bool:
    """Returns whether a tensor has the layout of kernels."""
    if node.target is aten.cat.default:
        return is_joined(node, layers)
    return node in layers and not layers[node].tokens


def is_joined(node: Node, layers: Mapping[Node, Layer]) -> bool:
    """Returns whether a node joins the channels of tensors that have the layout of kernels."""
    if (
        node.target is not aten.cat.default
        or arguments_of_operator(node)["dim"] not in (1, -3)
        or value_of(node).ndim != 4
    ):
        return False
    return all(_read_from_layers(passed(part), layers) for part in node.args[0])


def _pooling(node: Node, plain: Layer, layers: Mapping[Node, Layer]) -> Layer | None:
    """Returns a pooling: the mean of a window, or the largest where nothing is negative: the zeros around are least."""
    given = arguments_of_operator(node)
    kernel = _pair(given["kernel_size"], 4)
    stride = _pair(given["stride"] or given["kernel_size"], 4)
    padding = _pair(given["padding"], 4)
    made = replace(plain, stride=stride, padding=padding, weight=plain.weight.expand(-1, 1, *kernel))
    if node.target is aten.max_pool2d.default:
        dilation = _pair(given["dilation"], 4)
        made = replace(made, dilation=dilation, pooled=True, rounds_up=given["ceil_mode"])
        return made if _never_negative(plain.source, layers) else None
    sizes = zip(value_of(plain.source).shape[2:], value_of(node).shape[2:], kernel, stride, padding, strict=True)
    whole = all((n - 1) * s + k <= size + 2 * p for size, n, k, s, p in sizes)  # no window ends outside
    if not whole or given["divisor_override"] or (padding != (0, 0) and not given["count_include_pad"]):
        return None
    return replace(made, weight=made.weight / (kernel[0] * kernel[1]))


def _every(node: Node, plain: Layer) -> Layer | None:
    """Returns every second row or column, or every s-th, as a pooling of one pixel."""
    given, shape = arguments_of_operator(node), value_of(plain.source).shape
    axis, last = given["dim"] % 4, given["end"]
    if axis < 2 or given["start"] not in (None, 0) or (last is not None and last < shape[axis]) or given["step"] == 1:
        return None
    return replace(plain, stride=(given["step"], 1) if axis == 2 else (1, given["step"]))


def _padded(node: Node, plain: Layer) -> Layer | None:
    """Returns channels of zeros before and behind others, as a layer: each output is an input, or nothing."""
    given = arguments_of_operator(node)
    around, channels = list(given["pad"]), len(plain.weight)
    plainly = given.get("mode", "constant") == "constant" and not given["value"]
    if not plainly or len(around) != 6 or any(around[:4]) or min(around[4:]) < 0:
        return None
    weight = F.pad(torch.eye(channels), (0, 0, *around[4:]))[:, :, None, None]
    return replace(plain, weight=weight, bias=torch.zeros(len(weight)), groups=1)


def _never_negative(node: Node, layers: Mapping[Node, Layer]) -> bool:
    """Returns whether a tensor has no negative numbers, by what computed it."""
    if node.target is aten.cat.default:
        return all(_never_negative(passed(part), layers) for part in node.args[0])
    layer = layers.get(node)
    return layer is not None and (
        layer.activation in NEVER_NEGATIVE or (layer.pooled and _never_negative(layer.source, layers))
    )


class Gathered(NamedTuple):
    """One number of each plane of a tensor.

    Attributes:
        node: the tensor.
        mean: it is the mean of the plane; else the plane has one pixel.
    """

    node: Node
    mean: bool


def gathered(node: Node) -> Gathered | None:
    """Returns what a node takes one number of each plane of, channel after channel and image after image."""
    inner = node
    while inner.op == "call_function" and inner.target in RESHAPES:
        inner = passed(inner.args[0])
    mean = _is_mean(inner)
    planes = passed(inner.args[0]) if mean else inner
    if planes is node or not all(isinstance(value_of(n), Tensor) for n in (planes, node)):
        return None
    shape, numbers = value_of(planes).shape, value_of(node).shape
    if len(shape) != 4 or numbers not in (shape[:2], (*shape[:2], 1, 1)) or not (mean or shape[2:] == (1, 1)):
        return None
    return Gathered(planes, mean)


def _is_mean(node: Node) -> bool:
    """Returns whether a node is the mean over the last two of four axes."""
    if node.target is aten.adaptive_avg_pool2d.default:
        return list(arguments_of_operator(node)["output_size"]) == [1, 1]
    if node.target is not aten.mean.dim or arguments_of_operator(node)["dtype"] is not None:
        return False
    return sorted(axis % 4 for axis in arguments_of_operator(node)["dim"] or ()) == [2, 3]


def passed(node: Any) -> Any:
    """Returns what a node's value is, behind operators that return what they are given."""
    while isinstance(node, Node) and _passes(node):
        node = node.args[0]
    return node


def _passes(node: Node) -> bool:
    if node.target is operator.getitem:  # a batch norm as torch decomposes it returns three
        return node.args[1] == 0 and isinstance(node.args[0], Node) and node.args[0].target in BATCH_NORMS
    return node.target in SAME


def _layer(network: Captured, node: Node) -> Layer | None:
    """Returns the layer that a convolution or linear operator is."""
    if node.target not in CONVOLUTIONS | LINEAR:
        return None
    given = arguments_of_operator(node)
    weight, bias = network.constants.get(given["weight"]), given["bias"]
    source, value = given["input"], value_of(node)
    if weight is None or (bias is not None and bias not in network.constants) or not isinstance(source, Node):
        return None
    if value.dtype != torch.float32 or weight.dtype != torch.float32 or not value.numel():
        return None
    if value.ndim < 2 if node.target in LINEAR else value.ndim != weight.ndim:  # one example, without a batch
        return None
    held = torch.zeros(len(weight)) if bias is None else network.constants[bias]
    name = network.names[given["weight"]].rpartition(".")[0]
    plain = Layer(name, node, source, weight, held)
    if node.target in LINEAR:
        return replace(plain, weight=weight[:, :, None, None], tokens=True)
    if weight.ndim == 3:
        plain = replace(plain, weight=weight[:, :, None])
    stride, dilation = _pair(given["stride"], weight.ndim), _pair(given["dilation"], weight.ndim)
    padding = given["padding"]
    if isinstance(padding, str):
        reach = [d * (k - 1) for d, k in zip(dilation, plain.weight.shape[2:], strict=True)]
        if padding == "same" and any(r % 2 for r in reach):
            return None
        padding = [r // 2 for r in reach] if padding == "same" else [0, 0]
        padding = padding[4 - weight.ndim :]
    zero = 0 if weight.ndim == 3 else None
    pad = _pair(padding, weight.ndim, zero)
    return replace(plain, stride=stride, padding=pad, dilation=dilation, groups=given["groups"])


def _followed(network: Captured, node: Node, layers: dict[Node, Layer]) -> Layer | None:
    """Returns a layer with an operator folded in that nothing but it is read by; takes the shorter one out."""
    for at, operand in enumerate(node.args):
        before = passed(operand)
        layer = layers.get(before) if isinstance(before, Node) else None
        if layer is None or len(before.users) > 1 or _read_between(operand, before):
            continue
        made = _normalised(network, node, layer) if at == 0 else None
        made = made or _added(node, layer, at) or (_activated(node, layer) if at == 0 else None)
        if made is not None:
            del layers[before]
            return made
    return None


def _read_between(operand: Any, before: Node) -> bool:
    """Returns whether something else reads what lies between an operand and what it passes on."""
    while operand is not before:
        if len(operand.users) > 1:
            return True
        operand = operand.args[0]
    return False


def _normalised(network: Captured, node: Node, layer: Layer) -> Layer | None:
    """Folds a batch norm: weight · γ / √(σ² + ε), and (bias − μ) · γ / √(σ² + ε) + β."""
    if node.target not in BATCH_NORMS or layer.added is not None or layer.activation or layer.tokens or layer.pooled:
        return None
    affine = batch_norm(network, node)
    if affine is None:
        return None
    scale, shift = affine
    return replace(layer, node=node, weight=layer.weight * scale[:, None, None, None], bias=layer.bias * scale + shift)


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


def _added(node: Node, layer: Layer, at: int) -> Layer | None:
    """Folds an addition of a tensor of the same shape."""
    if node.target not in ADDITIONS or layer.added is not None or layer.activation or layer.pooled:
        return None
    if node.kwargs.get("alpha", 1) != 1:
        return None
    other = node.args[1 - at]
    if not isinstance(other, Node) or other is node.args[at] or value_of(other).shape != value_of(node).shape:
        return None
    if value_of(other).dtype != torch.float32:
        return None
    return replace(layer, node=node, added=other)


def _activated(node: Node, layer: Layer) -> Layer | None:
    """Folds an activation."""
    kind = activation(node)
    return replace(layer, node=node, activation=kind) if kind and not layer.activation and not layer.pooled else None


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


def _pair(value: Any, dimensions: int, first: int | None = None) -> Pair:
    """Returns rows and columns of an argument; of a weight with three dimensions the rows are 1, or `first`."""
    entries = list(value) if isinstance(value, (list, tuple)) else [value]
    if dimensions == 3:
        return (1 if first is None else first, entries[-1])
    return (entries[0], entries[-1])


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
