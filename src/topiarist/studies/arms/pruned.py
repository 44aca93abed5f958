"""The pruned network, not trained any further."""

from __future__ import annotations

from dataclasses import fields, replace

from topiarist.architecture import save
from topiarist.guided import KernelPattern
from topiarist.measure import evaluate
from topiarist.methods import make
from topiarist.pruning import Pruned, Pruning, Run, prune
from topiarist.studies.arms.base import Arm, Case
from topiarist.studies.arms.unpruned import UNPRUNED
from topiarist.studies.cells import Cell, Json
from topiarist.studies.histogram import histogram
from topiarist.studies.job import Job, Result


def prune_trained(job: Job) -> Result:
    """Prunes the trained network; no training follows."""
    seed = job.cell.settings["seed"]
    request = Pruning.from_json(job.cell.settings["pruning"])
    if "seed" in (entry.name for entry in fields(request.method)):
        request = replace(request, method=make(request.method, seed=seed))
    if job.dry_run:
        request = request.untrained
    model, initial = job.network(job.need("unpruned")), job.initial(seed).state_dict() if request.rewind else None
    done = prune(model, job.data.example(), request, data=job.data, initial=initial, run=Run(seed=seed))
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
    if done.graph.kind == "weight":
        figures["kernels"] = KernelPattern.of(done.architecture).to_json()["stages"]
    return figures


def settings(case: Case) -> Json:
    """Returns the request."""
    return {"pruning": case.pruned_by.request.to_json()}


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
