"""What lies between layers and can be written as one, so that activations stay in the layout of kernels.

Batch norms, poolings, layer norms, channels of zeros, every second pixel; joined channels, and the means of planes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from topiarist.sparse.capture import Captured, value_of
from topiarist.sparse.grids import FLOATS
from topiarist.sparse.layers import (
    ADDITIONS,
    BATCH_NORMS,
    RESHAPES,
    Layer,
    activation,
    arguments_of_operator,
    aten,
    batch_norm,
    pair_of,
    passed,
    with_addition,
)

POOLINGS = {aten.max_pool2d.default, aten.avg_pool2d.default}
PADDINGS = {aten.pad.default, aten.constant_pad_nd.default}
NEVER_NEGATIVE = ("relu", "relu6", "sigmoid")


def between(network: Captured, node: Node, layers: Mapping[Node, Layer]) -> Layer | None:
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
    ones, zeros = torch.ones(shape[1], 1, 1, 1, **FLOATS), torch.zeros(shape[1], **FLOATS)
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
        return with_addition(node, plain, 0)
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
    plain = torch.ones(shape[-1], **FLOATS), torch.zeros(shape[-1], **FLOATS)
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
    kernel = pair_of(given["kernel_size"], 4)
    stride = pair_of(given["stride"] or given["kernel_size"], 4)
    padding = pair_of(given["padding"], 4)
    made = replace(plain, stride=stride, padding=padding, weight=plain.weight.expand(-1, 1, *kernel))
    if node.target is aten.max_pool2d.default:
        dilation = pair_of(given["dilation"], 4)
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
    weight = F.pad(torch.eye(channels, **FLOATS), (0, 0, *around[4:]))[:, :, None, None]
    return replace(plain, weight=weight, bias=torch.zeros(len(weight), **FLOATS), groups=1)


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
