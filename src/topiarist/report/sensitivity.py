"""The figure of a sensitivity scan: accuracy as one group alone is pruned."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from topiarist.pruning import Point, Sensitivity
from topiarist.report.saved import INK, MUTED, new_figure, save_figure, tidy

NAMED = 9
"""Up to so many groups a panel names each; of more, the first and the last."""


def draw(scan: Sensitivity) -> Figure:
    """Draws a panel for each size of feature map, a line for each group: dark early in the network, light late.

    Args:
        scan: it may be unfinished.
    """
    stages: dict[str, list[tuple[Point, ...]]] = {}
    for points in scan.groups.values():
        stages.setdefault(points[0].stage, []).append(points)
    columns = max(1, min(3, len(stages)))
    rows = max(1, -(-len(stages) // columns))
    figure = new_figure(0.8 + 3.1 * columns, 0.7 + 2.5 * rows)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axes in panels[len(stages) :]:
        axes.set_visible(False)
    for axes, (stage, lines) in zip(panels, stages.items(), strict=False):
        _panel(axes, lines, scan.accuracy)
        axes.set_title(stage or "no feature map", fontsize=10, color=INK, loc="left")
    figure.supxlabel("units kept in one group, no other group pruned", fontsize=10, color=INK)
    figure.supylabel(f"accuracy on {scan.examples} held-out examples, %", fontsize=10, color=INK)
    return figure


def _panel(axes: Axes, lines: list[tuple[Point, ...]], unpruned: float) -> None:
    colours = matplotlib.colormaps["viridis"]
    for number, points in enumerate(lines):
        named = len(lines) <= NAMED or number in (0, len(lines) - 1)
        axes.plot(
            [100.0, *(100.0 * point.kept / point.units for point in points)],
            [unpruned, *(point.accuracy for point in points)],
            marker="o",
            ms=2.5,
            lw=1.1,
            color=colours(0.9 * number / max(1, len(lines) - 1)),
            label=points[0].group if named else None,
        )
    axes.axhline(unpruned, color=MUTED, lw=0.8, ls=(0, (4, 3)), zorder=1)
    axes.set_xlim(102, 0)
    axes.set_ylim(0, 102)
    axes.xaxis.set_major_formatter(PercentFormatter(decimals=0))
    tidy(axes)
    axes.legend(fontsize=7, frameon=False, loc="lower left", labelcolor=INK)


def save_sensitivity(scan: Sensitivity, path: Path) -> None:
    """Saves the figure, as SVG or PNG by its name.

    Args:
        scan: it may be unfinished.
        path: ends in ``.svg`` or ``.png``.
    """
    save_figure(draw(scan), path, "sensitivity")
