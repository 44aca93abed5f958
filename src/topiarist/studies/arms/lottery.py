"""Lottery tickets (Frankle & Carbin 2019), and the same sub-networks from other initial weights."""

from __future__ import annotations

from topiarist.studies.arms.base import SCRATCH_SEED, Arm
from topiarist.studies.arms.pruned import pruned_network
from topiarist.studies.cell_results import checked_result
from topiarist.studies.job import Job, Result, architecture_in


def train_ticket(job: Job) -> Result:
    """Trains the pruned sub-network from initial weights of the unpruned network, without a change to them.

    ``start`` is their seed: that of the trained network rewinds the kept weights to their initial values; another
    one redraws them, which is what the ticket is compared with. All else is the same for both.
    """
    pruned = job.need("pruned")
    architecture = architecture_in(pruned)
    model = architecture.apply(job.initial(job.cell.settings["start"]))
    return job.train(model, architecture, job.recipe, checked_result(pruned), **job.mask())


LOTTERY = Arm(
    name="lottery",
    order=5,
    label="lottery ticket",
    phrase="the lottery ticket",
    how="Lottery ticket: the pruned sub-network, trained from its own initial weights like the unpruned network.",
    mark="*",
    colours=("#a83f6f", "#e583b0"),
    run=train_ticket,
    needs=pruned_network,
    settings=lambda case: {"start": case.seed},
    compared_with=("lottery_random",),
)

LOTTERY_RANDOM = Arm(
    name="lottery_random",
    order=6,
    label="random ticket",
    phrase="the random ticket",
    how="Random ticket: the same with other initial weights.",
    mark="h",
    colours=("#b8698f", "#c98aa9"),
    run=train_ticket,
    needs=pruned_network,
    settings=lambda case: {"start": case.seed + SCRATCH_SEED},
)
