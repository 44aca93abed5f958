"""The figures of the report: SVG that takes its colours and its font from the page around it, light or dark.

Each panel is an SVG of its own, about as wide as a telephone, so that the page can set them beside or below each other.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

ARMS = (
    *("unpruned", "pruned", "finetune", "scratch_e", "scratch_b", "lottery", "lottery_random"),
    *("uniform", "guided", "transferred"),
)
_NAMES = ("ink", "muted", "line", "paper", *ARMS)
COLOURS = {name: f"#1e0a{number:02x}" for number, name in enumerate(_NAMES)}
"""Stand-ins that matplotlib draws with; each becomes ``var(--NAME)`` in the page."""

MARKERS = "osD^vP*X"

Rows = Sequence[Mapping[str, Any]]


def tradeoff(rows: Rows, salt: str) -> str:
    """Accuracy against MACs, mean ± standard deviation: a colour per arm (keyed in the page), a marker per method."""
    shown = [row for row in rows if row["arm"] != "pruned" and None not in (row["accuracy"]["mean"], row["macs_ratio"])]
    methods = list(dict.fromkeys(row["method"] for row in shown))
    markers = {name: MARKERS[number % len(MARKERS)] for number, name in enumerate(methods)}
    with _figure(salt, 5.4, 3.3) as (figure, axes, svg):
        for row in shown:
            fellows = [other for other in shown if abs(other["macs_ratio"] - row["macs_ratio"]) < 0.03]
            shift = (fellows.index(row) - (len(fellows) - 1) / 2) * 1.2  # those of the same MACs stand side by side
            place = 100 * row["macs_ratio"] + shift, row["accuracy"]["mean"]
            style = _point(row["arm"]) | {"fmt": markers[row["method"]], "ms": 5.5}
            axes.errorbar(*place, row["accuracy"]["std"] or 0.0, **style)
        _reference(axes.axhline, next((row for row in shown if row["method"] == "none"), None))
        axes.set_xlim(0, 106)
        axes.xaxis.set_major_formatter(PercentFormatter(decimals=0))
        axes.set_xlabel("MACs, of the unpruned network")
        axes.set_ylabel("test accuracy, %")
        key: Any = {"color": COLOURS["muted"], "ls": "", "ms": 5.5}
        handles = [
            axes.plot([], [], marker, label=name, **key)[0] for name, marker in markers.items() if name != "none"
        ]
        columns = min(4, max(1, len(handles)))
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, handletextpad=0.1)
    return svg()


def arms(rows: Rows, whole: Mapping[str, Any] | None, limits: tuple[float, float], salt: str) -> str:
    """The arms of one pruning side by side: every seed faint, mean ± standard deviation strong."""
    with _figure(salt, 3.7, 0.62 + 0.34 * len(rows)) as (_, axes, svg):
        low, high = limits
        for place, row in enumerate(rows):
            mean, std = row["accuracy"]["mean"], row["accuracy"]["std"] or 0.0
            if mean is None:
                continue
            if mean < low:
                axes.text(low, place, f"◂ {mean:.1f}", va="center", color=COLOURS["muted"], fontsize=10)
                continue
            seeds = list(row["accuracy"]["seeds"].values())
            axes.scatter(
                seeds, [place] * len(seeds), s=14, color=COLOURS[row["arm"]], alpha=0.35, linewidths=0, zorder=2
            )
            axes.errorbar(mean, place, xerr=std, fmt="o", ms=6, **_point(row["arm"]))
        _reference(axes.axvline, whole)
        axes.set_yticks(range(len(rows)), [row["label"] for row in rows], color=COLOURS["ink"])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(low, high)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(False, axis="y")
        axes.grid(True, axis="x", color=COLOURS["line"], lw=0.6)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    return svg()


def limits(rows: Rows) -> tuple[float, float]:
    """Accuracies that the panels of `arms` show: all but those without retraining, which can be far off."""
    values = [value for row in rows if row["arm"] != "pruned" for value in row["accuracy"]["seeds"].values()]
    if not values:
        return 0.0, 100.0
    low, high = min(values), max(values)
    margin = max(0.08 * (high - low), 0.15)
    return max(0.0, low - 2 * margin), high + margin


def widths(widths: Mapping[str, Sequence[float]], salt: str) -> str:
    """Units per group before (outline) and after (filled), in the order of execution."""
    with _figure(salt, 3.7, 2.1 if len(widths) > 14 else 2.5) as (_, axes, svg):
        places = range(len(widths))
        kept = [value[0] for value in widths.values()]
        units = [value[1] for value in widths.values()]
        axes.bar(places, units, width=0.8, color="none", edgecolor=COLOURS["muted"], lw=0.8)
        axes.bar(places, kept, width=0.8, color=COLOURS["finetune"], alpha=0.85, lw=0)
        if max(units) > 50 * min(units):
            axes.set_yscale("log")
        else:
            axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        if len(widths) > 14:
            axes.set_xlabel("group, in the order of execution")
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        else:
            axes.set_xticks(list(places), list(widths), rotation=40, ha="right", rotation_mode="anchor", fontsize=8.5)
        axes.set_ylabel("units")
        axes.margins(x=0.02)
    return svg()


def _point(arm: str) -> dict[str, Any]:
    return {"color": COLOURS[arm], "mec": COLOURS["paper"], "mew": 0.7, "elinewidth": 1.5, "zorder": 3}


def _reference(line: Any, whole: Mapping[str, Any] | None) -> None:
    """A dashed line at the accuracy of the unpruned network."""
    if whole and whole["accuracy"]["mean"] is not None:
        line(whole["accuracy"]["mean"], color=COLOURS["unpruned"], lw=0.8, ls=(0, (4, 3)), zorder=1)


@contextmanager
def _figure(salt: str, width: float, height: float) -> Iterator[tuple[Figure, Axes, Any]]:
    """A quiet pair of axes, and a function that gives the SVG once the figure is drawn."""
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "font.size": 10,
        "text.color": COLOURS["ink"],
        "axes.labelcolor": COLOURS["muted"],
        "axes.edgecolor": COLOURS["line"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": COLOURS["line"],
        "ytick.color": COLOURS["line"],
        "xtick.labelcolor": COLOURS["muted"],
        "ytick.labelcolor": COLOURS["muted"],
        "legend.labelcolor": COLOURS["muted"],
        "legend.fontsize": 9.5,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.set_axisbelow(True)
        axes.grid(True, axis="y", color=COLOURS["line"], lw=0.6)
        drawn: list[str] = []
        yield figure, axes, lambda: drawn[0]
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
        drawn.append(_inline(buffer.getvalue(), salt))


def _inline(svg: str, salt: str) -> str:
    """The SVG as part of a page: no prologue, no outside names, ids of its own, the page's colours and font."""
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
        svg = svg.replace(colour, f"var(--{name.replace('_', '-')})")
    return svg.replace("<svg ", f"<svg {size}", 1)
