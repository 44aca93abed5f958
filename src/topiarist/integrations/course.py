"""What is pruned in a training, and after how many epochs or steps: one frozen value, checked before it begins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from numbers import Integral
from typing import Any, Literal

from topiarist.budget import Budget
from topiarist.errors import TopiaristError
from topiarist.files import shown
from topiarist.graph import Outputs, check_plain
from topiarist.measure import Loss
from topiarist.methods import Method, make
from topiarist.pruning import Pruning, Steps, trains_sparsely

Unit = Literal["epoch", "step"]
"""What is counted: epochs, or steps of the optimiser."""


@dataclass(frozen=True, eq=False)
class Course:
    """Says what is pruned, when, and what is needed for it.

    Attributes:
        request: method, budget, and how many cuts there are.
        at: after how many epochs or steps each cut is made; none where the method acts in training alone.
        per: what ``at`` counts.
        example_inputs: as for `topiarist.prune`.
        more_inputs: further ones.
        data: batches to measure on, for methods that measure.
        loss: of the model's output and a batch's target, where gradients are measured.
        averages: averages of the network, which become smaller with it.
    """

    request: Pruning
    at: tuple[int, ...]
    per: Unit
    example_inputs: Any
    more_inputs: tuple[Any, ...] = ()
    data: Any = None
    loss: Loss | None = None
    averages: tuple[Any, ...] = ()

    @classmethod
    def of(
        cls,
        method: str | Method | Pruning,
        budget: Budget | Mapping[str, Any] | float | None,
        *,
        at: Iterable[int],
        per: Unit,
        schedule: str | None,
        example_inputs: Any,
        more_inputs: Sequence[Any],
        outputs: Outputs | None,
        data: Any,
        loss: Loss | None,
        averages: Sequence[Any],
    ) -> Course:
        """Builds one of what a callback is given.

        Raises:
            TopiaristError: there is nothing to do, no example input, or a value makes no sense.
        """
        if example_inputs is None:
            raise TopiaristError("pruning traces the network: give example_inputs, two examples as it takes them")
        for name, value in (("more_inputs", more_inputs), ("averages", averages)):
            if not isinstance(value, list | tuple):
                raise TopiaristError(f"{name} must be a list, but got {type(value).__name__}: write [...]")
        check_plain((example_inputs, *more_inputs), "the example input is")
        if per not in ("epoch", "step"):
            raise TopiaristError(f"per must be 'epoch' or 'step', what at counts, but got {shown(per)}")
        cuts = _checked(at)
        request = _request(method, budget, cuts, schedule)
        request = request if outputs is None else replace(request, outputs=outputs)
        if request.trains or request.rewind:
            raise TopiaristError("the trainer trains: leave sparse_training, training of steps and rewind out")
        return cls(request, cuts, per, example_inputs, tuple(more_inputs), data, loss, tuple(averages))

    def check_length(self, epochs: int | None, steps: int | None) -> None:
        """Raises where a cut comes after the last step of a training; ``None`` for a length that is not known."""
        length = epochs if self.per == "epoch" else steps
        if self.at and length is not None and self.at[-1] >= length:
            raise TopiaristError(
                f"the last cut comes after {self.at[-1]} {self.per}s, and the training has {length}: give an earlier "
                "at=, or prune after the training with topiarist.prune"
            )

    @property
    def identity(self) -> str:
        """Returns what two trainings have in common where one may continue the other."""
        return f"{self.request!r} at {list(self.at)} {self.per}s"


def _checked(at: Iterable[int]) -> tuple[int, ...]:
    """Returns when the cuts are made, in order."""
    if isinstance(at, str | int) or not isinstance(at, Iterable):
        raise TopiaristError(f"at must list after how many epochs or steps to cut, as at=[2, 4], but got {shown(at)}")
    cuts = tuple(int(each) if isinstance(each, Integral) and not isinstance(each, bool) else each for each in at)
    whole = all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in cuts)
    if not whole or any(one >= two for one, two in pairwise(cuts)):
        raise TopiaristError(f"at must list whole numbers that rise, from 0 on, but got {shown(list(cuts))}")
    return cuts


def _request(method: Any, budget: Any, at: tuple[int, ...], schedule: str | None) -> Pruning:
    """Returns the request: of as many cuts as there are times for them."""
    if isinstance(method, Pruning):
        if budget is not None:
            raise TopiaristError("the request has a budget of its own: leave budget out, or give it to Pruning.of")
        if not at or method.steps.count not in (1, len(at)):
            raise TopiaristError(
                f"the request has {method.steps.count} cuts, and at= says when for {len(at)}: give as many"
            )
        return replace(method, steps=Steps(len(at), schedule or method.steps.schedule, method.steps.training))
    if at:
        return Pruning.of(method, budget, steps={"count": len(at), "schedule": schedule})
    made = make(method)
    if budget is not None:
        raise TopiaristError("there is a budget, and no cut to meet it: say when, as at=[2, 4]")
    if not trains_sparsely(made):
        raise TopiaristError(
            f"{made.name} takes no part in training, and no cut is asked for: give a budget, and when, as at=[2, 4]"
        )
    return Pruning(made, Budget(ratio=1.0))  # keeps all, since it is never cut
