"""How each layer is computed: block, tile and form are measured on the spot, and remembered."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from topiarist.errors import TopiaristError
from topiarist.files import user_folder, write_text
from topiarist.sparse.grids import Grid
from topiarist.sparse.layers import Layer
from topiarist.sparse.machine import Machine

RUNS = 3
"""Runs of a candidate, after one that is not counted; the fastest decides."""
DENSE = 0.25
"""Density from which on torch's dense operator is measured too."""
GROUPS = (2, 4)
"""Outputs that are computed together."""
WORTHWHILE = 2.2
"""A group of outputs is tried where its nonzeros with these zeros between them are at most so many times as many."""
ALL = 1 << 20
"""A tile that holds all channels."""
LARGEST = 16 << 20
"""Bytes of a file of choices that is read."""


class Choice(NamedTuple):
    """How a layer is computed.

    Attributes:
        vectors: of a block, at most.
        chains: nonzeros whose sums are apart.
        tile: input channels of a tile.
        bits: of a product with one vector, nonzeros are marked by bits.
        dense: by torch, all weights.
        together: outputs that are computed together.
    """

    vectors: int
    chains: int = 1
    tile: int = 32
    bits: bool = False
    dense: bool = False
    together: int = 1


class Candidates(NamedTuple):
    """Ways to compute a layer.

    Attributes:
        kernel: returns a function that runs the layer's kernel with a choice.
        dense: computes it in torch, where that is possible.
    """

    kernel: Callable[[Choice], Callable[[], Any]]
    dense: Callable[[], Any] | None


@dataclass(eq=False)
class Tuner:
    """Chooses, and remembers what was chosen on a machine.

    Attributes:
        machine: the processor.
        measures: choices are measured where they are not remembered; else they are guessed.
        known: by layer, what was chosen.
        speeds: by network, how many times as fast as torch it is.
    """

    machine: Machine
    measures: bool = True
    known: dict[str, list[Any]] = field(default_factory=dict)
    speeds: dict[str, float] = field(default_factory=dict)
    changed: bool = False

    @property
    def file(self) -> Path:
        """Returns where choices are kept."""
        return user_folder("kernels") / f"choices-{hashlib.sha256(self.machine.key.encode()).hexdigest()[:16]}.json"

    def read(self) -> None:
        """Reads what was chosen before; a file that cannot be read, or holds something else, is measured anew."""
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            if self.file.is_file() and self.file.stat().st_size < LARGEST:
                read = json.loads(self.file.read_text(encoding="utf-8"))
                self.known.update({k: v for k, v in read["choices"].items() if _is_choice(v, self.machine)})
                self.speeds.update({k: v for k, v in read["speeds"].items() if isinstance(v, float) and 0 < v < 1e4})

    def write(self) -> None:
        """Writes what is new."""
        if not self.changed:
            return
        try:
            write_text(self.file, json.dumps({"choices": self.known, "speeds": self.speeds}))
            self.changed = False
        except TopiaristError as error:
            warnings.warn(f"kernels are chosen anew next time: {error}, or set TOPIARIST_CACHE", stacklevel=2)

    def choose(self, layer: Layer, grid: Grid, candidates: Candidates) -> Choice:
        """Returns how a layer is computed.

        Args:
            layer: the layer.
            grid: of its result.
            candidates: ways to compute it.
        """
        key = key_of(layer, grid)
        if key in self.known:
            choice = Choice(*self.known[key])
            return choice if candidates.dense else choice._replace(dense=False)
        first = self._first(layer, grid)
        if not self.measures:
            return first
        best, least = first, _seconds(candidates.kernel(first))
        for vary in (self._tiles, self._blocks, self._groups):
            for choice in vary(best, layer, grid):
                if (seconds := _seconds(candidates.kernel(choice))) < least:
                    best, least = choice, seconds
        dense = candidates.dense if layer.density > DENSE and layer.groups == 1 else None
        if dense is not None and _seconds(dense) < least:
            best = best._replace(dense=True)
        self.known[key], self.changed = list(best), True
        return best

    def speed(self, key: str, torch: Callable[[], Any], plan: Callable[[], Any]) -> float:
        """Returns how many times as fast as torch a network is, by runs in turns."""
        if key not in self.speeds and self.measures:
            times = [(timed(torch), timed(plan)) for _ in range(RUNS)]
            before, after = (min(each) for each in zip(*times, strict=True))
            self.speeds[key], self.changed = before / after, True
        return self.speeds.get(key, 1.0)

    def _first(self, layer: Layer, grid: Grid) -> Choice:
        """Returns a guess: blocks that leave registers for two operands, tiles that the nearest cache holds."""
        tile = 32 if layer.groups == 1 else ALL
        return Choice(min(self.machine.registers - 4, grid.vectors), 1, tile, layer.density > 1 / 3)

    def _tiles(self, best: Choice, layer: Layer, grid: Grid) -> Iterator[Choice]:
        inputs = layer.weight.shape[1] * layer.groups
        if grid.single:
            yield best._replace(bits=not best.bits)
        elif layer.groups == 1:
            yield from (best._replace(tile=tile) for tile in (16, 64, 128, 256) if tile < 2 * inputs)

    def _blocks(self, best: Choice, layer: Layer, grid: Grid) -> Iterator[Choice]:
        if grid.single:
            return
        free = self.machine.registers - 2
        shapes = {grid.block(most)[1] for most in (free // 3, free // 2, 2 * free // 3, free)}
        yield from (best._replace(vectors=vectors) for vectors in sorted(shapes))
        if grid.vectors * 2 <= free and not layer.pooled:
            yield best._replace(vectors=grid.vectors, chains=2)

    def _groups(self, best: Choice, layer: Layer, grid: Grid) -> Iterator[Choice]:
        free = self.machine.registers - 2
        for together in () if grid.single or layer.pooled else GROUPS:
            if layer.filled(together) * WORTHWHILE < 1:
                continue
            for most in sorted({max(1, free // (together + 1)), max(1, free // (together + 1) - 1)}):
                for tile in sorted({best.tile, 128}):
                    yield Choice(grid.block(most)[1], 1, tile, best.bits, together=together)


def _is_choice(value: Any, machine: Machine) -> bool:
    """Returns whether what was read is a choice that kernels exist for."""
    kinds = (int, int, int, bool, bool, int)
    if not isinstance(value, list) or [type(v) for v in value] != list(kinds):
        return False
    vectors, chains, tile, *_, together = value
    return together in (1, *GROUPS) and 0 < vectors <= machine.registers and 0 < chains <= 2 and 0 < tile <= ALL


def key_of(layer: Layer, grid: Grid) -> str:
    """Returns what a choice depends on: the shapes, the sparsity in per cent, and how much outputs share."""
    shape = [*layer.weight.shape, *layer.stride, *layer.padding, *layer.dilation, layer.groups]
    shared = "" if grid.single or layer.pooled else " ".join(f"{layer.filled(n):.1f}" for n in GROUPS)
    kind = f"{layer.activation}{'+' * (layer.added is not None)}{'max' * layer.pooled}"
    return f"{shape} {grid.images}x{grid.rows}x{grid.columns} {1 - layer.density:.2f} {shared} {kind}"


def _seconds(run: Callable[[], Any]) -> float:
    run()
    return min(timed(run) for _ in range(RUNS))


def timed(run: Callable[[], Any]) -> float:
    """Returns the seconds of one run."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
