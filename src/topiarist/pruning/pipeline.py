"""The pipeline: trace, measure, score, allocate, repair, cut and prove, in one call."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from topiarist.architecture import Architecture
from topiarist.budget import Budget, UnreachableError, cost
from topiarist.errors import TopiaristError
from topiarist.files import shown
from topiarist.graph import (
    Graph,
    Keep,
    Outputs,
    check_plain,
    hindrance,
    trace,
    unwrapped,
)
from topiarist.measure import Loss, Stats, collect, cross_entropy
from topiarist.methods import Method, Repair
from topiarist.pruning.choice import Choice, make_choice, warn_of_single_units
from topiarist.pruning.examples import DataOrBatches, batches_of, check_data
from topiarist.pruning.iterative import EpochCounter, Share, kept_after, prune_in_steps
from topiarist.pruning.milliseconds import Latency, Stopwatch
from topiarist.pruning.refusals import check_inputs, check_units, statistics_needed
from topiarist.pruning.request import Pruning, Run, trains_sparsely
from topiarist.pruning.result import Pruned
from topiarist.pruning.unscored import named, warn_of_unscored
from topiarist.surgery import Proof, check, copied, cut, mask, prove, rewound, with_values
from topiarist.train import Recipe, fit


def prune(
    model: nn.Module,
    example_inputs: Any,
    method: str | Method | Pruning,
    budget: Budget | Mapping[str, Any] | float | None = None,
    data: DataOrBatches | None = None,
    *,
    loss: Loss | None = None,
    more_inputs: Sequence[Any] = (),
    outputs: Outputs | None = None,
    graph: Graph | None = None,
    initial: Mapping[str, Tensor] | None = None,
    run: Run | None = None,
) -> Pruned:
    """Prunes a network by a method to a budget, and proves the cut.

    In several steps each one scores what the step before kept and prunes some more; between them the network may train
    on (iterative pruning), before each of them in the method's way (multi-pass Network Slimming). What all steps keep
    is one keep of the network that was given.

    Args:
        model: any trained `torch.nn.Module`; it is not changed. Of one that is compiled, parallel or averaged
            (`torch.compile`, `DistributedDataParallel`, `AveragedModel`, …) the network within: the result is plain.
        example_inputs: a tensor, a tuple of arguments, or a dict of keyword arguments.
        method: registered name, such as ``"l1"``, a method with its fields, or a complete request: `Pruning` with
            repair, several steps, sparse training or rewinding.
        budget: how much is kept; a number is the fraction of MACs (of weights, for unstructured methods), a mapping
            gives the fields of `Budget`. ``None`` where the method brings its own rule, or the request has a budget.
        data: needed by methods that measure or train: a data set, or batches of any kind, such as a `DataLoader`:
            pairs ``(inputs, target)`` or inputs alone, as for `collect` and `topiarist.fit`.
        loss: of the model's output and a batch's target, the mean over the examples, where it is not the cross entropy
            of class scores: methods that measure gradients take those of it, and training makes it smaller.
        more_inputs: further examples that take other ways through the model's code, such as optional arguments, a
            cache, or other sizes: the cut is proved on each of them.
        outputs: what counts of what the model returns, as for `trace`: the rest may change its shape.
        graph: the model's graph, where it was traced before (options of `trace` are given there).
        initial: state dict of the network before it was trained, or early in its training, for a request that rewinds:
            what each cut keeps returns to these values, buffers too, and so does the pruned model.
        run: seed, batch size, progress.

    Returns:
        The smaller model with its architecture, its proof and its costs.

    Raises:
        TopiaristError: bad input, an impossible budget, or a cut that cannot be proved, or is proved blindly only while
            the request does not allow that.
    """
    work = prepared(
        model,
        example_inputs,
        _request(method, budget, outputs),
        data,
        loss=loss,
        more_inputs=more_inputs,
        graph=graph,
        initial=initial,
        run=run,
    )
    model = unwrapped(model)
    return work.in_one_cut(model) if work.request.steps.count == 1 else work.in_steps(model)


def prepared(
    model: nn.Module,
    example_inputs: Any,
    request: Pruning,
    data: DataOrBatches | None,
    *,
    loss: Loss | None = None,
    more_inputs: Sequence[Any] = (),
    graph: Graph | None = None,
    initial: Mapping[str, Tensor] | None = None,
    run: Run | None = None,
) -> Pipeline:
    """Checks all that `prune` is given, and traces the network; nothing is measured yet."""
    run = Run() if run is None else run
    model = unwrapped(model)
    if not isinstance(run, Run):
        raise TopiaristError(f"run must be a topiarist.Run, but got {shown(run)}: write Run(seed=1)")
    check_data(data, loss)
    check_inputs(model, request, data, initial)
    check_plain((example_inputs, *more_inputs), "the example input is")
    if request.budget is not None:
        if run.distributed and request.budget.latency is not None:
            raise TopiaristError("a latency budget is measured by one process: leave distributed out of the run")
        request = replace(request, budget=request.budget.named_in(model))
    if graph is None:
        graph = trace(model, example_inputs, more_inputs=more_inputs, outputs=request.outputs)
    if not isinstance(graph, Graph):
        raise TopiaristError(f"graph must be what trace(model, example_inputs) returns, but got {shown(graph)}")
    if request.outputs not in (None, graph.outputs):
        raise TopiaristError("the graph says what counts as outputs: leave outputs out, or give it to trace")
    units = request.method.units(graph)
    check_units(request, units)
    start = None if initial is None else rewound(model, initial)
    return Pipeline(request, units, example_inputs, more_inputs, data, loss, start, run, teacher=model)


def _request(
    method: str | Method | Pruning, budget: Budget | Mapping[str, Any] | float | None, outputs: Outputs | None
) -> Pruning:
    if not isinstance(method, Pruning):
        return Pruning.of(method, budget, outputs=outputs)
    if budget is not None:
        raise TopiaristError("the request has a budget of its own: leave budget out, or give it to Pruning.of")
    return method if outputs is None else replace(method, outputs=outputs)


def _check_proof(proof: Proof, request: Pruning) -> None:
    """Raises where a proof failed, or saw nothing and the request does not allow that."""
    if not proof.agrees:
        raise TopiaristError(f"the cut cannot be proved: {proof.reason}; exclude its groups from the budget")
    if proof.blind and not request.allow_blind:
        raise TopiaristError(f"the cut cannot be proved: {proof.reason}, or allow it by allow_blind")
    if not proof.ok and not proof.blind:
        raise TopiaristError(f"the cut cannot be used: {proof.reason}")


@dataclass(eq=False)
class Pipeline:
    """Carries out one request on one network.

    Attributes:
        request: how it is pruned.
        units: the units of the network that was given; replaced where some of them cannot be proved.
        example_inputs: of the network.
        more_inputs: further ones.
        data: what is measured and trained on.
        loss: whose gradients are measured, and which is trained on; ``None`` for the cross entropy.
        start: the network with its initial values, where it is rewound to them.
        run: seed, batch size, progress.
        choices: what each cut kept, and why.
        stopwatch: prices the network, under a latency budget.
        latency: what such a budget came to.
        teacher: the unpruned network, which a recipe with distillation follows.
    """

    request: Pruning
    units: Graph
    example_inputs: Any
    more_inputs: Sequence[Any]
    data: DataOrBatches | None
    loss: Loss | None
    start: nn.Module | None
    run: Run
    choices: list[Choice] = field(default_factory=list)
    stopwatch: Stopwatch | None = None
    latency: Latency | None = None
    teacher: nn.Module | None = None

    def __post_init__(self) -> None:
        self.epochs = EpochCounter.of(self.run.progress, self.request)

    def in_one_cut(self, model: nn.Module) -> Pruned:
        """Prunes in one cut."""
        trained = self.train(model, self.units, self.units.full(), self.request.budget, 1)
        self.units, keep, proof, smaller = self._cut(trained, self.units, self.request.budget)
        return self._result(self.rewind(smaller, keep), trained, keep, proof)

    def in_steps(self, model: nn.Module) -> Pruned:
        """Prunes in several cuts, whose keeps compose into one."""
        method, steps = self.request.method, self.request.steps
        trained, keep = prune_in_steps(model, self.units, self.request, kept_after(method, steps), self)
        proof, smaller = (
            prove(trained, self.units, keep, self.example_inputs, more_inputs=self.more_inputs),
            cut(trained, self.units, keep),
        )
        _check_proof(proof, self.request)
        return self._result(smaller, trained, keep, proof)

    def _result(self, smaller: nn.Module, trained: nn.Module, keep: Keep, proof: Proof) -> Pruned:
        budget, method = self.request.budget, self.request.method
        warn_of_single_units(self.units, keep, (budget and budget.allocation) or method.allocation)
        warn_of_unscored(method, budget, self.units, keep, trained)
        return Pruned(
            model=smaller,
            architecture=Architecture.of(self.units, keep),
            proof=proof,
            before=cost(self.units),
            after=cost(self.units, keep),
            graph=self.units,
            keep=keep,
            request=self.request,
            trained=trained,
            choice=self.choices[-1],
            latency=self.latency,
            inputs=self.example_inputs,
        )

    def _cut(
        self, model: nn.Module, units: Graph, budget: Budget | Share | None
    ) -> tuple[Graph, dict[str, Tensor], Proof, nn.Module]:
        """Measures, scores, allocates, proves, repairs and cuts; what cannot be proved is pinned, and chosen again."""
        run, repairer = self.run, self.request.repairer
        stats = collect(
            model,
            units,
            batches_of(self.data, run.batch_size, run.seed),
            statistics_needed(self.request),
            loss=self.loss or cross_entropy,
            on_step=run.on_step,
            distributed=run.distributed,
        )
        for attempt in (1, 2):
            choice = self._choice(model, units, stats, budget)
            keep = dict(choice.keep)
            proof = prove(model, units, keep, self.example_inputs, more_inputs=self.more_inputs)
            if math.isnan(proof.change):
                raise TopiaristError(proof.reason)
            if attempt == 1 and not proof.agrees:
                units = check(model, units, self.example_inputs, more_inputs=self.more_inputs)
                if not units.groups:
                    raise TopiaristError(hindrance(units))
                budget = budget.on(units) if isinstance(budget, Share) else budget
            else:
                break
        _check_proof(proof, self.request)
        self.choices.append(choice)
        return units, keep, proof, cut(_repaired(model, units, keep, repairer, stats), units, keep)

    def _choice(self, model: nn.Module, units: Graph, stats: Stats, budget: Budget | Share | None) -> Choice:
        """Chooses what is kept; under a latency budget what is measured to meet it."""
        try:
            return self._chosen(model, units, stats, budget)
        except UnreachableError as error:
            raise named(error, self.request.method, units, stats) from None

    def _chosen(self, model: nn.Module, units: Graph, stats: Stats, budget: Budget | Share | None) -> Choice:
        choose = partial(make_choice, self.request.method, units, stats, cost=partial(cost, units))
        if not isinstance(budget, Budget) or budget.latency is None:
            return choose(budget)
        if self.stopwatch is None:
            self.stopwatch = Stopwatch.of(model, units, self.example_inputs, budget, self.run.on_step)
        choice, self.latency = self.stopwatch.choose(units, budget, choose)
        return choice

    # the `Work` of `prune_in_steps`

    def step(
        self, model: nn.Module, graph: Graph, keep: Keep, share: Budget | Share | None, step: int
    ) -> tuple[nn.Module, Graph, Keep]:
        """Trains the method's way, then cuts once."""
        graph, chosen, _, smaller = self._cut(self.train(model, graph, keep, share, step), graph, share)
        if step == 1:
            self.units = graph
        return smaller, graph, chosen

    def trace(self, model: nn.Module, graph: Graph) -> Graph:
        """Traces the smaller network as the original one was."""
        return trace(
            model,
            self.example_inputs,
            more_inputs=self.more_inputs,
            outputs=graph.outputs,
            rectangles=graph.solution.rectangles,
        )

    def train(self, model: nn.Module, graph: Graph, keep: Keep, budget: Budget | Share | None, step: int) -> nn.Module:
        """Returns a copy that was trained the method's way, where the request says how; else the network itself."""
        recipe, method = self.request.sparse_training, self.request.method
        return model if recipe is None else self._fit(copied(model), graph, keep, budget, step, recipe, method)

    def rewind(self, model: nn.Module, keep: Keep) -> nn.Module:
        """Returns the smaller network with its initial values, where the request rewinds; else itself."""
        return model if self.start is None else cut(self.start, self.units, keep)

    def retrain(self, model: nn.Module, graph: Graph, keep: Keep, share: Share | None, step: int) -> nn.Module:
        """Trains the smaller network before the next step: the method's way, if it does not train before."""
        recipe, method = self.request.steps.training, self.request.method
        if recipe is None:
            return model
        sparsely = self.request.sparse_training is None and trains_sparsely(method)
        return self._fit(model, graph, keep, share, step, recipe, method if sparsely else None)

    def _fit(
        self,
        model: nn.Module,
        graph: Graph,
        keep: Keep,
        budget: Budget | Share | None,
        step: int,
        recipe: Recipe,
        method: Method | None,
    ) -> nn.Module:
        """Trains in place; pruned weights stay zero, and pruned units are not there."""
        assert self.data is not None, "the inputs were checked"
        sparse = self.request.method.granularity == "weight"
        graph, held = (self.units, keep) if sparse else (graph, None)
        fit(
            model,
            self.data,
            recipe,
            loss=self.loss,
            teacher=self.teacher if recipe.distillation else None,
            seed=self.run.seed + step - 1,
            method=method,
            graph=graph,
            keep=held,
            exclude=() if budget is None else budget.exclude,
            progress=self.epochs,
        )
        return model


def _repaired(model: nn.Module, graph: Graph, keep: Keep, by: Method | None, stats: Stats) -> nn.Module:
    """Returns the model with new values for the kept weights, where a method repairs."""
    if not isinstance(by, Repair):
        return model
    masked = mask(model, graph, keep)
    by.repair(masked, graph, keep, stats)
    return with_values(model, masked)
