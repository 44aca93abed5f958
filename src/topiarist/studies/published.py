"""Published numbers of a study's rows, shown beside the measured ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from topiarist.errors import TopiaristError
from topiarist.studies.cells import Json
from topiarist.studies.prunings import Pruning

KEYS = ("network", "data", "method", "budget", "fields", "source", "arms")
"""Of an entry: which rows it is about, its source, and arm → accuracy in per cent, or that and its spread."""


def check(entry: Any, arms: Sequence[str]) -> None:
    """Checks an entry.

    Args:
        entry: plain values with `KEYS`; ``budget`` and ``fields`` may be left out where there are none.
        arms: the known arms.

    Raises:
        TopiaristError: a key is unknown or missing, or a value is of a wrong kind.
    """
    needed = {"network", "data", "method", "source", "arms"}
    if not isinstance(entry, Mapping) or not needed <= set(entry) <= set(KEYS):
        raise TopiaristError(
            f"the published entry {entry!r} must have {', '.join(KEYS)}; budget and fields may be left out"
        )
    for name, value in entry.items():
        kind, word = (Mapping, "a mapping") if name in ("budget", "fields", "arms") else (str, "a text")
        if not isinstance(value, kind):
            raise TopiaristError(f"the key {name!r} of a published entry is {word}, but got {value!r}")
    for arm, numbers in entry["arms"].items():
        if arm not in arms:
            raise TopiaristError(f"a published entry has the arm {arm!r}; choose from {', '.join(arms)}")
        _numbers(numbers)


def find(entries: Sequence[Json], network: str, data: str, pruning: Pruning | None, arm: str) -> Json | None:
    """Returns what was published about a row: ``accuracy`` and ``spread`` in per cent, and ``source``; or ``None``.

    The network without a pruning is that of the first entry of this network and these data that has it.
    """
    if pruning is not None and arm == "unpruned":
        return None  # trained with the method's penalty: not the network that papers call unpruned
    for entry in entries:
        here = (entry["network"], entry["data"]) == (network, data) and arm in entry["arms"]
        if here and (pruning is None or _same(entry, pruning)):
            accuracy, spread = _numbers(entry["arms"][arm])
            return {"accuracy": accuracy, "spread": spread, "source": entry["source"]}
    return None


def meets(entry: Json, networks: Sequence[str], data: Sequence[str], prunings: Sequence[Pruning]) -> bool:
    """Returns whether an entry is about some row of a study with these networks, data and prunings, in any arm."""
    if entry["network"] not in networks or entry["data"] not in data:
        return False
    meant = [each for each in prunings if each.meant(entry["network"], entry["data"])]
    return set(entry["arms"]) <= {"unpruned"} or any(_same(entry, each) for each in meant)


def _same(entry: Json, pruning: Pruning) -> bool:
    """Returns whether an entry is about a pruning."""
    about = (entry["method"], dict(entry.get("budget", {})), dict(entry.get("fields", {})))
    return about == (pruning.method, dict(pruning.budget), dict(pruning.fields))


def _numbers(value: Any) -> tuple[float, float | None]:
    accuracy, spread = value if isinstance(value, list | tuple) and len(value) == 2 else (value, None)
    for number in (accuracy, 0 if spread is None else spread):
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= 100:
            raise TopiaristError(
                f"a published accuracy is a number in per cent, or that and its spread, but got {value!r}"
            )
    return accuracy, spread
