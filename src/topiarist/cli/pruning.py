"""The way of ``topiarist prune``: train or load, prune, prove, fine-tune, measure, write."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from topiarist import files
from topiarist.budget import Budget
from topiarist.cli import show
from topiarist.cli.inputs import Source
from topiarist.errors import TopiaristError
from topiarist.methods import Method
from topiarist.models import full_name
from topiarist.train import Recipe

if TYPE_CHECKING:
    from topiarist.pruning import Pruned, Shrunk
    from topiarist.train import History

TRAINING, FINE_TUNING = "train.ckpt", "finetune.ckpt"


@dataclass(frozen=True)
class Stepwise:
    """In how many steps a network is pruned.

    Attributes:
        steps: cuts.
        epochs: of training between two of them.
        schedule: how much goes in each.
    """

    steps: int = 1
    epochs: int = 1
    schedule: str | None = None


@dataclass(frozen=True)
class Plan:
    """What is to be pruned and how.

    Attributes:
        source: the network, its weights, its data.
        method: what ranks the units.
        repair: name of the method that gives what is left new values, if another one does.
        budget: how much stays; ``None`` leaves it to the method's own rule.
        train: recipe for a network without weights.
        finetune: recipe for the pruned network.
        stepwise: in how many steps it is pruned.
        selectors: the norms that a channel selector shall follow, if any.
        shrink: remove the channels and neurons that zero weights left dead.
        seed: of everything random.
        out: the folder for the results.
        quiet: show no progress.
    """

    source: Source
    method: Method
    repair: str | None
    budget: Budget | None
    train: Recipe
    finetune: Recipe
    stepwise: Stepwise
    selectors: str | None
    shrink: bool
    seed: int
    out: Path
    quiet: bool

    def model(self, example: Tensor) -> nn.Module:
        """The network to prune, with its selectors."""
        from topiarist.surgery import add_selectors

        model = self.source.model()
        return model if self.selectors is None else add_selectors(model, self.selectors, example)


def run(plan: Plan, example: Tensor) -> tuple[Pruned, dict[str, Any]]:
    """Do it, and write ``result.json``, ``model.safetensors`` and ``architecture.json``.

    Args:
        plan: what is to be done.
        example: input for tracing, the proof and the timing.

    Returns:
        What `topiarist.prune` found, and the values of ``result.json``; accuracies are per cent of the test examples,
        and null where there is no data.
    """
    from topiarist.architecture import save
    from topiarist.pruning import shrink

    if plan.shrink and plan.method.granularity != "weight":
        raise TopiaristError(f"{plan.method.name} leaves nothing dead, for it cuts units: leave --shrink out")
    data = plan.source.data
    model = plan.model(example)
    if plan.source.weights is None:
        # A rehearsal: a budget that cannot be met is found before the training, not after it.
        _prune(plan, model, example, rehearsal=True)
        fit(plan.source, model, plan.train, plan.method, plan.seed, plan.out, quiet=plan.quiet)
        write_weights(_plain(plan, model), plan.out / "trained.safetensors")
    before = _accuracy(plan, model)
    done = _prune(plan, model, example)
    times = _times(model, done.model, example)
    pruned = _accuracy(plan, done.model)
    finetuned = None
    if data is not None and plan.finetune.epochs:
        finetuned = _finetune(plan, done, example).accuracy
    shrunk = shrink(done.model, example) if plan.shrink else None
    last = done if shrunk is None else shrunk
    save(last.model, last.architecture, plan.out)
    result = {
        "model": full_name(plan.source.make),
        "data": None if data is None else data.name,
        "seed": plan.seed,
        "method": plan.method.name,
        "fields": asdict(plan.method),
        "repair": None if done.repair is None else done.repair.name,
        "budget": None if plan.budget is None else asdict(plan.budget),
        "steps": plan.stepwise.steps,
        "selectors": list(done.architecture.selectors),
        "kept": {name: list(counts) for name, counts in done.architecture.widths.items()},
        "macs": {"before": done.before.macs, "after": done.after.macs},
        "params": {"before": done.before.params, "after": done.after.params},
        "shrunk": None if shrunk is None else _shrunk(shrunk),
        "latency_ms": times,
        "accuracy": {"before": before, "pruned": pruned, "finetuned": finetuned},
        "proof": asdict(done.proof),
        "pinned": [entry._asdict() for entry in done.graph.pinned],
    }
    write_json(plan.out / "result.json", result)
    for checkpoint in (TRAINING, FINE_TUNING):  # kept to here, so that an interrupted run goes on where it was
        (plan.out / checkpoint).unlink(missing_ok=True)
    return done, result


def _prune(plan: Plan, model: nn.Module, example: Tensor, *, rehearsal: bool = False) -> Pruned:
    """Prune a network, in one step or in several; a rehearsal does not train between them."""
    from topiarist.pruning import prune

    how = plan.stepwise
    between = None
    if plan.source.data is not None and how.steps > 1 and how.epochs and not rehearsal:
        between = replace(plan.finetune, epochs=how.epochs)
    method = plan.method.rehearsal() if rehearsal else plan.method
    with (
        show.training("between the steps", plan.quiet or between is None) as told,
        show.steps(plan.quiet or rehearsal or between is not None) as on_step,
    ):
        return prune(
            model,
            example,
            method,
            plan.budget,
            data=plan.source.data,
            repair=plan.repair,
            steps=how.steps,
            schedule=how.schedule,
            between=between,
            seed=plan.seed,
            progress=told,
            on_step=on_step,
        )


def _shrunk(shrunk: Shrunk) -> dict[str, Any]:
    """What shrinking left: units of each group, costs of the dense network of that shape, and the proof."""
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


def fit(
    source: Source, model: nn.Module, recipe: Recipe, method: Method | None, seed: int, out: Path, *, quiet: bool
) -> History:
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
            seed=seed,
            method=method if acts else None,
            graph=graph,
            checkpoint=out / TRAINING,
            progress=told,
        )


def _finetune(plan: Plan, done: Pruned, example: Tensor) -> History:
    """Train the pruned network on; where single weights were pruned they stay zero."""
    from topiarist.train import fit as train

    assert plan.source.data is not None
    sparse = plan.method.granularity == "weight"
    with show.training("fine-tuning", plan.quiet) as told:
        return train(
            done.model,
            plan.source.data,
            plan.finetune,
            seed=plan.seed,
            graph=done.graph if sparse else None,
            keep=done.keep if sparse else None,
            checkpoint=plan.out / FINE_TUNING,
            progress=told,
        )


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
