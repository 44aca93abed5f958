"""What a study prunes by: a method with its fields, a budget, and how many steps lead there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from topiarist import methods
from topiarist.errors import TopiaristError

OPTIONS = ("repair", "rewind", "steps", "step_epochs", "schedule")
"""What else a pruning may say: the method that repairs what is left, whether the survivors return to their initial
values after each cut, and of its steps: how many, epochs of training between two of them, how much goes in each."""


@dataclass(frozen=True)
class Pruning:
    """A method with its fields and the budget that it prunes to.

    Attributes:
        method: its registered name.
        budget: fields of `topiarist.Budget`; empty where the method brings its own rule.
        fields: of the method.
        options: what else there is to say (see `OPTIONS`).
        networks: those of the study that are pruned so; all of them where none is named.
        data: the data sets for which that holds; all of them where none is named.
    """

    method: str
    budget: Mapping[str, Any]
    fields: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    networks: tuple[str, ...] = ()
    data: tuple[str, ...] = ()

    def meant(self, network: str, data: str) -> bool:
        """Whether this network is pruned so on these data."""
        return network in (self.networks or (network,)) and data in (self.data or (data,))

    @property
    def label(self) -> str:
        """The method and, where they were set, its fields and options."""
        settings = ", ".join(f"{key} {value}" for key, value in [*self.fields.items(), *self.options.items()])
        return f"{self.method} ({settings})" if settings else self.method

    @property
    def granularity(self) -> str:
        """``"structure"`` or ``"weight"``."""
        return methods.make(self.method, **self.fields).granularity

    @property
    def goal(self) -> str:
        """The budget in words, for example ``"50 % of MACs"``."""
        kept = "weights" if self.granularity == "weight" else "units"
        nouns = {"macs": "MACs", "params": "parameters", "ratio": kept}
        words = [f"{100 * value:g} % of {nouns[key]}" for key, value in self.budget.items() if key in nouns]
        words += [f"{key} {value}" for key, value in self.budget.items() if key not in nouns]
        return ", ".join(words) or "its own rule"

    @property
    def trained(self) -> bool:
        """Whether the method takes part in training, so that its unpruned network is another one."""
        return "training" in methods.get(self.method).needs

    @property
    def equal(self) -> str:
        """What networks that are built to the budget have in common with the pruned one: ``"params"`` or ``"macs"``.

        Parameters where single weights go, or where the budget counts them alone; else MACs.
        """
        counted = "params" in self.budget and "macs" not in self.budget
        return "params" if counted or self.granularity == "weight" else "macs"

    @property
    def measured(self) -> bool:
        """Whether only the pruned network can say how large others of its budget are.

        Where structures go and the budget counts MACs or parameters alone, the budget itself says so.
        """
        told = {"macs", "params"} & set(self.budget) and set(self.budget) <= {"macs", "params", "exclude", "multiple"}
        return self.granularity == "weight" or not told


def listed(value: Any) -> list[Any]:
    """What a key means that may hold one value or several."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def prunings(entry: Any) -> Iterator[Pruning]:
    """The prunings of one entry of a study: every method with every budget.

    Raises:
        TopiaristError: the entry has an unknown key, or none that names a method.
    """
    known = {"method", "budget", "fields", "network", "data", *OPTIONS}
    if not isinstance(entry, Mapping) or not {"method"} <= set(entry) <= known:
        others = ", ".join(("'budget'", "'fields'", "'network'", "'data'", *map(repr, OPTIONS)))
        raise TopiaristError(f"The pruning {entry!r} must have the key 'method', and may have {others}.")
    names, budgets = listed(entry["method"]), listed(_given(entry, "budget", {}))
    if not names or not budgets:
        raise TopiaristError(
            f"The pruning {entry!r} has an empty list of methods or budgets: name one, or leave it out."
        )
    for budget in budgets:
        for method in names:
            if not isinstance(budget, Mapping):
                raise TopiaristError(f"The budget {budget!r} must be a mapping, for example {{macs: 0.5}}.")
            named = _given(entry, "fields", {})
            if not isinstance(named, Mapping) or not all(isinstance(name, str) for name in named):
                raise TopiaristError(f"The fields of {method} map names to values, as in {{p: 2}}, but got {named!r}.")
            options = {key: entry[key] for key in OPTIONS if entry.get(key) is not None}
            where = [tuple(map(str, listed(_given(entry, key, ())))) for key in ("network", "data")]
            amounts = {key: value for key, value in budget.items() if value is not None}
            yield Pruning(str(method), amounts, dict(named), options, *where)


def _given(entry: Mapping[str, Any], key: str, otherwise: Any) -> Any:
    """What an entry says; an empty key of YAML says nothing."""
    value = entry.get(key)
    return otherwise if value is None else value


def made(kind: Any, values: Mapping[str, Any], name: str) -> Any:
    """A `Recipe` or a `Budget` of plain values.

    Raises:
        TopiaristError: there is no such field, or its value is of a wrong type.
    """
    if not isinstance(values, Mapping):
        raise TopiaristError(f"A {name} maps names to values, but got {values!r}.")
    known = [entry.name for entry in fields(kind)]
    if unknown := [key for key in values if key not in known]:
        raise TopiaristError(f"A {name} has no {unknown[0]!r}: it has {', '.join(known)}.")
    try:
        return kind(**values)
    except TypeError as error:
        hint = "YAML takes 1e-3 for text: write 1.0e-3"
        raise TopiaristError(f"The {name} {dict(values)} has a value of a wrong type ({hint}).") from error
