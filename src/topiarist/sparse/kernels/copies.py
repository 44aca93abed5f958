"""Copies into planes, out of them, and of every s-th pixel: what a convolution with a stride reads.

    y[channel, image, row, column] = x[channel, image, row, column · s]

Strides of channels, images and rows are free, and columns of y are contiguous: with s times the stride of a row, x at
pixel (dy, dx) is one phase of a convolution.
"""

from __future__ import annotations

from typing import NamedTuple

from topiarist.sparse.kernels.emit import F32, I64, Kernel, i64

POINTERS = (
    "x",  # float*: the first pixel
    "y",  # float*: position 0 of channel 0
    "ranges",  # int64*[threads, 2]: first and last channel of each thread
)
INTEGERS = (
    "images",
    "rows",
    "columns",
    "x_channel",  # floats from one to the next
    "x_image",
    "x_row",
    "y_channel",
    "y_image",
    "y_row",
)


class Copy(NamedTuple):
    """A kernel's name, by what is written into it: floats of a vector, and the stride along a row."""

    lanes: int
    step: int

    @property
    def name(self) -> str:
        """Returns a name that says all."""
        return f"copy_{self.lanes}x{self.step}"

    def ir(self) -> str:
        """Returns the kernel as LLVM IR."""
        k = Kernel(self.name, self.lanes, POINTERS, INTEGERS)
        b = k.builder
        mine = k.at(k["ranges"], b.mul(k.thread, i64(2)), I64)
        columns = k["columns"]
        whole = b.sub(columns, b.and_(columns, i64(self.lanes - 1)))
        if self.step > 2:
            whole = i64(0)
        with (
            k.loop(k.load(mine, i64(0), I64), k.load(mine, i64(1), I64)) as channel,
            k.loop(i64(0), k["images"]) as image,
            k.loop(i64(0), k["rows"]) as row,
        ):
            places = []
            for base in ("x", "y"):
                parts = [(channel, "channel"), (image, "image"), (row, "row")]
                offsets = [b.mul(loop.index, k[f"{base}_{part}"]) for loop, part in parts]
                places.append(k.at(k[base], b.add(offsets[0], b.add(offsets[1], offsets[2]))))
            x, y = places
            with k.loop(i64(0), whole, step=self.lanes) as at:
                there = k.at(x, b.mul(at.index, i64(self.step)))
                k.store(k.load(there, i64(0), k.vector) if self.step == 1 else k.every_second(there), y, at.index)
            with k.loop(whole, columns) as at:
                k.store(k.load(x, b.mul(at.index, i64(self.step)), F32), y, at.index)
        return k.finished()
