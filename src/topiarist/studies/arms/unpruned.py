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
    role = {"method": job.method, "graph": graph, "exclude": job.cell.settings.get("exclude", ())}
    return job.train(model, architecture, job.recipe, size, **role)


def settings(case: Case) -> Json:
    """Returns the method with its fields, and what it leaves alone, if it takes part in training."""
    if case.pruning is None or not case.pruning.trained:
        return {}
    request = case.pruning.request.to_json()
    exclude = (request["budget"] or {}).get("exclude")
    return {"method": request["method"], **({"exclude": list(exclude)} if exclude else {})}


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
