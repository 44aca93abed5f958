"""Merges study folders: computed on different machines, or with different seeds, methods or arms."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from topiarist.errors import TopiaristError
from topiarist.files import locked, remove_drafts, write_json
from topiarist.studies.arms import ARMS
from topiarist.studies.cells import Cell, finished, folder, prepare, publish, unfold
from topiarist.studies.results import gather, write_results
from topiarist.studies.study import Study
from topiarist.studies.timing import latency_cells

SHARED = ("recipe", "finetune", "cap", "source", "selectors", "speed", "targets")
"""What studies must have in common, since one table compares them."""

JOINED = ("networks", "data", "prunings", "seeds", "published", "arms")
"""What a merged study has of all."""


def merge(folders: Sequence[str | Path], out: str | Path) -> dict[str, Any]:
    """Copies the finished cells of several studies into one folder, and writes its ``results.json``.

    The studies are joined (see `joined`); cells of a combination that none of them has are reported as missing, and
    ``topiarist study OUT/study.json --out OUT`` computes them; so are networks of a design pattern where seeds were
    added, which change the pattern. Where several have a cell, the first one's is copied.

    Args:
        folders: of the studies; they are not changed.
        out: the folder of the merged study, which may be one of them.

    Returns:
        The plain values of ``results.json``.

    Raises:
        TopiaristError: a folder holds no study, the studies differ in what they must share, or a run is using ``out``.
    """
    sources, out = [Path(each) for each in folders], Path(out)
    for source in sources:
        if not (source / "study.json").is_file():
            raise TopiaristError(f"there is no study.json in {source}; give output folders of studies")
    study = joined([Study.load(source / "study.json") for source in sources])
    if (out / "study.json").is_file() and joined([study, Study.load(out / "study.json")]) != study:
        raise TopiaristError(f"{out} holds a study that is not to be merged; name it as well, or choose another folder")
    cells = unfold(study.cells())
    prepare(out)
    with locked(out):
        remove_drafts(out)
        write_json(out / "study.json", study.as_json())
        for cell in [*cells, *latency_cells(cells)]:
            source = next((each for each in [out, *sources] if finished(each, cell)), out)
            if source != out:
                try:
                    _copy(cell, source, out)
                except OSError as error:  # shutil's own has a list of reasons
                    reason = error.strerror or "not everything could be copied"
                    raise TopiaristError(
                        f"cannot copy the cells of {source} to {out} ({reason}); make room there and merge again, "
                        "which goes on from what was copied"
                    ) from error
        results = gather(study, out)
        write_results(out, results)
    return results


def joined(studies: Sequence[Study]) -> Study:
    """Returns one study with the networks, data, prunings, arms, seeds and published numbers of all; else the first.

    Raises:
        TopiaristError: there is none, or they differ in one of `SHARED`.
    """
    if not studies:
        raise TopiaristError("there is nothing to merge; name at least one folder of a study")
    first = studies[0]
    for other in studies[1:]:
        for name in SHARED:
            one, two = getattr(first, name), getattr(other, name)
            if one != two:
                raise TopiaristError(
                    f"the studies differ in their {name} ({one} and {two}), so no table can hold both; merge those "
                    "that agree"
                )
    every: dict[str, Any] = {name: _distinct(studies, name) for name in JOINED}
    seeds, arms = every.pop("seeds"), every.pop("arms")
    return replace(first, **every, seeds=tuple(sorted(seeds)), arms=tuple(arm for arm in ARMS if arm in arms))


def _distinct(studies: Sequence[Study], name: str) -> tuple[Any, ...]:
    """Returns the values of all studies, each once; they need not be hashable."""
    values: list[Any] = []
    for study in studies:
        values += [value for value in getattr(study, name) if value not in values]
    return tuple(values)


def _copy(cell: Cell, source: Path, out: Path) -> None:
    draft = out / "drafts" / f"{cell.key}.copy"
    shutil.rmtree(draft, ignore_errors=True)  # of a merge that was killed
    shutil.copytree(folder(source, cell), draft)
    publish(draft, folder(out, cell))
