"""The way of ``topiarist prune``: train or load, prune, prove, fine-tune, measure, write."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from topiarist import files
from topiarist.cli import show
from topiarist.cli.inputs import Source
from topiarist.errors import TopiaristError
from topiarist.methods import Method
from topiarist.models import full_name
from topiarist.pruning import Pruning
from topiarist.train import Recipe

if TYPE_CHECKING:
    from topiarist.pruning import Pruned, Shrunk
    from topiarist.train import History

TRAINING, FINE_TUNING = "train.ckpt", "finetune.ckpt"


@dataclass(frozen=True)
class Plan:
    """What is to be pruned and how.

    Attributes:
        source: the network, its weights, its data, the seed.
        request: how it is pruned.
        train: recipe for a network without weights.
        finetune: recipe for the pruned network.
        selectors: the norms that a channel selector shall follow, if any.
        shrink: remove the channels and neurons that zero weights left dead.
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

    @property
    def method(self) -> Method:
        """What ranks the units."""
        return self.request.method

    def model(self, example: Tensor) -> nn.Module:
        """The network to prune, with its selectors."""
        from topiarist.surgery import add_selectors

        model = self.source.model()
        return model if self.selectors is None else add_selectors(model, self.selectors, example)

    def initial(self, example: Tensor) -> dict[str, Tensor]:
        """The values that the network began with, drawn with the seed."""
        return replace(self, source=replace(self.source, weights=None)).model(example).state_dict()


def run(plan: Plan, example: Tensor) -> tuple[Pruned, dict[str, Any]]:
    """Prunes, and writes ``result.json``, ``model.safetensors`` and ``architecture.json``.

    Args:
        plan: what is to be done.
        example: input for tracing, the proof and the timing.

    Returns:
        What `topiarist.prune` gave, and the values of ``result.json``; accuracies are per cent of the test examples,
        and null where there is no data.
    """
    from topiarist.architecture import save
    from topiarist.pruning import shrink

    if plan.shrink and plan.method.granularity != "weight":
        raise TopiaristError(f"{plan.method.name} leaves nothing dead, for it prunes units: leave --shrink out")
    model = plan.model(example)
    if plan.source.weights is None:
        _prune(plan, plan.request.untrained, model, example)  # what cannot be is refused before the training
        fit(plan.source, model, plan.train, plan.method, plan.out, quiet=plan.quiet)
        write_weights(_plain(plan, model), plan.out / "trained.safetensors")
    before = _accuracy(plan, model)
    done = _prune(plan, plan.request, model, example)
    times = _times(model, done.model, example)
    accuracy = {"before": before, "pruned": _accuracy(plan, done.model), "finetuned": _finetuned(plan, done)}
    shrunk = shrink(done.model, example) if plan.shrink else None
    last = done if shrunk is None else shrunk
    save(last.model, last.architecture, plan.out)
    result = {**_described(plan, done), "shrunk": _shrunk(shrunk), "latency_ms": times, "accuracy": accuracy}
    write_json(plan.out / "result.json", result)
    for checkpoint in (TRAINING, FINE_TUNING):  # kept to here, so that an interrupted run goes on where it was
        (plan.out / checkpoint).unlink(missing_ok=True)
    return done, result


def _described(plan: Plan, done: Pruned) -> dict[str, Any]:
    """Returns what was asked for and what was pruned, as plain values."""
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
        "proof": asdict(done.proof),
        "pinned": [entry._asdict() for entry in done.graph.pinned],
    }


def _prune(plan: Plan, request: Pruning, model: nn.Module, example: Tensor) -> Pruned:
    """Prunes a network; training between the steps shows its epochs, a method that works for long its steps."""
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
        "drift": shrunk.drift,
        "proof": asdict(shrunk.proof),
    }


def _plain(plan: Plan, model: nn.Module) -> nn.Module:
    """The network without its selectors, which pass on everything as long as it is whole."""
    if plan.selectors is None:
        return model
    plain = plan.source.make()
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if key in plain.state_dict()})
    return plain


def _times(before: nn.Module, after: nn.Module, example: Tensor) -> dict[str, float]:
    """Latencies in milliseconds, measured in turns and the better of two, so that other work disturbs both alike."""
    from topiarist.measure import latency

    rounds = [(latency(before, example, repeats=10), latency(after, example, repeats=10)) for _ in range(2)]
    return {"before": min(first for first, _ in rounds), "after": min(second for _, second in rounds)}


def fit(source: Source, model: nn.Module, recipe: Recipe, method: Method | None, out: Path, *, quiet: bool) -> History:
    """Train a network on its data, with what the method does in training; go on from ``train.ckpt`` in the folder."""
    from topiarist.graph import trace
    from topiarist.train import fit as train

    assert source.data is not None, "the commands ask for data before they train"
    acts = method is not None and "training" in method.needs
    graph = trace(model, source.data.example()) if acts else None
    graph = method.units(graph) if graph is not None and method is not None else graph
    with show.training("training", quiet) as told:
        return train(
            model,
            source.data,
            recipe,
            seed=source.seed,
            method=method if acts else None,
            graph=graph,
            checkpoint=out / TRAINING,
            progress=told,
        )


def _finetuned(plan: Plan, done: Pruned) -> float | None:
    """Trains the pruned network on, and returns its accuracy; pruned weights stay zero."""
    from topiarist.train import fit as train

    if plan.source.data is None or not plan.finetune.epochs:
        return None
    sparse = plan.method.granularity == "weight"
    with show.training("fine-tuning", plan.quiet) as progress:
        history = train(
            done.model,
            plan.source.data,
            plan.finetune,
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


def write_weights(model: nn.Module, path: Path) -> None:
    """Write a model's state dict as safetensors; tied tensors are stored once."""
    from topiarist.architecture import write_tensors

    write_tensors(model, path)


def write_json(path: Path, values: Any) -> None:
    """Write plain values, all or nothing; what is not finite becomes null."""
    files.write_json(path, show.plain(values))
