"""What a training reads and is tested on, in one form: a data set in memory, or loaders of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.utils.data.distributed import DistributedSampler

from topiarist.data import Data
from topiarist.errors import TopiaristError
from topiarist.files import one_line
from topiarist.graph import tensors_in
from topiarist.measure import (
    Batch,
    Inputs,
    Loss,
    Metric,
    batch_size,
    batches_in,
    check_fits,
    evaluate_batches,
    inputs_and_target,
    measured,
    mode,
    nonempty,
    to_device,
)
from topiarist.train.machine import resident
from topiarist.train.recipe import Recipe

Try = Callable[[nn.Module, Batch], object]
"""Computes the loss of a batch, or says why it cannot."""


def examples_of(data: Any, test: Any, recipe: Recipe, loss: Loss | None, metric: Metric | None) -> Examples:
    """Returns data of any kind that `topiarist.fit` takes as examples.

    Raises:
        TopiaristError: they are no data, have no example, or have a test set of their own beside ``test``.
    """
    if isinstance(data, Data):
        if test is not None:
            raise TopiaristError("a topiarist.Data has test examples of its own: leave test out")
        return InMemory(data, recipe, metric)
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
        device = next(model.parameters()).device
        return _tested(model, nonempty(self.data, "test", 512, device), self.metric)

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
        return _first(self.train, "train")

    def count(self) -> int | None:
        """Returns the number of training examples, ``None`` where only a pass would show it."""
        known = getattr(self.train, "dataset", None)
        if isinstance(known, Sized):
            return len(known)
        if isinstance(self.train, list | tuple):
            return sum(batch_size(inputs_and_target(batch)[0]) for batch in self.train)
        return None

    def steps(self) -> int | None:
        """Returns the number of batches in an epoch, likewise."""
        try:
            return len(self.train)  # type: ignore[arg-type]  # loaders over streams raise
        except TypeError:
            return None

    def check(self, model: nn.Module, attempt: Try) -> None:
        """Refuses a model, loss or metric that does not fit, before anything long begins."""
        inputs, _ = inputs_and_target(self.first)
        batch_size(inputs)  # which refuses what is no batch
        shapes = [tuple(tensor.shape) for tensor in tensors_in(inputs)]
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        with mode(model, training=True), torch.random.fork_rng():
            try:
                attempt(model, self.first)
            except (RuntimeError, ValueError, IndexError, TypeError, KeyError, AttributeError) as error:
                raise TopiaristError(
                    f"the model or its loss fails on the first batch, inputs of shape {', '.join(map(str, shapes))} "
                    f"({one_line(error)}): yield pairs (inputs, target) that fit the model, or dicts of its arguments"
                ) from error
            finally:
                with torch.no_grad():
                    for name, buffer in model.named_buffers():
                        buffer.copy_(buffers[name])
        if self.tested is not None:
            _tested(model, [_first(self.tested, "test")], self.metric)

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
        return (to_device(batch, device) for batch in self.train)

    def test(self, model: nn.Module) -> tuple[float | None, float | None]:
        """Returns accuracy in per cent and metric of the test examples, ``None`` where not measured."""
        return (None, None) if self.tested is None else _tested(model, self.tested, self.metric)

    def identity(self) -> list[Any]:
        """Returns plain values that a checkpoint must have in common with the examples."""
        return ["batches", self.steps(), *(list(tensor.shape[1:]) for tensor in tensors_in(self.example()))]


Examples = InMemory | Loaded


def _tested(model: nn.Module, batches: Iterable[Batch], metric: Metric | None) -> tuple[float | None, float | None]:
    if metric is not None:
        return None, measured(model, batches, metric)
    return evaluate_batches(model, batches).accuracy, None


def _first(batches: Iterable[Batch], which: str) -> Batch:
    """Returns the first batch; the random state, and that of a loader's own generator, stay as they are."""
    own: Any = getattr(batches, "generator", None)
    state = own.get_state() if isinstance(own, torch.Generator) else None
    try:
        with torch.random.fork_rng():
            found = list(islice(batches, 1))
    except TopiaristError:
        raise
    except Exception as error:  # a loader runs the user's code, which fails in any way
        raise TopiaristError(
            f"the {which} data fail at their first batch ({type(error).__name__}: {one_line(error)}): mend the loader"
        ) from error
    finally:
        if state is not None:
            own.set_state(state)
    if not found:
        raise TopiaristError(f"there is no batch in the {which} data: pass at least one")
    return found[0]
