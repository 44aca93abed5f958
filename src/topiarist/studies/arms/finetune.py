"""Fine-tuning."""

from __future__ import annotations

from topiarist.studies.arms.base import Arm
from topiarist.studies.arms.pruned import pruned_network
from topiarist.studies.cell_results import checked_result
from topiarist.studies.job import Job, Result, architecture_in


def fine_tune(job: Job) -> Result:
    """Trains the pruned network on from the weights that it inherits."""
    pruned, mask = job.need("pruned"), job.mask()
    return job.train(job.network(pruned), architecture_in(pruned), job.recipe, checked_result(pruned), **mask)


FINETUNE = Arm(
    name="finetune",
    order=2,
    label="fine-tuned",
    phrase="fine-tuning",
    how="Fine-tuned: the pruned network, trained on from the weights that it inherits, for fewer epochs.",
    mark="o",
    colours=("#2f7d4f", "#6cc08d"),
    run=fine_tune,
    needs=pruned_network,
    recipe="finetune",
    compared_with=("unpruned", "scratch_e", "scratch_b"),
)
