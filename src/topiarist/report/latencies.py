"""The figure of a latency budget: what each layer costs at each width, and the width that it got."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from topiarist.budget import LatencyTable, LayerLatency
from topiarist.graph import Keep
from topiarist.report.saved import INK, MUTED, new_figure, save_figure, tidy

SHOWN = 12
"""Layers of a figure, those that cost most."""

LINE = "#3b6ea5"
"""Colour of what a layer costs."""


def draw(table: LatencyTable, keep: Keep) -> Figure:
    """Draws a panel for each of the layers that cost most: milliseconds against outputs, in the order of execution.

    Args:
        table: what the layers cost.
        keep: what was kept of the groups.
    """
    shares = {name: float(kept.double().mean()) for name, kept in keep.items()}
    slowest = sorted(table.layers, key=lambda layer: -float(table.layer(layer, {})))[:SHOWN]
    shown = [layer for layer in table.layers if layer in slowest]
    columns = max(1, min(4, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    figure = new_figure(0.8 + 2.4 * columns, 0.7 + 1.9 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    for axes, layer in zip(panels, shown, strict=False):
        _panel(axes, layer, layer.inputs.width(shares), float(layer.outputs.width(shares)))
    figure.supxlabel("outputs of the layer", fontsize=10, color=INK)
    figure.supylabel(f"milliseconds on {table.target}", fontsize=10, color=INK)
    return figure


def _panel(axes: Axes, layer: LayerLatency, reads: object, makes: float) -> None:
    """Draws one layer: with all inputs, with those that are kept, and where it stands."""
    whole, kept = (layer.along_outputs(width) for width in (float(layer.inputs.size), float(reads)))  # type: ignore[arg-type]
    axes.plot(layer.grid[1], whole, color=MUTED, lw=1.0, label="all inputs")
    axes.plot(layer.grid[1], kept, color=LINE, lw=1.4, marker="o", ms=2, label="inputs kept")
    axes.axvline(makes, color=INK, lw=0.8, ls=(0, (4, 3)), zorder=1)
    axes.set_ylim(bottom=0)
    axes.set_title(layer.layer, fontsize=8, color=INK, loc="left")
    tidy(axes)


def save_latencies(table: LatencyTable, keep: Keep, path: Path) -> None:
    """Saves the figure, as SVG or PNG by its name.

    Args:
        table: what the layers cost.
        keep: what was kept of the groups.
        path: ends in ``.svg`` or ``.png``.
    """
    save_figure(draw(table, keep), path, "latencies")
