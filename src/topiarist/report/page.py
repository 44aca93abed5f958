"""One page that holds everything: conclusion, tables, figures, settings. It needs no network and no other file."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError
from markupsafe import Markup

from topiarist.errors import TopiaristError
from topiarist.report import tables, texts, words
from topiarist.report.looks import looks
from topiarist.report.markdown import markdown
from topiarist.report.sections import sections

NEEDED = ("title", "study", "conclusion", "rows", "comparisons", "failed", "environment")


def write_report(out: Path, results: Mapping[str, Any]) -> Path:
    """Write ``results.json``, ``report.html`` and ``report.md`` into a folder.

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
        text = json.dumps(results, indent=1, allow_nan=False) + "\n"
        shown, told = render(results), markdown(results)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, UndefinedError) as error:
        raise TopiaristError(
            f"The results in {out} are damaged ({error}): delete results.json and run the study again, which reuses "
            "what is done."
        ) from error
    try:
        out.mkdir(parents=True, exist_ok=True)
        _write(out / "results.json", text)
        _write(out / "report.md", told)
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
    except (ValueError, RecursionError) as error:
        raise TopiaristError(
            f"{path} is damaged: delete it and run the study again, which reuses what is done."
        ) from error
    if not isinstance(results, dict) or any(name not in results for name in NEEDED):
        raise TopiaristError(f"{path} holds no results of a study: name the output folder of a study.")
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


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text, encoding="utf-8", errors="replace")  # halves of characters, which JSON can hold
    os.replace(draft, path)
