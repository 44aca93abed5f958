"""The product of sparse weights with one vector: memory decides, so values and indices are read once and packed.

    y[o] = activation(bias[o] + Σ_k value[k] · x[index[k]] + added[o])

Two ways to say where the nonzeros of an output are: a 16-bit index each, or a bit for every weight. With indices a
nonzero costs three scalar loads and a fused multiply-add. With bits a vector of weights is one load that expands the
nonzeros, or, where the processor cannot, a load, a permutation by a table and a mask.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from topiarist.sparse.kernels.activations import activated
from topiarist.sparse.kernels.emit import F32, I1, I8, I16, I32, I64, Kernel, i64

POINTERS = (
    "x",  # float*[inputs], with a vector of zeros behind
    "values",  # float*, or the upper halves of floats: by nonzero
    "places",  # int16* or int32*: by nonzero; or bits, by vector of weights
    "starts",  # int32*[outputs + 1]: where the nonzeros of an output begin
    "table",  # int32*[256, 2, 8]: of a byte, the permutation and the mask that expand its nonzeros
    "bias",  # float*[outputs]
    "added",  # float*[outputs]
    "y",  # float*[outputs]
    "ranges",  # int64*[threads, 2]: first and last output of each thread
)
INTEGERS = ("vectors",)  # of the weights of an output
SUMS = 4
"""Sums that are apart, so that no addition waits for the one before."""
AHEAD = 2048
"""Floats by which memory is asked for before it is read: the processor alone does not read ahead far enough."""


class MatVec(NamedTuple):
    """A kernel's name, by what is written into it.

    Attributes:
        lanes: floats of a vector, and sums that are apart.
        bits: nonzeros are marked by bits, not by indices.
        wide: indices have 32 bits.
        halves: values are the upper halves of floats (bfloat16).
        activation: its name, or none.
        adds: a tensor is added before the activation.
    """

    lanes: int
    bits: bool = False
    wide: bool = False
    halves: bool = False
    activation: str = ""
    adds: bool = False

    @property
    def name(self) -> str:
        """Returns a name that says all."""
        form = "bits" if self.bits else "wide" if self.wide else "indices"
        return f"matvec_{self.lanes}_{form}{'_halves' * self.halves}{self.activation}{'_added' * self.adds}"

    def ir(self) -> str:
        """Returns the kernel as LLVM IR."""
        k = Kernel(self.name, self.lanes, POINTERS, INTEGERS)
        b = k.builder
        mine = k.at(k["ranges"], b.mul(k.thread, i64(2)), I64)
        with k.loop(k.load(mine, i64(0), I64), k.load(mine, i64(1), I64)) as o:
            total = self._expanded(k, o.index) if self.bits else self._indexed(k, o.index)
            total = b.fadd(total, k.load(k["bias"], o.index, F32))
            if self.adds:
                total = b.fadd(total, k.load(k["added"], o.index, F32))
            k.store(activated(k, total, self.activation), k["y"], o.index)
        return k.finished()

    def _value(self, k: Kernel, at: Any) -> Any:
        """Reads one value."""
        if not self.halves:
            return k.load(k["values"], at, F32)
        half = k.builder.zext(k.load(k["values"], at, I16), I32)
        return k.builder.bitcast(k.builder.shl(half, ir.Constant(I32, 16)), F32)

    def _indexed(self, k: Kernel, o: Any) -> Any:
        """Writes the sum over indices."""
        b, apart = k.builder, SUMS
        begin, end = (b.sext(k.load(k["starts"], n, I32), I64) for n in (o, b.add(o, i64(1))))
        with k.loop(begin, end, [F32(0.0)] * apart, step=apart) as nonzero:
            for stream, of in (("values", I16 if self.halves else F32), ("places", I32 if self.wide else I16)):
                k.prefetch(k.at(k[stream], b.add(nonzero.index, i64(AHEAD)), of))
            then = []
            for chain, total in enumerate(nonzero.values):
                at = b.add(nonzero.index, i64(chain))
                place = k.load(k["places"], at, I32 if self.wide else I16)
                x = k.load(k["x"], b.zext(place, I64), F32)
                then.append(k.multiply_add(self._value(k, at), x, total))
            nonzero.then = then
        first, second, third, fourth = nonzero.values
        return b.fadd(b.fadd(first, second), b.fadd(third, fourth))

    def _expanded(self, k: Kernel, o: Any) -> Any:
        """Writes the sum over vectors of weights."""
        b = k.builder
        kind = I16 if self.lanes == 16 else I8
        begin = b.sext(k.load(k["starts"], o, I32), I64)
        marks = k.at(k["places"], b.mul(o, k["vectors"]), kind)
        with k.loop(i64(0), k["vectors"], [begin, k.spread(F32(0.0))]) as vector:
            at, total = vector.values
            there, bits = k.at(k["values"], at), k.load(marks, vector.index, kind)
            k.prefetch(k.at(there, i64(AHEAD)))
            x = k.load(k["x"], b.mul(vector.index, i64(self.lanes)), k.vector)
            weights, x = self._expand(k, there, bits, x)
            total = k.multiply_add(weights, x, total)
            vector.then = [b.add(at, b.zext(b.ctpop(bits), I64)), total]
        return k.sum(vector.values[1])

    def _expand(self, k: Kernel, there: Any, bits: Any, x: Any) -> tuple[Any, Any]:
        """Writes a vector of weights and of what they multiply: nonzeros where bits are set, else zeros in both."""
        b = k.builder
        if self.lanes == 16:
            marks = b.bitcast(bits, ir.VectorType(I1, 16))
            weights = k.load(there, i64(0), k.vector)
            nothing = k.spread(F32(0.0))
            expanded = k.instruction("llvm.x86.avx512.mask.expand.v16f32", k.vector, weights, nothing, marks)
            return expanded, b.select(marks, x, nothing)
        row = k.at(k["table"], b.mul(b.zext(bits, I64), i64(16)), I32)
        order, mask = (k.load(row, i64(at), k.integers) for at in (0, 8))
        moved = k.instruction("llvm.x86.avx2.permps", k.vector, k.load(there, i64(0), k.vector), order)
        masked = [b.bitcast(b.and_(b.bitcast(each, k.integers), mask), k.vector) for each in (moved, x)]
        return masked[0], masked[1]


def table() -> np.ndarray:
    """Returns int32[256, 2, 8]: of a byte, where each of 8 lanes takes its nonzero from, and a mask of those it has."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(np.int32)
    return np.stack([(bits.cumsum(1) - bits) * bits, -bits], 1).astype(np.int32)
