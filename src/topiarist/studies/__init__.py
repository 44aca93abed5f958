"""Studies: networks × methods × budgets × seeds, every arm trained and compared, resumable at any moment.

Examples:
    >>> from topiarist.studies import Study, run
    >>> study = Study.of({  # doctest: +SKIP
    ...     "network": "zoo:lenet5", "data": "npz:mnist.npz",
    ...     "prunings": [{"method": ["random", "l1"], "budget": [{"macs": 0.7}, {"macs": 0.5}]}],
    ...     "recipe": {"epochs": 3}, "finetune": {"epochs": 1, "lr": 0.01, "schedule": "constant"},
    ... })
    >>> results = run(study, "runs/mnist", workers=2)  # doctest: +SKIP

With several workers a script must guard its main part by ``if __name__ == "__main__":``, as Python's own process pools
ask for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from topiarist.studies.cells import Cell as Cell
    from topiarist.studies.crew import Executor as Executor
    from topiarist.studies.digits import DEMO as DEMO
    from topiarist.studies.digits import demo as demo
    from topiarist.studies.local import Local as Local
    from topiarist.studies.local import default_workers as default_workers
    from topiarist.studies.merging import merge as merge
    from topiarist.studies.prunings import Pruning as Pruning
    from topiarist.studies.ray import RayCluster as RayCluster
    from topiarist.studies.results import gather as gather
    from topiarist.studies.runner import Event as Event
    from topiarist.studies.runner import Outcome as Outcome
    from topiarist.studies.runner import run_cells as run_cells
    from topiarist.studies.statistics import Difference as Difference
    from topiarist.studies.statistics import Summary as Summary
    from topiarist.studies.statistics import paired as paired
    from topiarist.studies.statistics import summarise as summarise
    from topiarist.studies.statistics import verdict as verdict
    from topiarist.studies.study import ARMS as ARMS
    from topiarist.studies.study import Study as Study
    from topiarist.studies.whole import report as report
    from topiarist.studies.whole import run as run

_PUBLIC = {
    "cells": ("Cell",),
    "crew": ("Executor",),
    "digits": ("DEMO", "demo"),
    "local": ("Local", "default_workers"),
    "merging": ("merge",),
    "prunings": ("Pruning",),
    "ray": ("RayCluster",),
    "results": ("gather",),
    "runner": ("Event", "Outcome", "run_cells"),
    "statistics": ("Difference", "Summary", "paired", "summarise", "verdict"),
    "study": ("ARMS", "Study"),
    "whole": ("report", "run"),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    # The processes of a run import this package too: those that only look after cells need no torch.
    if name not in _HOME:
        raise AttributeError(f"module 'topiarist.studies' has no attribute {name!r}")
    return getattr(importlib.import_module(f"topiarist.studies.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
