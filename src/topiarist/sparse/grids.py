"""The layout of activations: padded planes, in which a tap of a convolution is one offset.

A plane holds one channel of all images. Its rows lie one after the other, with `beside` zeros between them, and
`above` rows of zeros between the images; position q = (image · pitch) + y · stride + x. Zeros serve the row before
and the row after alike, so that a tap (dy, dx) of any convolution reads position q + dy · stride + dx.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from topiarist.errors import TopiaristError

FLOATS: Any = {"dtype": torch.float32, "device": "cpu"}
"""What kernels read and write, whatever torch's defaults are."""
ALIGNED = 16
"""Floats of a line of the cache: a plane's position 0 lies at its beginning."""
READ_TOGETHER = 64
"""Floats of a vector that the product with a vector reads in one turn."""
ALIASED = 1024
"""Floats after which addresses fall into the same set of the nearest cache."""


def up(number: int, multiple: int) -> int:
    """Returns the next multiple."""
    return -(-number // multiple) * multiple


@dataclass(frozen=True)
class Grid:
    """A layout, shared by all tensors that kernels read and write at the same position.

    Attributes:
        images: of the batch.
        rows, columns: of the largest of these tensors.
        above, beside: rows and columns of zeros.
        lanes: floats of a vector.
        most: vectors of the longest block of positions.
    """

    images: int
    rows: int
    columns: int
    above: int
    beside: int
    lanes: int
    most: int

    @property
    def stride(self) -> int:
        """Returns the positions from one row to the next."""
        return self.columns + self.beside

    @property
    def pitch(self) -> int:
        """Returns the positions from one image to the next."""
        return (self.rows + self.above) * self.stride

    @property
    def single(self) -> bool:
        """Returns whether there is one position, so that channels lie one after the other."""
        return self.images * self.rows * self.columns == 1 and not self.above and not self.beside

    @property
    def front(self) -> int:
        """Returns the zeros before position 0 of a plane."""
        return up(self.above * self.stride + self.beside, ALIGNED)

    @property
    def vectors(self) -> int:
        """Returns the vectors of all positions."""
        return up(self.images * self.pitch, self.lanes) // self.lanes

    def block(self, most: int) -> tuple[int, int]:
        """Returns the fewest blocks of at most so many vectors, and how many vectors each has: as even as can be."""
        blocks = -(-self.vectors // most)
        return blocks, -(-self.vectors // blocks)

    @property
    def extent(self) -> int:
        """Returns the positions that kernels may write, whatever their blocks."""
        return max(b * n for b, n in map(self.block, range(1, self.most + 1))) * self.lanes

    @property
    def plane(self) -> int:
        """Returns the floats from one channel to the next."""
        if self.single:
            return 1
        floats = up(self.front + self.extent, ALIGNED)
        return floats + ALIGNED if floats % ALIASED == 0 else floats

    def buffer(self, channels: int) -> Tensor:
        """Returns zeros for so many channels, and for what a kernel reads behind them.

        Raises:
            TopiaristError: an offset in it would not fit 32 bits.
        """
        floats = channels * self.plane + (READ_TOGETHER if self.single else self.front + self.extent)
        if floats >= 1 << 31:
            raise TopiaristError("a layer has more than 2³¹ activations: give smaller batches")
        return torch.zeros(floats, **FLOATS)

    @lru_cache(maxsize=64)  # noqa: B019  (grids are few and small)
    def inside(self, rows: int, columns: int) -> np.ndarray:
        """Returns int32 by position: all bits set where it is inside an image of so many rows and columns."""
        marks = np.zeros(self.extent, np.int32)
        images = marks[: self.images * self.pitch].reshape(self.images, self.rows + self.above, self.stride)
        images[:, :rows, :columns] = -1
        return marks


@dataclass(frozen=True, eq=False)
class Planes:
    """Some channels of a buffer.

    Attributes:
        grid: their layout.
        buffer: holds them.
        first: the first channel.
        channels: how many there are.
        shape: of the tensor that they are, as torch has it.
        tokens: channels are its last axis, as for linear layers, instead of the second.
    """

    grid: Grid
    buffer: Tensor
    first: int
    channels: int
    shape: tuple[int, ...]
    tokens: bool = False

    @property
    def start(self) -> int:
        """Returns where in the buffer position 0 of the first channel is."""
        return self.first * self.grid.plane + self.grid.front

    @property
    def address(self) -> int:
        """Returns its address."""
        return int(self.buffer.data_ptr()) + 4 * self.start

    @property
    def inside(self) -> np.ndarray:
        """Returns `Grid.inside` for this tensor."""
        return self.grid.inside(*extents(self.shape, self.tokens))

    @property
    def view(self) -> Tensor:
        """Returns the tensor; it is not contiguous."""
        grid, shape = self.grid, self.shape
        if self.tokens:
            strides = (*(prod(shape[k + 1 : -1]) for k in range(len(shape) - 1)), grid.plane)
        else:
            strides = (grid.pitch, grid.plane, *(grid.stride, 1)[4 - len(shape) :])
        return torch.as_strided(self.buffer, shape, strides, self.start)


def extents(shape: Sequence[int], tokens: bool) -> tuple[int, int]:
    """Returns the rows and columns of an image; tokens are one row."""
    if tokens:
        return 1, prod(shape[:-1])
    return (shape[2], shape[3]) if len(shape) == 4 else (1, shape[2])
