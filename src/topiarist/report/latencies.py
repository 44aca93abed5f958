"""The figure of a latency budget: what each layer costs at each width, and the width that it got."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from topiarist.budget import LatencyTable, LayerLatency, LayerZeros, ZerosTable
from topiarist.graph import Keep
from topiarist.report.saved import INK, MUTED, new_figure, save_figure, tidy

SHOWN = 12
"""Layers of a figure, those that cost most."""

LINE = "#3b6ea5"
"""Colour of what a layer costs."""


Panel = Callable[[Axes], None]
"""Draws one layer."""


def draw(table: LatencyTable | ZerosTable, keep: Keep) -> Figure:
    """Draws a panel for each of the layers that cost most, in the order of execution.

    Milliseconds against outputs, or, where weights were pruned, against the fraction that is not zero.

    Args:
        table: what the layers cost.
        keep: what was kept of the groups.
    """
    shares = {name: float(kept.double().mean()) for name, kept in keep.items()}
    panels = _zeros(table, shares) if isinstance(table, ZerosTable) else _widths(table, shares)
    columns = max(1, min(4, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    figure = new_figure(0.8 + 2.4 * columns, 0.7 + 1.9 * rows)
    places = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in places[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(places, panels, strict=False):
        panel(axes)
    along = "fraction of the weights kept" if isinstance(table, ZerosTable) else "outputs of the layer"
    figure.supxlabel(along, fontsize=10, color=INK)
    figure.supylabel(f"milliseconds on {table.target}", fontsize=10, color=INK)
    return figure


def _widths(table: LatencyTable, shares: Mapping[str, float]) -> list[Panel]:
    """Returns the panels of a table of widths."""
    slowest = sorted(table.layers, key=lambda layer: -float(table.layer(layer, {})))[:SHOWN]
    shown = [layer for layer in table.layers if layer in slowest]
    return [
        partial(_panel, layer=layer, reads=layer.inputs.width(shares), makes=float(layer.outputs.width(shares)))
        for layer in shown
    ]


def _zeros(table: ZerosTable, shares: Mapping[str, float]) -> list[Panel]:
    """Returns the panels of a table of zeros."""
    slowest = sorted(table.layers, key=lambda layer: -float(layer.at(1.0)))[:SHOWN]
    return [
        partial(_density, layer=layer, kept=shares.get(layer.group, 1.0)) for layer in table.layers if layer in slowest
    ]


def _density(axes: Axes, layer: LayerZeros, kept: float) -> None:
    """Draws one layer by its density, and where it stands."""
    axes.plot(layer.densities, layer.at(layer.densities), color=LINE, lw=1.4, marker="o", ms=2, label="kernel or dense")
    axes.axvline(kept, color=INK, lw=0.8, ls=(0, (4, 3)), zorder=1)
    axes.set_ylim(bottom=0)
    axes.set_title(layer.group, fontsize=8, color=INK, loc="left")
    tidy(axes)


def _panel(axes: Axes, layer: LayerLatency, reads: object, makes: float) -> None:
    """Draws one layer: with all inputs, with those that are kept, and where it stands."""
    whole, kept = (layer.along_outputs(width) for width in (float(layer.inputs.size), float(reads)))  # type: ignore[arg-type]
    axes.plot(layer.grid[1], whole, color=MUTED, lw=1.0, label="all inputs")
    axes.plot(layer.grid[1], kept, color=LINE, lw=1.4, marker="o", ms=2, label="inputs kept")
    axes.axvline(makes, color=INK, lw=0.8, ls=(0, (4, 3)), zorder=1)
    axes.set_ylim(bottom=0)
    axes.set_title(layer.layer, fontsize=8, color=INK, loc="left")
    tidy(axes)


def save_latencies(table: LatencyTable | ZerosTable, keep: Keep, path: Path) -> None:
    """Saves the figure, as SVG or PNG by its name.

    Args:
        table: what the layers cost.
        keep: what was kept of the groups.
        path: ends in ``.svg`` or ``.png``.
    """
    save_figure(draw(table, keep), path, "latencies")
