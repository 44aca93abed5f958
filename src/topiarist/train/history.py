"""What a training reports: one row for each epoch."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Epoch:
    """The result of one pass over the training set.

    Attributes:
        epoch: its number, from 1.
        lr: learning rate.
        loss: mean over the training examples, while it trained.
        train_accuracy: per cent, over the same; NaN where their targets are no classes.
        test_accuracy: per cent after the epoch; ``None`` where it was not measured.
        seconds: wall time, evaluation included.
        test_metric: the metric of the test examples after the epoch; ``None`` where there is none, or it was not due.
    """

    epoch: int
    lr: float
    loss: float
    train_accuracy: float
    test_accuracy: float | None
    seconds: float
    test_metric: float | None = None


@dataclass(frozen=True)
class History:
    """The epochs of a training."""

    epochs: tuple[Epoch, ...] = ()

    def __str__(self) -> str:
        """Returns a line an epoch."""
        return "\n".join(f"epoch {row.epoch}: {_described(row)}" for row in self.epochs) or "no epochs"

    @property
    def accuracy(self) -> float:
        """Returns the test accuracy when it was last measured, after the last epoch, per cent; NaN where none was."""
        return next((row.test_accuracy for row in reversed(self.epochs) if row.test_accuracy is not None), math.nan)

    @property
    def metric(self) -> float:
        """Returns the metric of the test examples when it was last measured; NaN where none was."""
        return next((row.test_metric for row in reversed(self.epochs) if row.test_metric is not None), math.nan)

    @property
    def best(self) -> float:
        """Returns the best test accuracy of any epoch, per cent, which the paper's scripts record; NaN without one."""
        return max((row.test_accuracy for row in self.epochs if row.test_accuracy is not None), default=math.nan)

    @property
    def seconds(self) -> float:
        """Returns the wall time of all epochs."""
        return sum(row.seconds for row in self.epochs)


def print_epoch(epoch: int, epochs: int, row: Epoch) -> None:
    """Prints an epoch on stderr: what ``progress=True`` calls."""
    print(f"epoch {epoch} of {epochs}: {_described(row)}", file=sys.stderr, flush=True)


def _described(row: Epoch) -> str:
    tested = [] if row.test_accuracy is None else [f"{row.test_accuracy:.2f} % of the test examples"]
    tested += [] if row.test_metric is None else [f"metric {row.test_metric:.4g}"]
    return ", ".join([f"rate {row.lr:.3g}", f"loss {row.loss:.4g}", *tested, f"{row.seconds:.1f} s"])


Progress = Callable[[int, int, Epoch], object]
"""Called after each epoch with its number from 1, the number of epochs, and its row."""
