"""The figure of a design pattern: the fraction kept in each stage, and at each position of the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from topiarist.guided import ONE, KernelPattern, Pattern, WidthPattern
from topiarist.report.saved import BAR, INK, new_figure, save_figure, tidy


def draw(pattern: Pattern) -> Figure:
    """Draws bars of the fraction kept in each stage; for kernels also a map of the positions of each.

    Args:
        pattern: of either kind.
    """
    if isinstance(pattern, KernelPattern):
        return _kernels(pattern)
    assert isinstance(pattern, WidthPattern)
    figure = new_figure(1.2 + 0.8 * len(pattern.stages), 2.6)
    _bars(figure.subplots(), {_stage_name(stage): kept for stage, kept in pattern.stages.items()}, "units kept")
    return figure


def _kernels(pattern: KernelPattern) -> Figure:
    """Draws a bar for each stage and size of kernel, and below it the map of its positions, where it has several."""
    kernels = [(stage, size, kept) for stage, sizes in pattern.stages.items() for size, kept in sizes.items()]
    figure = new_figure(1.2 + 1.2 * len(kernels), 4.2)
    grid = figure.add_gridspec(2, len(kernels), height_ratios=(3, 2))
    densities = {_kernel_name(*place): kept for place, kept in pattern.shares.items()}
    _bars(figure.add_subplot(grid[0, :]), densities, "weights kept")
    for column, (_, size, kept) in enumerate(kernels):
        axes = figure.add_subplot(grid[1, column])
        sides = [int(side) for side in size.split("x")]
        axes.set_axis_off()
        if len(kept) > 1:
            _map(axes, [kept[start : start + sides[-1]] for start in range(0, len(kept), sides[-1])])
    return figure


def _bars(axes: Axes, kept: dict[str, float], label: str) -> None:
    positions = range(len(kept))
    bars = axes.bar(positions, [100 * value for value in kept.values()], width=0.7, color=BAR, alpha=0.85, lw=0)
    axes.bar_label(bars, fmt="%.3g", fontsize=8.5, color=INK)
    axes.set_xticks(list(positions), list(kept), fontsize=9)
    axes.set_xlim(-0.5, len(kept) - 0.5)
    axes.set_ylim(0, 1.15 * max(100 * value for value in kept.values()))
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.set_ylabel(label, color=INK)
    axes.set_axisbelow(True)
    tidy(axes)


def _map(axes: Axes, rows: Sequence[Sequence[float]]) -> None:
    """Draws per cent of the kernels that keep a weight at each position, each map on a scale of its own."""
    highest = max(max(row) for row in rows)
    axes.imshow(rows, cmap="Greens", vmin=0, vmax=1.25 * highest)
    if len(rows) * len(rows[0]) > 49:
        return
    for y, row in enumerate(rows):
        for x, value in enumerate(row):
            colour = "white" if value > 0.7 * highest else INK
            axes.text(x, y, f"{100 * value:.2g}", ha="center", va="center", fontsize=8, color=colour)


def _stage_name(stage: str) -> str:
    return stage or "no map"


def _kernel_name(stage: str, size: str) -> str:
    kernel = "linear" if size == ONE else size
    return kernel if stage == ONE else f"{kernel} on\n{_stage_name(stage)}"


def save_pattern(pattern: Pattern, path: Path) -> None:
    """Saves the figure, as SVG or PNG by its name.

    Args:
        pattern: of either kind.
        path: ends in ``.svg`` or ``.png``.
    """
    save_figure(draw(pattern), path, "pattern")
