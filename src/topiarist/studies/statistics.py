"""Statistics of a few seeds: means, standard deviations, and paired differences between arms of the same seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (n − 1 in the denominator; ``None`` for a single value) of ``n`` values."""

    mean: float
    std: float | None
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if self.std is None else f"{self.mean:.2f} ± {self.std:.2f}"


@dataclass(frozen=True)
class Difference:
    """Mean paired difference between two arms with its confidence interval.

    Attributes:
        mean: mean of ``a − b`` over the seeds that both have.
        low: lower end of the interval; ``None`` for fewer than two seeds.
        high: upper end of the interval; ``None`` for fewer than two seeds.
        n: number of seeds.
        level: coverage of the interval, for example 0.95.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    level: float = 0.95

    @property
    def significant(self) -> bool:
        """Whether the interval excludes 0.

        Differences that are equal at every seed have an interval without width: with accuracies counted in whole test
        examples that is chance, not infinite precision, so it is not significant.
        """
        if self.low is None or self.high is None or self.low == self.high:
            return False
        return self.low > 0 or self.high < 0


def summarise(values: Sequence[float]) -> Summary:
    """Returns mean and sample standard deviation.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("there are no values to summarise")
    n = len(values)
    mean = math.fsum(values) / n
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1)) if n > 1 else None
    return Summary(mean, std, n)


def paired(a: Mapping[int, float], b: Mapping[int, float], level: float = 0.95) -> Difference:
    """Returns the mean of ``a[s] − b[s]`` over the seeds s that both have, with its two-sided t interval.

    With d the mean and s the sample standard deviation of n differences, the interval is
    ``d ± t(n − 1, (1 + level) / 2) · s / √n``. Pairing removes the variance that the arms of one seed share: of initial
    weights, the trained network, its pruning.

    Raises:
        ValueError: no seed is in both.
    """
    differences = [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]
    if not differences:
        raise ValueError("the two arms share no seed")
    summary = summarise(differences)
    if summary.std is None:
        return Difference(summary.mean, None, None, summary.n, level)
    # equal differences can differ in the last digit
    std = summary.std if summary.std > 1e-9 * max(1.0, abs(summary.mean)) else 0.0
    half = float(stats.t.ppf((1 + level) / 2, summary.n - 1)) * std / math.sqrt(summary.n)
    return Difference(summary.mean, summary.mean - half, summary.mean + half, summary.n, level)


def verdict(a: str, b: str, difference: Difference, unit: str = "points") -> str:
    """Returns a difference in words, from the view of the better arm; CI: confidence interval.

    Examples:
        >>> verdict("fine-tuning", "Scratch-B", Difference(0.8, 0.2, 1.4, 3))
        'fine-tuning outperforms Scratch-B by 0.80 points (95 % CI 0.20 to 1.40, n = 3 seeds)'
    """
    d, ci = difference, f"{100 * difference.level:g} % CI"
    none = f"no significant difference between {a} and {b}"
    if d.low is None or d.high is None:
        return f"{none}: one seed gives no interval ({_signed(d.mean)} {unit})"
    if d.low == d.high == 0:
        return f"{none}: the same accuracy at each of {d.n} seeds"
    if d.low == d.high:
        return f"{none}: all {d.n} seeds differ by {_signed(d.mean)} {unit}, which gives no interval"
    if not d.significant:
        return f"{none} ({ci} {_signed(d.low)} to {_signed(d.high)} {unit}, n = {d.n} seeds)"
    better, worse, sign = (a, b, 1.0) if d.mean > 0 else (b, a, -1.0)
    low, high = sorted((sign * d.low, sign * d.high))
    return f"{better} outperforms {worse} by {sign * d.mean:.2f} {unit} ({ci} {low:.2f} to {high:.2f}, n = {d.n} seeds)"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")
