"""Measures what each layer of a network costs at each width on a runtime: the table behind a latency budget."""

from __future__ import annotations

import os
import platform
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn

from topiarist.budget import Axis, Floats, LatencyTable, LayerLatency, widths
from topiarist.deploy.prices.cache import Cache
from topiarist.deploy.prices.layers import Call, Layer, Shape, layers_of
from topiarist.deploy.target import Session, Target
from topiarist.graph import Graph, Inputs, map_tensors, tensors_in
from topiarist.measure import OnStep, Rounds, device_of, interleaved

LONGEST = 0.015
"""Seconds that one point of the table may take, unless a few runs take longer."""

LEAST = 5
"""Runs of one point."""

SAVED = 100
"""Points after which what was measured is written."""

CALL = (Call(), 1, 1)
"""The point that measures what a run costs before anything is computed."""

LEFT = 0.02
"""The least share of a layer's time that stays when that is taken off."""

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
    alone, device, dtype = target.of_layers, device_of(model), _dtype_of(model)
    name = f"{alone.name} {alone.version}"
    store = Cache.open(cache, f"{machine(device)}, {name}, {alone.threads} threads, {dtype}")
    layers = layers_of(model, graph, inputs)
    points = {CALL: None} | {(layer.shape, *point): None for layer in layers for point in _points(layer)}
    missing = [point for point in points if store.get(_key(point)) is None]
    try:
        for done, point in enumerate(missing):
            if on_step is not None:
                on_step("latencies of layers", done, len(missing))
            module, example = point[0].build(point[1], point[2])
            here = map_tensors(example, lambda tensor: tensor.to(device, dtype))
            if done % SAVED == 0:
                store.write()
            store.put(_key(point), fastest(alone.prepare(module.eval().to(device, dtype), here), here))
    finally:
        store.write()
    return LatencyTable.fitted(
        LatencyTable(
            f"{target.name} {target.version}",
            machine(device),
            target.threads,
            next((t.shape[0] for t in tensors_in(inputs) if t.ndim), 1),
            tuple(_measured(layer, store) for layer in layers),
            1000 * whole,
            call=1000 * store.values[_key(CALL)],
        )
    )


def _dtype_of(model: nn.Module) -> torch.dtype:
    """Returns the type of a network's numbers."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


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


def ratio_of(session: Session, other: Session, inputs: Inputs, seconds: float = 2.0, least: int = 7) -> float:
    """Returns how long one network takes as a fraction of another one: the median over rounds that run both.

    Args:
        session: the one.
        other: the other one, with the same inputs.
        inputs: what both are run on.
        seconds: that the rounds take.
        least: rounds, even if they take longer.
    """
    runs = {"one": session.bind(inputs), "other": other.bind(inputs)}
    first = [each["one"] / each["other"] for each in interleaved(runs, Rounds(least, warmup=1))]
    more = interleaved(runs, Rounds(200, seconds=seconds, warmup=0, seed=1))
    return median([*first, *(each["one"] / each["other"] for each in more)])


def machine(device: torch.device | None = None) -> str:
    """Returns the processor's name, and how many of them there are; or the name of a GPU."""
    if device is not None and device.type == "cuda":
        return torch.cuda.get_device_name(device)
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


@dataclass(frozen=True)
class Grid:
    """The widths of one axis: some where every pair is measured, and all that a group may take.

    Attributes:
        coarse: spread over the axis; the last one is all of it.
        fine: these and all others, ascending.
    """

    coarse: tuple[int, ...]
    fine: tuple[int, ...]


def _points(layer: Layer) -> list[tuple[int, int]]:
    """Returns the widths of inputs and outputs at which a layer is measured: a coarse grid, and both edges finely."""
    reads, makes = _grids(layer)
    points = [(i, o) for i in reads.coarse for o in makes.coarse]
    points += [(i, makes.coarse[-1]) for i in reads.fine]
    points += [(reads.coarse[-1], o) for o in makes.fine]
    return list(dict.fromkeys(points))


def _measured(layer: Layer, store: Cache) -> LayerLatency:
    """Returns what was measured of a layer, at all pairs of widths.

    A runtime's steps lie along each axis: what a coarse grid says between its points is corrected by what both edges
    say there, ``ms(i, o) = coarse(i, o) · edge(i, O) / coarse(i, O) · edge(I, o) / coarse(I, o)``.
    """
    reads, makes = _grids(layer)

    call = store.values[_key(CALL)]  # which a layer in a network does not pay

    def measured(rows: tuple[int, ...], columns: tuple[int, ...]) -> Floats:
        seconds = np.array([[store.values[_key((layer.shape, i, o))] for o in columns] for i in rows])
        return 1000 * np.maximum(seconds - call, LEFT * seconds)

    coarse = measured(reads.coarse, makes.coarse)
    along = np.array([np.interp(makes.fine, makes.coarse, row) for row in coarse])
    between = np.array([np.interp(reads.fine, reads.coarse, column) for column in along.T]).T
    rows = measured(reads.fine, makes.coarse[-1:]) / between[:, -1:]
    columns = measured(reads.coarse[-1:], makes.fine) / between[-1:, :]
    grid = (np.array(reads.fine, dtype=np.float64), np.array(makes.fine, dtype=np.float64))
    filled = between * rows * columns
    return LayerLatency(layer.name, layer.inputs, layer.outputs, grid, filled, layer.positions, layer.macs)


def _grids(layer: Layer) -> tuple[Grid, Grid]:
    """Returns the widths along both axes; of layers that take long to load, few."""
    large = layer.inputs.size * layer.outputs.size > LARGE
    return _grid(layer.inputs, large), _grid(layer.outputs, large)


def _grid(axis: Axis, large: bool) -> Grid:
    size, unit = axis.size, axis.step
    if not axis.groups:
        return Grid((size,), (size,))
    shares = (0.5, 1.0) if large else (0.25, 0.5, 0.75, 1.0)
    coarse = {min(size, _rounded(size * share, unit)) for share in shares} | {size}
    if len(axis.groups) > 1:
        fine = {min(size, _rounded(size * k / 8, unit)) for k in range(1, 8)}
    elif large:
        fine = {min(size, _rounded(size * k / 4, unit)) for k in (1, 3)}
    else:
        offered = [width * unit for width in widths(size // unit)]
        fine = {width for width in offered if width <= 64} | _apart([w for w in offered if w > 64], size / 16)
    return Grid(tuple(sorted(coarse)), tuple(sorted(coarse | fine | {unit})))


def _apart(ascending: list[int], step: float) -> set[int]:
    """Returns widths that are at least so far from each other."""
    chosen: list[int] = []
    for width in ascending:
        if not chosen or width - chosen[-1] >= step:
            chosen.append(width)
    return set(chosen)


def _rounded(width: float, unit: int) -> int:
    """Returns a width nearby that is a multiple of the unit, or of what runtimes step by."""
    step = unit if unit > 1 else 16 if width >= 64 else 8 if width >= 16 else 4 if width >= 8 else 1
    return max(1, round(width / step)) * step
