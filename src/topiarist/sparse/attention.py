"""Attention between linear layers: what a kernel computes instead of torch, with the views around it."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Node

from topiarist.sparse.capture import value_of
from topiarist.sparse.layers import RESHAPES, Layer, arguments_of_operator, passed

aten = torch.ops.aten

VIEWS = RESHAPES | {
    aten.permute.default,
    aten.transpose.int,
    aten.unbind.int,
    aten.select.int,
    aten.slice.Tensor,
    aten.unsqueeze.default,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.chunk.default,
    operator.getitem,
}
"""Operators through which queries, keys and values are followed to the layer that computes them."""
RESHAPES_OF_PLANES = {aten.view.default, aten._unsafe_view.default}
"""Operators that refuse strides that `reshape` takes."""
APART = 1_000_003
"""Floats between planes where strides are followed: a prime above all numbers of tokens that are taken."""


class Heads(NamedTuple):
    """Where queries, keys or values lie among the channels of a layer's result.

    Attributes:
        source: the layer's node.
        first: channel of the first head.
        head, channel: channels from one to the next.
    """

    source: Node
    first: int
    head: int
    channel: int


@dataclass(frozen=True, eq=False)
class Attention:
    """y = softmax(scale · q kᵀ) v for each head.

    Attributes:
        node: whose value it is, (images, queries, heads · width).
        query, key, value: where they lie.
        heads, width: of the queries.
        keys: of an image.
        scale: of the products.
        inside: the operators that it stands for, but for the last.
    """

    node: Node
    query: Heads
    key: Heads
    value: Heads
    heads: int
    width: int
    keys: int
    scale: float
    inside: frozenset[Node]


def attentions(nodes: list[Node], layers: Mapping[Node, Layer]) -> dict[Node, Attention]:
    """Returns the attentions whose queries, keys and values linear layers compute, by the node of their result."""
    seen = {node: _attention(node, layers) for node in nodes if node.op == "call_function"}
    return {node: made for node, made in seen.items() if made is not None}


def _attention(node: Node, layers: Mapping[Node, Layer]) -> Attention | None:
    """Returns the attention that ends with the heads joined in a reshaping."""
    if node.target not in RESHAPES or not isinstance(value_of(node), Tensor) or value_of(node).ndim != 3:
        return None
    swapped = passed(node.args[0])
    if not isinstance(swapped, Node) or swapped.target not in (aten.transpose.int, aten.permute.default):
        return None
    product = passed(swapped.args[0])
    if not isinstance(product, Node) or product.target is not aten.scaled_dot_product_attention.default:
        return None
    given, shape = arguments_of_operator(product), value_of(product).shape
    images, heads, queries, width = shape
    plainly = given["attn_mask"] is None and not given["dropout_p"] and not given["is_causal"]
    joined = value_of(swapped).shape == (images, queries, heads, width) and _is_swap(swapped)
    if not plainly or given.get("enable_gqa") or not joined or images * queries < 2:
        return None
    inside: set[Node] = {swapped, product}
    query, key, value = (_heads(given[name], layers, inside) for name in ("query", "key", "value"))
    if query is None or key is None or value is None or value_of(node).shape != (images, queries, heads * width):
        return None
    if any(user not in inside and user is not node for inner in inside for user in _users(inner)):
        return None
    held = value_of(given["key"]).shape
    if held != (images, heads, held[2], width) or value_of(given["value"]).shape != held:
        return None
    scale = 1 / math.sqrt(width) if given["scale"] is None else float(given["scale"])
    return Attention(node, query, key, value, heads, width, held[2], scale, frozenset(inside))


def _is_swap(node: Node) -> bool:
    """Returns whether a node swaps the second and the third of four axes."""
    meta = torch.empty(2, 3, 5, 7, device="meta")
    return bool(node.target(meta, *node.args[1:], **node.kwargs).stride() == meta.transpose(1, 2).stride())


def _users(node: Node) -> list[Node]:
    """Returns what reads a node, behind operators that return what they are given."""
    return [reader for user in node.users for reader in (_users(user) if passed(user) is not user else [user])]


def _heads(node: Node, layers: Mapping[Node, Layer], inside: set[Node]) -> Heads | None:
    """Returns where a tensor of heads lies in the planes of a layer; adds the views between to what is inside."""
    chain, source = list[Node](), passed(node)
    while source not in layers:
        if not isinstance(source, Node) or source.target not in VIEWS:
            return None
        if any(isinstance(operand, Node) for operand in source.args[1:]):
            return None
        chain.append(source)
        source = passed(source.args[0])
    if not layers[source].tokens:
        return None
    shape = value_of(source).shape
    tokens = math.prod(shape[:-1])
    strides = (*(math.prod(shape[n + 1 : -1]) for n in range(len(shape) - 1)), APART)
    planes = torch.empty_strided(shape, strides, device="meta")
    view = _followed(planes, chain[::-1])
    if not isinstance(view, Tensor) or view.ndim != 4 or not _shares_memory(view, planes):
        return None
    images, _, count, _ = view.shape
    image, head, token, channel = (
        step if size > 1 else None for step, size in zip(view.stride(), view.shape, strict=True)
    )
    in_order = token in (None, 1) and image in (None, count) and images * count == tokens < APART
    if not in_order or any(n is not None and n % APART for n in (view.storage_offset(), head, channel)):
        return None
    inside.update(chain)
    return Heads(source, view.storage_offset() // APART, (head or 0) // APART, (channel or 0) // APART)


def _followed(view: Any, chain: list[Node]) -> Any:
    """Returns what a chain of views makes of a tensor."""
    for step in chain:
        target: Any = aten.reshape.default if step.target in RESHAPES_OF_PLANES else step.target
        view = target(view, *step.args[1:], **step.kwargs)
    return view


def _shares_memory(a: Tensor, b: Tensor) -> bool:
    return bool(a.untyped_storage()._cdata == b.untyped_storage()._cdata)
