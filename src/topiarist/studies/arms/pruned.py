"""The pruned network, not trained any further."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from topiarist import methods
from topiarist.architecture import save
from topiarist.budget import Budget
from topiarist.guided import KernelPattern
from topiarist.measure import evaluate
from topiarist.pruning import Pruned, prune
from topiarist.studies.arms.base import Arm, Case
from topiarist.studies.arms.unpruned import UNPRUNED
from topiarist.studies.cells import Cell, Json
from topiarist.studies.histogram import histogram
from topiarist.studies.job import Job, Result
from topiarist.train import Recipe


def prune_trained(job: Job) -> Result:
    """Prunes the trained network; no training follows."""
    cell, model = job.cell, job.network(job.need("unpruned"))
    seed = cell.settings["seed"]
    chance = {"seed": seed} if "seed" in (entry.name for entry in fields(methods.get(cell.method))) else {}
    method = methods.make(cell.method, **{**chance, **cell.settings["fields"]})
    if job.dry_run:
        method = method.rehearsal()
    budget = Budget(**cell.budget) if cell.budget else None
    options: dict[str, Any] = {
        key: cell.settings[key] for key in ("repair", "steps", "schedule") if key in cell.settings
    }
    if "between" in cell.settings:
        options["between"] = Recipe(**cell.settings["between"])
    if cell.settings.get("rewind"):
        options["rewind"] = job.initial(seed).state_dict()
    done = prune(model, job.data.example(), method, budget, data=job.data, seed=seed, **options)
    save(done.model, done.architecture, job.folder)
    return {
        "accuracy": evaluate(done.model, job.data),
        "macs": done.after.macs,
        "params": done.after.params,
        "ratio": done.before.macs / max(1, done.after.macs),
        "bytes": job.bytes(),
        "proof": done.proof.max_rel_diff,
        "widths": done.architecture.widths,
        **_for_figures(done),
    }


def _for_figures(done: Pruned) -> Result:
    """Returns what the report draws of a pruning: its scores, and the positions in their kernels of kept weights."""
    figures: Result = {}
    if (scores := histogram(done.choice)) is not None:
        figures["scores"] = scores
    if done.graph.groups[0].of_weights:
        figures["kernels"] = KernelPattern.of(done.architecture).to_json()["stages"]
    return figures


def settings(case: Case) -> Json:
    """Returns the fields of the method and the options of the pruning."""
    pruning = case.pruned_by
    return {"fields": dict(pruning.fields), **case.study.options(pruning)}


def pruned_network(case: Case) -> tuple[Cell, ...]:
    """Returns the cells of arms that need the pruned network alone."""
    return (PRUNED.cell(case),)


PRUNED = Arm(
    name="pruned",
    order=1,
    label="pruned, not fine-tuned",
    phrase="the pruned network without fine-tuning",
    mark="X",
    colours=("#9a8069", "#b39d8a"),
    run=prune_trained,
    needs=lambda case: (UNPRUNED.cell(case),),
    settings=settings,
    recipe="",
)
