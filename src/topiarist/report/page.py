"""The report as one page: conclusion, tables, figures, settings. It needs no network and no other file."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError
from markupsafe import Markup

from topiarist.errors import TopiaristError
from topiarist.files import one_line, write_text
from topiarist.report import explanations, formatting, tables
from topiarist.report.arm_styles import styles
from topiarist.report.markdown import markdown
from topiarist.report.sections import sections
from topiarist.studies import Json, results_of


def write_report(out: Path, results: Json) -> Path:
    """Writes ``report.html`` and ``report.md`` into a folder.

    Args:
        out: the folder; made if absent.
        results: as `topiarist.studies.gather` returns them.

    Returns:
        The path of ``report.html``.

    Raises:
        TopiaristError: the results are damaged, or the folder cannot be written.
    """
    try:
        files = {"report.md": markdown(results), "report.html": render(results)}
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, UndefinedError) as error:
        raise TopiaristError(
            f"the results in {out} are damaged ({one_line(error)}); delete results.json and run the study again, which "
            "reuses its cells"
        ) from error
    for name, text in files.items():
        write_text(Path(out) / name, text)
    return Path(out) / "report.html"


def rewrite(folder: str | Path) -> dict[str, Any]:
    """Writes the report of a study's folder again; errors as of `topiarist.studies.results_of`.

    Returns:
        The plain values of ``results.json``.
    """
    results = results_of(folder)
    write_report(Path(folder), results)
    return results


def render(results: Json) -> str:
    """Returns the page as one string of HTML; the same results give the same string."""
    environment = Environment(
        loader=PackageLoader("topiarist.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = formatting.unbroken
    script = _text("tables.js")
    labels = tables.labels(results)
    arms = list(dict.fromkeys(row["arm"] for row in results["rows"]))
    styled = styles(arms)
    return environment.get_template("page.html.j2").render(
        results=results,
        sheet=Markup(_text("style.css")),
        script=Markup(script),
        fingerprint=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        embedded=Markup(json.dumps(results, allow_nan=False).replace("<", "\\u003c")),
        arms_table=tables.arms_table(results),
        overall_table=tables.overall_table(results),
        comparison_table=tables.comparison_table(results),
        choices={key: values for key, values in _choices(results, labels).items() if len(values) > 1},
        sections=list(sections(results, styled)),
        settings=tables.settings(results),
        styles=styled,
        labels=labels,
        arms=arms,
        explanations=explanations,
    )


def _choices(results: Json, labels: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Returns what the tables can be filtered by → value → label."""
    values = {key: {row[key]: row[key] for row in results["rows"]} for key in ("network", "data", "method")}
    values["method"].pop("none", None)
    return {**values, "arm": {row["arm"]: labels[row["arm"]] for row in results["rows"]}}


def _text(name: str) -> str:
    return resources("topiarist.report").joinpath("templates", name).read_text(encoding="utf-8")
