"""What the documentation takes from the code: the table of methods, their cards, and the pages of the root folder.

mkdocs loads this file as a hook. Run by itself, it writes the table into README.md: ``python docs/generate.py``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TABLE = re.compile(r"(<!-- methods: table -->\n).*?(<!-- methods: end -->)", re.DOTALL)


def table() -> str:
    """A Markdown table with a row for each registered method."""
    from topiarist import methods

    rows = ["| method | what it does | cuts | target | needs | paper |", "|---|---|---|---|---|---|"]
    for name in methods.names():
        method = methods.describe(name)
        cells = [f"`{name}`", method["summary"].rstrip("."), method["granularity"], method["target"]]
        rows.append(f"| {' | '.join([*cells, ', '.join(method['needs']) or 'nothing', method['paper']])} |")
    return "\n".join(rows) + "\n"


def cards() -> str:
    """For each method its equation, its nature, and the mkdocstrings directive that shows its docstring."""
    from topiarist import methods

    return "\n".join(card(methods.describe(name), _path(methods.get(name))) for name in methods.names())


def card(method: dict[str, Any], path: str) -> str:
    """One method's card; the equation becomes MathML, which browsers render without a script."""
    from latex2mathml.converter import convert

    equation = ""
    if method["formula"]:
        equation = f'<div class="equation">{convert(method["formula"], display="block")}</div>'
    target = {"predefined": "the user chooses the widths", "automatic": "the method finds the widths"}[method["target"]]
    facts = [
        f"**{method['target'].capitalize()}**: {target}.",
        f"**Cuts** {method['granularity']}.",
        f"**Needs** {', '.join(method['needs']) or 'nothing'}.",
        f"**Roles**: {', '.join(method['roles'])}.",
    ]
    parts = (f"## {method['name']}", equation, " ".join(facts), f"::: {path}", benchmark(method["name"]))
    return "\n\n".join(part for part in parts if part) + "\n"


def benchmark(name: str) -> str:
    """What a method did on our benchmark of structured methods, beside random pruning; empty where it took no part."""
    path = ROOT / "benchmarks" / "structured.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["pruned"] if path.exists() else []
    places = list(dict.fromkeys((row["network"], row["budget"]) for row in rows if row["method"] == name))
    if not places:
        return ""
    lines = [
        "**On our benchmark**, accuracy in per cent, means of five seeds, with random pruning in brackets "
        "(`benchmarks/structured.md` has all methods and the spread):",
        "",
        "| network | MACs kept | right after pruning | after a short fine-tuning |",
        "|---|---:|---:|---:|",
    ]
    for network, budget in places:
        cells = []
        for when in ("before", "after"):
            mine, chance = (_mean(rows, network, budget, each, when) for each in (name, "random"))
            cells.append(f"{mine} ({chance})")
        lines.append(f"| {network} | {100 * budget:g} % | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(rows: list[dict[str, Any]], network: str, budget: float, method: str, when: str) -> str:
    place = (network, budget, method)
    mine = [row for row in rows if (row["network"], row["budget"], row["method"]) == place]
    found = [row[when]["test"] for row in mine if when in row and row["macs_kept"] <= budget * (1 + 1e-9)]
    return f"{fmean(found):.1f}" if found else "not driven to the budget"


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def readme() -> str:
    """README.md with today's table."""
    return TABLE.sub(lambda found: found[1] + table() + found[2], (ROOT / "README.md").read_text(encoding="utf-8"))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The mkdocs hook: fill in what the page's comments ask for."""
    included = re.sub(r"<!-- include: (\S+) -->", lambda found: (ROOT / found[1]).read_text(encoding="utf-8"), markdown)
    return included.replace("<!-- methods: table -->", table()).replace("<!-- methods: cards -->", cards())


if __name__ == "__main__":
    (ROOT / "README.md").write_text(readme(), encoding="utf-8")
