"""Published numbers of a study's rows, to be shown beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from topiarist.budget import Budget
from topiarist.errors import TopiaristError
from topiarist.methods import make
from topiarist.studies.prunings import StudyPruning, built

KEYS = ("network", "data", "method", "budget", "source", "arms")
"""Of an entry: which rows it is about, where the numbers stand, and arm → accuracy in per cent, or that and spread."""


def check(entry: Any, arms: Sequence[str]) -> None:
    """See that an entry is one.

    Args:
        entry: plain values with `KEYS`; ``method`` and ``budget`` as in a request, no budget where there is none.
        arms: the arms that there are.

    Raises:
        TopiaristError: a key is unknown or missing, or an arm has no number.
    """
    needed = {"network", "data", "method", "source", "arms"}
    if not isinstance(entry, Mapping) or not needed <= set(entry) <= set(KEYS):
        raise TopiaristError(
            f"The published entry {entry!r} must have {', '.join(KEYS)}: only the budget may be left out."
        )
    for name in ("network", "data", "source"):
        if not isinstance(entry[name], str):
            raise TopiaristError(f"The key {name!r} of a published entry is a text, but got {entry[name]!r}.")
    for name in ("budget", "arms"):
        if not isinstance(entry.get(name, {}), Mapping):
            raise TopiaristError(f"The key {name!r} of a published entry is a mapping, but got {entry[name]!r}.")
    for arm, numbers in entry["arms"].items():
        if arm not in arms:
            raise TopiaristError(f"A published entry has the arm {arm!r}: choose from {', '.join(arms)}.")
        _numbers(numbers)


def find(entries: Sequence[Mapping[str, Any]], network: str, data: str, pruning: StudyPruning | None, arm: str) -> Any:
    """What was published about a row: ``accuracy`` and ``spread`` in per cent, and ``source``; ``None`` if nothing was.

    The network without a pruning is that of the first entry of this network and these data that has it.
    """
    if pruning is not None and arm == "unpruned":
        return None  # trained in the method's way, which is not the network that papers call unpruned
    for entry in entries:
        here = (entry["network"], entry["data"]) == (network, data) and arm in entry["arms"]
        if here and (pruning is None or _same(entry, pruning)):
            accuracy, spread = _numbers(entry["arms"][arm])
            return {"accuracy": accuracy, "spread": spread, "source": entry["source"]}
    return None


def meets(
    entry: Mapping[str, Any], networks: Sequence[str], data: Sequence[str], prunings: Sequence[StudyPruning]
) -> bool:
    """Whether an entry is about some row of a study with these networks, data and prunings, whatever its arms are."""
    if entry["network"] not in networks or entry["data"] not in data:
        return False
    meant = [each for each in prunings if each.applies_to(entry["network"], entry["data"])]
    return set(entry["arms"]) <= {"unpruned"} or any(_same(entry, each) for each in meant)


def _same(entry: Mapping[str, Any], pruning: StudyPruning) -> bool:
    """Returns whether an entry is about a pruning: of the same method, fields and budget."""
    request = pruning.request
    return make(entry["method"]) == request.method and built(Budget, entry.get("budget", {}), "budget") == (
        request.budget or Budget()
    )


def _numbers(value: Any) -> tuple[float, float | None]:
    accuracy, spread = value if isinstance(value, list | tuple) and len(value) == 2 else (value, None)
    for number, most in ((accuracy, 100), (0 if spread is None else spread, 100)):
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= most:
            raise TopiaristError(f"A published accuracy is a number in per cent, or that and its spread: {value!r}.")
    return accuracy, spread
