"""The unpruned network."""

from __future__ import annotations

from topiarist.architecture import Architecture
from topiarist.budget import cost
from topiarist.studies.arms.base import Arm, Case
from topiarist.studies.cells import Json
from topiarist.studies.job import Job, Result


def train_unpruned(job: Job) -> Result:
    """Trains the network, with the penalty or gates of a method that takes part in training."""
    graph = job.graph()
    total, architecture = cost(graph), Architecture.of(graph, graph.full())
    model = job.initial(job.cell.settings["seed"])
    size = {"macs": total.macs, "params": total.params}
    return job.train(model, architecture, job.recipe, size, method=job.method, graph=graph)


def settings(case: Case) -> Json:
    """Returns the method with its fields, if it takes part in training."""
    trained = case.pruning is not None and case.pruning.trained
    return {"method": case.pruned_by.request.to_json()["method"]} if trained else {}


UNPRUNED = Arm(
    name="unpruned",
    order=0,
    label="unpruned",
    phrase="the unpruned network",
    mark="P",
    colours=("#5c6358", "#b5bcb0"),
    run=train_unpruned,
    settings=settings,
    shape="full",
    label_of=lambda _: "before pruning",
)
