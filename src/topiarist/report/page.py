"""One page that holds everything: conclusion, table, figures, settings. It needs no network and no other file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from topiarist.errors import TopiaristError
from topiarist.report import figures, words

NEEDED = ("title", "study", "conclusion", "rows", "comparisons", "failed", "environment")


def write_report(out: Path, results: Mapping[str, Any]) -> Path:
    """Write ``results.json`` and ``report.html`` into a folder.

    Args:
        out: the folder; made if absent.
        results: what `topiarist.studies.gather` gives.

    Returns:
        The path of the page.

    Raises:
        TopiaristError: if the folder cannot be written.
    """
    out = Path(out)
    page = out / "report.html"
    try:
        text, shown = json.dumps(results, indent=1, allow_nan=False) + "\n", render(results)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise TopiaristError(
            f"The results in {out} are damaged ({error}): delete results.json and run the study again, which reuses "
            "what is done."
        ) from error
    try:
        out.mkdir(parents=True, exist_ok=True)
        _write(out / "results.json", text)
        _write(page, shown)
    except OSError as error:
        raise TopiaristError(f"The folder {out} cannot be written ({error.strerror}): choose another one.") from error
    return page


def read_results(folder: Path) -> dict[str, Any]:
    """Read the ``results.json`` of a folder.

    Raises:
        TopiaristError: if there is none, or if it is not one of ours.
    """
    path = Path(folder) / "results.json"
    try:
        results = json.loads(path.read_text())
    except OSError as error:
        raise TopiaristError(
            f"There is no results.json in {folder}: run a study with this output folder first."
        ) from error
    except ValueError as error:
        raise TopiaristError(
            f"{path} is damaged: delete it and run the study again, which reuses what is done."
        ) from error
    if not isinstance(results, dict) or any(name not in results for name in NEEDED):
        raise TopiaristError(f"{path} holds no results of a study: name the output folder of a study.")
    return results


def render(results: Mapping[str, Any]) -> str:
    """The page as one string of HTML; the same results give the same string."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "count": words.count,
        "size": words.size,
        "percent": words.percent,
        "milliseconds": words.milliseconds,
        "accuracy": words.accuracy,
    }
    template = environment.from_string(files("topiarist.report").joinpath("page.html.j2").read_text(encoding="utf-8"))
    embedded = json.dumps(results, allow_nan=False).replace("<", "\\u003c")
    sections = list(_sections(results))
    labels = {row["arm"]: row["label"] for row in reversed(results["rows"])}  # the first one counts
    return template.render(
        results=results,
        sections=sections,
        embedded=Markup(embedded),
        several=len(sections) > 1,
        arms=figures.ARMS,
        proof=max((row["proof"] for row in results["rows"] if row["proof"] is not None), default=None),
        labels={arm: labels[arm] for arm in figures.ARMS if arm in labels},
    )


def _sections(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One section per network and data set: its prunings with their figures and comparisons."""
    for number, place in enumerate(dict.fromkeys((row["network"], row["data"]) for row in results["rows"])):
        rows = [row for row in results["rows"] if (row["network"], row["data"]) == place]
        prunings = dict.fromkeys((row["method"], row["goal"]) for row in rows if row["method"] != "none")
        yield {
            "network": place[0],
            "data": place[1],
            "tradeoff": Markup(figures.tradeoff(rows, f"tradeoff-{number}")),
            "prunings": [
                _pruning(results, rows, place, name, f"{number}-{count}") for count, name in enumerate(prunings)
            ],
        }


def _pruning(
    results: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    place: tuple[str, str],
    name: tuple[str, str],
    salt: str,
) -> dict[str, Any]:
    here = [row for row in rows if (row["method"], row["goal"]) == name]
    whole = next((row for row in rows if row["method"] == "none"), None)
    labels = {row["arm"]: row["label"] for row in reversed(rows)}
    entries = [entry for entry in results["comparisons"] if _of(entry) == (*place, *name)]
    # differences before any retraining can be ten times the others: they are cut off at the strip's ends
    span = max((abs(end) for entry in entries if not entry["when"] for end in _ends(entry)), default=0.0) or 1.0
    widths: dict[str, list[float]] = next((row["widths"] for row in here if row["arm"] == "pruned"), {})
    return {
        "method": name[0],
        "goal": name[1],
        "arms": Markup(figures.arms(here, whole, figures.limits(rows), f"arms-{salt}")),
        "widths": Markup(figures.widths(widths, f"widths-{salt}")) if widths else "",
        "comparisons": [
            {
                **entry,
                **_bar(entry, span),
                "a_label": labels.get(entry["a"], entry["a"]),
                "b_label": labels.get(entry["b"], entry["b"]),
            }
            for entry in entries
        ],
    }


def _of(entry: Mapping[str, Any]) -> tuple[str, str, str, str]:
    return entry["network"], entry["data"], entry["method"], entry["goal"]


def _ends(entry: Mapping[str, Any]) -> tuple[float, float]:
    mean = float(entry["mean"])
    return (mean, mean) if entry["low"] is None else (float(entry["low"]), float(entry["high"]))


def _bar(entry: Mapping[str, Any], span: float) -> dict[str, str]:
    """Where the interval's bar and the mean's dot lie on a strip from −span to span, in per cent of its width."""
    low, mean, high = (max(-span, min(span, value)) for value in (_ends(entry)[0], entry["mean"], _ends(entry)[1]))
    return {
        "bar_left": f"{50 + 50 * low / span:.1f}",
        "bar_width": f"{50 * (high - low) / span:.1f}",
        "bar_dot": f"{50 + 50 * mean / span:.1f}",
    }


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)
