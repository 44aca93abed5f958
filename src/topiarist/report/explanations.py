"""Explanations for the reader, the same in the page and in the Markdown file."""

from __future__ import annotations

from collections.abc import Collection

from topiarist.studies import ARMS

PAIRED = (
    "Each comparison pairs runs of the same seed. A difference is significant where the 95 % t interval of its mean "
    "excludes zero; intervals are not corrected for multiple comparisons."
)

POOLED = (
    "Over several prunings a seed's difference is their mean, with equal weights: prunings of one seed share its "
    "trained network, so only seeds are repetitions."
)

PUBLISHED = (
    "Published numbers come from the papers' own settings: they show the sign of a difference there, and are not "
    "targets for the numbers here."
)

BUILT = (
    "Built networks have as many parameters as the pruned one in unstructured pruning or where the budget is in "
    "parameters, else as many MACs. Where the budget is in MACs alone, all methods share the uniform network; a method "
    "that narrows all layers alike gives the same network, so there is nothing to compare."
)

COSTS = (
    "MACs of unstructured sparse networks count nonzero weights; files and latency are those of dense tensors. Latency "
    "is measured here, one example at a time on one thread, when all else is done: the networks run in turns, and ± is "
    "half the 95 % interval of the median. Networks whose tensors have the same shapes share one reading, so that an "
    "unstructured sparse network reads the same as the unpruned one."
)


def how(arms: Collection[str]) -> str:
    """Returns how these arms were done."""
    known = [arm for arm in ARMS.values() if arm.name in arms]
    built = [BUILT] if any(arm.shape == "built" for arm in known) else []
    first = "Per seed, one network is trained and pruned by each method."
    return " ".join([first, *(arm.how for arm in known if arm.how), *built, COSTS])
