"""Pruning from a request to its result: in one call, in several steps, and what else one asks of a network to prune."""

from topiarist.pruning.choice import Choice, choose
from topiarist.pruning.iterative import check_steps
from topiarist.pruning.pipeline import Batches, check_wish, prune, repaired_by
from topiarist.pruning.result import Pruned
from topiarist.pruning.sensitivity_scan import RATIOS, Point, Sensitivity, sensitivity
from topiarist.pruning.shrinking import Shrunk, dead, shrink

__all__ = [
    "RATIOS",
    "Batches",
    "Choice",
    "Point",
    "Pruned",
    "Sensitivity",
    "Shrunk",
    "check_steps",
    "check_wish",
    "choose",
    "dead",
    "prune",
    "repaired_by",
    "sensitivity",
    "shrink",
]
