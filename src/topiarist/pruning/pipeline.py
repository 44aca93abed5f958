"""The front door: trace, measure, score, allocate, repair, cut and prove, in one call."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from topiarist.architecture import Architecture
from topiarist.budget import Budget, allocate, cost, matching
from topiarist.data import Data
from topiarist.errors import TopiaristError
from topiarist.graph import Graph, Keep, check_finite, trace
from topiarist.measure import OnStep, Statistic, Stats, collect, rehearse
from topiarist.methods import Method, Repair, Rule, Selector, make
from topiarist.pruning.choice import Choice, chosen
from topiarist.pruning.iterative import Share, Told, acts, check_steps, in_steps, kept_after
from topiarist.pruning.result import Pruned
from topiarist.surgery import TOLERANCE, Proof, check, copied, cut, mask, prove, rewound, with_values
from topiarist.train import Progress, Recipe, fit


def prune(
    model: nn.Module,
    example_inputs: Any,
    method: str | Method,
    budget: Budget | Mapping[str, Any] | float | None = None,
    data: Data | None = None,
    *,
    graph: Graph | None = None,
    repair: str | Method | None = None,
    recipe: Recipe | None = None,
    steps: int = 1,
    schedule: str | None = None,
    between: Recipe | None = None,
    rewind: Mapping[str, Tensor] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
    on_step: OnStep | None = None,
    distributed: bool = False,
) -> Pruned:
    """Prunes a network by a method to a budget, and proves the cut.

    In several steps each one scores what the step before left and cuts some more; with a recipe ``between`` them the
    network trains on (iterative pruning), with ``recipe`` it trains before each cut in the method's way (multi-pass
    Network Slimming). What all steps keep is one keep of the network that was given. With ``rewind`` the survivors
    return to earlier values after each cut: iterative magnitude pruning for lottery tickets (Frankle & Carbin 2019).

    Args:
        model: any trained `torch.nn.Module`; it stays as it is.
        example_inputs: a tensor, a tuple of arguments, or a dict of keyword arguments.
        method: registered name, such as ``"l1"``, or a method with its fields.
        budget: what may stay; a plain number is the fraction of MACs (of weights, for methods that remove single
            ones), a mapping gives the fields of `Budget`. Left out where the method brings its own rule.
        data: needed by methods that measure or train.
        graph: the model's graph, where it was traced before (options of `trace` go there).
        repair: the method that gives what is left new values, instead of the one that chose: ``"lasso"`` after
            ``"slimming"`` refits by least squares what reads the channels that slimming left.
        recipe: trains a copy with the method's penalty before it is scored (Network Slimming); without one the model
            is taken to be trained that way already. With several steps, before each of them.
        steps: how many cuts; a budget's ``floor`` below 1 is a fraction of what each of them finds.
        schedule: what stays after each step: ``"linear"`` (equally much goes each time), ``"cubic"`` (most goes early,
            Zhu & Gupta 2017); the method's own where it has one and none is named, else linear.
        between: trains the network between two steps, in the method's way where no ``recipe`` does so before them;
            weights that were removed stay zero.
        rewind: state dict of the network as it was before training, or early in it: what survives a cut gets these
            values, buffers too, and the model that comes back has them, ready to be trained. Of methods that repair
            what they leave (lasso, thinet, obs, srinivas_babu) only the choice counts then.
        batch_size: of what is measured.
        seed: of the training, and of the order in which a method sees the training examples.
        progress: called after each epoch, counted through all trainings.
        on_step: called by methods that work for long, with what they do, how many steps are done, and of how many.
        distributed: under torchrun, share what is measured in one pass among all processes, which call this alike and
            get the same (see `topiarist.measure.collect`); all else, trainings too, each of them does for itself.

    Returns:
        The smaller model with its architecture, its proof and its costs.

    Raises:
        TopiaristError: bad input, an impossible budget, or a cut that cannot be proved.
    """
    method = make(method)
    repairer = repaired_by(method, repair)
    if repair is not None and rewind is not None:
        raise TopiaristError(
            "rewinding gives what is left its old values, not the repaired ones: leave one of them out"
        )
    needs = method.needs if repairer is None else method.needs | repairer.needs
    wish = _budget(budget, method)
    trains = (recipe is not None and acts(method)) or (between is not None and steps != 1)
    check_steps(method, steps, schedule, trains=trains, data=data, recipe=recipe, between=between)
    check_finite(model)
    _check_numbers(batch_size=batch_size, seed=seed)
    _check_data(model, data, needs, trains=trains)
    check_wish(method, wish)
    graph = trace(model, example_inputs) if graph is None else graph
    if not isinstance(graph, Graph):
        raise TopiaristError(f"graph must be what topiarist.trace(model, example_inputs) gives, but got {graph!r}")
    units = method.units(graph)
    if not units.groups:
        raise TopiaristError("nothing in this network can be pruned; `topiarist inspect` says what pins each layer")
    start = None if rewind is None else rewound(model, rewind)
    if wish is not None and (trains or steps > 1):
        _rehearse(method, units, wish, steps)
    told = Told.of(progress, method, recipe, between, steps)
    if steps > 1 and isinstance(method, Rule) and method.budget(units) is not None:
        raise TopiaristError(
            f"{method.name} has the widths of one cut in its fields: leave steps out, or give a budget"
        )
    if steps > 1 and units.kind == "block":
        raise TopiaristError(f"{method.name} removes whole blocks in one cut: leave steps out")
    work = _Work(
        method=method,
        repairer=repairer,
        needs=needs,
        units=units,
        example_inputs=example_inputs,
        data=data,
        recipe=recipe,
        between=between,
        start=start,
        batch_size=batch_size,
        seed=seed,
        told=told,
        on_step=on_step,
        distributed=distributed,
    )
    if steps == 1:
        trained = work.train(model, units, units.full(), 1)
        units, keep, proof, smaller = work.once(trained, units, wish)
        smaller = work.again(smaller, units, keep)
    else:
        kept = kept_after(method, schedule, steps)
        trained, units, keep = in_steps(model, units, wish, method.allocation, kept, steps, work)
        proof, smaller = prove(trained, units, keep, example_inputs), cut(trained, units, keep)
        _check(proof)
    return Pruned(
        model=smaller,
        architecture=Architecture.of(units, keep),
        proof=proof,
        before=cost(units),
        after=cost(units, keep),
        graph=units,
        keep=keep,
        method=method,
        trained=trained,
        repair=repairer if rewind is None else None,
        pattern=None if wish is None else wish.pattern,
        choice=work.choices[-1],
    )


def repaired_by(method: Method, repair: str | Method | None) -> Method | None:
    """Who gives what is left new values: the method that is asked to, or the one that chose, if it does such.

    Raises:
        TopiaristError: the one that is asked to does not repair, or not what the other one removes.
    """
    if repair is None:
        return method if isinstance(method, Repair) else None
    other = make(repair)
    if not isinstance(other, Repair):
        raise TopiaristError(
            f"{other.name} gives what is left no new values: repair with lasso or thinet, or single weights with obs"
        )
    if other.granularity != method.granularity:
        raise TopiaristError(
            f"{other.name} repairs where a {other.granularity} goes, and {method.name} removes a {method.granularity}: "
            "take two of a kind"
        )
    return other


def _check_numbers(**numbers: Any) -> None:
    for name, value in numbers.items():
        least = 1 if name == "batch_size" else 0
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise TopiaristError(f"{name} must be a whole number of at least {least}, but got {value!r}")


def _check_data(model: nn.Module, data: Any, needs: Collection[str | Statistic], *, trains: bool) -> None:
    """Raises where the data is none, or the model fails on it, before anything long begins."""
    if data is not None and not isinstance(data, Data):
        raise TopiaristError(
            "data must be a topiarist.Data, from load_data or of tensors of yours by topiarist.Data.of, but got "
            f"{type(data).__name__}; batches of any kind are for topiarist.collect"
        )
    if data is not None and (trains or set(needs) - {"weights", "training"}):
        rehearse(model, data)


def _rehearse(method: Method, units: Graph, wish: Budget, steps: int) -> None:
    """Raises where the budget cannot be met, or names what there is not, before any training."""
    if method.granularity == "weight" or isinstance(method, Selector):
        names = dict.fromkeys(group.name for group in units.groups)
        for pattern in (*wish.ratios, *wish.exclude):
            matching(pattern, names)
        return
    floor = wish.floor if wish.floor >= 1 else wish.floor**steps
    allocate(units, {g.name: torch.ones(g.units) for g in units.groups}, replace(wish, floor=floor), method.allocation)


def _check(proof: Proof) -> None:
    if not proof.max_rel_diff <= TOLERANCE:
        raise TopiaristError(f"the cut cannot be proved: {proof.reason}; exclude its groups from the budget")


@dataclass(frozen=True, eq=False, kw_only=True)
class _Work:
    """What is done in each step; the fields are the arguments of `prune`, and the units of its graph."""

    method: Method
    repairer: Method | None
    needs: Collection[str | Statistic]
    units: Graph
    example_inputs: Any
    data: Data | None
    recipe: Recipe | None
    between: Recipe | None
    start: nn.Module | None
    batch_size: int
    seed: int
    told: Told
    on_step: OnStep | None
    distributed: bool
    choices: list[Choice] = field(default_factory=list)
    """What each cut kept, and why."""

    def once(
        self, model: nn.Module, units: Graph, wish: Budget | Share | None
    ) -> tuple[Graph, dict[str, Tensor], Proof, nn.Module]:
        """Measures, scores, allocates, proves, repairs and cuts; what cannot be proved is pinned, and chosen again."""
        batches = None if self.data is None else Batches(self.data, self.batch_size, self.seed)
        stats = collect(model, units, batches, self.needs, on_step=self.on_step, distributed=self.distributed)
        for attempt in (1, 2):
            choice = chosen(self.method, units, stats, wish, cost=partial(cost, units))
            keep = dict(choice.keep)
            proof = prove(model, units, keep, self.example_inputs)
            if not math.isfinite(proof.change):
                raise TopiaristError(proof.reason or "the network's outputs are not finite on the example input")
            if attempt == 1 and not proof.max_rel_diff <= TOLERANCE:
                units = check(model, units, self.example_inputs)
                wish = wish.on(units) if isinstance(wish, Share) else wish
            else:
                break
        _check(proof)
        self.choices.append(choice)
        return units, keep, proof, cut(_repaired(model, units, keep, self.repairer, stats), units, keep)

    def step(
        self, model: nn.Module, graph: Graph, held: Keep, wish: Share | None, step: int
    ) -> tuple[nn.Module, Graph, Keep]:
        """One of several steps: trains the method's way, then cuts."""
        graph, keep, _, smaller = self.once(self.train(model, graph, held, step), graph, wish)
        return smaller, graph, keep

    def trace(self, model: nn.Module, graph: Graph) -> Graph:
        """Traces the smaller network as the original one was."""
        return trace(model, self.example_inputs, rectangles=graph.solution.rectangles)

    def train(self, model: nn.Module, graph: Graph, held: Keep, step: int) -> nn.Module:
        """A copy trained the method's way, where a recipe says how."""
        if self.recipe is None or not acts(self.method):
            return model
        return self._fit(copied(model), graph, held, step, self.recipe, self.method)

    def again(self, model: nn.Module, graph: Graph, held: Keep) -> nn.Module:
        """The smaller network with the values to which it is rewound, if any."""
        return model if self.start is None else cut(self.start, graph, held)

    def rest(self, model: nn.Module, graph: Graph, held: Keep, step: int) -> nn.Module:
        """Trains the smaller network on, where a recipe says how: the method's way, if it does not train before."""
        if self.between is None:
            return model
        method = self.method if self.recipe is None and acts(self.method) else None
        return self._fit(model, graph, held, step, self.between, method)

    def _fit(
        self, model: nn.Module, graph: Graph, held: Keep, step: int, recipe: Recipe, method: Method | None
    ) -> nn.Module:
        """Trains in place; weights that are gone stay zero, and units that are gone are not there."""
        if self.data is None:
            raise TopiaristError(f"{self.method.name} is to train the network: give data")

        sparse = self.units.kind == "weight"
        graph, keep = (self.units, held) if sparse else (graph, None)
        seed = self.seed + step - 1
        fit(model, self.data, recipe, seed=seed, method=method, graph=graph, keep=keep, progress=self.told)
        return model


class Batches:
    """The training batches of a data set, as often as they are asked for.

    They come in one and the same random order: data on disks often have one class after the other, and some methods
    look at the first examples only.

    Args:
        data: the data set.
        batch_size: examples in a batch.
        seed: of the order.
    """

    def __init__(self, data: Data, batch_size: int, seed: int) -> None:
        self.data, self.batch_size, self.seed = data, batch_size, seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.data.batches("train", self.batch_size, torch.Generator().manual_seed(self.seed))


def check_wish(method: Method, wish: Budget | None) -> None:
    """Raises where a method cannot do without a budget, or with this one, whatever the network."""
    if wish is None and not isinstance(method, (Rule, Selector)):
        raise TopiaristError(f"{method.name} needs a budget: give macs, params or ratio, the fraction that stays")
    if wish is not None and wish.pattern is not None and method.granularity != "weight":
        raise TopiaristError(f"a pattern is for methods of single weights, and {method.name} removes structures")


def _budget(budget: Budget | Mapping[str, Any] | float | None, method: Method) -> Budget | None:
    if budget is None or isinstance(budget, Budget):
        return budget
    if isinstance(budget, Mapping):
        try:
            return Budget(**budget)
        except TypeError as error:
            raise TopiaristError(f"a budget has the fields of topiarist.Budget: {error}") from error
    return Budget(ratio=budget) if method.granularity == "weight" else Budget(macs=budget)


def _repaired(model: nn.Module, graph: Graph, keep: Mapping[str, Tensor], by: Method | None, stats: Stats) -> nn.Module:
    """The masked model with new values for what is left, where a method repairs."""
    if not isinstance(by, Repair):
        return model
    masked = mask(model, graph, keep)
    by.repair(masked, graph, keep, stats)
    return with_values(model, masked)


__all__ = ["Batches", "check_wish", "prune", "repaired_by"]
