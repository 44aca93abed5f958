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
from topiarist.measure.batches import Batch, Target, batches_in, device_of, inputs_and_labels, mode, read, running
from topiarist.measure.metrics import Metric, measured

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
    scores = _scores(output)
    if scores is None:
        raise TopiaristError(f"the model yields a {type(output).__name__} without a tensor; use one that yields scores")
    return scores


def _scores(output: object) -> Tensor | None:
    """Returns an output's ``logits``, or its first tensor, if it has one."""
    output = output.get("logits", output) if isinstance(output, Mapping) else getattr(output, "logits", output)
    return next(iter(tensors_in(output)), None)


def cross_entropy(output: object, target: Target, label_smoothing: float = 0.0) -> Tensor:
    """Returns the mean cross entropy of the class scores in a model's output.

    Raises:
        TopiaristError: the targets are neither classes nor shares of classes, but an image or other numbers.
    """
    scores = class_scores(output)
    if not _are_classes(target, scores):
        kind = f"of {target.dtype} {tuple(target.shape)}" if isinstance(target, Tensor) else type(target).__name__
        raise TopiaristError(
            f"cross entropy takes classes, and the targets are {kind} beside an output {tuple(scores.shape)}: give "
            "loss= (or metric= to evaluate), a function of the model's output and the targets, such as "
            "torch.nn.functional.mse_loss"
        )
    shares = target.is_floating_point()
    return F.cross_entropy(scores, target if shares else target.long(), label_smoothing=label_smoothing)


def one_number(loss: Any) -> Tensor:
    """Returns a loss.

    Raises:
        TopiaristError: it is not one number.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        kind = f"a tensor {tuple(loss.shape)} of {loss.dtype}" if isinstance(loss, Tensor) else type(loss).__name__
        raise TopiaristError(f"loss must return one number, the mean over the examples, but it returned {kind}")
    return loss.reshape(())


def _are_classes(target: Target, scores: Tensor) -> bool:
    """Returns whether targets are one class for each location of the scores, or shares of the classes there."""
    if not isinstance(target, Tensor) or target.is_complex() or scores.ndim < 2:
        return False
    if not target.is_floating_point():
        return target.shape == (scores.shape[0], *scores.shape[2:])
    shares = target.shape == scores.shape and bool((target >= 0).all())
    return shares and torch.allclose(target.sum(1), torch.ones_like(target.sum(1)), atol=1e-3)


def has_classes(output: object, target: Target) -> bool:
    """Returns whether an output holds scores of classes, and the targets are classes or shares of them."""
    scores = _scores(output)
    return scores is not None and _are_classes(target, scores)


@torch.no_grad()
def right_examples(output: object, target: Target) -> Tensor | None:
    """Returns of how many examples the highest score is the right class, shares of an example where it has several.

    An example whose scores are NaN has none. ``None`` where the targets are no classes.
    """
    if not isinstance(target, Tensor) or target.is_floating_point() or not has_classes(output, target):
        return None
    scores = class_scores(output)
    right = (scores.argmax(1) == target) & ~scores.isnan().any(1)
    return right.sum() * (len(target) / max(target.numel(), 1))


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
    results: list[tuple[Tensor, Tensor | None, int]] = []  # on the device until all batches are under way
    with mode(model, training=False):
        for number, batch in enumerate(read(batches, "data", device), 1):
            inputs, target = inputs_and_labels(batch)
            if target is None:
                raise TopiaristError("an evaluation needs targets: pass batches as pairs (inputs, target)")
            with running(batch, number):
                output = call_model(model, inputs)
                results.append((cross_entropy(output, target), right_examples(output, target), len(target)))
    loss, hits, seen = 0.0, 0.0, 0
    for mean, right, examples in results:
        if right is None:
            raise TopiaristError("the targets are shares of classes: evaluate with metric=, a function of your own")
        loss += float(mean) * examples if examples else 0.0  # the mean of none is NaN
        hits += float(right)
        seen += examples
    if not seen:
        raise TopiaristError("there is no example to evaluate the network on: pass at least one batch")
    return Evaluation(100.0 * hits / seen, loss / seen if math.isfinite(loss) else math.inf)


def nonempty(data: Data, split: Split, batch_size: int, device: torch.device) -> Iterable[Batch]:
    """Returns the batches of a split.

    Raises:
        TopiaristError: it has no example.
    """
    if not len(data.test_y if split == "test" else data.train_y):
        raise TopiaristError(f"the data set {shown(data.name)} has no {split} examples; name a split that has some")
    return data.batches(split, batch_size, device=device)


def evaluate(
    model: nn.Module,
    data: Data | Iterable[Batch],
    split: Split = "test",
    batch_size: int = 512,
    *,
    metric: Metric | None = None,
) -> float:
    """Returns the share of examples whose highest score is the right class, or a metric of your own.

    Args:
        model: yields class scores ``(N, classes)``, alone or as ``logits``; with a metric, whatever that takes. It runs
            in eval mode, and the batches are moved to its device.
        data: a data set; or a `DataLoader`, a list of batches, a torch ``Dataset`` or a ``datasets.Dataset``, whose
            batches are pairs ``(inputs, target)`` or dicts of arguments with ``labels``.
        split: of a `topiarist.Data`: ``"test"`` or ``"train"``.
        batch_size: examples a pass, where the data are no batches yet.
        metric: ``metric(output, target)`` → the mean over the examples of a batch; or an object with ``update``,
            ``compute`` and ``reset``, as of torchmetrics.

    Returns:
        Accuracy in per cent, or the metric.

    Raises:
        TopiaristError: the model does not fit this data, there is no example, or the metric fails.
    """
    if isinstance(data, Data):
        check_fits(model, data)
        batches = nonempty(data, split, batch_size, device_of(model))
    else:
        batches = batches_in(data, batch_size)
    return evaluate_batches(model, batches).accuracy if metric is None else measured(model, batches, metric)


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
