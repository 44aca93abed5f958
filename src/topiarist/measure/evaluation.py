"""How well a classifier does on some examples, and the check that it fits a data set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from topiarist.data import Data, Split
from topiarist.errors import TopiaristError
from topiarist.files import one_line, shown
from topiarist.graph import call_model, tensors_in
from topiarist.measure.batches import Batch, Target, device_of, inputs_and_target, mode, to_device

Loss = Callable[[Any, Target], Tensor]
"""``(output, target)`` → the mean over the examples of the batch, a scalar."""


class Evaluation(NamedTuple):
    """Says how well a classifier does.

    Attributes:
        accuracy: share of examples whose highest score is the right class, in per cent.
        loss: mean cross entropy, in nats; infinite where it is not finite.
    """

    accuracy: float
    loss: float


def class_scores(output: object, *, plain: bool = False) -> Tensor:
    """Returns the class scores in a model's output: its ``logits``, or its first tensor, ``(N, classes, ...)``.

    Args:
        output: of a classifier.
        plain: refuse any other output than a tensor ``(N, classes)``.

    Raises:
        TopiaristError: it is another one.
    """
    if plain and (not isinstance(output, Tensor) or output.ndim != 2):
        kind = f"a tensor {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise TopiaristError(f"the model yields {kind}; use a classifier that yields scores (N, classes)")
    output = output.get("logits", output) if isinstance(output, Mapping) else getattr(output, "logits", output)
    return tensors_in(output)[0]


def cross_entropy(output: object, target: Target) -> Tensor:
    """Returns the mean cross entropy of the class scores in a model's output.

    Raises:
        TopiaristError: the targets are neither classes nor shares of classes, but an image or other numbers.
    """
    scores = class_scores(output)
    if not _are_classes(target, scores):
        kind = f"of {target.dtype} {tuple(target.shape)}" if isinstance(target, Tensor) else type(target).__name__
        raise TopiaristError(
            f"cross entropy takes classes, and the targets are {kind} beside an output {tuple(scores.shape)}: give "
            "loss=, a function of the model's output and the targets, such as torch.nn.functional.mse_loss"
        )
    return F.cross_entropy(scores, target)


def _are_classes(target: Target, scores: Tensor) -> bool:
    """Returns whether targets are one class for each location of the scores, or shares of the classes there."""
    if not isinstance(target, Tensor) or scores.ndim < 2:
        return False
    if not target.is_floating_point():
        return target.shape == (scores.shape[0], *scores.shape[2:])
    shares = target.shape == scores.shape and bool((target >= 0).all())
    return shares and torch.allclose(target.sum(1), torch.ones_like(target.sum(1)), atol=1e-3)


@torch.no_grad()
def evaluate_batches(model: nn.Module, batches: Iterable[Batch]) -> Evaluation:
    """Runs a classifier over batches, in eval mode.

    Args:
        model: yields class scores ``(N, classes, ...)``, alone or as ``logits``.
        batches: pairs ``(inputs, target)`` as for `topiarist.measure.collect`.

    Raises:
        TopiaristError: there is no example, or no target.
    """
    device = device_of(model)
    results: list[tuple[Tensor, Tensor, int, int]] = []  # on the device until all batches are under way
    with mode(model, training=False):
        for batch in batches:
            inputs, target = inputs_and_target(batch)
            if target is None:
                raise TopiaristError("an evaluation needs targets: pass batches as pairs (inputs, target)")
            output, target = call_model(model, to_device(inputs, device)), to_device(target, device)
            right = (class_scores(output).argmax(1) == target).sum()
            results.append((cross_entropy(output, target), right, len(target), target.numel()))
    loss, hits, seen = 0.0, 0.0, 0
    for mean, right, examples, targets in results:
        loss += float(mean) * examples
        hits += int(right) * examples / targets
        seen += examples
    if not seen:
        raise TopiaristError("there is no example to evaluate the network on: pass at least one batch")
    return Evaluation(100.0 * hits / seen, loss / seen if math.isfinite(loss) else math.inf)


def accuracy(model: nn.Module, data: Data, split: Split = "test", batch_size: int = 512) -> float:
    """Returns what `evaluate` does, of a model that is known to fit the data."""
    if not len(data.test_y if split == "test" else data.train_y):
        raise TopiaristError(f"the data set {shown(data.name)} has no {split} examples; name a split that has some")
    return evaluate_batches(model, data.batches(split, batch_size, device=device_of(model))).accuracy


def evaluate(model: nn.Module, data: Data, split: Split = "test", batch_size: int = 512) -> float:
    """Returns the share of examples whose highest score is the right class.

    Args:
        model: yields class scores ``(N, classes)``; it runs in eval mode.
        data: the data set; batches go to the model's device.
        split: ``"test"`` or ``"train"``.
        batch_size: examples a pass.

    Returns:
        Accuracy in per cent.

    Raises:
        TopiaristError: the model does not fit this data, or the split is empty.
    """
    check_fits(model, data)
    return accuracy(model, data, split, batch_size)


@torch.no_grad()
def check_fits(model: nn.Module, data: Data) -> None:
    """Tries two examples in eval mode, so that a model that does not fit the data is refused at once.

    Raises:
        TopiaristError: the data set is empty, or the model fails on it, has too few classes or gives no finite scores.
    """
    split: Split = "train" if len(data.train_y) else "test"
    x = next((x for x, _ in data.batches(split, 2, device=device_of(model))), None)
    if x is None:
        raise TopiaristError(f"the data set {shown(data.name)} is empty; load another one")
    with mode(model, training=False):
        try:
            output = model(x)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise TopiaristError(
                f"the model fails on examples of {shown(data.name)} of shape {tuple(x.shape[1:])} ({one_line(error)}); "
                "build it for that input"
            ) from error
    scores = class_scores(output, plain=True)
    if scores.shape[1] < data.classes:
        raise TopiaristError(
            f"the model has {scores.shape[1]} classes and {shown(data.name)} has {data.classes}; build it with as many"
        )
    if not bool(torch.isfinite(scores).all()):
        raise TopiaristError(
            f"the model's scores for {shown(data.name)} are not finite; look for NaN or infinity in its weights or "
            "the data"
        )
