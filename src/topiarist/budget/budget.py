"""The budget: how much of a network is kept, and where."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import Tensor, nn

from topiarist.budget.latency import LatencyTable
from topiarist.budget.n_of_m import parse
from topiarist.budget.names import Name, groups_made_by, plain, spelled, units_of
from topiarist.budget.zeros import ZerosTable
from topiarist.errors import TopiaristError
from topiarist.files import check_fields, shown, suggestion
from topiarist.graph import Graph

AMOUNTS = {
    "macs": "MACs",
    "params": "parameters",
    "memory": "peak activation memory",
    "latency": "latency",
    "ratio": "units",
}
"""Fields that are fractions of something of the whole network → what messages call it."""

_LATER = ("memory", "latency", "target", "threads", "batch")
"""Fields that JSON leaves out where they have their defaults: keys of cells stay what they were before them."""

Allocation = Literal["uniform", "global"]
"""How a budget is shared out: every group loses the same fraction, or the lowest scores of all groups are pruned."""


@dataclass(frozen=True)
class Budget:
    """Says how much of the network is kept. Every number is the fraction **kept**, from 0 to 1.

    Of ``macs``, ``params``, ``memory``, ``latency`` and ``ratio`` any may be given; all that are given hold. What
    ``ratios`` names keeps exactly that fraction, whatever else is asked; what ``exclude`` names keeps its shape on
    every axis, and methods that act in training leave it alone. ``n_of_m`` is given alone, or with ``exclude``. With
    ``exclude`` alone the method's own rule says how much is kept, where it has one.

    A name is that of a layer, of a module (with all that is in it), of a parameter or buffer, or of a group; a glob
    pattern on any of these (``*`` matches dots too); or the module itself, as ``model.layer1``. `topiarist.prune` puts
    the names of modules in their place; until then such a budget has no `to_json`.

    Attributes:
        macs: fraction kept of the network's multiply-accumulates, at most.
        params: fraction kept of the network's parameters, at most.
        memory: fraction kept of the peak activation memory of a forward pass (see `topiarist.cost`), at most; for
            structured methods. A layer away from the peak is pruned as the allocation says, though it does not help.
        ratio: fraction kept of the units, at most: of every group under uniform allocation, of all groups together
            under global; groups that are excluded or have a ratio of their own do not count.
        ratios: name → fraction kept of each group of units that is produced there; a group's name means it alone.
            Rounded down to a number of units and never less than one; the last name that means a group counts.
        exclude: names of what keeps its shape, on every axis: the groups that it produces and those that it reads stay.
        floor: the least that a group keeps: 1 and above in units, below 1 as a fraction of the group.
        multiple: every group that is pruned keeps a multiple of this many units, if it has that many (8 or 16 suit
            vector hardware).
        allocation: ``"uniform"``, ``"global"``, or ``None`` for the method's own; under a latency budget for weights
            that is uniform.
        n_of_m: ``"N:M"`` sparsity, for unstructured methods: of every ``M`` in a row along a weight's inputs the
            ``N`` of highest score are kept. Tensors whose inputs ``M`` does not divide are not pruned.
        latency: fraction kept of the milliseconds that one run takes, at most; `topiarist.prune` measures what each
            layer costs at each width, and rounds widths where that pays; for unstructured methods, on ``"sparse"``, at
            each density.
        target: the runtime whose milliseconds count, such as ``"onnxruntime"``.
        threads: of the CPU that one run uses there.
        batch: examples in one run there.

    Raises:
        TopiaristError: a value is of a wrong type or out of its range.
    """

    macs: float | None = None
    params: float | None = None
    ratio: float | None = None
    ratios: Mapping[Any, float] = field(default_factory=dict)
    exclude: tuple[Name, ...] = ()
    floor: float = 1
    multiple: int = 1
    allocation: Allocation | None = None
    n_of_m: str | None = None
    memory: float | None = None
    latency: float | None = None
    target: str = "torch"
    threads: int = 1
    batch: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "exclude", as_names(self.exclude))
        check_fields(self, "the budget")
        as_names(list(self.ratios), "ratios")
        ratios = {f"the ratio of {shown(pattern)}": kept for pattern, kept in self.ratios.items()}
        for name, kept in {**self.amounts, **ratios}.items():
            _check_fraction(name, kept)
        if not self.floor > 0 or (self.floor > 1 and self.floor != int(self.floor)):
            raise TopiaristError(
                "floor must be a whole number of units (1, 2, ...) or a fraction between 0 and 1, "
                f"but got {shown(self.floor)}"
            )
        for name in ("multiple", "threads", "batch"):
            if getattr(self, name) < 1:
                got = shown(getattr(self, name))
                raise TopiaristError(f"{name} must be a whole number of at least 1, but got {got}")
        if self.latency is None and (self.target, self.threads, self.batch) != ("torch", 1, 1):
            raise TopiaristError("target, threads and batch say whose milliseconds count: give latency too")
        if self.n_of_m is not None:
            parse(self.n_of_m)
            if replace(self, exclude=(), n_of_m=None) != Budget():
                raise TopiaristError("n_of_m says by itself how much is kept: give nothing beside it but exclude")

    @property
    def amounts(self) -> dict[str, float]:
        """Returns the fractions of the whole network that are asked for, by name."""
        given = {name: getattr(self, name) for name in AMOUNTS}
        return {name: fraction for name, fraction in given.items() if fraction is not None}

    @property
    def asks(self) -> bool:
        """Whether any amount is given."""
        return bool(self.ratios or self.amounts) or self.n_of_m is not None

    @property
    def only_excludes(self) -> bool:
        """Whether it excludes, and says nothing of how much is kept."""
        return bool(self.exclude) and replace(self, exclude=()) == Budget()

    def named_in(self, model: nn.Module) -> Budget:
        """Returns the same budget with the names that modules have in a model.

        Raises:
            TopiaristError: a module is not part of the model.
        """
        ratios = {name: kept for each, kept in self.ratios.items() for name in spelled([each], model)}
        return replace(self, exclude=spelled(self.exclude, model), ratios=ratios)

    def priced(self, table: LatencyTable | ZerosTable) -> PricedBudget:
        """Returns the same budget with a table of latencies by which `allocate` meets ``latency``."""
        return PricedBudget(**{entry.name: getattr(self, entry.name) for entry in fields(Budget)}, table=table)

    def excluded(self, graph: Graph) -> dict[str, Tensor]:
        """Returns what ``exclude`` means in a graph: group → bool ``(units,)``, True for the units that stay.

        Raises:
            TopiaristError: a name means nothing in the network, or is a module.
        """
        return units_of(self.exclude, graph)

    def own_ratios(self, graph: Graph) -> dict[str, float]:
        """Returns what ``ratios`` means in a graph: group → fraction kept.

        Raises:
            TopiaristError: a name means nothing in the network, or is a module.
        """
        return {group: kept for name, kept in self.ratios.items() for group in groups_made_by(name, graph)}

    def to_json(self) -> dict[str, Any]:
        """Returns plain values for `json`; later fields only where they are set, so that keys of cells stay.

        Raises:
            TopiaristError: it names modules themselves.
        """
        plain([*self.exclude, *self.ratios])
        unset = {name for name in _LATER if getattr(self, name) == getattr(Budget(), name)}
        return {name: value for name, value in asdict(self).items() if name not in unset}


@dataclass(frozen=True)
class PricedBudget(Budget):
    """A latency budget with the table that says what each layer costs at each width: what methods receive.

    Attributes:
        table: measured by `topiarist.deploy.latency_table`, or for weights by `topiarist.deploy.zeros_table`.
    """

    table: LatencyTable | ZerosTable | None = None


def as_names(names: object, what: str = "exclude") -> tuple[Name, ...]:
    """Returns the names that a user gave: one or several.

    Raises:
        TopiaristError: something else was given; ``what`` is its name.
    """
    if isinstance(names, str | nn.Module):
        return (names,)
    if not isinstance(names, Sequence | Set) or not all(isinstance(name, str | nn.Module) for name in names):
        raise TopiaristError(f"{what} must hold names, glob patterns or modules, but got {shown(names)}")
    return tuple(names)


def matching(pattern: str, names: Collection[str]) -> list[str]:
    """Returns the names that a glob pattern matches.

    Raises:
        TopiaristError: there is none; close names are given.
    """
    matches = [name for name in names if fnmatchcase(name, pattern)]
    if not matches:
        hint = suggestion(pattern, names, f"name some such as {', '.join(list(names)[:3])}, or a glob on such names")
        raise TopiaristError(f"the pattern {shown(pattern)} matches no group: {hint}")
    return matches


def _check_fraction(name: str, value: float | None) -> None:
    """Refuses what is no fraction from 0 to 1; whoever writes 50 means per cent."""
    if value is not None and not 0 <= value <= 1:
        hint = f": write {value / 100:g} to keep {value:g} %" if 1 < value <= 100 else ""
        raise TopiaristError(f"{name} must be the fraction kept, a number from 0 to 1, but got {shown(value)}{hint}")
