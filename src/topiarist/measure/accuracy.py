"""The accuracy of a classifier, and the check that a model and a data set belong together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from topiarist.data import Data, Split
from topiarist.errors import TopiaristError
from topiarist.files import one_line


def evaluate(model: nn.Module, data: Data, split: Split = "test", batch_size: int = 512) -> float:
    """Share of examples whose highest score is the right class.

    Args:
        model: yields class scores ``(N, classes)``; it is put in eval mode for the while.
        data: the data set; batches go to the model's device.
        split: ``"test"`` or ``"train"``.
        batch_size: examples a pass.

    Returns:
        Accuracy in per cent.

    Raises:
        TopiaristError: the model cannot take this data, or the split is empty.
    """
    rehearse(model, data)
    return accuracy(model, data, split, batch_size)


@torch.no_grad()
def accuracy(model: nn.Module, data: Data, split: Split = "test", batch_size: int = 512) -> float:
    """As `evaluate`, for a model that has been rehearsed."""
    device = device_of(model)
    hits = torch.zeros((), dtype=torch.int64, device=device)
    seen = 0
    with mode(model, training=False):
        for x, y in data.batches(split, batch_size, device=device):
            hits += (class_scores(model(x)).argmax(1) == y).sum()
            seen += len(y)
    if not seen:
        raise TopiaristError(f"the data set {data.name!r} has no {split} examples: name a split that has some")
    return 100.0 * int(hits) / seen


@torch.no_grad()
def rehearse(model: nn.Module, data: Data) -> None:
    """Try two examples in eval mode, so that a model that does not fit the data is told so at once.

    Raises:
        TopiaristError: the data set is empty, or the model fails on it, has too few classes or gives no finite scores.
    """
    split: Split = "train" if len(data.train_y) else "test"
    x = next((x for x, _ in data.batches(split, 2, device=device_of(model))), None)
    if x is None:
        raise TopiaristError(f"the data set {data.name!r} is empty: load another one")
    with mode(model, training=False):
        try:
            output = model(x)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise TopiaristError(
                f"the model fails on examples of {data.name!r} of shape {tuple(x.shape[1:])} ({one_line(error)}): "
                "build it for that input"
            ) from error
    scores = class_scores(output)
    if scores.shape[1] < data.classes:
        raise TopiaristError(
            f"the model has {scores.shape[1]} classes and {data.name!r} has {data.classes}: build it with as many"
        )
    if not bool(torch.isfinite(scores).all()):
        raise TopiaristError(
            f"the model's scores for {data.name!r} are not finite: look for NaN or infinity in its weights or the data"
        )


def class_scores(output: object) -> Tensor:
    """A model's output, which must be scores ``(N, classes)``.

    Raises:
        TopiaristError: it is something else.
    """
    if not isinstance(output, Tensor) or output.ndim != 2:
        kind = f"a tensor {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise TopiaristError(f"the model yields {kind}: training takes a classifier that yields scores (N, classes)")
    return output


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters are."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


@contextmanager
def mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Train or eval mode for the while; afterwards each module has its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, former in modes:
            module.training = former
