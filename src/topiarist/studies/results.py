"""The results of a study: rows, paired comparisons and a conclusion, the plain values of ``results.json``."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from topiarist.errors import TopiaristError
from topiarist.files import one_line, read_json, write_json
from topiarist.studies.cells import Json, failure, finished, unfold
from topiarist.studies.comparisons import compare, pool
from topiarist.studies.conclusion import conclude
from topiarist.studies.executors.local import default_workers
from topiarist.studies.rows import table
from topiarist.studies.study import Study
from topiarist.studies.timing import latency_cells

KEYS = ("title", "study", "conclusion", "rows", "comparisons", "failed", "environment")
"""What the results of a study hold."""


def gather(study: Study, out: Path) -> dict[str, Any]:
    """Reads the finished cells of a study and computes its results.

    Args:
        study: whose cells to read; those that are missing are left out of the means.
        out: folder of the study.

    Returns:
        Plain values: ``title``, ``study``, ``note``, ``conclusion`` (sentences, the first one leads), ``rows``,
        ``overall`` (pairs of arms over all prunings and by method), ``comparisons`` (pruning by pruning), ``failed``,
        ``environment``.

    Raises:
        TopiaristError: the result of a cell is damaged.
    """
    rows, failed = table(study, out), _failed(study, out)
    comparisons, pooled = list(compare(rows)), list(pool(rows))
    return {
        "topiarist": version("topiarist"),
        "title": study.title,
        "study": study.as_json(),
        "note": study.note,
        "conclusion": conclude(comparisons, pooled, failed),
        "rows": rows,
        "overall": pooled,
        "comparisons": comparisons,
        "failed": failed,
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "machine": platform.machine(),
            "system": platform.system(),
            "processors": default_workers(),
        },
    }


def _failed(study: Study, out: Path) -> dict[str, str]:
    """Returns the key of every missing cell → why it is missing."""
    cells = unfold(study.cells())
    timed = [cell for cell in latency_cells(cells) if finished(out, cell.needs[0])]
    missing = [cell for cell in unfold([*cells, *timed]) if not finished(out, cell)]
    return {cell.key: failure(out, cell) or "not computed yet" for cell in missing}


def read_results(folder: Path) -> dict[str, Any]:
    """Reads the ``results.json`` of a folder.

    Raises:
        TopiaristError: there is none, or it is damaged.
    """
    path = Path(folder) / "results.json"
    if not path.exists():
        raise TopiaristError(f"there is no results.json in {folder}; run a study with this output folder")
    results = read_json(path, "the results", "delete the file and run the study again, which reuses its cells")
    if not isinstance(results, dict) or any(name not in results for name in KEYS):
        raise TopiaristError(f"{path} holds no results of a study; give the output folder of a study")
    return results


def results_of(folder: str | Path) -> dict[str, Any]:
    """Returns the results in a study's folder: from its finished cells or, without cells, from ``results.json``.

    Returns:
        The plain values of ``results.json``.

    Raises:
        TopiaristError: the folder holds no study, or a damaged one.
    """
    folder = Path(folder)
    file = folder / "study.json"
    if not file.exists():
        results = read_results(folder)
    else:
        settings = read_json(file, "the study", "run the study again, it reuses what is done")
        try:
            results = gather(Study.of(settings), folder)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise TopiaristError(
                f"the study in {folder} is damaged ({one_line(error)}); run it again, it reuses its cells"
            ) from error
        if not any(row["cells"] for row in results["rows"]) and (folder / "results.json").exists():
            results = read_results(folder)  # the cells have been deleted
    write_results(folder, results)
    return results


def write_results(out: Path, results: Json) -> None:
    """Writes ``results.json`` into the folder of a study.

    Raises:
        TopiaristError: no JSON file can hold the results, or the folder cannot be written.
    """
    try:
        write_json(Path(out) / "results.json", results)
    except (TypeError, ValueError) as error:
        raise TopiaristError(
            f"the results in {out} are damaged ({one_line(error)}); delete results.json and run the study again, which "
            "reuses its cells"
        ) from error
