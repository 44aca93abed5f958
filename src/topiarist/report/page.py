"""One page that holds everything: conclusion, tables, figures, settings. It needs no network and no other file."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError
from markupsafe import Markup

from topiarist.errors import TopiaristError
from topiarist.files import write_text
from topiarist.report import tables, texts, words
from topiarist.report.markdown import markdown
from topiarist.report.sections import sections
from topiarist.report.style import looks
from topiarist.studies import results_of


def write_report(out: Path, results: Mapping[str, Any]) -> Path:
    """Write ``report.html`` and ``report.md`` into a folder.

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
        shown, told = render(results), markdown(results)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, UndefinedError) as error:
        raise TopiaristError(
            f"The results in {out} are damaged ({error}): delete results.json and run the study again, which reuses "
            "what is done."
        ) from error
    write_text(out / "report.md", told)
    write_text(page, shown)
    return page


def rewrite(folder: str | Path) -> dict[str, Any]:
    """Write the report of a study's folder anew; errors as of `topiarist.studies.results_of`.

    Returns:
        The plain values of ``results.json``.
    """
    results = results_of(folder)
    write_report(Path(folder), results)
    return results


def render(results: Mapping[str, Any]) -> str:
    """The page as one string of HTML; the same results give the same string."""
    environment = Environment(
        loader=PackageLoader("topiarist.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["tied"] = words.tied
    script = _text("tables.js")
    labels = tables.labels(results)
    arms = list(dict.fromkeys(row["arm"] for row in results["rows"]))
    shown = looks(arms)
    return environment.get_template("page.html.j2").render(
        results=results,
        style=Markup(_text("style.css")),
        script=Markup(script),
        fingerprint=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        embedded=Markup(json.dumps(results, allow_nan=False).replace("<", "\\u003c")),
        arms_table=tables.arms_table(results),
        overall_table=tables.overall_table(results),
        comparison_table=tables.comparison_table(results),
        choices={key: found for key, found in _choices(results, labels).items() if len(found) > 1},
        sections=list(sections(results, shown)),
        settings=tables.settings(results),
        looks=shown,
        labels=labels,
        arms=arms,
        texts=texts,
    )


def _choices(results: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """What the tables can be filtered by → the values that there are, and what they are called."""
    found = {key: {row[key]: row[key] for row in results["rows"]} for key in ("network", "data", "method", "arm")}
    found["method"].pop("none", None)
    return {**found, "arm": {arm: labels[arm] for arm in found["arm"]}}


def _text(name: str) -> str:
    return files("topiarist.report").joinpath("templates", name).read_text(encoding="utf-8")
