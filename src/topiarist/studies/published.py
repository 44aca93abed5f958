"""Published numbers of a study's rows, to be shown beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from topiarist.errors import TopiaristError
from topiarist.studies.prunings import Pruning

KEYS = ("network", "data", "method", "budget", "fields", "source", "arms")
"""Of an entry: which rows it is about, where the numbers stand, and arm → accuracy in per cent, or that and spread."""


def check(entry: Any, arms: Sequence[str]) -> None:
    """See that an entry is one.

    Args:
        entry: plain values with `KEYS`; ``budget`` and ``fields`` may be left out where there are none.
        arms: the arms that there are.

    Raises:
        TopiaristError: a key is unknown or missing, or an arm has no number.
    """
    needed = {"network", "data", "method", "source", "arms"}
    if not isinstance(entry, Mapping) or not needed <= set(entry) <= set(KEYS):
        raise TopiaristError(f"The published entry {entry!r} must have {', '.join(KEYS)}: budget and fields may lack.")
    for name in ("network", "data", "method", "source"):
        if not isinstance(entry[name], str):
            raise TopiaristError(f"The key {name!r} of a published entry is a text, but got {entry[name]!r}.")
    for name in ("budget", "fields", "arms"):
        if not isinstance(entry.get(name, {}), Mapping):
            raise TopiaristError(f"The key {name!r} of a published entry is a mapping, but got {entry[name]!r}.")
    for arm, numbers in entry["arms"].items():
        if arm not in arms:
            raise TopiaristError(f"A published entry has the arm {arm!r}: choose from {', '.join(arms)}.")
        _numbers(numbers)


def find(entries: Sequence[Mapping[str, Any]], network: str, data: str, pruning: Pruning | None, arm: str) -> Any:
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


def meets(entry: Mapping[str, Any], networks: Sequence[str], data: Sequence[str], prunings: Sequence[Pruning]) -> bool:
    """Whether an entry is about some row of a study with these networks, data and prunings, whatever its arms are."""
    if entry["network"] not in networks or entry["data"] not in data:
        return False
    meant = [each for each in prunings if each.meant(entry["network"], entry["data"])]
    return set(entry["arms"]) <= {"unpruned"} or any(_same(entry, each) for each in meant)


def _same(entry: Mapping[str, Any], pruning: Pruning) -> bool:
    """Whether an entry is about a pruning."""
    told = (entry["method"], dict(entry.get("budget", {})), dict(entry.get("fields", {})))
    return told == (pruning.method, dict(pruning.budget), dict(pruning.fields))


def _numbers(value: Any) -> tuple[float, float | None]:
    accuracy, spread = value if isinstance(value, list | tuple) and len(value) == 2 else (value, None)
    for number, most in ((accuracy, 100), (0 if spread is None else spread, 100)):
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= most:
            raise TopiaristError(f"A published accuracy is a number in per cent, or that and its spread: {value!r}.")
    return accuracy, spread
