"""Several study folders become one: computed on different machines, or with different seeds, methods or arms."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from topiarist.errors import TopiaristError
from topiarist.files import write_json
from topiarist.studies.cells import Cell, finished, folder, publish, unfold
from topiarist.studies.queue import locked
from topiarist.studies.results import gather, write_results
from topiarist.studies.study import ARMS, Study, latency_cells

SHARED = ("recipe", "finetune", "cap", "source", "selectors", "speed")
"""What studies must have in common, since one table rests on it."""


def merge(folders: Sequence[str | Path], out: str | Path) -> dict[str, Any]:
    """Copy the finished cells of several studies into one folder, and write its ``results.json``.

    The studies are united (see `united`); cells of a combination that none of them has are reported as missing, and
    ``topiarist study OUT/study.json --out OUT`` computes them; so are networks of a design pattern where seeds were
    added, which make it another pattern. Where several have a cell, the first one's is taken.

    Args:
        folders: of the studies; they stay as they are.
        out: the folder of the united study, which may be one of them.

    Returns:
        The plain values of ``results.json``.

    Raises:
        TopiaristError: a folder holds no study, the studies do not fit together, or a run is at work in ``out``.
    """
    places, out = [Path(each) for each in folders], Path(out)
    for place in places:
        if not (place / "study.json").is_file():
            raise TopiaristError(f"There is no study.json in {place}: name output folders of studies.")
    study = united([Study.load(place / "study.json") for place in places])
    if (out / "study.json").is_file() and united([study, Study.load(out / "study.json")]) != study:
        raise TopiaristError(
            f"{out} holds a study that is not to be merged: name it as well, or choose another folder."
        )
    cells = unfold(study.cells())
    with locked(out):
        write_json(out / "study.json", study.as_json())
        for cell in [*cells, *latency_cells(cells)]:
            source = next((place for place in [out, *places] if finished(place, cell)), out)
            if source != out:
                try:
                    _copy(cell, source, out)
                except OSError as error:  # shutil's own has a list of reasons
                    reason = error.strerror or "not everything could be copied"
                    raise TopiaristError(
                        f"The cells of {source} cannot be copied to {out} ({reason}): make room there and merge again, "
                        "which goes on from what was copied."
                    ) from error
        results = gather(study, out)
        write_results(out, results)
    return results


def united(studies: Sequence[Study]) -> Study:
    """One study with the networks, data, prunings, arms, seeds and published numbers of all; else it is the first.

    Raises:
        TopiaristError: there is none, or their recipes or caps differ.
    """
    if not studies:
        raise TopiaristError("There is nothing to merge: name at least one folder of a study.")
    first = studies[0]
    for other in studies[1:]:
        for name in SHARED:
            one, two = getattr(first, name), getattr(other, name)
            if one != two:
                raise TopiaristError(
                    f"The studies differ in their {name} ({_plain(one)} and {_plain(two)}), so that no table can hold "
                    "both: merge those that agree."
                )

    def every(name: str) -> tuple[Any, ...]:
        values: list[Any] = []
        for study in studies:
            values += [value for value in getattr(study, name) if value not in values]
        return tuple(values)

    arms = every("arms")
    return replace(
        first,
        networks=every("networks"),
        data=every("data"),
        prunings=every("prunings"),
        seeds=tuple(sorted(every("seeds"))),
        published=every("published"),
        arms=tuple(arm for arm in ARMS if arm in arms),
    )


def _copy(cell: Cell, source: Path, out: Path) -> None:
    draft = out / "drafts" / f"{cell.key}.copy"
    shutil.rmtree(draft, ignore_errors=True)  # of a merge that was killed
    shutil.copytree(folder(source, cell), draft)
    publish(draft, folder(out, cell))


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value
