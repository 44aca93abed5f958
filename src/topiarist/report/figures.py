"""The figures of the report.

Each panel is an SVG, about as wide as a telephone, so that the page can arrange them in columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from topiarist.report import formatting
from topiarist.report.arm_styles import COLOURS, Style
from topiarist.report.svg import drawing, one_plot
from topiarist.report.tables import latency_targets
from topiarist.studies import ARMS, Json

WIDTH = 3.7
"""Of all panels, in inches."""

LETTERED = 48
"""Up to so many points of a panel, each shows the letter of its method."""

LATENCY = "latency_ms"

COSTS = {
    "macs_ratio": ("Accuracy against MACs", "MACs, % of the unpruned network"),
    "params_ratio": ("Accuracy against parameters", "parameters, % of the unpruned network"),
    LATENCY: ("Accuracy against latency", "latency, ms for one example"),
}
"""Field of a row that `tradeoff` draws accuracy against → title of the panel and label of the axis."""

UNTRAINED = tuple(name for name, arm in ARMS.items() if not arm.recipe)
"""Arms whose accuracy is that before any training, which can be far off."""

Rows = Sequence[Json]
Styles = Mapping[str, Style]


def costs(rows: Rows) -> dict[str, tuple[str, str]]:
    """Returns `COSTS`, with a latency for each target, ``"latency_ms/NAME"``, where the study has several."""
    targets = latency_targets(rows)
    if len(targets) < 2:
        return COSTS
    fixed = {cost: words for cost, words in COSTS.items() if cost != LATENCY}
    title, label = COSTS[LATENCY]
    return {**fixed, **{f"{LATENCY}/{target}": (f"{title}, {target}", label) for target in targets}}


def value(row: Json, cost: str) -> float | None:
    """Returns a cost of a row."""
    name, _, target = cost.partition("/")
    found: float | None = (_reading(row, target) or {}).get("value") if target else row[name]
    return found


def _reading(row: Json, target: str) -> Json | None:
    """Returns the latency of a row on a target; without a name on the study's first one."""
    return (row.get("latency") or {}).get(target) if target else formatting.first_reading(row)


def _interval(row: Json, cost: str) -> tuple[float, float] | None:
    """Returns the interval of a latency, where it is known."""
    name, _, target = cost.partition("/")
    reading = _reading(row, target) if name == LATENCY else None
    if not reading or reading.get("low") is None or reading.get("high") is None:
        return None
    return reading["low"], reading["high"]


def drawn(rows: Rows, cost: str) -> Rows:
    """Returns the rows that `tradeoff` draws: those with both values, of networks that are trained."""
    trained = [row for row in rows if row["arm"] not in UNTRAINED]
    return [row for row in trained if None not in (row["accuracy"]["mean"], value(row, cost))]


def letters(rows: Rows) -> dict[str, str]:
    """Returns method → letter of its points; nothing where there is one method, or too many points."""
    names = list(dict.fromkeys(row["method"] for row in rows if row["method"] != "none"))
    many = max(len(drawn(rows, cost)) for cost in costs(rows)) > LETTERED or len(names) > 26
    return {} if many or len(names) < 2 else {name: chr(ord("a") + number) for number, name in enumerate(names)}


def tradeoff(rows: Rows, cost: str, styles: Styles, salt: str) -> str:
    """Draws accuracy against a cost, mean ± standard deviation: an arm has a colour and a mark, a method a letter.

    Budgets of one method and arm are joined by a line; points of nearly the same cost are drawn side by side.
    """
    shown, named = drawn(rows, cost), letters(rows)
    with drawing(salt, WIDTH, 3.0) as (figure, svg):
        axes = one_plot(figure)
        amounts, timed = [value(row, cost) or 0.0 for row in shown], cost.startswith(LATENCY)
        intervals = [_interval(row, cost) for row in shown]
        scale = _Scale.of([*amounts, *(end for ends in intervals if ends for end in ends)], from_zero=not timed)
        positions = _side_by_side([scale.to(amount) for amount in amounts])
        if not timed:  # it need not fall with the budget
            _join_budgets(axes, positions, shown, styles)
        for position, amount, ends, row in zip(positions, amounts, intervals, shown, strict=True):
            reach = [position + scale.to(end) - scale.to(amount) for end in ends or ()]
            _draw_point(axes, position, reach, row, styles[row["arm"]], named)
        _reference(axes.axhline, next((row for row in shown if row["method"] == "none"), None))
        axes.set_xlim(min([0.0, *positions]) - 0.05, max([1.0, *positions]) + 0.05)
        scale.mark(axes, "ms" if timed else "%")
        axes.set_xlabel(COSTS[cost.partition("/")[0]][1])
        axes.set_ylabel("test accuracy, %")
    return svg()


def _draw_point(
    axes: Axes, x: float, reach: Sequence[float], row: Json, style: Style, named: Mapping[str, str]
) -> None:
    """Draws one arm: its accuracy with a standard deviation, the interval of its cost, the letter of its method."""
    y, spread = row["accuracy"]["mean"], row["accuracy"]["std"] or 0.0
    axes.plot(reach, [y] * len(reach), color=style.colour, lw=1.3, zorder=3)
    axes.errorbar(x, y, spread, **_point(style), fmt=style.mark, ms=9.5 if named else 7)
    letter: Any = {"ha": "center", "va": "center_baseline", "fontsize": 6.5, "color": COLOURS["paper"], "zorder": 4}
    axes.text(x, y, named.get(row["method"], ""), **letter)


def _join_budgets(axes: Axes, positions: Sequence[float], rows: Rows, styles: Styles) -> None:
    """Draws a thin line through the budgets of each arm and method."""
    for arm, method in dict.fromkeys((row["arm"], row["method"]) for row in rows):
        line = sorted(
            (position, row["accuracy"]["mean"])
            for position, row in zip(positions, rows, strict=True)
            if (row["arm"], row["method"]) == (arm, method)
        )
        axes.plot(*zip(*line, strict=True), color=styles[arm].colour, lw=0.8, alpha=0.4, zorder=2)


@dataclass(frozen=True)
class _Scale:
    """Maps costs between ``low`` and ``high`` to positions between 0 and 1, linearly or logarithmically."""

    low: float
    high: float
    log: bool

    @classmethod
    def of(cls, costs: Sequence[float], *, from_zero: bool) -> _Scale:
        """Returns the scale for these costs: logarithmic where they span more than a decade; else linear, from 0."""
        positive = [cost for cost in costs if cost > 0] or [1.0]
        low, high = min(positive), max(positive)
        if high > 10 * low:
            return cls(low, high, True)
        return cls(0.0 if from_zero or low == high else max(0.0, low - 0.1 * (high - low)), high, False)

    def to(self, cost: float) -> float:
        """Returns the position of a cost."""
        if not self.log:
            return (cost - self.low) / (self.high - self.low)
        return math.log(max(cost, self.low) / self.low) / math.log(self.high / self.low)

    def mark(self, axes: Axes, unit: str) -> None:
        """Sets ticks at round numbers."""
        factor = 100.0 if unit == "%" else 1.0
        if self.log:
            decades = range(math.floor(math.log10(self.low * factor)), 1 + math.ceil(math.log10(self.high * factor)))
            ticks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
        else:
            ticks = list(MaxNLocator(5).tick_values(self.low * factor, self.high * factor))
        ticks = [tick for tick in ticks if self.low * 0.999 <= tick / factor <= self.high * 1.001]
        axes.xaxis.set_major_locator(FixedLocator([self.to(tick / factor) for tick in ticks]))
        axes.xaxis.set_major_formatter(FixedFormatter([f"{tick:g}%" if unit == "%" else f"{tick:g}" for tick in ticks]))


def _side_by_side(positions: Sequence[float], near: float = 0.03) -> list[float]:
    """Returns positions between 0 and 1, of which those that nearly coincide are spread about their mean."""
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    clusters: list[list[int]] = []
    for before, index in pairwise([None, *order]):
        assert index is not None
        if before is None or positions[index] - positions[before] > near:
            clusters.append([])
        clusters[-1].append(index)
    spread = list(positions)
    for cluster in clusters:
        step = min(0.03, 0.2 / len(cluster))
        middle = sum(positions[index] for index in cluster) / len(cluster)
        for number, index in enumerate(sorted(cluster)):  # in the order of the rows
            spread[index] = middle + (number - (len(cluster) - 1) / 2) * step
    return spread


def arms(rows: Rows, unpruned: Json | None, limits: tuple[float, float], styles: Styles, salt: str) -> str:
    """Draws the arms of one pruning side by side: every seed faint, mean ± standard deviation strong."""
    with drawing(salt, WIDTH, 0.62 + 0.34 * len(rows)) as (figure, svg):
        axes = one_plot(figure)
        low, high = limits
        for position, row in enumerate(rows):
            mean, std, style = row["accuracy"]["mean"], row["accuracy"]["std"] or 0.0, styles[row["arm"]]
            if mean is None:
                continue
            if mean < low:
                axes.text(low, position, f"◂ {mean:.1f}", va="center", color=COLOURS["muted"], fontsize=10)
                continue
            seeds = list(row["accuracy"]["seeds"].values())
            axes.scatter(seeds, [position] * len(seeds), s=14, color=style.colour, alpha=0.35, linewidths=0, zorder=2)
            axes.errorbar(mean, position, xerr=std, fmt=style.mark, ms=7, **_point(style))
        _reference(axes.axvline, unpruned)
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
    """Returns the accuracies that the panels of `arms` show: all but those before training, which can be far lower."""
    values = [value for row in rows if row["arm"] not in UNTRAINED for value in row["accuracy"]["seeds"].values()]
    if not values:
        return 0.0, 100.0
    low, high = min(values), max(values)
    margin = max(0.08 * (high - low), 0.15)
    return max(0.0, low - 2 * margin), high + margin


def widths(widths: Mapping[str, Sequence[float]], noun: str, salt: str) -> str:
    """Draws units (or weights) of each group before (outline) and after (filled), in the order of execution."""
    with drawing(salt, WIDTH, 2.1 if len(widths) > 14 else 2.5) as (figure, svg):
        axes = one_plot(figure)
        positions = range(len(widths))
        kept = [value[0] for value in widths.values()]
        units = [value[1] for value in widths.values()]
        axes.bar(positions, units, width=0.8, color="none", edgecolor=COLOURS["muted"], lw=0.8)
        axes.bar(positions, kept, width=0.8, color=COLOURS["accent"], alpha=0.85, lw=0)
        if max(units) > 50 * min(units):
            axes.set_yscale("log")
        else:
            axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: formatting.count(value)))
        if len(widths) > 14:
            axes.set_xlabel("layer, in the order of execution")
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        else:
            names = [formatting.shortened(name) for name in formatting.distinct(list(widths))]
            axes.set_xticks(list(positions), names, rotation=40, ha="right", rotation_mode="anchor", fontsize=8.5)
        axes.set_ylabel(noun)
        axes.margins(x=0.02)
    return svg()


def kernels(stages: Mapping[str, Mapping[str, Sequence[float]]], salt: str) -> str:
    """Draws a map for each stage and size of kernels: per cent of them that keep a weight at each position."""
    maps = [(stage, size, kept) for stage, sizes in stages.items() for size, kept in sizes.items()]
    columns = min(3, len(maps))
    rows = -(-len(maps) // columns)
    with drawing(salt, WIDTH, 1.55 * rows) as (figure, svg):
        panels = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes in panels:
            axes.set_axis_off()
        for axes, (stage, size, kept) in zip(panels, maps, strict=False):
            _map(axes, kept, int(size.split("x")[-1]))
            kernel = "linear" if size == "1" else formatting.times(size)
            axes.set_title(f"{kernel} on {formatting.times(stage)}" if stage not in ("", "1") else kernel, fontsize=9)
    return svg()


def stages(kept: Mapping[str, float], salt: str) -> str:
    """Draws a bar for each stage of a design pattern: per cent of units kept."""
    with drawing(salt, WIDTH, 2.0) as (figure, svg):
        axes = one_plot(figure)
        positions = range(len(kept))
        bars = axes.bar(
            positions, [100 * value for value in kept.values()], width=0.7, color=COLOURS["accent"], alpha=0.85, lw=0
        )
        axes.bar_label(bars, fmt="%.0f", fontsize=8.5)
        names = [formatting.times(stage) if stage not in ("", "1") else "no map" for stage in kept]
        axes.set_xticks(list(positions), names, fontsize=8.5)
        axes.set_xlabel("feature map of the stage")
        axes.set_ylabel("% of units kept")
        axes.set_ylim(0, 115 * max(kept.values()))
    return svg()


def _map(axes: Axes, kept: Sequence[float], side: int) -> None:
    """Draws squares, darker where more is kept, relative to the highest fraction of the map."""
    highest, lines = max(kept) or 1.0, -(-len(kept) // side)
    for position, value in enumerate(kept):
        y, x = divmod(position, side)
        style: Any = {"color": COLOURS["accent"], "alpha": 0.06 + 0.5 * value / highest, "lw": 0}
        axes.bar(x, 0.94, width=0.94, bottom=y - 0.47, **style)
        if len(kept) <= 25:
            text = f"{100 * value:.0f}" if value >= 0.0995 else f"{100 * value:.2g}"
            axes.text(x, y, text, ha="center", va="center_baseline", fontsize=8.5 if side <= 3 else 7)
    reach = max(side, lines, 2) / 2 + 0.1
    axes.set_xlim((side - 1) / 2 - reach, (side - 1) / 2 + reach)
    axes.set_ylim((lines - 1) / 2 + reach, (lines - 1) / 2 - reach)
    axes.set_aspect("equal")


def scores(histogram: Json, noun: str, salt: str) -> str:
    """Draws units by their score: outlined the removed ones, filled the kept ones, and the threshold."""
    edges, kept, removed = histogram["edges"], histogram["kept"], histogram["removed"]
    with drawing(salt, WIDTH, 2.3) as (figure, svg):
        axes = one_plot(figure)
        bins = [high - low for low, high in pairwise(edges)]
        axes.bar(edges[:-1], kept, bins, align="edge", color=COLOURS["accent"], alpha=0.85, lw=0)
        outline: Any = {"color": "none", "edgecolor": COLOURS["muted"], "lw": 0.8}
        axes.bar(edges[:-1], removed, bins, bottom=kept, align="edge", **outline)
        axes.axvline(histogram["cut"], color=COLOURS["ink"], lw=1, ls=(0, (4, 3)))
        if histogram["log"]:
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlim(edges[0], edges[-1])
        relative = {
            "": "score",
            "ratio": "score ∕ threshold of its layer",
            "difference": "score − threshold of its layer",
        }
        axes.set_xlabel(relative[histogram["to"]])
        axes.set_ylabel(noun)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: formatting.count(value)))
    return svg()


def _point(style: Style) -> dict[str, Any]:
    return {"color": style.colour, "mec": COLOURS["paper"], "mew": 0.7, "elinewidth": 1.3, "zorder": 3}


def _reference(line: Callable[..., object], unpruned: Json | None) -> None:
    """Draws a dashed line at the accuracy of the unpruned network."""
    if unpruned and unpruned["accuracy"]["mean"] is not None:
        line(unpruned["accuracy"]["mean"], color=COLOURS["unpruned"], lw=0.8, ls=(0, (4, 3)), zorder=1)
