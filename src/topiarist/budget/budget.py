"""The budget: how much of a network is kept, and where."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Literal

from topiarist.budget.n_of_m import parse
from topiarist.errors import TopiaristError
from topiarist.files import check_fields, shown, suggestion

Allocation = Literal["uniform", "global"]
"""How a budget is shared out: every group loses the same fraction, or the lowest scores of all groups are pruned."""


@dataclass(frozen=True)
class Budget:
    """Says how much of the network is kept. Every number is the fraction **kept**, from 0 to 1.

    Of ``macs``, ``params`` and ``ratio`` any may be given; all that are given hold. Groups that match ``ratios`` keep
    exactly that fraction, whatever else is asked; groups that match ``exclude`` are not pruned. ``n_of_m`` is given
    alone, or with ``exclude``.

    Attributes:
        macs: fraction kept of the network's multiply-accumulates, at most.
        params: fraction kept of the network's parameters, at most.
        ratio: fraction kept of the units, at most: of every group under uniform allocation, of all groups together
            under global; groups that are excluded or have a ratio of their own do not count.
        ratios: glob pattern on group names → fraction kept of that group's units, rounded down to a number of units
            and never less than one; the last pattern that matches a group counts.
        exclude: glob patterns on the names of groups that are not pruned.
        floor: the least that a group keeps: 1 and above in units, below 1 as a fraction of the group.
        multiple: every group that is pruned keeps a multiple of this many units, if it has that many (8 or 16 suit
            vector hardware).
        allocation: ``"uniform"``, ``"global"``, or ``None`` for the method's own.
        n_of_m: ``"N:M"`` sparsity, for unstructured methods: of every ``M`` in a row along a weight's inputs the
            ``N`` of highest score are kept. Tensors whose inputs ``M`` does not divide are not pruned.

    Raises:
        TopiaristError: a value is of a wrong type or out of its range.
    """

    macs: float | None = None
    params: float | None = None
    ratio: float | None = None
    ratios: Mapping[str, float] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    floor: float = 1
    multiple: int = 1
    allocation: Allocation | None = None
    n_of_m: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.exclude, str):
            object.__setattr__(self, "exclude", (self.exclude,))
        elif isinstance(self.exclude, Set):
            object.__setattr__(self, "exclude", tuple(self.exclude))
        check_fields(self, "the budget")
        ratios = {f"the ratio of {pattern!r}": kept for pattern, kept in self.ratios.items()}
        for name, kept in {"macs": self.macs, "params": self.params, "ratio": self.ratio, **ratios}.items():
            _check_fraction(name, kept)
        if not self.floor > 0 or (self.floor > 1 and self.floor != int(self.floor)):
            raise TopiaristError(
                "floor must be a whole number of units (1, 2, ...) or a fraction between 0 and 1, "
                f"but got {shown(self.floor)}"
            )
        if self.multiple < 1:
            raise TopiaristError(f"multiple must be a whole number of at least 1, but got {shown(self.multiple)}")
        if self.n_of_m is not None:
            parse(self.n_of_m)
            if replace(self, exclude=(), n_of_m=None) != Budget():
                raise TopiaristError("n_of_m says by itself how much is kept: give nothing beside it but exclude")

    @property
    def asks(self) -> bool:
        """Whether any amount is given."""
        return bool(self.ratios) or any(part is not None for part in (self.macs, self.params, self.ratio, self.n_of_m))

    def excluded(self, names: Collection[str]) -> set[str]:
        """Returns the names that ``exclude`` matches.

        Raises:
            TopiaristError: a pattern matches none.
        """
        return {name for pattern in self.exclude for name in matching(pattern, names)}


def matching(pattern: str, names: Collection[str]) -> list[str]:
    """Returns the names that a glob pattern matches.

    Raises:
        TopiaristError: there is none; close names are given.
    """
    matches = [name for name in names if fnmatchcase(name, pattern)]
    if not matches:
        hint = suggestion(pattern, names, f"name some such as {', '.join(list(names)[:3])}, or a glob on such names")
        raise TopiaristError(f"the pattern {pattern!r} matches no group: {hint}")
    return matches


def _check_fraction(name: str, value: float | None) -> None:
    """Refuses what is no fraction from 0 to 1; whoever writes 50 means per cent."""
    if value is not None and not 0 <= value <= 1:
        hint = f": write {value / 100:g} to keep {value:g} %" if 1 < value <= 100 else ""
        raise TopiaristError(f"{name} must be the fraction kept, a number from 0 to 1, but got {shown(value)}{hint}")
