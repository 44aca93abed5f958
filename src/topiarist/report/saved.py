"""What figures that are saved as files have in common: colours, axes, and the same file for the same values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, MUTED, LINE, BAR = "#263238", "#607d8b", "#cfd8dc", "#2e7d32"


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: Axes) -> None:
    """Gives axes faint horizontal lines, small labels, and no frame at the top and the right."""
    axes.grid(True, axis="y", color=LINE, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=MUTED, labelsize=8.5)


def save_figure(figure: Figure, path: Path, salt: str) -> None:
    """Saves a figure, as SVG or PNG by its name; the same figure gives the same file."""
    settings: Any = {"svg.hashsalt": salt, "svg.fonttype": "none"}
    with matplotlib.rc_context(settings):
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else {})
