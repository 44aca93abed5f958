"""Draws SVG that takes its colours and its font from the page around it, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from topiarist.report.arm_styles import COLOURS, variable
from topiarist.report.saved import plain_texts


@contextmanager
def drawing(salt: str, width: float, height: float) -> Iterator[tuple[Figure, Callable[[], str]]]:
    """Yields a figure, and a function that returns its SVG after the context has ended.

    Args:
        salt: prefix of the ids in the SVG; the same drawing with the same salt gives the same text.
        width: in inches.
        height: in inches.
    """
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "font.size": 10,
        "text.color": COLOURS["ink"],
        "axes.labelcolor": COLOURS["muted"],
        "axes.edgecolor": COLOURS["line"],
        "axes.titlecolor": COLOURS["muted"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": COLOURS["line"],
        "ytick.color": COLOURS["line"],
        "xtick.labelcolor": COLOURS["muted"],
        "ytick.labelcolor": COLOURS["muted"],
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        drawn: list[str] = []
        yield figure, lambda: drawn[0]
        plain_texts(figure)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
        drawn.append(_inline(buffer.getvalue(), salt))


def one_plot(figure: Figure) -> Axes:
    """Adds axes with faint horizontal lines."""
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    axes.grid(True, axis="y", color=COLOURS["line"], lw=0.6)
    return axes


def _inline(svg: str, salt: str) -> str:
    """Returns the SVG as part of a page: no prologue, no outside names, unique ids, the page's colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'((?:id|href)="#?|url\(#)', rf"\g<1>{salt}-", svg)
    svg = re.sub(r"font-family:[^;\"]*", "font-family: inherit", svg)
    svg = re.sub(r"(font:[^;\"]*?\d(?:px|pt))[^;\"]*", r"\1 sans-serif; font-family: inherit", svg)
    width, height = re.findall(r'(?:width|height)="([\d.]+)pt"', svg[: svg.index(">")])[:2]
    size = f'style="--w: {float(width) * 4 / 3:.0f}px" class="figure" aria-hidden="true" '
    svg = re.sub(r'(?:width|height)="[\d.]+pt"\s*', "", svg[: svg.index(">")]) + svg[svg.index(">") :]
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{variable(name)})")
    return svg.replace("<svg ", f"<svg {size}", 1)
