"""Attention, in planes: for each head, d channels of queries, keys and values.

    y[c, i] = Σ_j softmax_j(scale · Σ_c' q[c', i] · k[c', j]) · v[c, j]

Vectors hold queries, so that nothing is summed within one: a block of them takes all keys in turn, then the
exponentials, then all values. Four keys, and four channels of values, share what is loaded of the block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from topiarist.sparse.kernels.activations import exp
from topiarist.sparse.kernels.emit import F32, I64, Kernel, i64

POINTERS = (
    "q",  # float*: channel 0 of head 0 at position 0; so k, v and y
    "k",
    "v",
    "y",
    "scratch",  # float*[threads, keys, vectors · lanes]
    "scale",  # float*[1]
    "ranges",  # int64*[threads, 2]: first and last head of each thread
)
INTEGERS = (
    "images",
    "queries",  # of an image
    "keys",
    "width",  # channels of a head
    *(f"{tensor}_{axis}" for tensor in "qkvy" for axis in ("head", "channel", "image")),  # floats from one to the next
)
TOGETHER = 4
"""Keys, or channels of values, that are computed together."""


class Attend(NamedTuple):
    """A kernel's name, by what is written into it: floats of a vector, and vectors of a block of queries."""

    lanes: int
    vectors: int

    @property
    def name(self) -> str:
        """Returns a name that says all."""
        return f"attend_{self.lanes}x{self.vectors}"

    def ir(self) -> str:
        """Returns the kernel as LLVM IR."""
        k = Kernel(self.name, self.lanes, POINTERS, INTEGERS)
        b = k.builder
        mine = k.at(k["ranges"], b.mul(k.thread, i64(2)), I64)
        block = i64(self.vectors * self.lanes)
        scratch = k.at(k["scratch"], b.mul(k.thread, b.mul(k["keys"], block)))
        with (
            k.loop(k.load(mine, i64(0), I64), k.load(mine, i64(1), I64)) as head,
            k.loop(i64(0), k["images"]) as image,
        ):
            q, keys, values, y = (
                k.at(k[n], b.add(b.mul(head.index, k[f"{n}_head"]), b.mul(image.index, k[f"{n}_image"])))
                for n in "qkvy"
            )
            with k.loop(i64(0), k["queries"], step=self.vectors * self.lanes) as first:
                largest = self._scores(k, k.at(q, first.index), keys, scratch)
                sums = self._exponentials(k, scratch, largest)
                self._weighted(k, values, scratch, sums, (y, first.index))
        return k.finished()

    def _scores(self, k: Kernel, q: Any, keys: Any, scratch: Any) -> list[Any]:
        """Writes all scores of a block of queries to the scratch; returns the largest of each query."""

        def some(j: Any, together: int, largest: list[Any]) -> list[Any]:
            sums = self._products(
                k,
                k["width"],
                lambda c: k.at(q, k.builder.mul(c, k["q_channel"])),
                lambda c, t: k.at(keys, k.builder.add(k.builder.mul(c, k["k_channel"]), k.builder.add(j, i64(t)))),
                together,
            )
            scale = k.spread(k.load(k["scale"], i64(0), F32))
            for t, row in enumerate(sums):
                scores = [k.builder.fmul(s, scale) for s in row]
                self._store(k, scores, scratch, k.builder.add(j, i64(t)))
                largest = [k.intrinsic("maximum", m, s) for m, s in zip(largest, scores, strict=True)]
            return largest

        least = [k.spread(F32(float("-inf")))] * self.vectors
        return self._in_groups(k, k["keys"], least, some)

    def _exponentials(self, k: Kernel, scratch: Any, largest: list[Any]) -> list[Any]:
        """Replaces scores by e^(score − largest); returns their sums."""
        with k.loop(i64(0), k["keys"], [k.spread(F32(0.0))] * self.vectors) as j:
            scores = k.floats(self._row(k, scratch, j.index), self.vectors)
            parts = [exp(k, k.builder.fsub(s, m)) for s, m in zip(scores, largest, strict=True)]
            self._store(k, parts, scratch, j.index)
            j.then = [k.builder.fadd(total, part) for total, part in zip(j.values, parts, strict=True)]
        return list(j.values)

    def _weighted(self, k: Kernel, values: Any, scratch: Any, sums: list[Any], into: tuple[Any, Any]) -> None:
        """Writes the means of the values."""
        b, (y, first) = k.builder, into
        inverse = [b.fdiv(k.spread(F32(1.0)), total) for total in sums]

        def some(c: Any, together: int, _: list[Any]) -> list[Any]:
            totals = self._products(
                k,
                k["keys"],
                lambda j: self._row(k, scratch, j),
                lambda j, t: k.at(values, b.add(b.mul(b.add(c, i64(t)), k["v_channel"]), j)),
                together,
            )
            for t, row in enumerate(totals):
                there = k.at(y, b.mul(b.add(c, i64(t)), k["y_channel"]))
                for n, (total, part) in enumerate(zip(row, inverse, strict=True)):
                    at = b.add(first, i64(n * self.lanes))
                    left = b.sub(k["queries"], at)
                    with b.if_then(b.icmp_signed(">", left, i64(0))):
                        k.store_first(left, b.fmul(total, part), there, at)
            return []

        self._in_groups(k, k["width"], [], some)

    def _products(
        self, k: Kernel, count: Any, block: Callable[[Any], Any], number: Callable[[Any, int], Any], together: int
    ) -> list[list[Any]]:
        """Writes Σ_n number(n, t) · block(n) for each t."""
        nothing = [k.spread(F32(0.0))] * (together * self.vectors)
        with k.loop(i64(0), count, nothing) as n:
            read, then = k.floats(block(n.index), self.vectors), list[Any]()
            for t in range(together):
                factor = k.spread(k.load(number(n.index, t), i64(0), F32))
                mine = n.values[t * self.vectors : (t + 1) * self.vectors]
                then += [k.multiply_add(factor, v, total) for v, total in zip(read, mine, strict=True)]
            n.then = then
        return [n.values[t * self.vectors : (t + 1) * self.vectors] for t in range(together)]

    def _in_groups(self, k: Kernel, count: Any, values: list[Any], some: Callable[..., list[Any]]) -> list[Any]:
        """Writes a loop in steps of `TOGETHER`, and one over what is left."""
        whole = k.builder.sub(count, k.builder.srem(count, i64(TOGETHER)))
        for first, last, together in ((i64(0), whole, TOGETHER), (whole, count, 1)):
            with k.loop(first, last, values, step=together) as loop:
                loop.then = some(loop.index, together, loop.values)
            values = loop.values
        return values

    def _row(self, k: Kernel, scratch: Any, key: Any) -> Any:
        """Returns where the block's numbers for one key are."""
        return k.at(scratch, k.builder.mul(key, i64(self.vectors * self.lanes)))

    def _store(self, k: Kernel, numbers: list[Any], scratch: Any, key: Any) -> None:
        row = self._row(k, scratch, key)
        for n, number in enumerate(numbers):
            k.store(number, row, i64(n * self.lanes))
