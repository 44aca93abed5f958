"""Medians, and how far from them the true ones may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from scipy.special import bdtr


@dataclass(frozen=True)
class Median:
    """Holds the median of samples and its confidence interval, which assumes no distribution of them.

    Of n samples in order, ``[x_k, x_(n+1−k)]`` holds the true median with probability ``1 − 2·P(B < k)``, where B is
    binomial with n draws of probability ½. The largest k that gives the level is taken; 95 % take at least six samples.

    Attributes:
        value: the median.
        low: lower end of the interval; ``None`` where the samples are too few.
        high: upper end.
        n: number of samples.
    """

    value: float
    low: float | None
    high: float | None
    n: int

    @classmethod
    def of(cls, samples: Sequence[float], level: float = 0.95) -> Median:
        """Returns the median of samples, which are taken to be independent of each other.

        Args:
            samples: at least one.
            level: of confidence.
        """
        ordered, n, rank = sorted(samples), len(samples), 0
        while bdtr(rank, n, 0.5) <= (1 - level) / 2:
            rank += 1
        if not rank:
            return cls(median(ordered), None, None, n)
        return cls(median(ordered), ordered[rank - 1], ordered[n - rank], n)

    @property
    def spread(self) -> float | None:
        """Returns half the length of the interval: what is written behind ±."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def scaled(self, factor: float) -> Median:
        """Returns the median of the same samples in another unit."""
        low, high = (None if end is None else factor * end for end in (self.low, self.high))
        return Median(factor * self.value, low, high, self.n)
