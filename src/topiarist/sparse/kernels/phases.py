"""Every second pixel, or every s-th: what a convolution with a stride reads, so that its taps are offsets again.

    y[channel, image, row, column] = x[channel, image, row · s + dy, column · s + dx]

for one phase (dy, dx). The rows of x may be those of any tensor whose columns are contiguous.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir

from topiarist.sparse.kernels.emit import F32, I32, I64, Kernel, i64

POINTERS = (
    "x",  # float*: the first pixel of the phase
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


class Phase(NamedTuple):
    """A kernel's name, by what is written into it: floats of a vector, and the stride along a row."""

    lanes: int
    step: int

    @property
    def name(self) -> str:
        """Returns a name that says all."""
        return f"phase_{self.lanes}x{self.step}"

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
                k.store(self._every(k, there), y, at.index)
            with k.loop(whole, columns) as at:
                k.store(k.load(x, b.mul(at.index, i64(self.step)), F32), y, at.index)
        return k.finished()

    def _every(self, k: Kernel, there: Any) -> Any:
        """Reads a vector of every step-th float, and nothing behind the last of them."""
        if self.step == 1:
            return k.load(there, i64(0), k.vector)
        first = k.load(there, i64(0), k.vector)
        second = k.load(there, i64(self.lanes - 1), k.vector)  # ends with the last one that is taken
        taken = [2 * n if 2 * n < self.lanes else 2 * n + 1 for n in range(self.lanes)]
        return k.builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(I32, self.lanes), taken))
