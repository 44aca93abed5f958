"""The convolution of sparse weights, with what follows it: bias, an added tensor, an activation, zeros around.

For a block of positions q, output o and its nonzeros k:

    y[o, q] = zeros_around · activation(bias[o] + Σ_k value[k] · x[q + offset[k]] + added[o, q])

Positions are of a padded plane (see `grids`), so that channel and tap of a weight are one offset. A nonzero costs one
broadcast, and for each vector of the block one unaligned load and one fused multiply-add; the sums stay in registers.
Inputs are taken in tiles of channels, so that what a block reads of a tile stays in the nearest cache.

Where neighbouring outputs have their nonzeros in the same places, since all weights are there or whole blocks are
pruned, they are computed together: a vector is loaded once for all, and multiplications set the pace, not loads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from topiarist.sparse.kernels.activations import activated
from topiarist.sparse.kernels.emit import F32, I32, I64, Kernel, i64

POINTERS = (
    "x",  # float*: position 0 of input channel 0
    "offsets",  # int32*: by nonzero, in floats from a position of the block
    "values",  # float*[nonzeros, outputs together]
    "starts",  # int32*[tiles, groups + 1]: where the nonzeros of a group of outputs begin
    "bias",  # float*[outputs]
    "zeros",  # int32*: by position, all bits set where it is inside the image, else none
    "added",  # float*: position 0 of output 0 of the tensor that is added
    "y",  # float*: position 0 of output 0
    "ranges",  # int64*[threads, 4]: first and last block, first and last group of each thread
)
INTEGERS = (
    "groups",  # of outputs
    "tiles",
    "added_stride",  # floats from one channel to the next
    "y_stride",
)


class Convolution(NamedTuple):
    """A kernel's name, by what is written into it.

    Attributes:
        lanes: floats of a vector.
        vectors: of a block of positions.
        chains: nonzeros whose sums are apart, so that short blocks do not wait for one another; divides all counts.
        activation: its name, or none.
        adds: a tensor is added before the activation.
        pools: not the sum of value · x, but the largest x; values are none.
        together: outputs of a group, which share offsets.
    """

    lanes: int
    vectors: int
    chains: int = 1
    activation: str = ""
    adds: bool = False
    pools: bool = False
    together: int = 1

    @property
    def name(self) -> str:
        """Returns a name that says all."""
        then = f"{self.activation}{'_added' * self.adds}{'_max' * self.pools}"
        return f"conv_{self.lanes}x{self.vectors}x{self.chains}x{self.together}{then}"

    def ir(self) -> str:
        """Returns the kernel as LLVM IR."""
        k = Kernel(self.name, self.lanes, POINTERS, INTEGERS)
        b = k.builder
        width = i64(self.vectors * self.lanes)
        mine = k.at(k["ranges"], b.mul(k.thread, i64(4)), I64)
        first_block, last_block, first, last = (k.load(mine, i64(n), I64) for n in range(4))
        with k.loop(first_block, last_block) as block:
            q = b.mul(block.index, width)
            inputs, mask = k.at(k["x"], q), k.at(k["zeros"], q, I32)
            with k.loop(i64(0), k["tiles"]) as tile:
                begins = k.at(k["starts"], b.mul(tile.index, b.add(k["groups"], i64(1))), I32)
                is_first = b.icmp_signed("==", tile.index, i64(0))
                is_last = b.icmp_signed("==", tile.index, b.sub(k["tiles"], i64(1)))
                with k.loop(first, last) as group:
                    outputs = [b.add(b.mul(group.index, i64(self.together)), i64(n)) for n in range(self.together)]
                    results = [k.at(k["y"], b.add(q, b.mul(o, k["y_stride"]))) for o in outputs]
                    pluses = [k.at(k["added"], b.add(q, b.mul(o, k["added_stride"]))) for o in outputs]
                    sums = k.either(
                        is_first,
                        lambda outputs=outputs: [
                            value for o in outputs for value in [k.spread(k.load(k["bias"], o, F32))] * self.vectors
                        ],
                        lambda results=results: [v for result in results for v in k.floats(result, self.vectors)],
                    )
                    sums = self._products(k, inputs, begins, group.index, sums)
                    sums = k.either(
                        is_last,
                        lambda sums=sums, pluses=pluses, mask=mask: self._finish(k, sums, pluses, mask),
                        lambda sums=sums: sums,
                    )
                    for at, value in enumerate(sums):
                        output, vector = divmod(at, self.vectors)
                        k.store(value, results[output], i64(vector * self.lanes))
        return k.finished()

    def _products(self, k: Kernel, inputs: Any, begins: Any, group: Any, sums: list[Any]) -> list[Any]:
        """Writes Σ_k value[k] · x[q + offset[k]], output by output."""
        b, size = k.builder, len(sums)
        begin, end = (b.sext(k.load(begins, n, I32), I64) for n in (group, b.add(group, i64(1))))
        nothing = [k.spread(F32(0.0))] * size * (self.chains - 1)
        with k.loop(begin, end, [*sums, *nothing], step=self.chains) as nonzero:
            then = []
            for chain in range(self.chains):
                at = b.add(nonzero.index, i64(chain))
                there = k.at(inputs, b.sext(k.load(k["offsets"], at, I32), I64))
                mine = nonzero.values[chain * size : (chain + 1) * size]
                vectors = k.floats(there, self.vectors)
                if self.pools:
                    then += [k.intrinsic("maximum", v, s) for v, s in zip(vectors, mine, strict=True)]
                    continue
                first = b.mul(at, i64(self.together))
                for output in range(self.together):
                    value = k.spread(k.load(k["values"], b.add(first, i64(output)), F32))
                    its = mine[output * self.vectors : (output + 1) * self.vectors]
                    then += [k.multiply_add(value, v, s) for v, s in zip(vectors, its, strict=True)]
            nonzero.then = then
        total = nonzero.values[:size]
        for chain in range(1, self.chains):
            more = nonzero.values[chain * size : (chain + 1) * size]
            total = [b.fadd(s, m) for s, m in zip(total, more, strict=True)]
        return total

    def _finish(self, k: Kernel, sums: list[Any], pluses: list[Any], mask: Any) -> list[Any]:
        """Writes what follows the sums."""
        b, finished = k.builder, []
        for at, value in enumerate(sums):
            total, (output, vector) = value, divmod(at, self.vectors)
            place = i64(vector * self.lanes)
            if self.adds:
                total = b.fadd(total, k.load(pluses[output], place, k.vector))
            total = activated(k, total, self.activation)
            inside = k.load(mask, place, k.integers)
            finished.append(b.bitcast(b.and_(b.bitcast(total, k.integers), inside), k.vector))
        return finished
