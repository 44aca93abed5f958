"""What a study prunes by: requests, and the networks and data that each of them is for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from topiarist.budget import Budget
from topiarist.errors import TopiaristError
from topiarist.files import check_fields, from_plain, shown
from topiarist.pruning import Pruning
from topiarist.train import Recipe

KEYS = (*(entry.name for entry in fields(Pruning)), "network", "data")
"""What an entry of a study may say: the fields of a request, and where it is meant."""


@dataclass(frozen=True)
class StudyPruning:
    """A request, and the networks and data that it is for.

    Attributes:
        request: method, budget and all else.
        networks: those of the study that are pruned so; all of them where none is named.
        data: the data sets for which that holds; all of them where none is named.

    Raises:
        TopiaristError: a name is no text.
    """

    request: Pruning
    networks: tuple[str, ...] = ()
    data: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self, f"the pruning by {self.method}")

    def applies_to(self, network: str, data: str) -> bool:
        """Returns whether this network is pruned so on these data."""
        return network in (self.networks or (network,)) and data in (self.data or (data,))

    def to_json(self) -> dict[str, Any]:
        """Returns the plain values of an entry that makes the same."""
        return {**self.request.to_json(), "network": list(self.networks), "data": list(self.data)}

    def with_budget(self, budget: Mapping[str, Any]) -> StudyPruning:
        """Returns the same pruning to another budget."""
        return replace(self, request=replace(self.request, budget=from_plain(Budget, budget, "the budget")))

    @property
    def method(self) -> str:
        """The method's name."""
        return self.request.method.name

    @property
    def budget(self) -> dict[str, Any]:
        """The fields of the budget that are not as by default, as plain values."""
        if self.request.budget is None:
            return {}
        default, given = asdict(Budget()), asdict(self.request.budget)
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in given.items()
            if value != default[name]
        }

    @property
    def label(self) -> str:
        """The method and, where they are not as by default, its fields and what else is asked for but the budget."""
        budget = self.request.budget
        words = [word.removeprefix("--method.") for word in self.request.flags()[2:]]
        for flag in [] if budget is None else [f"--budget.{name}" for name in self.budget]:
            at = words.index(flag)
            del words[at : at + 2]
        settings = " ".join(words).replace(" --", ", ").removeprefix("--")
        return f"{self.method} ({settings})" if settings else self.method

    @property
    def granularity(self) -> str:
        """``"structure"`` or ``"weight"``."""
        return self.request.method.granularity

    @property
    def goal(self) -> str:
        """The budget in words, for example ``"50 % of MACs"``."""
        kept = "weights" if self.granularity == "weight" else "units"
        nouns = {
            "macs": "MACs",
            "params": "parameters",
            "memory": "activation memory",
            "latency": "milliseconds",
            "ratio": kept,
        }
        budget = self.budget
        words = [f"{100 * value:g} % of {nouns[key]}" for key, value in budget.items() if key in nouns]
        words += [f"{key} {value}" for key, value in budget.items() if key not in nouns]
        return ", ".join(words) or "its own rule"

    @property
    def trained(self) -> bool:
        """Whether the method takes part in training, so that its unpruned network is another one."""
        return "training" in self.request.method.needs

    @property
    def equal(self) -> str:
        """What networks that are built to the budget have in common with the pruned one: ``"params"`` or ``"macs"``.

        Parameters in unstructured pruning, or where the budget counts them alone; else MACs.
        """
        counted = "params" in self.budget and "macs" not in self.budget
        return "params" if counted or self.granularity == "weight" else "macs"

    @property
    def measured(self) -> bool:
        """Whether only the pruned network can say how large others of its budget are.

        In structured pruning to a budget of MACs or parameters alone, the budget itself says so.
        """
        names = set(self.budget)
        stated = {"macs", "params"} & names and names <= {"macs", "params", "exclude", "multiple"}
        return self.granularity == "weight" or not stated


def listed(value: Any) -> list[Any]:
    """Returns what a key means that may hold one value or several."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def prunings(entry: Any, recipe: Mapping[str, Any], finetune: Mapping[str, Any]) -> Iterator[StudyPruning]:
    """Yields the prunings of one entry of a study: every method with every budget.

    Args:
        entry: plain values with the fields of `Pruning`, of which ``method`` and ``budget`` may be lists, and with
            ``network`` and ``data`` where it is not for all of them.
        recipe: the study's; training between two steps takes from it what it leaves out, if the pruning rewinds.
        finetune: the study's; from it otherwise.

    Raises:
        TopiaristError: the entry has an unknown key, or none that names a method, or makes no request.
    """
    if not isinstance(entry, Mapping) or not {"method"} <= set(entry) <= set(KEYS):
        others = ", ".join(repr(key) for key in KEYS if key != "method")
        raise TopiaristError(f"the pruning {shown(entry)} must have the key 'method', and may have {others}")
    given = {key: value for key, value in entry.items() if value is not None}  # an empty key of YAML says nothing
    names, budgets = listed(given.pop("method", ())), listed(given.pop("budget", {}))
    if not names or not budgets:
        raise TopiaristError(
            f"the pruning {shown(entry)} has no method, or an empty list of methods or budgets: name one"
        )
    networks, data = (tuple(listed(given.pop(key, ()))) for key in ("network", "data"))
    steps = given.get("steps")
    if isinstance(steps, Mapping) and isinstance(steps.get("training"), Mapping):
        base = asdict(from_plain(Recipe, recipe if given.get("rewind") else finetune, "the recipe"))
        given["steps"] = {**steps, "training": {**base, **steps["training"]}}
    for budget in budgets:
        if isinstance(budget, Mapping):
            budget = {key: value for key, value in budget.items() if value is not None}
        for method in names:
            yield StudyPruning(Pruning.from_json({**given, "method": method, "budget": budget}), networks, data)
