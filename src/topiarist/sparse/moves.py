"""Steps that move tensors: into planes, out of them, apart into phases, together by poolings."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np
from torch.fx import Node

from topiarist.sparse.attention import Attention
from topiarist.sparse.capture import value_of
from topiarist.sparse.grids import Planes, extents
from topiarist.sparse.kernels import attend, copies, means, norms, pools
from topiarist.sparse.layers import Layer
from topiarist.sparse.layout import Layout, Place
from topiarist.sparse.team import Given, Step

VECTORS = 6
"""Of a block of positions whose norms are computed together, at most."""
LONGEST = 5
"""Vectors of a block of queries."""
Counts = tuple[int, int, int, int]
"""Channels, images, rows and columns."""


class Rows(NamedTuple):
    """Where the rows of a tensor lie.

    Attributes:
        pointer: to the first one.
        channel, image, row: floats from one to the next.
        keep: what must stay alive.
    """

    pointer: int | Given
    channel: int
    image: int
    row: int
    keep: Any = None

    @staticmethod
    def plain(given: Given, shape: tuple[int, ...]) -> Rows:
        """Returns those of a contiguous tensor."""
        row = shape[-1]
        return Rows(given, prod(shape[2:]), prod(shape[1:]), row)

    @staticmethod
    def of(planes: Planes) -> Rows:
        """Returns those of planes; a token is an image of one pixel."""
        grid = planes.grid
        return Rows(planes.address, grid.plane, 1 if planes.tokens else grid.pitch, grid.stride, planes.buffer)

    def behind(self, floats: int) -> Rows:
        """Returns what begins so many floats later."""
        if isinstance(self.pointer, Given):
            return self._replace(pointer=self.pointer._replace(offset=4 * floats))
        return self._replace(pointer=self.pointer + 4 * floats)


class Mover(NamedTuple):
    """Makes steps that move tensors.

    Attributes:
        layout: where the tensors lie.
        lanes: floats of a vector.
        threads: that share a step.
    """

    layout: Layout
    lanes: int
    threads: int

    def entering(self, place: Place) -> list[Step]:
        """Returns the steps that fill a place with a copy; none where torch must copy: it is a transposition."""
        layout, node, planes = self.layout, place.node, self.layout.planes[place]
        if node in layout.gathered and place not in layout.phases:
            return [self._gathered(node, planes)]
        result = layout.result(node)
        held = None if result is None or result.tokens else layout.planes[result]
        shape = tuple(value_of(node).shape)
        if held is None and planes.grid.single and place not in layout.phases:
            return [self._row(Given(node), planes.address, planes)]
        if place.tokens:
            return []
        source = Rows.plain(Given(node), shape) if held is None else Rows.of(held)
        if place in layout.phases:
            return self._phases(source, place)
        return [self._copied(source, Rows.of(planes), _counts(shape))]

    def leaving(self, planes: Planes, node: Node) -> list[Step]:
        """Returns the step that copies a result out, to a tensor of its own; none where torch must."""
        fresh = Given(node, shape=planes.shape)
        if planes.grid.single:
            return [self._row(planes.address, fresh, planes)]
        if planes.tokens:
            return []
        return [self._copied(Rows.of(planes), Rows.plain(fresh, planes.shape), _counts(planes.shape))]

    def pooled(self, layer: Layer) -> Step:
        """Returns a pooling with a stride."""
        node = layer.node
        read, written = self.layout.planes[self.layout.reads[node]], self.layout.planes[self.layout.computed(node)]
        y, (channels, images, rows, columns) = Rows.of(written), _counts(written.shape)
        x = Rows.of(read).behind(-layer.padding[0] * read.grid.stride - layer.padding[1])
        given = {
            "x": x.pointer, "y": y.pointer, "scale": layer.weight.flatten()[:1].contiguous().numpy(),
            "ranges": self._shares(channels), "images": images, "rows": rows, "columns": columns,
            "x_channel": x.channel, "x_image": x.image, "x_row": x.row,
            "y_channel": y.channel, "y_image": y.image, "y_row": y.row, "keep": (x.keep, y.keep),
        }  # fmt: skip
        height, width = layer.weight.shape[2:]
        kernel = pools.Pool(self.lanes, (height, width), layer.stride, layer.pooled)
        return Step(kernel, pools.POINTERS, pools.INTEGERS, given)

    def normed(self, layer: Layer) -> Step:
        """Returns a layer norm over the channels of each position."""
        node = layer.node
        read, written = self.layout.planes[self.layout.reads[node]], self.layout.planes[self.layout.computed(node)]
        blocks, vectors = written.grid.block(VECTORS)
        given = {
            "x": read.address, "y": written.address, "gamma": layer.weight.flatten().contiguous().numpy(),
            "beta": layer.bias.contiguous().numpy(),
            "numbers": np.array([1 / layer.weight.shape[0], layer.epsilon], np.float32),
            "zeros": written.inside, "ranges": self._shares(blocks), "channels": layer.weight.shape[0],
            "x_channel": read.grid.plane, "y_channel": written.grid.plane, "keep": (read.buffer, written.buffer),
        }  # fmt: skip
        return Step(norms.Norm(self.lanes, vectors), norms.POINTERS, norms.INTEGERS, given)

    def attended(self, attention: Attention) -> Step:
        """Returns attention, of queries, keys and values in planes."""
        written = self.layout.planes[self.layout.computed(attention.node)]
        images, queries, _ = written.shape
        given: dict[str, Any] = {
            "images": images, "queries": queries, "keys": attention.keys, "width": attention.width,
            "scale": np.array([attention.scale], np.float32), "ranges": self._shares(attention.heads),
            "y": written.address, "y_head": attention.width * written.grid.plane, "y_channel": written.grid.plane,
            "y_image": queries,
        }  # fmt: skip
        held = [written]
        for name, heads in zip("qkv", (attention.query, attention.key, attention.value), strict=True):
            read = self.layout.planes[self.layout.computed(heads.source)]
            plane, tokens = read.grid.plane, queries if name == "q" else attention.keys
            given |= {name: read.address + 4 * heads.first * plane, f"{name}_head": heads.head * plane}
            given |= {f"{name}_channel": heads.channel * plane, f"{name}_image": tokens}
            held.append(read)
        vectors = _even(-(-queries // self.lanes), min(planes.grid.vectors for planes in held))
        given["scratch"] = np.zeros((self.threads, attention.keys, vectors * self.lanes), np.float32)
        given["keep"] = [planes.buffer for planes in held]
        return Step(attend.Attend(self.lanes, vectors), attend.POINTERS, attend.INTEGERS, given)

    def _row(self, x: int | Given, y: int | Given, planes: Planes) -> Step:
        """Returns the copy of a tensor whose channels lie one after the other."""
        row = Rows(x, 0, 0, 0, planes.buffer), Rows(y, 0, 0, 0, planes.buffer)
        return self._copied(*row, (1, 1, 1, prod(planes.shape)))

    def _phases(self, source: Rows, place: Place) -> list[Step]:
        """Returns what takes the pixels of a tensor apart, by row and column modulo the stride."""
        written = self.layout.planes[place]
        channels, images, rows, columns = _counts(tuple(value_of(place.node).shape))
        vertical, horizontal = place.stride
        steps = []
        for number, (dy, dx) in enumerate(self.layout.phases[place]):
            taken = max(0, -(-(rows - dy) // vertical)), max(0, -(-(columns - dx) // horizontal))
            pixels = source.behind(dy * source.row + dx)._replace(row=vertical * source.row)
            there = Rows.of(written).behind(number * channels * written.grid.plane)
            steps.append(self._copied(pixels, there, (channels, images, *taken), horizontal))
        return steps

    def _gathered(self, node: Node, planes: Planes) -> Step:
        """Returns what takes one number of each plane: the mean, or the only pixel."""
        taken = self.layout.gathered[node]
        held = self.layout.planes[self.layout.computed(taken.node)]
        x, y, (channels, images, rows, columns) = Rows.of(held), Rows.of(planes), _counts(held.shape)
        if not taken.mean:
            return self._copied(x, y, (channels, images, 1, 1))
        given = {
            "x": x.pointer, "y": y.pointer, "scale": np.array([1 / (rows * columns)], np.float32),
            "ranges": self._shares(channels), "images": images, "positions": held.grid.pitch,
            "x_channel": x.channel, "x_image": x.image, "y_channel": y.channel, "y_image": y.image,
            "keep": (x.keep, y.keep),
        }  # fmt: skip
        return Step(means.Mean(self.lanes), means.POINTERS, means.INTEGERS, given)

    def _copied(self, x: Rows, y: Rows, counts: Counts, step: int = 1) -> Step:
        """Returns a copy of so many channels, images, rows and columns, of which every step-th is taken."""
        channels, images, rows, columns = counts
        given = {
            "x": x.pointer, "y": y.pointer, "ranges": self._shares(channels),
            "images": images, "rows": rows, "columns": columns,
            "x_channel": x.channel, "x_image": x.image, "x_row": x.row,
            "y_channel": y.channel, "y_image": y.image, "y_row": y.row, "keep": (x.keep, y.keep),
        }  # fmt: skip
        return Step(copies.Copy(self.lanes, step), copies.POINTERS, copies.INTEGERS, given)

    def _shares(self, channels: int) -> np.ndarray:
        """Returns the first and last channel of each thread."""
        edges = np.linspace(0, channels, self.threads + 1).astype(np.int64)
        return np.stack([edges[:-1], edges[1:]], 1)


def _even(vectors: int, most: int) -> int:
    """Returns the length of blocks that fill the vectors of all queries with the fewest to spare."""
    lengths = range(1, min(most, LONGEST) + 1)
    return min(lengths, key=lambda n: (-(-vectors // n) * n + (n < 3), -n))


def _counts(shape: tuple[int, ...]) -> Counts:
    """Returns channels, images, rows and columns of a tensor."""
    return (shape[1], shape[0], *extents(shape, tokens=False))
