"""Draws the demo's picture in docs/how.md, from a finished demo: ``python docs/picture.py runs/demo``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

COLOURS = {"finetune": "#2e7d32", "scratch_e": "#90a4ae", "scratch_b": "#455a64", "uniform": "#ef6c00"}


def draw(results: dict[str, Any]) -> Figure:
    """One panel a pruning: each seed faint, mean ± standard deviation strong, the unpruned network as a line."""
    rows = [row for row in results["rows"] if row["arm"] in COLOURS]
    prunings = list(dict.fromkeys((row["method"], row["goal"]) for row in rows))
    whole = next(row for row in results["rows"] if row["method"] == "none")["accuracy"]["mean"]
    figure = Figure(figsize=(10.4, 2.7), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(prunings), sharex=True, sharey=True, squeeze=False)[0]
    for axes, pruning in zip(panels, prunings, strict=True):
        mine = [row for row in rows if (row["method"], row["goal"]) == pruning]
        for row in mine:
            accuracy, place, colour = row["accuracy"], list(COLOURS).index(row["arm"]), COLOURS[row["arm"]]
            axes.scatter(
                list(accuracy["seeds"].values()), [place] * len(accuracy["seeds"]), s=12, color=colour, alpha=0.4
            )
            axes.errorbar(accuracy["mean"], place, xerr=accuracy["std"] or 0, fmt="o", ms=7, color=colour, lw=2)
        axes.axvline(whole, color="#9e9e9e", lw=1, ls="--")
        axes.set_title(f"{pruning[0]}: {pruning[1]}", fontsize=10)
        labels = {row["arm"]: row["label"] for row in mine}
        axes.set_yticks(range(len(COLOURS)), [labels.get(arm, arm) for arm in COLOURS])
        axes.set_ylim(len(COLOURS) - 0.5, -0.5)
        axes.grid(axis="x", lw=0.4)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    seeds = len(next(iter(rows))["accuracy"]["seeds"])
    figure.supxlabel(f"test accuracy on digits, %: {seeds} seeds, mean ± std; dashed: unpruned", fontsize=10)
    return figure


if __name__ == "__main__":
    found = json.loads((Path(sys.argv[1]) / "results.json").read_text(encoding="utf-8"))
    draw(found).savefig(Path(__file__).parent / "images" / "demo.png")
