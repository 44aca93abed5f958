"""Layer norm: of each position over its channels.

y[c, q] = (x[c, q] − μ[q]) / √(σ²[q] + ε) · γ[c] + β[c],   μ, σ²: mean and variance of x[·, q]
"""

from __future__ import annotations

from typing import Any, NamedTuple

from topiarist.sparse.kernels.emit import F32, I32, I64, Kernel, i64

POINTERS = (
    "x",  # float*: position 0 of channel 0
    "y",
    "gamma",  # float*[channels]
    "beta",  # float*[channels]
    "numbers",  # float*[2]: 1 / channels, and ε
    "zeros",  # int32*: by position, all bits set where it is inside, else none
    "ranges",  # int64*[threads, 2]: first and last block of positions of each thread
)
INTEGERS = (
    "channels",
    "x_channel",  # floats from one to the next
    "y_channel",
)


class Norm(NamedTuple):
    """A kernel's name, by what is written into it: floats of a vector, and vectors of a block of positions."""

    lanes: int
    vectors: int

    @property
    def name(self) -> str:
        """Returns a name that says all."""
        return f"norm_{self.lanes}x{self.vectors}"

    def ir(self) -> str:
        """Returns the kernel as LLVM IR."""
        k = Kernel(self.name, self.lanes, POINTERS, INTEGERS)
        b = k.builder
        mine = k.at(k["ranges"], b.mul(k.thread, i64(2)), I64)
        part, epsilon = (k.spread(k.load(k["numbers"], i64(n), F32)) for n in range(2))
        with k.loop(k.load(mine, i64(0), I64), k.load(mine, i64(1), I64)) as block:
            q = b.mul(block.index, i64(self.vectors * self.lanes))
            x, y, zeros = k.at(k["x"], q), k.at(k["y"], q), k.at(k["zeros"], q, I32)
            means = [b.fmul(total, part) for total in self._sums(k, x, None)]
            variances = [b.fmul(total, part) for total in self._sums(k, x, means)]
            one = k.spread(F32(1.0))
            scales = [b.fdiv(one, k.intrinsic("sqrt", b.fadd(v, epsilon))) for v in variances]
            inside = [k.load(zeros, i64(j * self.lanes), k.integers) for j in range(self.vectors)]
            with k.loop(i64(0), k["channels"]) as c:
                gamma, beta = (k.spread(k.load(k[name], c.index, F32)) for name in ("gamma", "beta"))
                there = k.at(y, b.mul(c.index, k["y_channel"]))
                read = k.floats(k.at(x, b.mul(c.index, k["x_channel"])), self.vectors)
                for j, (v, mean, scale, mask) in enumerate(zip(read, means, scales, inside, strict=True)):
                    value = k.multiply_add(b.fmul(b.fsub(v, mean), scale), gamma, beta)
                    k.store(b.bitcast(b.and_(b.bitcast(value, k.integers), mask), k.vector), there, i64(j * self.lanes))
        return k.finished()

    def _sums(self, k: Kernel, x: Any, means: list[Any] | None) -> list[Any]:
        """Writes Σ_c x[c], or Σ_c (x[c] − mean)²."""
        b = k.builder
        with k.loop(i64(0), k["channels"], [k.spread(F32(0.0))] * self.vectors) as c:
            read = k.floats(k.at(x, b.mul(c.index, k["x_channel"])), self.vectors)
            if means is None:
                c.then = [b.fadd(total, v) for total, v in zip(c.values, read, strict=True)]
            else:
                apart = [b.fsub(v, mean) for v, mean in zip(read, means, strict=True)]
                c.then = [k.multiply_add(d, d, total) for d, total in zip(apart, c.values, strict=True)]
        return list(c.values)
