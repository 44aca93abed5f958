"""The nonzeros of a layer, as its kernel reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from topiarist.sparse.kernels.matvec import SUMS
from topiarist.sparse.layers import Layer

Phase = tuple[int, int]
"""Row and column of a pixel, modulo the stride."""


class Packed(NamedTuple):
    """Weights for the product with a vector, as `kernels.matvec` reads them."""

    values: np.ndarray
    places: np.ndarray
    starts: np.ndarray
    vectors: int
    bits: bool
    wide: bool
    halves: bool


@dataclass(frozen=True, eq=False)
class Taps:
    """The nonzeros of a layer, each with what it is multiplied with.

    Attributes:
        output, channel: of the nonzero.
        row, column: what it reads, from the position of the result; of every stride-th pixel.
        phase: index of the phase that it reads, in `phases`.
        value: the weight.
        phases: row and column, modulo the stride, of the pixels that are read.
        outputs, inputs: channels.
    """

    output: np.ndarray
    channel: np.ndarray
    row: np.ndarray
    column: np.ndarray
    phase: np.ndarray
    value: np.ndarray
    phases: Sequence[Phase]
    outputs: int
    inputs: int

    @staticmethod
    def of(layer: Layer) -> Taps:
        """Returns the taps of a layer."""
        weight = layer.weight.numpy()
        outputs, inputs = weight.shape[0], weight.shape[1] * layer.groups
        output, channel, i, j = np.nonzero(weight)
        value = weight[output, channel, i, j].astype(np.float32)
        channel = channel + output // (outputs // layer.groups) * weight.shape[1]
        axes = zip((i, j), weight.shape[2:], layer.dilation, layer.padding, layer.stride, strict=True)
        (row, dy), (column, dx) = (_read(*axis) for axis in axes)
        if layer.stride == (1, 1):
            return Taps(output, channel, row, column, dy, value, [(0, 0)], outputs, inputs)
        seen, phase = np.unique(dy * layer.stride[1] + dx, return_inverse=True)
        phases = [divmod(int(pair), layer.stride[1]) for pair in seen] or [(0, 0)]
        return Taps(output, channel, row, column, phase, value, phases, outputs, inputs)

    @cached_property
    def reach(self) -> tuple[int, int, int, int]:
        """Returns the smallest and largest row and column that are read, 0 among them."""
        empty = not len(self.row)
        return (0, 0, 0, 0) if empty else tuple(int(f) for f in (  # type: ignore[return-value]
            min(0, self.row.min()), max(0, self.row.max()), min(0, self.column.min()), max(0, self.column.max())
        ))  # fmt: skip

    def arranged(
        self, offsets: np.ndarray, tile: int, chains: int, together: int = 1
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns offsets, values and starts by tile and group of outputs, in the order in which a kernel reads them.

        Args:
            offsets: of each nonzero, in floats.
            tile: channels of a tile.
            chains: the nonzeros of a group and tile become a multiple of this, by zeros.
            together: outputs of a group; each offset of one of them is one of all, with a value for each.
        """
        tiles, groups = max(1, -(-self.inputs // tile)), self.outputs // together
        bucket = (self.channel // tile).astype(np.int64) * groups + self.output // together
        order, column = _ordered(bucket), np.zeros(len(bucket), np.int64)
        entry = np.arange(len(order))
        if together > 1:
            order = np.lexsort((offsets, bucket))
            new = (np.diff(bucket[order], prepend=-1) != 0) | (np.diff(offsets[order], prepend=-1) != 0)
            entry, column = np.cumsum(new) - 1, self.output[order] % together
        else:
            new = np.ones(len(order), bool)
        bucket, offsets, value = bucket[order], offsets[order], self.value[order]
        counts = np.bincount(bucket[new], minlength=tiles * groups)
        room = -(-counts // chains) * chains
        begins = np.concatenate([[0], np.cumsum(room)])
        first = np.concatenate([[0], np.cumsum(counts)])[:-1]
        place = begins[:-1][bucket] + entry - first[bucket]
        there, values = np.zeros(max(1, begins[-1]), np.int32), np.zeros((max(1, begins[-1]), together), np.float32)
        there[place], values[place, column] = offsets, value
        short = np.flatnonzero(room > counts)  # zeros there multiply what a nonzero of the same outputs does
        for more in range(1, chains):
            slots = begins[:-1][short] + room[short] - more
            there[np.where(room[short] - more >= counts[short], slots, begins[:-1][short])] = there[begins[:-1][short]]
        rows = np.arange(tiles)[:, None] * groups + np.arange(groups + 1)
        return there, values, begins[rows].astype(np.int32)

    @cached_property
    def by_output(self) -> np.ndarray:
        """Returns the nonzeros of each output."""
        return np.bincount(self.output, minlength=self.outputs)

    def indexed(self, places: np.ndarray, inputs: int, *, halves: bool = False) -> Packed:
        """Returns the nonzeros with the index of each one, of one position; each output's are a multiple of `SUMS`.

        Args:
            places: of the nonzeros, in the vector that they are multiplied with.
            inputs: its length.
            halves: values are rounded to the upper halves of floats.
        """
        there, values, starts = self.arranged(places, max(1, self.inputs), SUMS)
        if halves:
            values = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy()
        wide = inputs > 1 << 16
        return Packed(values, there.astype(np.uint32 if wide else np.uint16), starts[0], 0, False, wide, halves)

    def marked(self, places: np.ndarray, inputs: int, lanes: int) -> Packed:
        """Returns the nonzeros with a bit for every weight, of one position; see `indexed`."""
        inputs = -(-inputs // (lanes * SUMS)) * lanes * SUMS
        marks = np.zeros((self.outputs, inputs), bool)
        marks[self.output, places] = True
        order = _ordered(self.output.astype(np.int64) * inputs + places)
        values = np.concatenate([self.value[order], np.zeros(lanes, np.float32)])
        starts = np.concatenate([[0], np.cumsum(self.by_output)]).astype(np.int32)
        return Packed(
            values, np.packbits(marks, axis=1, bitorder="little"), starts, inputs // lanes, True, False, False
        )

    def shares(self, threads: int, together: int = 1) -> np.ndarray:
        """Returns the first and last group of outputs of each thread: equal work, of nonzeros and of each output."""
        cost = np.cumsum(self.by_output.reshape(-1, together).sum(1) + 4.0)
        ends = np.searchsorted(cost, cost[-1] * np.arange(1, threads) / threads) + 1
        edges = np.concatenate([[0], np.minimum(ends, len(cost)), [len(cost)]])
        return np.stack([edges[:-1], edges[1:]], 1).astype(np.int64)


def _read(k: np.ndarray, size: int, dilation: int, padding: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns which pixel an entry of the kernel reads, of every stride-th one, and the pixel modulo the stride."""
    if size == 1:  # most weights of most networks: nothing by weight
        return tuple(np.broadcast_to(np.int64(each), k.shape) for each in divmod(-padding, stride))  # type: ignore[return-value]
    return np.divmod(k * dilation - padding, stride)


def _ordered(keys: np.ndarray) -> np.ndarray:
    """Returns the order of keys; equal ones stay in theirs. They often are in order: weights are, by output."""
    return np.arange(len(keys)) if (keys[1:] >= keys[:-1]).all() else np.argsort(keys, kind="stable")
