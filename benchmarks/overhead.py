"""What a study costs beside its cells: 200 cells of 50 ms, in this process, in two others, and on a Ray cluster.

python benchmarks/overhead.py    # writes benchmarks/overhead.md
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import tempfile
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from topiarist.studies import Cell, Event, Executor, Local, RayCluster, run_cells

CELLS, SECONDS = 200, 0.05


def work(cell: Cell, folder: Path, needs: tuple[Path, ...]) -> Mapping[str, Any]:
    """A cell that takes its time and no processor."""
    time.sleep(SECONDS)
    return {"accuracy": 1.0}


def measure(executor: Executor, workers: int, place: Path) -> dict[str, float]:
    """One run; times in seconds, all told of the ``workers`` times the time that passed."""
    base = Cell("base", "net", "data", 0)
    cells = [base, *(Cell("arm", "net", "data", seed, needs=(base,)) for seed in range(CELLS - 1))]
    ends: list[float] = []

    def note(event: Event) -> None:
        if event.state == "finished":
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory(dir=place) as out:
        begin = time.perf_counter()
        outcome = run_cells(cells, Path(out), work, executor=executor, progress=note)
        wall = time.perf_counter() - begin
        assert len(outcome.finished) == CELLS
        found = [json.loads(path.read_text())["seconds"] for path in Path(out).glob("cells/*/result.json")]
    # The first cell is alone, for all others need it: what passes beside it is how long the workers take to be there.
    first = ends[0] - begin - found[0]
    after = wall - (ends[0] - begin)
    return {
        "wall": wall,
        "start": first,
        "outside": 1 - sum(found) / (workers * wall),
        "steady": 1 - (sum(found) - found[0]) / (workers * after),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--place", type=Path, default=Path(tempfile.gettempdir()), help="folder for the studies")
    options = parser.parse_args()
    where: dict[str, tuple[Executor, int]] = {
        "in this process": (Local(1), 1),
        "two processes": (Local(2), 2),
    }
    if importlib.util.find_spec("ray"):
        where["Ray, two workers"] = (RayCluster(workers=2), 2)
    story = (
        f"{CELLS} cells that sleep for {1000 * SECONDS:g} ms each; the first one is needed by all others. *Outside*: "
        "the share of the workers' time that no cell accounts for, of the whole run, and of what comes after the first "
        f"cell. *Start*: until the first cell begins, once a run. Medians (least to most) of {options.repeats} runs by "
        "`benchmarks/overhead.py`."
    )
    lines = [
        "# Overhead of a study",
        "",
        textwrap.fill(story, 120),
        "",
        "| executor | outside | outside after the start | start, s | wall, s |",
        "|---|---|---|---|---|",
    ]
    load = os.getloadavg()[0]
    for name, (executor, workers) in where.items():
        runs = [measure(executor, workers, options.place) for _ in range(options.repeats)]
        table = {key: sorted(run[key] for run in runs) for key in runs[0]}
        shares = [
            f"{median(table[key]):.1%} ({table[key][0]:.1%} to {table[key][-1]:.1%})" for key in ("outside", "steady")
        ]
        lines.append(f"| {name} | {' | '.join(shares)} | {median(table['start']):.2f} | {median(table['wall']):.2f} |")
        print(lines[-1], flush=True)
    lines += [
        "",
        f"Python {platform.python_version()} on {os.cpu_count()} processors, which did other work besides: their load",
        f"was {load:.1f} when the runs began.",
    ]
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
