"""Sentences that stand in the page and in the Markdown file alike."""

from __future__ import annotations

from collections.abc import Collection

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

ARMS = {
    "finetune": "Fine-tuned: trained on from the weights that are left, for fewer epochs.",
    "scratch_e": "Scratch-E: the pruned shape, trained from random weights for as many epochs as the unpruned network.",
    "scratch_b": "Scratch-B: the pruned shape, trained from random weights for as much computation as the unpruned "
    "network, that is epochs × MACs before ∕ MACs after, up to the cap below.",
    "lottery": "Lottery ticket: what is left trains from its own initial weights as the unpruned network did.",
    "lottery_random": "Ticket redrawn: the same with other initial weights.",
    "uniform": "Uniform: trained like Scratch-B; all layers are narrowed alike, which shows what the choice of widths "
    "is worth, or weights went at random places, which shows what the choice of weights is worth.",
    "guided": "Guided pattern: trained like Scratch-B; the shape is the average, stage by stage, of what the method "
    "left at all seeds.",
    "transferred": "Transferred pattern: like a guided one, with the pattern of another network or of other data.",
}
"""Arm → what is done in it."""

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
    """How the arms that there are were done."""
    told = ["Per seed, one network is trained and pruned by each method."]
    told += [text for arm, text in ARMS.items() if arm in arms]
    told += [BUILT] if {"uniform", "guided", "transferred"} & set(arms) else []
    return " ".join([*told, COSTS])
