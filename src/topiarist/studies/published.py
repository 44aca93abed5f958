"""Published numbers of a study's rows, shown beside the measured ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from topiarist.budget import Budget
from topiarist.errors import TopiaristError
from topiarist.files import from_plain
from topiarist.methods import make
from topiarist.studies.cells import Json
from topiarist.studies.prunings import StudyPruning

KEYS = ("network", "data", "method", "budget", "source", "arms")
"""Of an entry: which rows it is about, its source, and arm → accuracy in per cent, or that and its spread."""


def check(entry: Any, arms: Sequence[str]) -> None:
    """Checks an entry.

    Args:
        entry: plain values with `KEYS`; ``method`` and ``budget`` as in a request, no budget where there is none.
        arms: the known arms.

    Raises:
        TopiaristError: a key is unknown or missing, or a value is of a wrong kind.
    """
    needed = {"network", "data", "method", "source", "arms"}
    if not isinstance(entry, Mapping) or not needed <= set(entry) <= set(KEYS):
        raise TopiaristError(
            f"the published entry {entry!r} must have {', '.join(KEYS)}; only the budget may be left out"
        )
    for name, value in entry.items():
        kind, word = (Mapping, "a mapping") if name in ("budget", "arms") else (str, "a text")
        if name != "method" and not isinstance(value, kind):
            raise TopiaristError(f"the key {name!r} of a published entry is {word}, but got {value!r}")
    for arm, numbers in entry["arms"].items():
        if arm not in arms:
            raise TopiaristError(f"a published entry has the arm {arm!r}; choose from {', '.join(arms)}")
        _numbers(numbers)


def find(entries: Sequence[Json], network: str, data: str, pruning: StudyPruning | None, arm: str) -> Json | None:
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


def meets(entry: Json, networks: Sequence[str], data: Sequence[str], prunings: Sequence[StudyPruning]) -> bool:
    """Returns whether an entry is about some row of a study with these networks, data and prunings, in any arm."""
    if entry["network"] not in networks or entry["data"] not in data:
        return False
    meant = [each for each in prunings if each.applies_to(entry["network"], entry["data"])]
    return set(entry["arms"]) <= {"unpruned"} or any(_same(entry, each) for each in meant)


def _same(entry: Json, pruning: StudyPruning) -> bool:
    """Returns whether an entry is about a pruning: of the same method, fields and budget."""
    request = pruning.request
    return make(entry["method"]) == request.method and from_plain(Budget, entry.get("budget", {}), "the budget") == (
        request.budget or Budget()
    )


def _numbers(value: Any) -> tuple[float, float | None]:
    accuracy, spread = value if isinstance(value, list | tuple) and len(value) == 2 else (value, None)
    for number in (accuracy, 0 if spread is None else spread):
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= 100:
            raise TopiaristError(
                f"a published accuracy is a number in per cent, or that and its spread, but got {value!r}"
            )
    return accuracy, spread
