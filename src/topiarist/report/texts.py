"""Sentences that stand in the page and in the Markdown file alike."""

from __future__ import annotations

from collections.abc import Collection

from topiarist.studies import ARMS

PAIRED = (
    "Each comparison pairs runs of the same seed. An arm is ahead where the 95 % t interval of the mean difference "
    "leaves out zero; intervals are not corrected for their number."
)

POOLED = (
    "Over several prunings a seed's difference is their mean, each counting alike: prunings of one seed share its "
    "trained network, so that only seeds are repetitions."
)

PUBLISHED = (
    "Published numbers come from the papers' own settings: they show which way a comparison went there, and are not "
    "meant to be met here."
)

BUILT = (
    "Networks that are built have as many parameters as the pruned one where single weights go or the budget is in "
    "parameters, else as many MACs. Where the budget is in MACs alone the methods share the uniform network; a method "
    "that narrows all layers alike gives that very network, which is compared with nothing."
)

COSTS = (
    "MACs of sparse networks count nonzero weights; files and latency are those of dense tensors. Latency is measured "
    "here, one example at a time."
)


def how(arms: Collection[str]) -> str:
    """Returns how the arms that there are were done."""
    known = [arm for arm in ARMS.values() if arm.name in arms]
    built = [BUILT] if any(arm.shape == "built" for arm in known) else []
    told = ["Per seed, one network is trained and pruned by each method.", *(arm.how for arm in known if arm.how)]
    return " ".join([*told, *built, COSTS])
