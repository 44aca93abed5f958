"""The mean of each plane: global average pooling.

    y[channel, image] = scale · Σ_q x[channel, image, q]

over all positions of an image in a plane: those around it are zeros.
"""

from __future__ import annotations

from typing import NamedTuple

from topiarist.sparse.kernels.emit import F32, I64, Kernel, i64

POINTERS = (
    "x",  # float*: position 0 of channel 0
    "y",  # float*: of channel 0 and image 0
    "scale",  # float*[1]
    "ranges",  # int64*[threads, 2]: first and last channel of each thread
)
INTEGERS = (
    "images",
    "positions",  # of an image
    "x_channel",  # floats from one to the next
    "x_image",
    "y_channel",
    "y_image",
)


class Mean(NamedTuple):
    """A kernel's name, by what is written into it: floats of a vector."""

    lanes: int

    @property
    def name(self) -> str:
        """Returns a name that says all."""
        return f"mean_{self.lanes}"

    def ir(self) -> str:
        """Returns the kernel as LLVM IR."""
        k = Kernel(self.name, self.lanes, POINTERS, INTEGERS)
        b = k.builder
        mine = k.at(k["ranges"], b.mul(k.thread, i64(2)), I64)
        positions = k["positions"]
        whole = b.sub(positions, b.and_(positions, i64(self.lanes - 1)))
        scale = k.load(k["scale"], i64(0), F32)
        with (
            k.loop(k.load(mine, i64(0), I64), k.load(mine, i64(1), I64)) as channel,
            k.loop(i64(0), k["images"]) as image,
        ):
            x, y = (
                k.at(k[base], b.add(b.mul(channel.index, k[f"{base}_channel"]), b.mul(image.index, k[f"{base}_image"])))
                for base in ("x", "y")
            )
            with k.loop(i64(0), whole, [k.spread(F32(0.0))], step=self.lanes) as at:
                at.then = [b.fadd(at.values[0], k.load(x, at.index, k.vector))]
            with k.loop(whole, positions, [k.sum(at.values[0])]) as rest:
                rest.then = [b.fadd(rest.values[0], k.load(x, rest.index, F32))]
            k.store(b.fmul(rest.values[0], scale), y, i64(0))
        return k.finished()
