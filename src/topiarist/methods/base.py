"""The roles that a paper can play, as protocols over plain values, and the base class of all methods.

A method plays the roles that its paper has and leaves out the rest. What is asked of it, in this order:

    train with  Penalty, Proximal, Gate   →  Stats  →  Rule, Selector or Criterion  →  Keep  →  Repair

Methods know the graph and the statistics; nothing in them knows how a keep is cut, trained or reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from topiarist.budget import Allocation, Budget
from topiarist.errors import TopiaristError
from topiarist.graph import Graph, Group, Keep, Scores, Slice
from topiarist.measure import Statistic, Stats

FAMILIES = (
    "weight magnitude and norms",
    "weight similarity",
    "loss sensitivity (gradients, Hessian)",
    "activation statistics",
    "feature reconstruction",
    "final response and correlation",
    "sparsity penalties",
    "gates and noise",
    "structure selection",
    "controls",
)
"""The taxonomy of the documentation, in its order; a method of one's own may name another family."""


@dataclass(frozen=True)
class Method:
    """One paper: a frozen dataclass of its hyper-parameters, whose roles are its methods.

    The file's name is the method's name. Class variables say what kind of method it is.

    Attributes:
        name: the name of the file.
        family: one of `FAMILIES`: by what criterion it prunes.
        granularity: ``"structure"`` scores the units of a traced graph, ``"weight"`` those of ``graph.weights()``.
        target: ``"predefined"`` where the user says how much of each layer stays, ``"automatic"`` where the method
            finds out.
        needs: what has to be there before it can score: ``"weights"``, ``"training"`` (a network trained with the
            method's penalty or gates), ``"evaluations"`` (the model and data, through `Stats`), and statistics: a name
            in `topiarist.measure.STATISTICS` or a `Statistic` of the method's own.
        allocation: how a budget is shared out unless the budget says so itself.
        formula: the paper's key equation in LaTeX, for the documentation; the docstring has it in plain text.
        paper: authors, title, venue and year.
    """

    name: ClassVar[str]
    family: ClassVar[str] = "other"
    granularity: ClassVar[Literal["structure", "weight"]] = "structure"
    target: ClassVar[Literal["predefined", "automatic"]] = "predefined"
    needs: ClassVar[frozenset[str | Statistic]] = frozenset({"weights"})
    allocation: ClassVar[Allocation] = "uniform"
    formula: ClassVar[str] = ""
    paper: ClassVar[str]
    _rehearses: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = cls.__module__.rpartition(".")[2]

    def rehearsal(self) -> Self:
        """A method that refuses what this one refuses, in little time, but for what only a training can mend."""
        quick = replace(self)
        object.__setattr__(quick, "_rehearses", True)
        return quick

    def in_training(self, examples: int, steps: int) -> Method:
        """The method where ``examples`` are trained on for so many ``steps``: for what its fields leave open."""
        return self

    def units(self, graph: Graph) -> Graph:
        """What the method works on, of a traced network: its units, or one unit a weight."""
        return graph.weights() if self.granularity == "weight" else graph


@runtime_checkable
class Criterion(Protocol):
    """Ranks the units: L1 norm, Taylor expansion, APoZ, OBD, NISP."""

    def score(self, graph: Graph, stats: Stats) -> Scores:
        """Group name → ``(units,)``, high = keep; groups without a score stay whole."""


@runtime_checkable
class Rule(Protocol):
    """Says itself how much stays, where the paper's numbers are presets."""

    def budget(self, graph: Graph) -> Budget | None:
        """The paper's budget for this network; ``None`` if the fields ask for none."""


@runtime_checkable
class Selector(Protocol):
    """Picks the subset itself, where scores do not add up or no budget is needed: ThiNet, LASSO, OBS, PFA."""

    def select(self, graph: Graph, stats: Stats, budget: Budget | None) -> Keep | None:
        """Group name → bool ``(units,)``; ``None`` if the fields leave the choice to scores and budget."""


@runtime_checkable
class Penalty(Protocol):
    """A term of the training loss: Network Slimming, group lasso."""

    def penalty(self, model: nn.Module, graph: Graph) -> Tensor:
        """A scalar with a gradient, added to the loss of every step."""


@runtime_checkable
class Proximal(Protocol):
    """A step after the optimiser's: soft thresholds, accelerated proximal gradient."""

    def proximal(self, model: nn.Module, graph: Graph, lr: float) -> None:
        """Changes the model in place; ``lr`` is the optimiser's learning rate. Runs without gradients."""


@runtime_checkable
class Gate(Protocol):
    """Multiplies units while training: L0's hard concrete, sparse variational dropout, structure selection."""

    def gates(self, model: nn.Module, graph: Graph) -> AbstractContextManager[nn.Module]:
        """A context in which units are multiplied, or noisy; it yields the module that holds the gates' parameters.

        While it is open that module is a submodule of the model, so that the method's penalty and proximal step find
        it there, with whatever state they keep. Leaving takes it off again: multipliers that last go into the
        parameters, so that the network computes what it did with them, and what the score needs stays on the model as
        buffers with ``persistent=False``: outside the state dict, but seen by ``Stats.tensor``.
        """


@runtime_checkable
class Repair(Protocol):
    """New values for what is left: ThiNet's and LASSO's least squares, OBS's update, data-free merging."""

    def repair(self, model: nn.Module, graph: Graph, keep: Keep, stats: Stats) -> None:
        """Changes the masked model in place: its tensors have the sizes of the graph, so slices still fit them."""


@runtime_checkable
class Schedule(Protocol):
    """Prunes in several steps with training between them: iterative, cubic."""

    def kept(self, step: int, steps: int, target: float) -> float:
        """The fraction kept after step ``step`` of ``steps`` (counted from 1; the last one gives ``target``)."""


@runtime_checkable
class Soft(Protocol):
    """Changes the weights between epochs: soft pruning sets filters to zero, trains on, and lets them come back."""

    def soften(self, model: nn.Module, graph: Graph, done: int, epochs: int) -> None:
        """Changes the model in place, once before training (``done`` is 0) and after each of ``epochs`` epochs."""


def checked_scores(method: Method, scores: Scores, told: str) -> Scores:
    """Scores that are not all 0, of a method that measures what the loss feels; a rehearsal may be of any network.

    Raises:
        TopiaristError: what is told; the order would be one of chance.
    """
    if not method._rehearses and not any(bool(values.any()) for values in scores.values()):
        raise TopiaristError(told)
    return scores


def sum_by_unit(part: Slice, values: Tensor) -> Tensor:
    """Sums values over all entries of each unit in one tensor.

    Args:
        part: where the units sit.
        values: one number per entry of the tensor, in the tensor's shape.

    Returns:
        Float64 ``(units,)``.
    """
    if part.axis is None:
        line = values.flatten()
    else:
        others = [axis for axis in range(values.ndim) if axis != part.axis]
        line = values.sum(others) if others else values  # pairwise sums: single precision is enough here
    return line[part.positions].sum(1, dtype=torch.float64)


def places_of(group: Group) -> Tensor:
    """Where a group's weights are in its flattened tensor, ``(units,)``: after a cut, those that are left.

    Raises:
        TopiaristError: its units are not single weights.
    """
    part = group.slices[0]
    if part.axis is not None:
        raise TopiaristError("this method scores single weights: pass it graph.weights() instead of the graph")
    return part.positions[:, 0]


def weights_of(group: Group, stats: Stats) -> Tensor:
    """A group's weights, one a unit.

    Raises:
        TopiaristError: its units are not single weights.
    """
    places = places_of(group)
    return stats.tensor(group.slices[0].tensor).flatten()[places]


def as_mapping(value: float | Mapping[str, float]) -> Mapping[str, float]:
    """One number for all groups, or glob pattern → number, as glob pattern → number."""
    return value if isinstance(value, Mapping) else {"*": value}


def checked_examples(examples: int | None, needed_by: str = "") -> int:
    """How many training examples there are, of a method that spreads a penalty over them.

    Raises:
        TopiaristError: it is no positive number, or unknown and needed.
    """
    if examples is None and needed_by:
        raise TopiaristError(f"{needed_by} spreads its penalty over the training examples: say how many, examples=...")
    if examples is not None and examples < 1:
        raise TopiaristError(f"examples must be how many are trained on, or left out, but got {examples!r}")
    return examples or 1
