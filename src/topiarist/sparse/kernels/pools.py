"""Pooling with a stride: the largest of each window, or the mean.

    y[channel, image, row, column] = scale · op_{i, j} x[channel, image, row · s + i, column · t + j]

for the i and j of a window; windows at the edge read the zeros around the image.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from topiarist.sparse.kernels.emit import F32, I64, Kernel, i64

POINTERS = (
    "x",  # float*: the first float of the first window
    "y",  # float*: position 0 of channel 0
    "scale",  # float*[1]: what sums are multiplied by
    "ranges",  # int64*[threads, 2]: first and last channel of each thread
)
INTEGERS = (
    "images",
    "rows",  # of y
    "columns",
    "x_channel",  # floats from one to the next
    "x_image",
    "x_row",  # of pixels
    "y_channel",
    "y_image",
    "y_row",
)
STRIDES = (1, 2)
"""Strides along a row that there are kernels for."""


class Pool(NamedTuple):
    """A kernel's name, by what is written into it.

    Attributes:
        lanes: floats of a vector.
        window: rows and columns.
        stride: of rows and columns.
        largest: the largest of a window, not the mean.
    """

    lanes: int
    window: tuple[int, int]
    stride: tuple[int, int]
    largest: bool

    @property
    def name(self) -> str:
        """Returns a name that says all."""
        (height, width), (vertical, horizontal) = self.window, self.stride
        return f"pool_{self.lanes}_{height}x{width}_{vertical}x{horizontal}{'_max' * self.largest}"

    def ir(self) -> str:
        """Returns the kernel as LLVM IR."""
        k = Kernel(self.name, self.lanes, POINTERS, INTEGERS)
        b = k.builder
        mine = k.at(k["ranges"], b.mul(k.thread, i64(2)), I64)
        scale = k.spread(k.load(k["scale"], i64(0), F32))
        with (
            k.loop(k.load(mine, i64(0), I64), k.load(mine, i64(1), I64)) as channel,
            k.loop(i64(0), k["images"]) as image,
            k.loop(i64(0), k["rows"]) as row,
        ):
            pixel = b.mul(row.index, i64(self.stride[0]))
            x, y = (
                k.at(
                    k[base],
                    b.add(
                        b.mul(r, k[f"{base}_row"]),
                        b.add(b.mul(channel.index, k[f"{base}_channel"]), b.mul(image.index, k[f"{base}_image"])),
                    ),
                )
                for base, r in (("x", pixel), ("y", row.index))
            )
            with k.loop(i64(0), k["columns"], step=self.lanes) as at:
                total = self._window(k, k.at(x, b.mul(at.index, i64(self.stride[1]))))
                total = total if self.largest else b.fmul(total, scale)
                k.store_first(b.sub(k["columns"], at.index), total, y, at.index)
        return k.finished()

    def _window(self, k: Kernel, there: Any) -> Any:
        """Writes the largest, or the sum, of windows that lie side by side."""
        total = None
        for i in range(self.window[0]):
            row = k.at(there, k.builder.mul(k["x_row"], i64(i)))
            for j in range(self.window[1]):
                pixel = k.at(row, i64(j))
                v = k.load(pixel, i64(0), k.vector) if self.stride[1] == 1 else k.every_second(pixel)
                if total is None:
                    total = v
                else:
                    total = k.intrinsic("maximum", total, v) if self.largest else k.builder.fadd(total, v)
        return total
