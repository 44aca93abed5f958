"""What is measured of a network: statistics of its units, accuracy and loss, latency."""

from topiarist.measure.accuracy import accuracy, device_of, evaluate, mode, rehearse
from topiarist.measure.collection import (
    Loss,
    OnStep,
    Stats,
    class_scores,
    collect,
    covariance,
    cross_entropy,
    eval_mode,
    mapped,
    merge,
    moved,
    parted,
)
from topiarist.measure.evaluation import Verdict, first_examples, judge
from topiarist.measure.statistics import (
    ACTIVATIONS,
    STATISTICS,
    Statistic,
    Watch,
    by_unit,
    lines,
    on_responses,
    response_sites,
)
from topiarist.measure.timing import latency

__all__ = [
    "ACTIVATIONS",
    "STATISTICS",
    "Loss",
    "OnStep",
    "Statistic",
    "Stats",
    "Verdict",
    "Watch",
    "accuracy",
    "by_unit",
    "class_scores",
    "collect",
    "covariance",
    "cross_entropy",
    "device_of",
    "eval_mode",
    "evaluate",
    "first_examples",
    "judge",
    "latency",
    "lines",
    "mapped",
    "merge",
    "mode",
    "moved",
    "on_responses",
    "parted",
    "rehearse",
    "response_sites",
]
