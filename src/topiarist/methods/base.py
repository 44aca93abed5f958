"""The roles that a paper can play, as protocols over plain values, and the base class of all methods.

A method plays the roles that its paper has and leaves out the rest. They are asked for in this order:

    train with  Penalty, Proximal, Gate   →  Stats  →  Rule, Selector or Criterion  →  Keep  →  Repair

Methods know the graph and the statistics; nothing in them knows how a keep is cut, trained or reported.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from topiarist.budget import Allocation, Budget
from topiarist.errors import TopiaristError
from topiarist.files import shown
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
    """Describes one paper: a frozen dataclass of its hyper-parameters, whose roles are its methods.

    The file's name is the method's name. Class variables say what kind of method it is.

    Attributes:
        name: the name of the file.
        family: one of `FAMILIES`: by what criterion it prunes.
        granularity: ``"structure"`` scores the units of a traced graph, ``"weight"`` those of ``graph.weights()``.
        target: ``"predefined"`` where the user says how much of each layer is kept, ``"automatic"`` where the method
            finds it.
        needs: what it takes to score: ``"weights"``, ``"training"`` (a network trained with the
            method's penalty or gates), ``"evaluations"`` (the model and data, through `Stats`), and statistics: a name
            in `topiarist.measure.STATISTICS` or a `Statistic` of the method's own.
        allocation: how a budget is shared out, unless the budget says it.
        formula: the paper's key equation in LaTeX, for the documentation; the docstring has it in plain text.
        paper: authors, title, venue and year.
        is_dry_run: whether this is a `dry_run`.
    """

    name: ClassVar[str]
    family: ClassVar[str] = "other"
    granularity: ClassVar[Literal["structure", "weight"]] = "structure"
    target: ClassVar[Literal["predefined", "automatic"]] = "predefined"
    needs: ClassVar[frozenset[str | Statistic]] = frozenset({"weights"})
    allocation: ClassVar[Allocation] = "uniform"
    formula: ClassVar[str] = ""
    paper: ClassVar[str]
    is_dry_run: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = cls.__module__.rpartition(".")[2]

    def dry_run(self) -> Self:
        """Returns a method that quickly refuses what this one refuses, but for what a training to come may change."""
        quick = replace(self)
        object.__setattr__(quick, "is_dry_run", True)
        return quick

    def in_training(self, examples: int, steps: int) -> Method:
        """Returns the method for a training of so many ``examples`` and ``steps``: for what its fields leave open."""
        return self

    def units(self, graph: Graph) -> Graph:
        """Returns what the method prunes of a traced network: its units, or its individual weights."""
        return graph.weights() if self.granularity == "weight" else graph


@runtime_checkable
class Criterion(Protocol):
    """Ranks the units: L1 norm, Taylor expansion, APoZ, OBD, NISP."""

    def score(self, graph: Graph, stats: Stats) -> Scores:
        """Returns group name → ``(units,)``, high = keep; groups without a score are not pruned."""


@runtime_checkable
class Rule(Protocol):
    """Has a budget of its own, where the paper's numbers are presets."""

    def budget(self, graph: Graph) -> Budget | None:
        """Returns the paper's budget for this network; ``None`` if the fields ask for none."""


@runtime_checkable
class Selector(Protocol):
    """Selects the subset itself, where scores do not add up or no budget is needed: ThiNet, LASSO, OBS, PFA."""

    def select(self, graph: Graph, stats: Stats, budget: Budget | None) -> Keep | None:
        """Returns group name → bool ``(units,)``; ``None`` if the fields leave the choice to scores and budget."""


@runtime_checkable
class Penalty(Protocol):
    """Adds a term to the training loss: Network Slimming, group lasso."""

    def penalty(self, model: nn.Module, graph: Graph) -> Tensor:
        """Returns a scalar with a gradient, which is added to the loss of every step."""


@runtime_checkable
class Proximal(Protocol):
    """Takes a step after the optimiser's: soft thresholds, accelerated proximal gradient."""

    def proximal(self, model: nn.Module, graph: Graph, lr: float) -> None:
        """Changes the model in place; ``lr`` is the optimiser's learning rate. Runs without gradients."""


@runtime_checkable
class Gate(Protocol):
    """Multiplies units in training: L0's hard concrete, sparse variational dropout, structure selection."""

    def gates(self, model: nn.Module, graph: Graph) -> AbstractContextManager[nn.Module]:
        """Opens a context in which units are multiplied, or noisy; it yields the module that holds the gates.

        While it is open that module is a submodule of the model, where the method's penalty and proximal step find it.
        In the end it is taken off: the gates are multiplied into the parameters, so that the network computes what it
        did with them, and what the score needs is saved on the model as buffers with ``persistent=False``: outside the
        state dict, but seen by ``Stats.tensor``.
        """


@runtime_checkable
class Repair(Protocol):
    """Gives the kept weights new values: ThiNet's and LASSO's least squares, OBS's update, data-free merging."""

    def repair(self, model: nn.Module, graph: Graph, keep: Keep, stats: Stats) -> None:
        """Changes the masked model in place: its tensors have the sizes of the graph, so slices still fit them."""


@runtime_checkable
class Schedule(Protocol):
    """Prunes in several steps with training between them: iterative, cubic."""

    def kept(self, step: int, steps: int, target: float) -> float:
        """Returns the fraction kept after ``step`` of ``steps`` (counted from 1; the last one gives ``target``)."""


@runtime_checkable
class Soft(Protocol):
    """Changes the weights between epochs: soft pruning sets filters to zero, and training may let them come back."""

    def soften(self, model: nn.Module, graph: Graph, done: int, epochs: int) -> None:
        """Changes the model in place, once before training (``done`` is 0) and after each of ``epochs`` epochs."""


def checked_scores(method: Method, scores: Scores, remedy: str) -> Scores:
    """Returns scores that are not all 0; those of a dry run may be, since the network may not be trained yet.

    Raises:
        TopiaristError: all are 0, so that their order would be one of chance; ``remedy`` says what to do.
    """
    if not method.is_dry_run and not any(bool(values.any()) for values in scores.values()):
        raise TopiaristError(f"all scores are zero on this data; {remedy}")
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


def filters_of(graph: Graph, group: Group) -> list[Slice]:
    """Returns the weights of two or more axes that produce a group's units."""
    return [part for part in group.by_role("output") if len(graph.shapes[part.tensor]) >= 2]


def indices_of(group: Group) -> Tensor:
    """Returns where a group's weights are in its flattened tensor, ``(units,)``; those pruned before are not units.

    Raises:
        TopiaristError: its units are not individual weights.
    """
    part = group.slices[0]
    if part.axis is not None:
        raise TopiaristError("this method is unstructured: give it graph.weights() instead of the graph")
    return part.positions[:, 0]


def weights_of(group: Group, stats: Stats) -> Tensor:
    """Returns a group's weights, one a unit.

    Raises:
        TopiaristError: its units are not individual weights.
    """
    return stats.tensor(group.slices[0].tensor).flatten()[indices_of(group)]


def checked_examples(examples: int | None, needed_by: str = "") -> int:
    """Returns how many training examples there are, for a method whose penalty depends on it.

    Raises:
        TopiaristError: it is no positive number, or unknown and needed.
    """
    if examples is None and needed_by:
        raise TopiaristError(
            f"{needed_by} divides its penalty by the number of training examples: say how many, examples=..."
        )
    if examples is not None and examples < 1:
        raise TopiaristError(
            f"examples must be the number of training examples, or left out, but got {shown(examples)}"
        )
    return examples or 1
