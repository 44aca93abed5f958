"""Which tensors share a grid, and where each one lies.

What a kernel reads and writes at the same position has one grid: the input and output of a convolution without stride,
what is added, what is joined. A convolution with a stride reads phases of its input, which lie in the output's grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from scipy.cluster.hierarchy import DisjointSet
from torch import Tensor
from torch.fx import Node

from topiarist.sparse.attention import Attention, attentions
from topiarist.sparse.between import Gathered, gathered, is_joined
from topiarist.sparse.capture import may_view, value_of
from topiarist.sparse.grids import Grid, Planes, extents
from topiarist.sparse.kernels.pools import STRIDES
from topiarist.sparse.layers import Layer, Pair, inside, passed
from topiarist.sparse.taps import Phase, Taps


class Place(NamedTuple):
    """A tensor in planes: the result of a layer, or a copy of another tensor, or every stride-th pixel of one.

    Attributes:
        node: the tensor.
        tokens: channels are its last axis.
        stride: of a layer that reads it; (1, 1) for all pixels.
        copied: it is no result of a kernel, but a copy.
    """

    node: Node
    tokens: bool
    stride: Pair = (1, 1)
    copied: bool = False


@dataclass(eq=False)
class Layout:
    """Where all tensors of a network's layers lie.

    Attributes:
        layers: by the node whose result each one is.
        taps: of each layer.
        reads: the place that each layer reads.
        adds: the place that each layer adds, where it adds one.
        attentions: by the node of their result.
        joins: nodes that join channels.
        planes: by place.
        phases: what is read of a place with a stride.
        pools: poolings with a stride, which read the planes of a result as they are.
        copies: what is copied to where it is joined, with the first channel.
        gathered: tensors with one number of each plane of a result: where layers read them, kernels fill their places.
        split: layers that are computed phase by phase, with the stride of what reads them: each pixel by itself, so
            that the few channels that it reads are taken apart instead of the many that it makes.
    """

    layers: Mapping[Node, Layer]
    taps: Mapping[Node, Taps]
    reads: dict[Node, Place] = field(default_factory=dict)
    adds: dict[Node, Place] = field(default_factory=dict)
    attentions: Mapping[Node, Attention] = field(default_factory=dict)
    joins: dict[Node, list[Node]] = field(default_factory=dict)
    planes: dict[Place, Planes] = field(default_factory=dict)
    phases: dict[Place, list[Phase]] = field(default_factory=dict)
    pools: set[Node] = field(default_factory=set)
    copies: dict[Node, list[tuple[Node, int]]] = field(default_factory=dict)
    gathered: dict[Node, Gathered] = field(default_factory=dict)
    split: dict[Node, Pair] = field(default_factory=dict)

    def result(self, node: Node) -> Place | None:
        """Returns the place of a node's value, where a kernel computes it."""
        if node in self.joins:
            return Place(node, False)
        if node in self.attentions:
            return Place(node, True)
        if node not in self.layers:
            return None
        return Place(node, self.layers[node].tokens, self.split.get(node, (1, 1)))

    def computed(self, node: Node) -> Place:
        """Returns the place of a layer's result."""
        place = self.result(node)
        assert place is not None
        return place


def laid_out(layers: Mapping[Node, Layer], nodes: Sequence[Node], lanes: int, most: int) -> Layout:
    """Returns where the tensors of layers lie.

    Args:
        layers: of the network.
        nodes: of the network, in order.
        lanes: floats of a vector.
        most: vectors of the longest block.
    """
    layout = Layout(layers, {node: Taps.of(layer) for node, layer in layers.items()})
    layout.attentions = attentions(list(nodes), layers)
    layout.joins = {n: [passed(p) for p in n.args[0]] for n in nodes if is_joined(n, layers)}
    layout.split = _split(layers, nodes)
    layout.gathered = {node: taken for node in nodes if (taken := _gathered(layout, node)) is not None}
    shared: DisjointSet = DisjointSet()
    layout.pools = {node for node, layer in layers.items() if _is_pool(layout, layer)}
    for node, layer in layers.items():
        result = layout.computed(node)
        layout.reads[node] = _read(layout, node, layer)
        if node in layout.pools:
            shared.add(layout.reads[node])
            shared.add(result)
            continue
        if layer.added is not None:
            layout.adds[node] = _whole(layout, passed(layer.added), layer.tokens)
        for place in (layout.reads[node], layout.adds.get(node, result)):
            shared.add(place)
            shared.add(result)
            shared.merge(place, result)
        if layer.stride != (1, 1):
            known = layout.phases.setdefault(layout.reads[node], [])
            known += [phase for phase in layout.taps[node].phases if phase not in known]
    for node in layout.split:
        known = layout.phases.setdefault(layout.reads[node], [])
        known += [phase for phase in layout.phases[layout.computed(node)] if phase not in known]
    for node in layout.attentions:
        shared.add(layout.computed(node))
    for node, parts in layout.joins.items():
        for part in parts:
            for place in (Place(node, False), Place(part, False)):
                shared.add(place)
            shared.merge(Place(node, False), Place(part, False))
    grids = {
        place: grid for places in shared.subsets() for grid in [_grid(layout, places, lanes, most)] for place in places
    }
    slots = _joined(layout)
    buffers = _buffers(layout, grids, slots, _spans(layout, grids, nodes))
    for place, grid in grids.items():
        shape = _shape(layout, place)
        whole, first = slots.get(place, (place, 0))
        layout.planes[place] = Planes(grid, buffers[whole], first, _channels(shape, place), shape, place.tokens)
    return layout


def _split(layers: Mapping[Node, Layer], nodes: Sequence[Node]) -> dict[Node, Pair]:
    """Returns the layers that compute each pixel by itself and are read by layers of one stride alone, with it."""
    readers: dict[Node, set[Layer | None]] = {node: set() for node in layers}
    inner = {n: layer for layer in layers.values() for n in (*inside(layer), layer.node)}
    for node in nodes:
        layer = inner.get(node)
        for operand in map(passed, node.all_input_nodes):
            if operand in readers and inner.get(operand) is not layer and passed(node) is node:
                source = layer is not None and passed(layer.source) is operand and passed(layer.added) is not operand
                readers[operand].add(layer if source else None)
    split = {}
    for node, layer in layers.items():
        strides = {(1, 1) if reader is None else reader.stride for reader in readers[node]}
        alone = not layer.tokens and layer.weight.shape[2:] == (1, 1) and layer.stride == (1, 1)
        if alone and layer.padding == (0, 0) and layer.added is None and len(strides) == 1 and (1, 1) not in strides:
            split[node] = strides.pop()
    return split


def _gathered(layout: Layout, node: Node) -> Gathered | None:
    """Returns what a node takes of the planes of a kernel's result, one number of each."""
    taken = None if layout.result(node) is not None else gathered(node)
    result = None if taken is None else layout.result(taken.node)
    return None if result is None or result.tokens or result.node in layout.split else taken


def _is_pool(layout: Layout, layer: Layer) -> bool:
    """Returns whether a layer is a pooling with a stride, of what a kernel computed."""
    source = passed(layer.source)
    result = layout.result(source)
    if result is None or result.tokens or source in layout.split or layer.stride == (1, 1):
        return False
    return layer.stride[1] in STRIDES and layer.window and len(value_of(source).shape) == 4


def _read(layout: Layout, node: Node, layer: Layer) -> Place:
    """Returns the place that a layer reads."""
    source = passed(layer.source)
    if node in layout.pools:
        return layout.computed(source)
    if source in layout.split:
        return layout.computed(source)
    if node in layout.split:
        return Place(source, False, layout.split[node], copied=True)
    if layer.stride == (1, 1):
        return _whole(layout, source, layer.tokens)
    return Place(source, False, layer.stride, copied=True)


def _whole(layout: Layout, node: Node, tokens: bool) -> Place:
    """Returns the place of all of a tensor: where a kernel writes it, or a copy."""
    result = layout.result(node)
    return result if result is not None and result.tokens == tokens else Place(node, tokens, copied=True)


def _size(place: Place) -> Pair:
    """Returns rows and columns of a place, of every stride-th pixel."""
    rows, columns = extents(value_of(place.node).shape, place.tokens)
    return -(-rows // place.stride[0]), -(-columns // place.stride[1])


def _grid(layout: Layout, places: set[Place], lanes: int, most: int) -> Grid:
    """Returns a grid with room for all tensors, and with the zeros that any layer reads around them."""
    rows, columns = (max(sizes) for sizes in zip(*map(_size, places), strict=True))
    above = beside = 0
    for place in places:
        if not place.copied and place.node in layout.layers and place.node not in layout.pools:
            up, down, left, right = layout.taps[place.node].reach
            height, width = _size(place)
            above = max(above, -up, height - 1 + down - (rows - 1))
            beside = max(beside, -left, width - 1 + right - (columns - 1))
    for node in layout.pools:
        if layout.reads[node] in places:
            below, right = _overhang(layout.layers[node], (rows, columns))
            above, beside = max(above, below), max(beside, right)
    one = [layout.layers[place.node] for place in places if place.node in layout.layers]
    several = [n for n in one if n.pooled or n.epsilon is not None or n.node in layout.split or n.node in layout.pools]
    several += [n for n in layout.attentions if Place(n, True) in places]
    if several:  # these have no kernel for one position
        beside = max(beside, 1)
    place = next(iter(places))
    images = 1 if place.tokens else int(value_of(place.node).shape[0])
    return Grid(images, rows, columns, above, beside, lanes, most)


def _overhang(layer: Layer, size: Pair) -> Pair:
    """Returns the rows and columns around an image of such a size that the windows of a pooling read."""
    outputs = extents(value_of(layer.node).shape, tokens=False)
    around = zip(size, outputs, layer.weight.shape[2:], layer.stride, layer.padding, strict=True)
    return tuple(max(p, (n - 1) * s + k - p - extent) for extent, n, k, s, p in around)  # type: ignore[return-value]


def _shape(layout: Layout, place: Place) -> tuple[int, ...]:
    """Returns the shape of a place, all its phases as channels."""
    shape = tuple(value_of(place.node).shape)
    if place not in layout.phases:
        return shape
    return (shape[0], shape[1] * len(layout.phases[place]), *_size(place)[4 - len(shape) :])


def _channels(shape: tuple[int, ...], place: Place) -> int:
    return shape[-1] if place.tokens else shape[1]


def _joined(layout: Layout) -> dict[Place, tuple[Place, int]]:
    """Returns for tensors that are joined in whose planes they are written, and from which channel on.

    A tensor that is joined a second time, or is itself joined of others, is copied there.
    """
    slots: dict[Place, tuple[Place, int]] = {}
    for node, parts in layout.joins.items():
        first = 0
        for part in parts:
            place = Place(part, False)
            if place in slots or part in layout.joins:
                layout.copies.setdefault(node, []).append((part, first))
            else:
                slots[place] = (Place(node, False), first)
            first += value_of(part).shape[1]
    return slots


Span = tuple[int, int]
"""When a place is first written and last read, as indices of nodes."""


def _spans(layout: Layout, places: Iterable[Place], nodes: Sequence[Node]) -> dict[Place, Span]:
    """Returns when each place is in use; one that torch may look into by a view is in use to the end."""
    index = {node: at for at, node in enumerate(nodes)}
    runs = {inner: index[node] for node, layer in layout.layers.items() for inner in inside(layer)}
    runs |= {inner: index[node] for node, attention in layout.attentions.items() for inner in attention.inside}
    reads: dict[Node, int] = {}
    for node in reversed(nodes):
        native = node in runs or layout.result(node) is not None
        if node in layout.gathered:  # wherever it is read: its planes are read only there
            end = max(index[node], reads.get(node, 0), runs.get(node, 0))
        else:
            end = len(nodes) if node.op == "output" or (not native and may_view(node)) else runs.get(node, index[node])
        for operand in node.all_input_nodes:
            before = passed(operand)
            reads[before] = max(reads.get(before, 0), end)
    for node, parts in layout.joins.items():  # what is joined is read where the whole is
        for part in parts:
            reads[part] = max(reads.get(part, 0), reads.get(node, 0))
    spans = {}
    for place in places:
        readers = [index[n] for n in layout.layers if place in (layout.reads[n], layout.adds.get(n))]
        if place.copied:
            spans[place] = (min(readers), max(readers))
        else:
            spans[place] = (index[place.node], max([reads.get(place.node, 0), index[place.node], *readers]))
    return spans


def _buffers(
    layout: Layout,
    grids: Mapping[Place, Grid],
    slots: Mapping[Place, tuple[Place, int]],
    spans: Mapping[Place, Span],
) -> dict[Place, Tensor]:
    """Returns a buffer for each place that has one of its own; what is read no more leaves its buffer to the next.

    Only places of one grid and shape share, so that the zeros around stay zeros.
    """
    whole: dict[Place, Span] = {}
    for place, (first, last) in spans.items():
        owner = slots.get(place, (place, 0))[0]
        begin, end = whole.get(owner, (first, last))
        whole[owner] = (min(begin, first), max(end, last))
    free: dict[Any, list[tuple[int, Tensor]]] = {}
    buffers: dict[Place, Tensor] = {}
    for place, (first, last) in sorted(whole.items(), key=lambda item: item[1]):
        shape, grid = _shape(layout, place), grids[place]
        kind: tuple[Any, ...] = (grid, shape, place.tokens, place.stride, tuple(layout.phases.get(place, ())))
        kind += extents(value_of(place.node).shape, place.tokens)
        waiting = free.setdefault(kind, [])
        ready = [at for at, (end, _) in enumerate(waiting) if end < first]
        buffer = waiting.pop(ready[-1])[1] if ready else grid.buffer(_channels(shape, place))
        waiting.append((last, buffer))
        buffers[place] = buffer
    return buffers
