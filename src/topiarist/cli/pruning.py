"""The work of ``topiarist prune``: train or load, prune, prove, fine-tune, measure, write."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from topiarist import files
from topiarist.budget import Name
from topiarist.cli import show
from topiarist.cli.inputs import Source
from topiarist.errors import TopiaristError
from topiarist.graph import Inputs
from topiarist.methods import Method
from topiarist.models import full_name
from topiarist.pruning import Pruning
from topiarist.train import Recipe

if TYPE_CHECKING:
    from topiarist.pruning import Pruned, Shrunk
    from topiarist.surgery import Proof
    from topiarist.train import History

TRAINING, FINE_TUNING = "train.ckpt", "finetune.ckpt"


@dataclass(frozen=True)
class Plan:
    """Describes what is pruned and how.

    Attributes:
        source: the network, its weights, its data, the seed.
        request: how it is pruned.
        train: recipe for a network without weights.
        finetune: recipe for the pruned network.
        selectors: the norms behind which channel selectors are inserted, if any.
        shrink: remove the channels and neurons that zero weights made dead.
        out: the folder for the results.
        quiet: show no progress.
    """

    source: Source
    request: Pruning
    train: Recipe
    finetune: Recipe
    selectors: str | None
    shrink: bool
    out: Path
    quiet: bool

    def model(self, example: Inputs) -> nn.Module:
        """Returns the network to prune, with its selectors."""
        from topiarist.surgery import add_selectors

        model = self.source.model()
        return model if self.selectors is None else add_selectors(model, self.selectors, example)

    def initial(self, example: Inputs) -> dict[str, Tensor]:
        """Returns the initial values of the network, drawn with the seed."""
        return replace(self, source=replace(self.source, weights=None)).model(example).state_dict()


def run(plan: Plan, example: Inputs) -> tuple[Pruned, dict[str, Any]]:
    """Prunes, and writes ``result.json``, ``model.safetensors`` and ``architecture.json``.

    Args:
        plan: what is pruned and how.
        example: input for tracing, the proof and the timing.

    Returns:
        What `topiarist.prune` returned, and the values of ``result.json``; accuracies are in per cent of the test
        examples, and null where there is no data.
    """
    from topiarist.architecture import save, write_tensors
    from topiarist.graph import trace
    from topiarist.pruning import shrink

    method = plan.request.method
    if plan.shrink and method.granularity != "weight":
        raise TopiaristError(f"--shrink is for unstructured methods, and {method.name} is structured: leave it out")
    model = plan.model(example)
    if plan.source.weights is None:
        _prune(plan, plan.request.untrained, model, example)  # refuses before the training what cannot be pruned
        exclude = () if plan.request.budget is None else plan.request.budget.exclude
        fit(plan.source, model, plan.train, method, exclude, plan.out, quiet=plan.quiet)
        write_tensors(_without_selectors(plan, model), plan.out / "trained.safetensors")
    before = _accuracy(plan, model)
    done = _prune(plan, plan.request, model, example)
    times = _times(model, done.model, example)
    accuracy = {"before": before, "pruned": _accuracy(plan, done.model), "finetuned": _finetuned(plan, done)}
    graph = trace(done.model, example, outputs=done.graph.outputs) if plan.shrink else None
    shrunk = None if graph is None else shrink(done.model, example, graph=graph)
    last = done if shrunk is None else shrunk
    save(last.model, last.architecture, plan.out)
    result = {**_described(plan, done), "shrunk": _shrunk(shrunk), "latency_ms": times, "accuracy": accuracy}
    write_json(plan.out / "result.json", result)
    if done.latency is not None:
        from topiarist.report import save_latencies

        for kind in ("svg", "png"):
            save_latencies(done.latency.table, done.keep, plan.out / f"latencies.{kind}")
    for checkpoint in (TRAINING, FINE_TUNING):  # kept to here, so that an interrupted run continues from there
        (plan.out / checkpoint).unlink(missing_ok=True)
    return done, result


def _proof(proof: Proof) -> dict[str, Any]:
    return {**asdict(proof), "precision": str(proof.precision)}


def _described(plan: Plan, done: Pruned) -> dict[str, Any]:
    """Returns the request and what was pruned, as plain values."""
    data = plan.source.data
    return {
        "model": full_name(plan.source.make),
        "data": None if data is None else data.name,
        "seed": plan.source.seed,
        "pruning": plan.request.to_json(),
        "selectors": list(done.architecture.selectors),
        "kept": {name: list(counts) for name, counts in done.architecture.widths.items()},
        "macs": {"before": done.before.macs, "after": done.after.macs},
        "params": {"before": done.before.params, "after": done.after.params},
        "memory": {"before": done.before.memory, "after": done.after.memory},
        "latency": None if done.latency is None else done.latency.to_json(),
        "proof": _proof(done.proof),
        "uneven": done.uneven,
        "untaken": done.untaken,
        "unread": {name: unread._asdict() for name, unread in done.graph.unread.items()},
        "excluded": {name: excluded._asdict() for name, excluded in done.excluded.items()},
        "pinned": [entry._asdict() for entry in done.graph.pinned],
    }


def _prune(plan: Plan, request: Pruning, model: nn.Module, example: Inputs) -> Pruned:
    """Prunes a network; shows the epochs of training between the steps, or the steps of a method that takes long."""
    from topiarist.pruning import Run, prune

    trains = request.sparse_training is not None or (request.steps.count > 1 and request.steps.training is not None)
    initial = plan.initial(example) if request.rewind else None
    with (
        show.training("training while pruning", plan.quiet or not trains) as progress,
        show.steps(plan.quiet or trains or request != plan.request) as on_step,
    ):
        how = Run(seed=plan.source.seed, progress=progress, on_step=on_step)
        return prune(model, example, request, data=plan.source.data, initial=initial, run=how)


def _shrunk(shrunk: Shrunk | None) -> dict[str, Any] | None:
    """Returns what shrinking kept: units of each group, costs of the dense network of that shape, and the proof."""
    if shrunk is None:
        return None
    return {
        "kept": {name: list(counts) for name, counts in shrunk.architecture.widths.items()},
        "macs": shrunk.after.macs,
        "params": shrunk.after.params,
        "memory": shrunk.after.memory,
        "drift": shrunk.drift,
        "proof": _proof(shrunk.proof),
    }


def _without_selectors(plan: Plan, model: nn.Module) -> nn.Module:
    """Returns the network without its selectors, which pass on every channel before the pruning."""
    if plan.selectors is None:
        return model
    plain = plan.source.make()
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if key in plain.state_dict()})
    return plain


def _times(before: nn.Module, after: nn.Module, example: Inputs) -> dict[str, float]:
    """Measures latencies in milliseconds, interleaved, so that other work disturbs both alike."""
    from topiarist.measure import Rounds, latencies

    return latencies({"before": before, "after": after}, example, Rounds(20))


def fit(
    source: Source,
    model: nn.Module,
    recipe: Recipe,
    method: Method | None,
    exclude: Collection[Name],
    out: Path,
    *,
    quiet: bool,
) -> History:
    """Trains a network, with what the method does in training; continues from ``train.ckpt`` in a folder."""
    from topiarist.graph import trace
    from topiarist.train import fit as train

    assert source.data is not None, "the commands ask for data before they train"
    if method is not None and "training" not in method.needs:
        method, exclude = None, ()
    graph = None if method is None else method.units(trace(model, source.data.example()))
    with show.training("training", quiet) as progress:
        return train(
            model,
            source.data,
            recipe,
            seed=source.seed,
            method=method,
            graph=graph,
            exclude=exclude,
            checkpoint=out / TRAINING,
            progress=progress,
        )


def _finetuned(plan: Plan, done: Pruned) -> float | None:
    """Fine-tunes the pruned network, and returns its accuracy; pruned weights stay zero."""
    from topiarist.train import fit as train

    if plan.source.data is None or not plan.finetune.epochs:
        return None
    sparse = done.graph.kind == "weight"
    with show.training("fine-tuning", plan.quiet) as progress:
        history = train(
            done.model,
            plan.source.data,
            plan.finetune,
            teacher=done.trained if plan.finetune.distillation else None,
            seed=plan.source.seed,
            graph=done.graph if sparse else None,
            keep=done.keep if sparse else None,
            checkpoint=plan.out / FINE_TUNING,
            progress=progress,
        )
    return history.accuracy


def _accuracy(plan: Plan, model: nn.Module) -> float | None:
    from topiarist.measure import evaluate

    return None if plan.source.data is None else evaluate(model, plan.source.data)


def write_json(path: Path, values: Any) -> None:
    """Writes plain values in one step; what is not finite becomes null."""
    files.write_json(path, show.plain(values))
