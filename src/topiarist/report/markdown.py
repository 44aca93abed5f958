"""The report as Markdown: the same conclusion and tables as the page, without figures."""

from __future__ import annotations

import re
from collections.abc import Iterator

from topiarist.report import tables
from topiarist.report.explanations import PAIRED, POOLED, PUBLISHED, how
from topiarist.studies import Json


def markdown(results: Json) -> str:
    """Returns the text of ``report.md``; the same results give the same text."""
    return "\n\n".join(_blocks(results)) + "\n"


def _blocks(results: Json) -> Iterator[str]:
    yield f"# {_escaped(results['title'])}"
    if results.get("note"):
        yield _escaped(results["note"])
    yield from map(_escaped, results["conclusion"])
    if results["failed"]:
        yield "Cells that failed or are missing:"
        yield "\n".join(f"- {_escaped(key)}: {_escaped(why)}" for key, why in results["failed"].items())
    if results.get("overall"):
        yield from ("## Differences", f"{PAIRED} {POOLED}", _table(tables.overall_table(results)))
    yield "## All arms"
    table = tables.arms_table(results)
    if "Published, %" in table.heads:
        yield PUBLISHED
    yield _table(table)
    if table.notes:
        yield "; ".join(f"{letter}: {_escaped(text)}" for letter, text in table.notes.items()) + "."
    if results["comparisons"]:
        yield from ("## Every comparison", _table(tables.comparison_table(results)))
    yield from ("## How it was done", how({row["arm"] for row in results["rows"]}))
    yield "\n".join(f"- {_escaped(name)}: {_escaped(value)}" for name, value in tables.settings(results))


def _table(table: tables.Table) -> str:
    rules = ["--:" if head in table.numeric else "---" for head in table.heads]
    lines = [[_escaped(f"{cell.text} {cell.small}".strip()) for cell in line.cells] for line in table.lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in (table.heads, rules, *lines))


def _escaped(text: str) -> str:
    """Returns text in which nothing has a meaning for Markdown or HTML, on one line."""
    return re.sub(r"([\\`*_\[\]<>|~#&])", r"\\\1", " ".join(text.split()))
