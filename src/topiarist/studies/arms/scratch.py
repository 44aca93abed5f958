"""Scratch-E and Scratch-B: the pruned shape, trained from random weights (Liu et al. 2019)."""

from __future__ import annotations

import torch

from topiarist.studies.arms.base import Arm
from topiarist.studies.arms.pruned import pruned_network
from topiarist.studies.cell_results import checked_result
from topiarist.studies.job import Job, Result, architecture_in
from topiarist.train import reinitialise, scratch_b


def train_from_scratch(job: Job) -> Result:
    """Trains the pruned shape from random weights: Scratch-E, or Scratch-B where the cell has a cap."""
    settings, recipe = job.cell.settings, job.recipe
    pruned, architecture = checked_result(job.need("pruned")), architecture_in(job.need("pruned"))
    if "cap" in settings:
        recipe = scratch_b(recipe, max(1.0, pruned["ratio"]), settings["cap"])
    mask, seed = job.mask(), settings["seed"]
    torch.manual_seed(seed)
    model = architecture.build(job.make)
    if mask:
        model = reinitialise(model, **mask, seed=seed, make_model=job.make)
    return job.train(model, architecture, recipe, pruned, **mask)


SCRATCH_E = Arm(
    name="scratch_e",
    order=3,
    label="Scratch-E",
    phrase="Scratch-E",
    how="Scratch-E: the pruned shape, trained from random weights for as many epochs as the unpruned network.",
    mark="s",
    colours=("#3a80a8", "#74b6da"),
    run=train_from_scratch,
    needs=pruned_network,
    from_scratch=True,
)

SCRATCH_B = Arm(
    name="scratch_b",
    order=4,
    label="Scratch-B",
    phrase="Scratch-B",
    how="Scratch-B: the pruned shape, trained from random weights for as much computation as the unpruned network, "
    "that is epochs × MACs before ∕ MACs after, up to the cap below.",
    mark="D",
    colours=("#5a5aa8", "#a0a0ec"),
    run=train_from_scratch,
    needs=pruned_network,
    capped=True,
    from_scratch=True,
    compared_with=("uniform",),
)
