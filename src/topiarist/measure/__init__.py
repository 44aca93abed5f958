"""What is measured of a network: statistics of its units, accuracy and loss, latency."""

from topiarist.measure.batches import (
    batch_size,
    device_of,
    first_examples,
    inputs_and_target,
    map_tensors,
    mode,
    to_device,
)
from topiarist.measure.collection import OnStep, Stats, collect, covariance, merge
from topiarist.measure.evaluation import (
    Evaluation,
    Loss,
    accuracy,
    check_fits,
    class_scores,
    cross_entropy,
    evaluate,
    evaluate_batches,
)
from topiarist.measure.statistics import STATISTICS, Statistic, Watch
from topiarist.measure.timing import latency
from topiarist.measure.watching import (
    ACTIVATIONS,
    Layer,
    flat_response,
    is_plain,
    on_calls,
    on_responses,
    response_sites,
    unit_sums,
    watching,
    windows_of,
)

__all__ = [
    "ACTIVATIONS",
    "STATISTICS",
    "Evaluation",
    "Layer",
    "Loss",
    "OnStep",
    "Statistic",
    "Stats",
    "Watch",
    "accuracy",
    "batch_size",
    "check_fits",
    "class_scores",
    "collect",
    "covariance",
    "cross_entropy",
    "device_of",
    "evaluate",
    "evaluate_batches",
    "first_examples",
    "flat_response",
    "inputs_and_target",
    "is_plain",
    "latency",
    "map_tensors",
    "merge",
    "mode",
    "on_calls",
    "on_responses",
    "response_sites",
    "to_device",
    "unit_sums",
    "watching",
    "windows_of",
]
