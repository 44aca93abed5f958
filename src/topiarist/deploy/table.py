"""Measures what each layer of a network costs at each width on a runtime: the table behind a latency budget."""

from __future__ import annotations

import os
import platform
import time
from contextlib import suppress
from pathlib import Path
from statistics import median

import numpy as np
from torch import nn

from topiarist.budget import Axis, LatencyTable, LayerLatency, widths
from topiarist.deploy.cache import Cache
from topiarist.deploy.layers import Layer, Shape, layers_of
from topiarist.deploy.target import Session, Target
from topiarist.graph import Graph, Inputs, tensors_in
from topiarist.measure import OnStep

LONGEST = 0.015
"""Seconds that one point of the table may take, unless a few runs take longer."""

LEAST = 5
"""Runs of one point."""

LARGE = 2_000_000
"""Weights of a layer above which it is measured at few widths: loading it takes longest."""


def latency_table(
    model: nn.Module,
    graph: Graph,
    inputs: Inputs,
    target: Target,
    *,
    on_step: OnStep | None = None,
    cache: Path | None = None,
) -> LatencyTable:
    """Measures what each layer costs at each width, alone, and what the whole network costs.

    What was measured before on this machine and runtime is read from a cache; an interrupted measurement goes on where
    it was.

    Args:
        model: the network.
        graph: traced from it.
        inputs: of the batch that counts.
        target: the runtime with its threads.
        on_step: called with what is done, how many points are measured, and of how many.
        cache: folder of the cache; by default one in the user's cache folder.

    Raises:
        TopiaristError: the runtime is missing, or the network does not export.
    """
    whole = fastest(target.prepare(model, inputs), inputs, seconds=1.0)
    alone = target.of_layers
    name = f"{alone.name} {alone.version}"
    store = Cache.open(cache, f"{machine()}, {name}, {alone.threads} threads")
    layers = layers_of(model, graph, inputs)
    points = {(layer.shape, *point): None for layer in layers for point in _points(layer)}
    missing = [point for point in points if store.get(_key(point)) is None]
    try:
        for done, point in enumerate(missing):
            if on_step is not None:
                on_step("latencies of layers", done, len(missing))
            module, example = point[0].build(point[1], point[2])
            store.put(_key(point), fastest(alone.prepare(module.eval(), example), example))
    finally:
        store.write()
    return LatencyTable.fitted(
        LatencyTable(
            f"{target.name} {target.version}",
            machine(),
            target.threads,
            next((t.shape[0] for t in tensors_in(inputs) if t.ndim), 1),
            tuple(_measured(layer, store) for layer in layers),
            1000 * whole,
        )
    )


def fastest(session: Session, inputs: Inputs, seconds: float = LONGEST) -> float:
    """Returns the seconds of the fastest run, the one that other work disturbed least."""
    run = session.bind(inputs)
    run()
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < LEAST or (time.perf_counter() - begin < seconds and len(times) < 100):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def ratio_of(session: Session, other: Session, inputs: Inputs, seconds: float = 2.0) -> float:
    """Returns how long one network takes as a fraction of another one: the median over rounds, both run in turns.

    Args:
        session: the one.
        other: the other one, with the same inputs.
        inputs: what both are run on.
        seconds: that the rounds take, at least 7 of them.
    """
    runs = session.bind(inputs), other.bind(inputs)
    for run in runs:
        run()
    ratios: list[float] = []
    begin = time.perf_counter()
    while len(ratios) < 7 or (time.perf_counter() - begin < seconds and len(ratios) < 200):
        times = []
        for run in runs:
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        ratios.append(times[0] / times[1])
    return median(ratios)


def machine() -> str:
    """Returns the processor's name, and how many of them there are."""
    return f"{_processor()}, {os.cpu_count()} cores"


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _key(point: tuple[Shape, int, int]) -> str:
    shape, reads, makes = point
    return f"{shape} {reads} {makes}"


def _measured(layer: Layer, store: Cache) -> LayerLatency:
    """Returns what was measured of a layer."""
    reads, makes = _grid(layer)
    seconds = [[store.values[_key((layer.shape, i, o))] for o in makes] for i in reads]
    grid = (np.array(reads, dtype=np.float64), np.array(makes, dtype=np.float64))
    return LayerLatency(layer.name, layer.inputs, layer.outputs, grid, 1000 * np.array(seconds), layer.positions)


def _points(layer: Layer) -> list[tuple[int, int]]:
    """Returns the widths at which a layer is measured."""
    reads, makes = _grid(layer)
    return [(i, o) for i in reads for o in makes]


def _grid(layer: Layer) -> tuple[list[int], list[int]]:
    """Returns widths of inputs and of outputs: runtimes step along outputs, and are close to linear along inputs."""
    large = layer.inputs.size * layer.outputs.size > LARGE
    return _coarse(layer.inputs, 4 if large else 8), _coarse(layer.outputs, 4) if large else _fine(layer.outputs)


def _coarse(axis: Axis, parts: int) -> list[int]:
    """Returns some widths spread over an axis, in steps of its smallest unit."""
    size, unit = axis.size, axis.step
    if not axis.groups:
        return [size]
    spread = {max(unit, _rounded(size * k / parts, unit)) for k in range(1, parts + 1)}
    small = {w * unit for w in (1, 4) if w * unit < size / parts}
    return sorted(spread | small | {size})


def _fine(axis: Axis) -> list[int]:
    """Returns the widths that groups may take along an axis, of long ones every multiple of a sixteenth."""
    size, unit = axis.size, axis.step
    if len(axis.groups) != 1:
        return _coarse(axis, 8)
    all_widths = [w * unit for w in widths(size // unit)]
    step = size / 12
    chosen = [w for w in all_widths if w <= min(64, size)]
    for width in all_widths:
        if width > 64 and (not chosen or width - chosen[-1] >= step or width == size):
            chosen.append(width)
    return sorted({*chosen, size})


def _rounded(width: float, unit: int) -> int:
    step = unit if unit > 1 else 16 if width >= 64 else 8 if width >= 16 else 4 if width >= 8 else 1
    return max(1, round(width / step)) * step
