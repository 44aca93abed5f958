"""Published numbers of a study's rows, shown beside the measured ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from topiarist.budget import Budget
from topiarist.errors import TopiaristError
from topiarist.files import from_plain, shown, suggestion
from topiarist.methods import make
from topiarist.studies.arms import ARMS
from topiarist.studies.cells import Json
from topiarist.studies.prunings import StudyPruning


@dataclass(frozen=True)
class Entry:
    """What was published about some rows.

    Attributes:
        network: of the rows.
        data: of the rows.
        method: as in a request.
        source: who published it where.
        arms: arm → accuracy in per cent, or that and its spread.
        budget: as in a request; left out where there is none.

    Raises:
        TopiaristError: there is no such arm, or a number is out of range.
    """

    network: str
    data: str
    method: Any
    source: str
    arms: Mapping[str, float | tuple[float, float | None]]
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        for arm in self.arms:
            if arm not in ARMS:
                raise TopiaristError(f"a published entry has the arm {shown(arm)}: {suggestion(arm, ARMS)}")
            if not all(0 <= (number or 0) <= 100 for number in self.numbers(arm)):
                raise TopiaristError(
                    f"a published accuracy is in per cent, from 0 to 100, but got {shown(self.arms[arm])}: correct it"
                )

    @classmethod
    def of(cls, values: Json) -> Entry:
        """Reads plain values.

        Raises:
            TopiaristError: a key is unknown or missing, or a value is of a wrong type.
        """
        return from_plain(cls, values, "a published entry")

    def numbers(self, arm: str) -> tuple[float, float | None]:
        """Returns the accuracy of an arm and its spread, in per cent."""
        value = self.arms[arm]
        return value if isinstance(value, tuple) else (value, None)

    def is_about(self, pruning: StudyPruning) -> bool:
        """Returns whether it is about a pruning: of the same method, fields and budget."""
        request = pruning.request
        return make(self.method) == request.method and self.budget == (request.budget or Budget())

    def meets(self, networks: Sequence[str], data: Sequence[str], prunings: Sequence[StudyPruning]) -> bool:
        """Returns whether it is about some row of a study with these networks, data and prunings, in any arm."""
        if self.network not in networks or self.data not in data:
            return False
        meant = [each for each in prunings if each.applies_to(self.network, self.data)]
        return set(self.arms) <= {"unpruned"} or any(map(self.is_about, meant))


def find(entries: Sequence[Json], network: str, data: str, pruning: StudyPruning | None, arm: str) -> Json | None:
    """Returns what was published about a row: ``accuracy`` and ``spread`` in per cent, and ``source``; or ``None``.

    The network without a pruning is that of the first entry of this network and these data that has it.
    """
    if pruning is not None and arm == "unpruned":
        return None  # trained with the method's penalty: not the network that papers call unpruned
    for entry in map(Entry.of, entries):
        here = (entry.network, entry.data) == (network, data) and arm in entry.arms
        if here and (pruning is None or entry.is_about(pruning)):
            accuracy, spread = entry.numbers(arm)
            return {"accuracy": accuracy, "spread": spread, "source": entry.source}
    return None
