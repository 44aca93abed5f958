"""The picture of a design pattern: the fraction kept in each stage, and where in the kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from topiarist.guided import ONE, KernelPattern, Pattern, WidthPattern

_INK, _MUTED, _LINE, _BAR = "#263238", "#607d8b", "#cfd8dc", "#2e7d32"
_COLOURS = "Greens"


def draw(pattern: Pattern) -> Figure:
    """Bars of the fraction kept in each stage; for kernels also a map of the positions of each.

    Args:
        pattern: of either kind.
    """
    if isinstance(pattern, KernelPattern):
        return _kernels(pattern)
    assert isinstance(pattern, WidthPattern)
    figure = Figure(figsize=(1.2 + 0.8 * len(pattern.stages), 2.6), layout="constrained")
    FigureCanvasAgg(figure)
    _bars(figure.subplots(), {_named(stage): kept for stage, kept in pattern.stages.items()}, "units kept")
    return figure


def _kernels(pattern: KernelPattern) -> Figure:
    """A bar for each stage and size of kernel, and below it the map of its positions, where it has several."""
    kernels = [(stage, size, kept) for stage, sizes in pattern.stages.items() for size, kept in sizes.items()]
    figure = Figure(figsize=(1.2 + 1.2 * len(kernels), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, len(kernels), height_ratios=(3, 2))
    densities = {_kernel_named(*place): kept for place, kept in pattern.shares.items()}
    _bars(figure.add_subplot(grid[0, :]), densities, "weights kept")
    for column, (_, size, kept) in enumerate(kernels):
        axes = figure.add_subplot(grid[1, column])
        sides = [int(side) for side in size.split("x")]
        axes.set_axis_off()
        if len(kept) > 1:
            _map(axes, [kept[start : start + sides[-1]] for start in range(0, len(kept), sides[-1])])
    return figure


def _bars(axes: Axes, kept: dict[str, float], label: str) -> None:
    places = range(len(kept))
    bars = axes.bar(places, [100 * value for value in kept.values()], width=0.7, color=_BAR, alpha=0.85, lw=0)
    axes.bar_label(bars, fmt="%.3g", fontsize=8.5, color=_INK)
    axes.set_xticks(list(places), list(kept), fontsize=9)
    axes.set_xlim(-0.5, len(kept) - 0.5)
    axes.set_ylim(0, 1.15 * max(100 * value for value in kept.values()))
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.set_ylabel(label, color=_INK)
    axes.set_axisbelow(True)
    axes.grid(True, axis="y", color=_LINE, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_MUTED, labelsize=8.5)


def _map(axes: Axes, rows: list[Any]) -> None:
    """Per cent of the kernels that keep a weight at each position, each map on a scale of its own."""
    highest = max(max(row) for row in rows)
    axes.imshow(rows, cmap=_COLOURS, vmin=0, vmax=1.25 * highest)
    if len(rows) * len(rows[0]) > 49:
        return
    for y, row in enumerate(rows):
        for x, value in enumerate(row):
            colour = "white" if value > 0.7 * highest else _INK
            axes.text(x, y, f"{100 * value:.2g}", ha="center", va="center", fontsize=8, color=colour)


def _named(stage: str) -> str:
    return stage or "no map"


def _kernel_named(stage: str, size: str) -> str:
    kernel = "linear" if size == ONE else size
    return kernel if stage == ONE else f"{kernel} on\n{_named(stage)}"


def save_pattern(pattern: Pattern, path: Path) -> None:
    """Writes the picture; the name says whether as SVG or as PNG.

    Args:
        pattern: of either kind.
        path: ends in ``.svg`` or ``.png``.
    """
    settings: Any = {"svg.hashsalt": "pattern", "svg.fonttype": "none"}
    with matplotlib.rc_context(settings):  # the same pattern gives the same file
        draw(pattern).savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else {})
