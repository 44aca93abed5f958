"""The picture of a sensitivity scan: how accuracy falls as one group alone loses units."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from topiarist.pruning import Point, Sensitivity

_INK, _MUTED, _LINE = "#263238", "#607d8b", "#cfd8dc"
_NAMES = 9
"""Groups that a panel names one by one; of more, the first and the last."""


def draw(found: Sensitivity) -> Figure:
    """A panel for each size of feature map, a line for each group: dark where it is early in the network, light late.

    Args:
        found: the scan; it may be unfinished.
    """
    stages: dict[str, list[tuple[Point, ...]]] = {}
    for points in found.groups.values():
        stages.setdefault(points[0].stage, []).append(points)
    columns = max(1, min(3, len(stages)))
    rows = max(1, -(-len(stages) // columns))
    figure = Figure(figsize=(0.8 + 3.1 * columns, 0.7 + 2.5 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axes in panels[len(stages) :]:
        axes.set_visible(False)
    for axes, (stage, lines) in zip(panels, stages.items(), strict=False):
        _panel(axes, lines, found.accuracy)
        axes.set_title(stage or "no feature map", fontsize=10, color=_INK, loc="left")
    figure.supxlabel("units of one group that stay, all others whole", fontsize=10, color=_INK)
    figure.supylabel(f"accuracy on {found.examples} held-out examples, %", fontsize=10, color=_INK)
    return figure


def _panel(axes: Axes, lines: list[tuple[Point, ...]], whole: float) -> None:
    colours = matplotlib.colormaps["viridis"]
    for number, points in enumerate(lines):
        named = len(lines) <= _NAMES or number in (0, len(lines) - 1)
        axes.plot(
            [100.0, *(100.0 * point.kept / point.units for point in points)],
            [whole, *(point.accuracy for point in points)],
            marker="o",
            ms=2.5,
            lw=1.1,
            color=colours(0.9 * number / max(1, len(lines) - 1)),
            label=points[0].group if named else None,
        )
    axes.axhline(whole, color=_MUTED, lw=0.8, ls=(0, (4, 3)), zorder=1)
    axes.set_xlim(102, 0)
    axes.set_ylim(0, 102)
    axes.xaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.grid(True, axis="y", color=_LINE, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_MUTED, labelsize=8.5)
    axes.legend(fontsize=7, frameon=False, loc="lower left", labelcolor=_INK)


def save_sensitivity(found: Sensitivity, path: Path) -> None:
    """Writes the picture; the name says whether as SVG or as PNG.

    Args:
        found: the scan.
        path: ends in ``.svg`` or ``.png``.
    """
    settings: Any = {"svg.hashsalt": "sensitivity", "svg.fonttype": "none"}
    with matplotlib.rc_context(settings):  # the same scan gives the same file
        draw(found).savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else {})
