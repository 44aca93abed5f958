"""A section of the page for each network and data set: figures over all prunings, and a card for each of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from topiarist.report import figures, tables
from topiarist.report.arm_styles import Style
from topiarist.studies import Json

MOST_WITH_COMPARISONS = 8
"""Up to so many prunings of a network, cards show comparisons; those of more are in the table alone."""

Rows = Sequence[Json]


def sections(results: Json, styles: Mapping[str, Style]) -> Iterator[dict[str, Any]]:
    """Yields one section per network and data set."""
    for number, where in enumerate(dict.fromkeys((row["network"], row["data"]) for row in results["rows"])):
        rows = [row for row in results["rows"] if (row["network"], row["data"]) == where]
        prunings = dict.fromkeys((row["method"], row["goal"]) for row in rows if row["method"] != "none")
        shown = results if len(prunings) <= MOST_WITH_COMPARISONS else {**results, "comparisons": []}
        yield {
            "network": where[0],
            "data": where[1],
            "letters": figures.letters(rows),
            "arms": list(dict.fromkeys(row["arm"] for row in rows if row["arm"] not in figures.UNTRAINED)),
            "tradeoffs": [
                (title, Markup(figures.tradeoff(rows, cost, styles, f"{re.sub(r'[^a-z_]', '-', cost)}-{number}")))
                for cost, (title, _) in figures.costs(rows).items()
                if len(figures.drawn(rows, cost)) > 1
            ],
            "prunings": [_card(shown, rows, name, styles, f"{number}-{count}") for count, name in enumerate(prunings)],
        }


def _card(results: Json, rows: Rows, name: tuple[str, str], styles: Mapping[str, Style], salt: str) -> dict[str, Any]:
    """Returns the card of a pruning: its figures, and its comparisons."""
    here = [row for row in rows if (row["method"], row["goal"]) == name]
    unpruned = next((row for row in rows if row["method"] == "none"), None)
    pruned: Json = next((row for row in here if row["arm"] == "pruned"), {})
    widths, kernels, scores = (pruned.get(key) for key in ("widths", "kernels", "scores"))
    known = any(row["accuracy"]["n"] for row in here)
    noun = "weights" if kernels else "units"
    return {
        "method": name[0],
        "goal": name[1],
        "noun": noun,
        "arms": Markup(figures.arms(here, unpruned, figures.limits(rows), styles, f"arms-{salt}")) if known else "",
        "widths": Markup(figures.widths(widths, noun, f"widths-{salt}")) if widths else "",
        "kernels": Markup(figures.kernels(kernels, f"kernels-{salt}")) if kernels else "",
        "scores": Markup(figures.scores(scores, noun, f"scores-{salt}")) if scores else "",
        "designs": _designs(here, salt),
        "seed": scores["seed"] if scores else None,
        "to": scores["to"] if scores else "",
        "comparisons": _comparisons(results, rows[0], name),
    }


def _designs(rows: Rows, salt: str) -> list[dict[str, Any]]:
    """Returns the design patterns of built arms: a map for each size of kernels, or a bar for each stage."""
    designs = []
    for row in rows:
        design = row.get("design")
        if design and design["stages"]:
            of_kernels = isinstance(next(iter(design["stages"].values())), Mapping)
            draw = figures.kernels if of_kernels else figures.stages
            figure = Markup(draw(design["stages"], f"design-{row['arm']}-{salt}"))
            designs.append({"label": row["label"], "figure": figure, "of_kernels": of_kernels})
    return designs


def _comparisons(results: Json, where: Json, name: tuple[str, str]) -> list[dict[str, Any]]:
    """Returns the comparisons of a pruning with their verdicts and strips."""
    of = (where["network"], where["data"], *name)
    entries = [
        entry
        for entry in results["comparisons"]
        if (entry["network"], entry["data"], entry["method"], entry["goal"]) == of
    ]
    # differences before any retraining can be ten times the others: the strip clips them
    span, names = tables.span_of([entry for entry in entries if not entry["when"]]), tables.labels(results)
    return [
        {
            "verdict": entry["verdict"][0].upper() + entry["verdict"][1:],
            "significant": entry["significant"],
            "strip": tables.strip(entry, span),
            "a": names.get(entry["a"], entry["a"]),
            "b": names.get(entry["b"], entry["b"]),
        }
        for entry in entries
    ]
