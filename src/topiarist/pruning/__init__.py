"""Pruning from a request to its result: in one cut or several; how sensitive groups are; dead units removed."""

from topiarist.pruning.choice import Choice, choose
from topiarist.pruning.examples import Batches
from topiarist.pruning.in_training import Cuts
from topiarist.pruning.pipeline import prune
from topiarist.pruning.request import Pruning, Run, Steps, trains_sparsely
from topiarist.pruning.result import Pruned
from topiarist.pruning.sensitivity_scan import RATIOS, Point, Sensitivity, sensitivity
from topiarist.pruning.shrinking import Shrunk, dead, shrink

__all__ = [
    "RATIOS",
    "Batches",
    "Choice",
    "Cuts",
    "Point",
    "Pruned",
    "Pruning",
    "Run",
    "Sensitivity",
    "Shrunk",
    "Steps",
    "choose",
    "dead",
    "prune",
    "sensitivity",
    "shrink",
    "trains_sparsely",
]
