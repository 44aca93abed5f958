"""What figures that are saved as files have in common: colours, axes, and the same file for the same values."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter

from topiarist.files import atomically
from topiarist.report.formatting import printable

INK, MUTED, LINE, BAR = "#263238", "#607d8b", "#cfd8dc", "#2e7d32"


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain_texts(figure: Figure) -> None:
    """Makes every text of a figure mean what it says, as names of users may hold anything: ``$`` begins no formula."""
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if isinstance(ticks := axis.get_major_formatter(), FuncFormatter):  # as names on an axis are, too
            ticks.func = partial(_printed, ticks.func)
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)
        text.set_text(printable(text.get_text()))


def _printed(names: Callable[..., str], *place: object) -> str:
    return printable(names(*place))


def tidy(axes: Axes) -> None:
    """Gives axes faint horizontal lines, small labels, and no frame at the top and the right."""
    axes.grid(True, axis="y", color=LINE, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=MUTED, labelsize=8.5)


def save_figure(figure: Figure, path: Path, salt: str) -> None:
    """Saves a figure in one step, as SVG or PNG by its name; the same figure gives the same file."""
    settings: Any = {"svg.hashsalt": salt, "svg.fonttype": "none"}
    plain_texts(figure)
    kind = path.suffix.removeprefix(".")
    with matplotlib.rc_context(settings):
        options: Any = {"format": kind, "dpi": 150, "metadata": {"Date": None} if kind == "svg" else {}}
        atomically(path, lambda draft: figure.savefig(draft, **options))
