"""Convolutions and linear operators as layers, with what follows folded in: batch norm, an addition, an activation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node

from topiarist.sparse.between import between
from topiarist.sparse.capture import Captured, value_of
from topiarist.sparse.grids import FLOATS
from topiarist.sparse.layers import (
    BATCH_NORMS,
    Layer,
    activation,
    arguments_of_operator,
    aten,
    batch_norm,
    pair_of,
    passed,
    with_addition,
)

CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv1d.padding, aten.conv2d.padding}
LINEAR = {aten.linear.default}


def folded(network: Captured) -> dict[Node, Layer]:
    """Returns the network's layers, by the node whose result each one is.

    What reads layers and can be written as one is a layer too: a batch norm before an activation, a pooling, an
    addition. So activations stay in the layout of kernels.
    """
    layers: dict[Node, Layer] = {}
    for node in network.graph.nodes:
        if node.op != "call_function":
            continue
        made = _layer(network, node) or _followed(network, node, layers) or between(network, node, layers)
        if made is not None:
            layers[node] = made
    return layers


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
    held = torch.zeros(len(weight), **FLOATS) if bias is None else network.constants[bias]
    name = network.names[given["weight"]].rpartition(".")[0]
    plain = Layer(name, node, source, weight, held)
    if node.target in LINEAR:
        return replace(plain, weight=weight[:, :, None, None], tokens=True)
    if weight.ndim == 3:
        plain = replace(plain, weight=weight[:, :, None])
    stride, dilation = pair_of(given["stride"], weight.ndim), pair_of(given["dilation"], weight.ndim)
    padding = given["padding"]
    if isinstance(padding, str):
        reach = [d * (k - 1) for d, k in zip(dilation, plain.weight.shape[2:], strict=True)]
        if padding == "same" and any(r % 2 for r in reach):
            return None
        padding = [r // 2 for r in reach] if padding == "same" else [0, 0]
        padding = padding[4 - weight.ndim :]
    zero = 0 if weight.ndim == 3 else None
    pad = pair_of(padding, weight.ndim, zero)
    return replace(plain, stride=stride, padding=pad, dilation=dilation, groups=given["groups"])


def _followed(network: Captured, node: Node, layers: dict[Node, Layer]) -> Layer | None:
    """Returns a layer with an operator folded in that nothing but it is read by; takes the shorter one out."""
    for at, operand in enumerate(node.args):
        before = passed(operand)
        layer = layers.get(before) if isinstance(before, Node) else None
        if layer is None or len(before.users) > 1 or _read_between(operand, before):
            continue
        made = _normalised(network, node, layer) if at == 0 else None
        made = made or with_addition(node, layer, at) or (_activated(node, layer) if at == 0 else None)
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


def _activated(node: Node, layer: Layer) -> Layer | None:
    """Folds an activation."""
    kind, plainly = activation(node), not layer.activation and not layer.pooled and layer.epsilon is None
    return replace(layer, node=node, activation=kind) if kind and plainly else None
