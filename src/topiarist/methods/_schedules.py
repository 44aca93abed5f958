"""How fast to prune in several steps: the fraction kept after each, for methods whose paper names no schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from topiarist.errors import TopiaristError
from topiarist.files import shown


def linear(step: int, steps: int, target: float) -> float:
    """Prunes equally much in every step: ``1 - (1 - target) * step / steps``.

    Args:
        step: from 1.
        steps: how many there are; the last one gives ``target``, exactly.
        target: fraction kept in the end.

    Raises:
        TopiaristError: the step is not one of the steps.
    """
    return target + (1 - target) * _rest(step, steps)


def cubic(step: int, steps: int, target: float) -> float:
    """Prunes most early, where most is redundant: ``target + (1 - target) * (1 - step / steps)^3``.

    The schedule of Zhu and Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression",
    arXiv 2017, from an unpruned network on. Arguments and errors as for `linear`.
    """
    return target + (1 - target) * _rest(step, steps) ** 3


def _rest(step: int, steps: int) -> float:
    """Returns ``1 - step / steps``, and exactly 0 in the last step."""
    if not 1 <= step <= steps:
        raise TopiaristError(f"step must be from 1 to the number of steps, {steps}, but got {shown(step)}")
    return (steps - step) / steps


SCHEDULES: Mapping[str, Callable[[int, int, float], float]] = {"linear": linear, "cubic": cubic}
