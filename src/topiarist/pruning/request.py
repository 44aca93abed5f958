"""The request: what a pruning is, in one frozen value.

Python, the command line, a study's YAML and a result's JSON all spell it alike.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from torch import nn

from topiarist.budget import KEEPS_ITS_MEMORY, Budget
from topiarist.deploy import get_target
from topiarist.errors import TopiaristError
from topiarist.files import check_fields, from_plain, shown, suggestion
from topiarist.graph import Outputs, as_outputs
from topiarist.measure import OnStep
from topiarist.methods import (
    SCHEDULES,
    Gate,
    Method,
    Penalty,
    Proximal,
    Repair,
    Rule,
    Selector,
    Soft,
    make,
)
from topiarist.train import Progress, Recipe

RETRAINING = Recipe.finetune()
"""What fields of the training between two cuts are where they are left out."""


@dataclass(frozen=True)
class Steps:
    """Describes in how many cuts a network is pruned, and what happens between them.

    Attributes:
        count: how many cuts; each one scores what the cut before it kept.
        schedule: the fraction kept after each cut: ``"linear"`` (every cut prunes equally much), ``"cubic"`` (the first
            ones prune most, Zhu & Gupta 2017); ``None`` for the method's own where it has one, else linear.
        training: trains the network between two cuts, in the method's way where no sparse training comes before them;
            pruned weights stay zero.

    Raises:
        TopiaristError: a value is of a wrong type, or there is no such schedule.
    """

    count: int = 1
    schedule: str | None = None
    training: Recipe | None = None

    def __post_init__(self) -> None:
        _check_type("training of steps", self.training, Recipe)
        check_fields(self, "steps")
        if self.count < 1:
            raise TopiaristError(f"count of steps must be at least 1, but got {self.count}")
        if self.schedule is not None and self.schedule not in SCHEDULES:
            raise TopiaristError(f"there is no schedule {shown(self.schedule)}: {suggestion(self.schedule, SCHEDULES)}")


@dataclass(frozen=True)
class Pruning:
    """Describes how a network is pruned: by which method, to which budget, and what else is done on the way.

    `Pruning.of` builds one from short spellings, `Pruning.from_json` from the plain values of `to_json`, and `flags`
    are the same values on the command line.

    Attributes:
        method: the method with its hyper-parameters.
        budget: how much is kept; ``None`` where the method brings its own rule.
        repair: the method that gives the kept weights new values in place of the pruning method: ``lasso`` after
            ``slimming`` refits by least squares what reads the kept channels. ``None`` for the pruning method's own.
        steps: in how many cuts, with what training between them. A budget's ``floor`` below 1 is a fraction of what
            each cut receives.
        sparse_training: trains with the method's penalty, gates or soft pruning before each cut (Network Slimming);
            without it the network is taken to be trained that way already.
        rewind: whether the kept weights return to their initial values after each cut (lottery tickets, Frankle &
            Carbin 2019). Of methods that repair, only the choice counts then.
        allow_blind: whether the pruning goes on where the proof is blind, as for untrained zero weights in the last
            layer: the mask changed nothing there, so that cut and mask agree shows little.
        outputs: what counts of what the network returns, as for `trace`: names or places with commas between them on
            the command line, by default all; the rest may change its shape.

    Raises:
        TopiaristError: a value is of a wrong type, or two of them do not go together.
    """

    method: Method
    budget: Budget | None = None
    repair: Method | None = None
    steps: Steps = field(default_factory=Steps)
    sparse_training: Recipe | None = None
    rewind: bool = False
    allow_blind: bool = False
    outputs: Outputs | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.method, Method):
            raise TopiaristError(f"method must be a Method, but got {shown(self.method)}: write Pruning.of('l1', ...)")
        _check_type("budget", self.budget, Budget)
        _check_type("sparse_training", self.sparse_training, Recipe)
        if not isinstance(self.steps, Steps):
            raise TopiaristError(f"steps must be a topiarist.Steps, but got {shown(self.steps)}: write Steps(count)")
        for name in ("rewind", "allow_blind"):
            if not isinstance(getattr(self, name), bool):
                raise TopiaristError(f"{name} must be True or False, but got {shown(getattr(self, name))}")
        if self.repair is not None:
            _check_repair(self.method, self.repair)
            if self.rewind:
                raise TopiaristError("rewinding undoes a repair: leave out repair or rewind")
        if self.sparse_training is not None and not trains_sparsely(self.method):
            raise TopiaristError(
                f"{self.method.name} takes no part in training: leave sparse_training out, and train the network first"
            )
        object.__setattr__(self, "outputs", as_outputs(self.outputs))
        _check_budget(self.method, self.budget, self.steps)

    @property
    def trains(self) -> bool:
        """Returns whether the pruning itself trains the network."""
        return self.sparse_training is not None or (self.steps.training is not None and self.steps.count > 1)

    @classmethod
    def of(
        cls,
        method: str | Mapping[str, Any] | Method,
        budget: Budget | Mapping[str, Any] | float | None = None,
        *,
        repair: str | Mapping[str, Any] | Method | None = None,
        steps: int | Mapping[str, Any] | Steps = 1,
        sparse_training: Mapping[str, Any] | Recipe | None = None,
        rewind: bool = False,
        allow_blind: bool = False,
        outputs: Outputs | None = None,
    ) -> Pruning:
        """Builds a request from short spellings.

        Args:
            method: a name, a mapping of ``name`` and fields, or a method.
            budget: a number is the fraction of MACs that is kept (of weights, for unstructured methods).
            repair: as ``method``.
            steps: a number is how many cuts there are, without training between them; in a mapping, ``training`` may
                hold fields of `Recipe`, those left out are of `Recipe.finetune`.
            sparse_training: fields of `Recipe`, those left out are of `Recipe.paper`.
            rewind: as the attribute.
            allow_blind: as the attribute.
            outputs: as the attribute.

        Raises:
            TopiaristError: there is no such method, field or value, or two of them do not go together.
        """
        chosen = make(method)
        if isinstance(budget, int | float) and not isinstance(budget, bool):
            budget = {"ratio" if chosen.granularity == "weight" else "macs": budget}
        if isinstance(budget, Mapping) and isinstance(budget.get("exclude"), str | nn.Module):
            budget = {**budget, "exclude": [budget["exclude"]]}
        amount = from_plain(Budget, {} if budget is None else budget, "the budget")
        recipe = _recipe(sparse_training, Recipe.paper())
        return cls(
            method=chosen,
            budget=None if amount == Budget() else amount,
            repair=None if repair is None else make(repair),
            steps=from_plain(Steps, _steps(steps), "steps"),
            sparse_training=None if recipe is None else from_plain(Recipe, recipe, "sparse_training"),
            rewind=rewind,
            allow_blind=allow_blind,
            outputs=outputs,
        )

    @classmethod
    def from_json(cls, value: Any) -> Pruning:
        """Builds a request from plain values, as in a YAML file; the keys are the attributes.

        Raises:
            TopiaristError: as `of`; a key is unknown, or the method is missing.
        """
        known = [entry.name for entry in fields(cls)]
        if not isinstance(value, Mapping):
            raise TopiaristError(f"a pruning must map names to values ({', '.join(known)}), but got {shown(value)}")
        if unknown := [key for key in value if key not in known]:
            raise TopiaristError(f"a pruning has no {shown(unknown[0])}: {suggestion(unknown[0], known)}")
        if "method" not in value:
            raise TopiaristError("the pruning names no method: add the key 'method'")
        return cls.of(**value)

    def to_json(self) -> dict[str, Any]:
        """Returns the request as plain values for `json`; later fields where they are set, so that keys of cells stay.

        Raises:
            TopiaristError: the budget names modules themselves, or a function says what counts as outputs.
        """
        plain = {
            "method": _plain_method(self.method),
            "budget": None if self.budget is None else self.budget.to_json(),
            "repair": None if self.repair is None else _plain_method(self.repair),
            "steps": {**asdict(self.steps), "training": _plain_recipe(self.steps.training)},
            "sparse_training": _plain_recipe(self.sparse_training),
            "rewind": self.rewind,
        }
        later = {"allow_blind": self.allow_blind or None, "outputs": _plain_outputs(self.outputs)}
        return plain | {name: value for name, value in later.items() if value is not None}

    def flags(self) -> list[str]:
        """Returns the words that make the same request on the command line; what has its default is left out."""
        words: list[str] = []
        for key, method in (("method", self.method), ("repair", self.repair)):
            if method is not None:
                words += [f"--{key}", method.name, *_flags(key, method, make(method.name))]
        words += [] if self.budget is None else _flags("budget", self.budget, Budget())
        words += _flags("steps", self.steps, Steps())
        if self.sparse_training is not None:
            words += _recipe_flags("sparse_training", self.sparse_training, Recipe.paper())
        if self.outputs is not None:
            plain = _plain_outputs(self.outputs)
            words += ["--outputs", plain if isinstance(plain, str) else json.dumps(plain)]
        return words + [f"--{name}" for name in ("rewind", "allow_blind") if getattr(self, name)]

    @property
    def untrained(self) -> Pruning:
        """Returns the same request without any training: what it refuses can be refused before a training begins."""
        steps = replace(self.steps, training=None)
        return replace(self, method=self.method.dry_run(), steps=steps, sparse_training=None)

    @property
    def repairer(self) -> Method | None:
        """Returns the method that gives the kept weights new values, if any does."""
        if self.repair is not None:
            return self.repair
        return self.method if isinstance(self.method, Repair) else None


@dataclass(frozen=True, eq=False)
class Run:
    """Describes how a pruning is run: what changes neither its meaning nor, but for the seed, its result.

    Attributes:
        seed: of the training, and of the order in which a method sees the training examples.
        batch_size: examples in a batch of what is measured.
        progress: called after each epoch, counted through all trainings.
        on_step: called by methods that work for long, with what they do, how many steps are done, and of how many.
        distributed: under torchrun, shares what is measured in one pass among all processes, which call this alike and
            get the same (see `topiarist.collect`); each trains for itself, and does all else for itself.

    Raises:
        TopiaristError: a value is of a wrong type or out of its range.
    """

    seed: int = 0
    batch_size: int = 64
    progress: Progress | None = None
    on_step: OnStep | None = None
    distributed: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "the run")
        for name, value, least in (("seed", self.seed, 0), ("batch_size", self.batch_size, 1)):
            if value < least:
                raise TopiaristError(f"{name} of the run must be at least {least}, but got {shown(value)}")


def trains_sparsely(method: Method) -> bool:
    """Returns whether a method takes part in training: by a penalty, a proximal step, gates, or soft pruning."""
    return isinstance(method, Penalty | Proximal | Gate | Soft)


def _check_budget(method: Method, budget: Budget | None, steps: Steps) -> None:
    """Raises where a method needs a budget, or cannot meet this one, whatever the network."""
    if (budget is None or budget.only_excludes) and not isinstance(method, Rule | Selector):
        raise TopiaristError(f"{method.name} needs a budget: give macs, params or ratio, the fraction that is kept")
    if budget is None:
        return
    if budget.n_of_m is not None and method.granularity != "weight":
        raise TopiaristError(f"N:M sparsity is unstructured, and {method.name} prunes structures: leave it out")
    if budget.n_of_m is not None and steps.count > 1:
        raise TopiaristError("N:M sparsity is reached in one cut: leave steps out")
    zeros = budget.latency is not None and get_target(budget.target).reads_zeros
    if budget.latency is not None and method.granularity == "weight" and not zeros:
        raise TopiaristError(
            f"{method.name} leaves tensors their size, and {budget.target} takes as long with zeros: give "
            "target='sparse', or params or ratio instead of latency"
        )
    if budget.latency is not None and steps.count > 1:
        raise TopiaristError("a latency budget is met in one cut: leave steps out")
    if budget.memory is not None and method.granularity == "weight":
        raise TopiaristError(KEEPS_ITS_MEMORY)


def _check_repair(method: Method, repair: Method) -> None:
    """Raises where a method does not repair, or not what another one prunes."""
    if not isinstance(repair, Method):
        raise TopiaristError(f"repair must be a Method, but got {shown(repair)}: write Pruning.of(..., repair='lasso')")
    if not isinstance(repair, Repair):
        raise TopiaristError(
            f"{repair.name} does not repair: choose lasso or thinet for structured pruning, obs for unstructured"
        )
    if repair.granularity != method.granularity:
        kinds = {"structure": "structured", "weight": "unstructured"}
        raise TopiaristError(
            f"{repair.name} repairs {kinds[repair.granularity]} pruning only, and {method.name} is "
            f"{kinds[method.granularity]}: choose another repair"
        )


def _check_type(name: str, value: object, kind: type) -> None:
    if value is not None and not isinstance(value, kind):
        raise TopiaristError(f"{name} must be a topiarist.{kind.__name__}, but got {shown(value)}")


def _steps(value: Any) -> Any:
    """Returns what `from_plain` makes `Steps` of: a number is how many cuts there are."""
    if isinstance(value, Steps):
        return value
    if not isinstance(value, Mapping):
        return {"count": value}
    training = value.get("training")
    return {**value, "training": _recipe(training, RETRAINING)} if isinstance(training, Mapping) else value


def _recipe(value: Any, start: Recipe) -> Any:
    """Returns what `from_plain` makes a `Recipe` of: fields that are left out are those of another one."""
    return {**asdict(start), **value} if isinstance(value, Mapping) else value


def _plain_outputs(outputs: Outputs | None) -> Any:
    """Returns the names or places of outputs as plain values."""
    if callable(outputs):
        raise TopiaristError("a function says what counts as outputs: give names or places where it must be written")
    return list(outputs) if isinstance(outputs, tuple) else outputs


def _plain_recipe(recipe: Recipe | None) -> dict[str, Any] | None:
    return None if recipe is None else recipe.to_json()


def _plain_method(method: Method) -> dict[str, Any]:
    return {"name": method.name, **asdict(method)}


def _flags(prefix: str, holder: Any, start: Any) -> Iterator[str]:
    """Yields ``--PREFIX.FIELD VALUE`` for each field of a dataclass in which it differs from another one."""
    for entry in fields(holder):
        name, value = f"{prefix}.{entry.name}", getattr(holder, entry.name)
        if isinstance(value, Recipe):
            yield from _recipe_flags(name, value, RETRAINING)
        elif value != getattr(start, entry.name):
            yield from (f"--{name}", value if isinstance(value, str) else json.dumps(value))


def _recipe_flags(name: str, recipe: Recipe, start: Recipe) -> list[str]:
    """Returns the flags of a recipe; an empty mapping asks for the one it starts from."""
    return list(_flags(name, recipe, start)) or [f"--{name}", "{}"]
