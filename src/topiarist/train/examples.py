"""What a training reads and is tested on, in one form: a data set in memory, or loaders of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data.distributed import DistributedSampler

from topiarist.data import Data
from topiarist.errors import TopiaristError
from topiarist.graph import tensors_in
from topiarist.measure import (
    Batch,
    Inputs,
    Loss,
    Metric,
    batch_size,
    batches_in,
    check_fits,
    check_function,
    device_of,
    evaluate_batches,
    first_batch,
    inputs_and_target,
    is_accumulator,
    measured,
    mode,
    nonempty,
    read,
    running,
)
from topiarist.train.machine import resident
from topiarist.train.recipe import Recipe

Try = Callable[[nn.Module, Batch], Tensor]
"""Computes the loss of a batch, or says why it cannot."""


def examples_of(data: Any, test: Any, recipe: Recipe, loss: Loss | None, metric: Metric | None) -> Examples:
    """Returns data of any kind that `topiarist.fit` takes as examples.

    Raises:
        TopiaristError: they are no data, have no example, or have a test set of their own beside ``test``; or the
            metric is none, or has nothing to be measured on.
    """
    if metric is not None and not is_accumulator(metric):
        check_function(metric, "metric")
    if isinstance(data, Data):
        if test is not None:
            raise TopiaristError("a topiarist.Data has test examples of its own: leave test out")
        return InMemory(data, recipe, metric)
    if isinstance(test, Data):
        raise TopiaristError("test takes batches: of a topiarist.Data give list(data.batches('test', 100))")
    if test is None and metric is not None:
        raise TopiaristError("the metric is measured on test batches: give test=, or leave metric out")
    tested = None if test is None else batches_in(test, recipe.batch_size)
    return Loaded(batches_in(data, recipe.batch_size, shuffled=True), tested, metric or loss)


@dataclass(frozen=True, eq=False)
class InMemory:
    """A `topiarist.Data`, batched, shuffled and augmented as a recipe says."""

    data: Data
    recipe: Recipe
    metric: Metric | None

    def count(self) -> int:
        """Returns the number of training examples."""
        return len(self.data.train_y)

    def steps(self) -> int:
        """Returns the number of batches in an epoch."""
        return -(-self.count() // self.recipe.batch_size)

    def check(self, model: nn.Module, attempt: Try) -> None:
        """Refuses a model, loss or metric that does not fit, before anything long begins."""
        check_fits(model, self.data)
        device = device_of(model)
        if self.count():
            _try(model, next(self.data.batches("train", 2, device=device)), attempt, training=False)
        if self.metric is not None and len(self.data.test_y):
            _tested(model, [next(self.data.batches("test", 2, device=device))], self.metric)

    def on(self, device: torch.device) -> InMemory:
        """Returns the same examples, on a GPU where they fit there."""
        return replace(self, data=resident(self.data, device))

    def example(self) -> Inputs:
        """Returns inputs of the model."""
        return self.data.example()

    def generator(self, seed: int) -> torch.Generator:
        """Returns what the order is drawn with, whose state belongs in a checkpoint."""
        return torch.Generator().manual_seed(seed)

    def epoch(self, generator: torch.Generator, device: torch.device) -> Iterator[Batch]:
        """Yields one pass over the training examples."""
        return self.data.batches("train", self.recipe.batch_size, generator, device, augmented=self.recipe.augment)

    def test(self, model: nn.Module) -> tuple[float | None, float | None]:
        """Returns accuracy in per cent and metric of the test examples, ``None`` where not measured."""
        if not len(self.data.test_y):
            return None, None
        return _tested(model, nonempty(self.data, "test", 512, device_of(model)), self.metric)

    def identity(self) -> list[Any]:
        """Returns plain values that a checkpoint must have in common with the examples."""
        return [self.data.name, len(self.data.train_y), *self.data.train_x.shape[1:]]


@dataclass(frozen=True, eq=False)
class Loaded:
    """Batches of a loader or list, in its own order and with its own augmentation; others to test on."""

    train: Iterable[Batch]
    tested: Iterable[Batch] | None
    metric: Metric | None

    def __post_init__(self) -> None:
        if isinstance(getattr(self.train, "sampler", None), DistributedSampler):
            raise TopiaristError(
                "the loader has a DistributedSampler, and fit shares each batch among the processes by itself: give a "
                "loader without one"
            )

    @cached_property
    def first(self) -> Batch:
        """The first batch."""
        return first_batch(self.train, "train data")

    def count(self) -> int | None:
        """Returns the number of training examples, ``None`` where only a pass would show it."""
        if isinstance(self.train, list | tuple):
            return sum(batch_size(inputs_and_target(batch)[0]) for batch in self.train)
        return _length(getattr(self.train, "dataset", None))

    def steps(self) -> int | None:
        """Returns the number of batches in an epoch, likewise."""
        return _length(self.train)

    def check(self, model: nn.Module, attempt: Try) -> None:
        """Refuses a model, loss or metric that does not fit, before anything long begins."""
        inputs, _ = inputs_and_target(self.first)
        batch_size(inputs)  # which refuses what is no batch
        _try(model, self.first, attempt, training=True)  # detectors return their losses in training alone
        if self.tested is not None:
            _tested(model, [first_batch(self.tested, "test data")], self.metric)

    def on(self, device: torch.device) -> Loaded:
        """Returns the same examples: each batch is moved as it comes."""
        return self

    def example(self) -> Inputs:
        """Returns inputs of the model."""
        return inputs_and_target(self.first)[0]

    def generator(self, seed: int) -> torch.Generator:
        """Returns what the order is drawn with, whose state belongs in a checkpoint."""
        own = getattr(self.train, "generator", None)
        return own if isinstance(own, torch.Generator) else torch.Generator().manual_seed(seed)

    def epoch(self, generator: torch.Generator, device: torch.device) -> Iterator[Batch]:
        """Yields one pass over the training examples."""
        return read(self.train, "train data", device)

    def test(self, model: nn.Module) -> tuple[float | None, float | None]:
        """Returns accuracy in per cent and metric of the test examples, ``None`` where not measured."""
        return (None, None) if self.tested is None else _tested(model, self.tested, self.metric)

    def identity(self) -> list[Any]:
        """Returns plain values that a checkpoint must have in common with the examples."""
        return ["batches", self.steps(), *(list(tensor.shape[1:]) for tensor in tensors_in(self.example()))]


Examples = InMemory | Loaded


def _length(value: Any) -> int | None:
    """Returns how many entries there are; ``None`` where that is not known."""
    try:
        return len(value)
    except Exception:  # loaders over streams raise, each in its own way
        return None


def _try(model: nn.Module, batch: Batch, attempt: Try, *, training: bool) -> None:
    """Raises where a batch has no loss that a network can be trained on; buffers and random state stay."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with mode(model, training=training), torch.random.fork_rng(), running(batch, 1):
            loss = attempt(model, batch)
            finite = bool(torch.isfinite(loss))
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
    if not loss.requires_grad and any(parameter.requires_grad for parameter in model.parameters()):
        raise TopiaristError(
            "the loss has no gradient: compute it from the model's output with torch, without detach(), item() or "
            "argmax()"
        )
    if not finite:
        raise TopiaristError(
            f"the loss of the first batch is {float(loss.detach())}: look for NaN and infinity in its inputs and "
            "targets, and in the weights of the network and its teacher"
        )


def _tested(model: nn.Module, batches: Iterable[Batch], metric: Metric | None) -> tuple[float | None, float | None]:
    if metric is not None:
        return None, measured(model, batches, metric)
    return evaluate_batches(model, batches).accuracy, None
