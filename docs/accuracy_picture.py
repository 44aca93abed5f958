"""Draws the picture of README.md from ``benchmarks/structured.json``: ``python docs/accuracy_picture.py``.

It shows accuracy against MACs of two networks, before and after fine-tuning: mean ± standard deviation over five seeds.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
BUDGETS = (0.5, 0.3)
SEEDS = range(5)  # the sixth to tenth were trained for a few methods only
PEER = "Torch-Pruning, best of 7"
SERIES = {
    "lasso": ("LASSO", "#1b7837", "o"),
    "slimming+lasso": ("Slimming + LASSO", "#7fbf7b", "D"),
    PEER: (PEER, "#e08214", "s"),
    "random": ("Random", "#878787", "^"),
}
"""What is drawn: label, colour, marker."""
NUDGE = dict(zip(SERIES, (-1.8, -0.6, 0.6, 1.8), strict=True))
"""Per cent of MACs by which points stand apart, so that their bars do not hide each other."""
ROWS = {"before": "right after pruning, before fine-tuning", "after": "after two epochs of fine-tuning (zoomed in)"}
NETWORKS = {
    "VGG-11, quarter width": ("VGG-11, Fashion-MNIST", (86.8, 90.2)),
    "ResNet-20": ("ResNet-20, CIFAR-10", (55.5, 66.5)),
}
"""Network in the benchmark → title, and the limits of the axis after fine-tuning."""

BARS = {"ms": 6, "mec": "white", "mew": 0.8, "capsize": 3, "lw": 1.6}


def accuracies(rows: list[dict[str, Any]], network: str, when: str, method: str) -> list[tuple[float, float]]:
    """Returns mean and standard deviation at each budget; for the peer those of its best importance there."""
    means_and_stds = []
    for budget in BUDGETS:
        here = [row for row in rows if row["network"] == network and row["budget"] == budget and row["seed"] in SEEDS]
        names = {row["method"] for row in here if row["method"].startswith("tp:")} if method == PEER else {method}
        best = max(([row[when]["test"] for row in here if row["method"] == name] for name in names), key=fmean)
        means_and_stds.append((fmean(best), stdev(best)))
    return means_and_stds


def panel(axes: Axes, results: dict[str, Any], network: str, when: str) -> None:
    """Draws one network at one moment, from the unpruned network on the left to the smallest on the right."""
    dense = [row["accuracy"]["test"] for row in results["base"] if row["network"] == network and row["seed"] in SEEDS]
    axes.axhline(fmean(dense), color="#444444", lw=1, ls=(0, (4, 3)), zorder=1)
    for method, (label, colour, marker) in SERIES.items():
        means, stds = zip(*accuracies(results["pruned"], network, when, method), strict=True)
        at = [100 * budget + NUDGE[method] for budget in BUDGETS]
        axes.plot([100, *at], [fmean(dense), *means], color=colour, lw=1.6, alpha=0.85, zorder=2)
        axes.errorbar(at, means, yerr=stds, fmt=marker, color=colour, label=label, zorder=3, **BARS)
    axes.errorbar(100, fmean(dense), yerr=stdev(dense), fmt="o", color="#222222", zorder=4, **BARS)
    axes.set_xlim(105, 24)
    axes.set_xticks([100, 50, 30], ["100 %", "50 %", "30 %"])
    axes.grid(axis="y", color="#e4e4e4", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(color="#999999", labelsize=9)


def draw(results: dict[str, Any]) -> Figure:
    """Returns the figure: a column for each network, a row for each moment."""
    figure = Figure(figsize=(9.6, 6.6), dpi=160, layout="constrained", facecolor="white")
    grid = figure.subplots(len(ROWS), len(NETWORKS), sharex=True)
    for row, (when, moment) in enumerate(ROWS.items()):
        for column, (network, (title, zoom)) in enumerate(NETWORKS.items()):
            axes = grid[row][column]
            panel(axes, results, network, when)
            axes.set_ylim(*((0, 100) if when == "before" else zoom))
            axes.set_title(f"{title}\n", loc="left", fontsize=11, fontweight="bold")
            axes.text(0, 1.03, moment, transform=axes.transAxes, fontsize=10, color="#555555")
    for axes in grid[:, 0]:
        axes.set_ylabel("test accuracy, %", fontsize=10)
    for axes in grid[-1]:
        axes.set_xlabel("MACs kept", fontsize=10)
    grid[0][0].annotate("unpruned", (99, 92.5), fontsize=9, color="#444444")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=10)
    return figure


if __name__ == "__main__":
    measured = json.loads((ROOT / "benchmarks" / "structured.json").read_text(encoding="utf-8"))
    draw(measured).savefig(ROOT / "docs" / "images" / "accuracy.png")
