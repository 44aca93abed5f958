"""The demo: a small residual network on scikit-learn's digits, pruned in four ways, in under three minutes."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from topiarist.pruning import Pruning
from topiarist.studies.executors.local import default_workers
from topiarist.studies.prunings import StudyPruning
from topiarist.studies.running import run
from topiarist.studies.study import Study

HALF = {"macs": 0.5}

DEMO = Study(
    title="Topiarist demo: digits",
    networks=("zoo:digitsnet",),
    data=("digits",),
    prunings=(
        StudyPruning(Pruning.of("random", HALF)),
        StudyPruning(Pruning.of("l1", HALF)),
        StudyPruning(Pruning.of({"name": "slimming", "lam": 1e-3}, HALF)),
        StudyPruning(Pruning.of("magnitude", {"ratio": 0.1})),
    ),
    seeds=(0, 1, 2),
    recipe={"epochs": 8, "lr": 0.1},
    finetune={"epochs": 3, "lr": 0.01, "schedule": "constant"},
    cap=2.0,
)
"""The study of the demo, with three seeds."""


def demo(
    out: str | Path = "runs/demo", seeds: int = 3, *, workers: int | None = None, quiet: bool = False
) -> dict[str, Any]:
    """Runs the demo, or goes on with it, and writes ``results.json``; `topiarist.report.write_report` makes its report.

    Args:
        out: folder for cells, models and ``results.json``; finished cells there are reused.
        seeds: number of seeds, 0, 1, 2, ….
        workers: cells computed at a time; as many as there are processors by default.
        quiet: show no progress.

    Returns:
        The plain values of ``results.json``.
    """
    targets = ("torch", "sparse") if find_spec("llvmlite") else DEMO.targets
    study = replace(DEMO, seeds=tuple(range(seeds)), targets=targets)
    return run(study, out, workers=workers or default_workers(), quiet=quiet)
