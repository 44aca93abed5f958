"""The figure of a bench: latency by network and setting, with its interval."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from topiarist.deploy import Bench, Setting
from topiarist.report.saved import INK, MUTED, new_figure, save_figure, tidy


def draw(bench: Bench) -> Figure:
    """Draws a panel for each setting, each from zero: a line for each network, a bar up to its latency.

    Args:
        bench: it may be unfinished.
    """
    settings, names = bench.settings, [network.name for network in bench.networks]
    columns = max(1, min(3, len(settings)))
    rows = max(1, -(-len(settings) // columns))
    longest = max(len(name) for name in names)
    figure = new_figure(0.6 + 0.06 * min(longest, 40) + 2.6 * columns, rows * (0.9 + 0.34 * len(names)))
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for axes in panels[len(settings) :]:
        axes.set_visible(False)
    for axes, setting in zip(panels, settings, strict=False):
        _panel(axes, bench, setting)
    panels[0].set_yticks(range(len(names)), [_ending(name) for name in names], color=INK)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    figure.supxlabel("latency of one run, ms: median and its 95 % interval", fontsize=9, color=INK)
    return figure


def _panel(axes: Axes, bench: Bench, setting: Setting) -> None:
    colours = matplotlib.colormaps["viridis"]
    readings = {reading.network: reading for reading in bench.readings if reading.setting == setting}
    for place, network in enumerate(bench.networks):
        latency = readings[network.name].latency
        colour = colours(0.85 * place / max(1, len(bench.networks) - 1))
        if latency is None:
            axes.text(0, place, " not measured", va="center", fontsize=8, color=MUTED)
            continue
        axes.barh(place, latency.value, height=0.6, color=colour, alpha=0.75, lw=0)
        if latency.low is not None and latency.high is not None:
            axes.hlines(place, latency.low, latency.high, color=INK, lw=1.4)
        axes.text(latency.high or latency.value, place, f"  {latency.value:.3g}", va="center", fontsize=8, color=INK)
    tidy(axes)
    axes.grid(False, axis="y")
    axes.margins(x=0.18)
    axes.set_xlim(left=0)
    axes.set_title(str(setting), fontsize=9, color=INK, loc="left")


def _ending(name: str, most: int = 40) -> str:
    return name if len(name) <= most else f"…{name[1 - most :]}"


def save_bench(bench: Bench, path: Path) -> None:
    """Saves the figure, as SVG or PNG by its name.

    Args:
        bench: it may be unfinished.
        path: ends in ``.svg`` or ``.png``.
    """
    save_figure(draw(bench), path, "bench")
