"""The wish: how much of a network may stay, and where."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from topiarist.errors import TopiaristError
from topiarist.files import suggestion

Allocation = Literal["uniform", "global"]
"""How a budget is shared out: every group gives the same fraction, or the lowest scores of the network go first."""


@dataclass(frozen=True)
class Budget:
    """How much of the network is kept. Every number is the fraction **kept**, from 0 to 1.

    Of ``macs``, ``params`` and ``ratio`` any may be given; all that are given hold. Groups that match ``ratios`` keep
    just that fraction, whatever else is asked; groups that match ``exclude`` stay whole. A ``pattern`` says it all, but
    for what is excluded.

    Attributes:
        macs: multiply-accumulates of the whole network that may stay, as a fraction of what it has now.
        params: parameters of the whole network that may stay, as a fraction of what it has now.
        ratio: units that may stay: of every group under uniform allocation, of all groups together under global;
            groups that stay whole or have a ratio of their own do not count.
        ratios: glob pattern on group names → fraction of that group's units that stays, rounded down to whole units
            and never less than one; the last pattern that matches a group counts.
        exclude: glob patterns on the names of groups that stay whole.
        floor: the least that a group keeps: 1 and above in units, below 1 as a fraction of the group.
        multiple: every group that is cut keeps a multiple of this many units, if it has that many (8 or 16 suit
            vector hardware).
        allocation: ``"uniform"``, ``"global"``, or ``None`` for the method's own.
        pattern: ``"N:M"``, for methods that remove single weights: of each ``M`` in a row along a weight's inputs the
            ``N`` of highest score stay. Tensors whose inputs ``M`` does not divide stay whole.

    Raises:
        TopiaristError: a number is out of range.
    """

    macs: float | None = None
    params: float | None = None
    ratio: float | None = None
    ratios: Mapping[str, float] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    floor: float = 1
    multiple: int = 1
    allocation: Allocation | None = None
    pattern: str | None = None

    def __post_init__(self) -> None:
        for name in ("macs", "params", "ratio"):
            _check_fraction(name, getattr(self, name))
        if not isinstance(self.ratios, Mapping):
            raise TopiaristError(f"ratios must map group patterns to fractions, got {self.ratios!r}")
        for pattern, kept in self.ratios.items():
            if kept is None:
                raise TopiaristError(f"the ratio of {pattern!r} is missing: give the fraction that stays, from 0 to 1")
            _check_fraction(f"the ratio of {pattern!r}", kept)
        if not isinstance(self.exclude, str | Sequence | Set):
            raise TopiaristError(f"exclude lists glob patterns on group names, got {self.exclude!r}")
        patterns = (self.exclude,) if isinstance(self.exclude, str) else tuple(self.exclude)
        if not all(isinstance(pattern, str) for pattern in (*patterns, *self.ratios)):
            raise TopiaristError(f"exclude and ratios name groups by glob patterns, got {[*patterns, *self.ratios]!r}")
        object.__setattr__(self, "exclude", patterns)
        object.__setattr__(self, "ratios", dict(self.ratios))
        _check_limits(self.floor, self.multiple, self.allocation)
        if self.pattern is not None:
            parsed(self.pattern)
            if replace(self, exclude=(), pattern=None) != Budget():
                raise TopiaristError("a pattern says by itself how much stays: give nothing beside it but exclude")

    @property
    def asks(self) -> bool:
        """Whether it names any amount at all."""
        return bool(self.ratios) or any(part is not None for part in (self.macs, self.params, self.ratio, self.pattern))


def parsed(pattern: str) -> tuple[int, int]:
    """``"2:4"`` → ``(2, 4)``.

    Raises:
        TopiaristError: it is no pattern.
    """
    found = re.fullmatch(r"(\d{1,4}):(\d{1,4})", pattern) if isinstance(pattern, str) else None
    n, m = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 0 < n < m:
        raise TopiaristError(f"pattern must be N:M, as 2:4 for two of each four weights, but got {pattern!r}")
    return n, m


def matching(pattern: str, names: Collection[str]) -> list[str]:
    """The names that a glob pattern matches.

    Raises:
        TopiaristError: there is none; close names are given.
    """
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        hint = suggestion(pattern, names, f"name some such as {', '.join(list(names)[:3])}, or a glob on such names")
        raise TopiaristError(f"the pattern {pattern!r} matches no group: {hint}")
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_fraction(name: str, value: Any) -> None:
    """A fraction kept lies from 0 to 1; whoever writes 50 means per cent."""
    if value is None or (_is_number(value) and 0 <= value <= 1):
        return
    hint = f": write {value / 100:g} to keep {value:g} %" if _is_number(value) and 1 < value <= 100 else ""
    raise TopiaristError(f"{name} is the fraction that stays, a number from 0 to 1, but got {value!r}{hint}")


def _check_limits(floor: Any, multiple: Any, allocation: Any) -> None:
    if not _is_number(floor) or not (0 < floor < math.inf) or (floor > 1 and floor != int(floor)):
        raise TopiaristError(
            f"floor must be a whole number of units (1, 2, ...) or a fraction between 0 and 1, but got {floor!r}"
        )
    if isinstance(multiple, bool) or not isinstance(multiple, int) or multiple < 1:
        raise TopiaristError(f"multiple must be a whole number of at least 1, but got {multiple!r}")
    if allocation not in (None, "uniform", "global"):
        raise TopiaristError(f"allocation must be 'uniform' or 'global', but got {allocation!r}")
