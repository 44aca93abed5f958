"""Studies: networks × methods × budgets × seeds, every arm trained and compared; resumable at any moment.

Examples:
    >>> from topiarist.studies import Study, run
    >>> study = Study.of({  # doctest: +SKIP
    ...     "network": "zoo:lenet5", "data": "npz:mnist.npz",
    ...     "prunings": [{"method": ["random", "l1"], "budget": [{"macs": 0.7}, {"macs": 0.5}]}],
    ...     "recipe": {"epochs": 3}, "finetune": {"epochs": 1, "lr": 0.01, "schedule": "constant"},
    ... })
    >>> results = run(study, "runs/mnist", workers=2)  # doctest: +SKIP

With several workers a script must guard its main part by ``if __name__ == "__main__":``, as for Python's own process
pools.
"""

from topiarist.studies.arms import ARMS, Arm
from topiarist.studies.cells import Cell, Json
from topiarist.studies.demonstration import DEMO, demo
from topiarist.studies.executors.base import Ended, Executor, Pool
from topiarist.studies.executors.local import Local, default_workers
from topiarist.studies.executors.ray import RayCluster
from topiarist.studies.merging import merge
from topiarist.studies.prunings import StudyPruning
from topiarist.studies.queue import Event, Outcome, run_cells
from topiarist.studies.results import gather, read_results, results_of, write_results
from topiarist.studies.running import run
from topiarist.studies.statistics import Difference, Summary, paired, summarise, verdict
from topiarist.studies.study import Study

__all__ = [
    "ARMS",
    "DEMO",
    "Arm",
    "Cell",
    "Difference",
    "Ended",
    "Event",
    "Executor",
    "Json",
    "Local",
    "Outcome",
    "Pool",
    "RayCluster",
    "Study",
    "StudyPruning",
    "Summary",
    "default_workers",
    "demo",
    "gather",
    "merge",
    "paired",
    "read_results",
    "results_of",
    "run",
    "run_cells",
    "summarise",
    "verdict",
    "write_results",
]
