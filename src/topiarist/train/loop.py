"""The training loop, on Lightning Fabric: seeded, resumable, and stopped with a reason when it diverges."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import nullcontext
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from topiarist.budget import Name, as_names, spelled
from topiarist.data import Data
from topiarist.errors import TopiaristError
from topiarist.files import as_path, shown
from topiarist.graph import Graph, Keep, unwrapped
from topiarist.measure import (
    Batch,
    Loss,
    Metric,
    batch_size,
    device_of,
    inputs_and_target,
    map_tensors,
    mode,
    running,
    to_device,
)
from topiarist.methods import Method, Soft
from topiarist.train import checkpoint as checkpoints
from topiarist.train.attaching import as_method, attach
from topiarist.train.averaging import Average
from topiarist.train.checkpoint import State
from topiarist.train.dropout import corrected_dropout
from topiarist.train.examples import Examples, examples_of
from topiarist.train.history import Epoch, History, Progress, print_epoch
from topiarist.train.machine import (
    check_values,
    compiled,
    compiling,
    cuda_devices,
    launched,
    lay_out,
    optimizer_of,
    teaching,
)
from topiarist.train.objective import Objective
from topiarist.train.recipe import Recipe
from topiarist.train.speed import Speed

if TYPE_CHECKING:
    from lightning_fabric import Fabric


_CHECK_EVERY = 100  # steps between two looks at the loss: each look waits for the device


def fit(
    model: nn.Module,
    data: Data | Iterable[Batch],
    recipe: Recipe | None = None,
    *,
    test: Iterable[Batch] | None = None,
    loss: Loss | None = None,
    metric: Metric | None = None,
    teacher: nn.Module | None = None,
    seed: int = 0,
    method: Method | str | None = None,
    graph: Graph | None = None,
    keep: Keep | None = None,
    exclude: Name | Collection[Name] = (),
    checkpoint: str | Path | None = None,
    progress: Progress | bool | None = None,
    speed: Speed | None = None,
) -> History:
    """Trains a network in place, on the cross entropy of its class scores or a loss of your own, as a recipe says.

    The same seed gives the same weights, to the bit on a CPU with the same number of threads. With a checkpoint the
    state is stored after every epoch, and a later call continues from it to the result of an uninterrupted run. Threads
    share torch's random state: train in one of them at a time, or in processes.

    Under ``torchrun`` with ``speed.devices`` > 1 each process trains on its share of every batch.

    Args:
        model: yields class scores ``(N, classes)``, or what the loss takes; its device and modes are restored.
        data: what to train on: a data set (and its test examples to test on); or a `DataLoader` or list of batches,
            pairs ``(inputs, target)`` or dicts of the model's arguments; or a torch ``Dataset`` or
            ``datasets.Dataset``, which is shuffled and batched here. What draws from Python's or numpy's random state
            is not seeded.
        recipe: epochs, rates and so on; ``Recipe.paper()`` where none is given.
        test: batches to test on after each epoch, of the same kinds, where the data have no test examples.
        loss: ``loss(output, target)`` → the mean over the batch. By default the cross entropy; of dicts of arguments
            the loss that the model returns.
        metric: what is measured on the test batches, as `topiarist.evaluate` takes it, in ``History.metric``; by
            default the accuracy, or a loss that is given.
        teacher: the network whose scores the recipe's distillation follows, as the unpruned one; not changed.
        seed: of the order of examples, the augmentation, dropout and gates; the global random state is restored.
        method: a method, or its name, whose training-time roles are attached (see `attach`); soft pruning also acts
            before the first epoch and after each one.
        graph: the model's graph; needed with ``keep`` and with a method that acts in training.
        keep: group name → bool ``(units,)`` of ``graph.weights()``; what it removes stays zero, and dropout
            before layers with pruned weights is lowered (Han et al. 2015, see `corrected_dropout`).
        exclude: what the method leaves to plain training, named as in `topiarist.Budget` (see `attach`).
        checkpoint: file to store the training in and to resume from.
        progress: called after each epoch as ``progress(epoch, epochs, row)``; ``True`` prints a line.
        speed: device, precision and so on; ``Speed()`` where none is given.

    Returns:
        History: one row an epoch.

    Raises:
        TopiaristError: the model does not fit the data, loss, metric or teacher, the graph is missing, a name means
            nothing in it, the loss diverges, the checkpoint is of another run, damaged, or cannot be written, or
            several devices have one process.
        KeyboardInterrupt: the user stopped it; the checkpoint holds the last finished epoch.
    """
    recipe, speed = recipe or Recipe.paper(), speed or Speed()
    progress = print_epoch if progress is True else progress or None
    _check_types(recipe, speed, seed, progress)
    method, model = as_method(method), unwrapped(model)
    check_values(model, "model")
    names = spelled(as_names(exclude), model)
    objective = Objective(recipe, loss, None if teacher is None else unwrapped(teacher), plain=isinstance(data, Data))
    examples = examples_of(data, test, recipe, loss, metric)
    if isinstance(method, Method):
        method = _with_sizes(method, examples, recipe.epochs)
    fabric = launched(speed)
    origin = device_of(model)
    try:
        model.to(fabric.device)
        with (
            teaching(objective.teacher, model, fabric.device),
            torch.random.fork_rng(devices=cuda_devices(fabric)),
        ):
            examples.check(model, lambda model, batch: objective(model, to_device(batch, fabric.device)).loss)
            examples = examples.on(fabric.device)
            if speed.channels_last:
                lay_out(model, torch.channels_last)
            optimizer = optimizer_of(model, recipe, fabric)
            with mode(model, training=True):
                torch.manual_seed(seed)
                example = to_device(examples.example(), fabric.device)
                with (
                    attach(method, model, optimizer, graph, keep, exclude=names) as attached,
                    corrected_dropout(model, example, attached.removed),
                ):
                    step = compiled(model, fabric.device) if speed.compiled else model
                    module, wrapped = fabric.setup(step, optimizer)  # after the gates, to see their parameters
                    average = Average(model, recipe.average) if recipe.average else None
                    generator = examples.generator(seed)
                    run = _Run(
                        fabric,
                        module,
                        wrapped,
                        model,
                        optimizer,
                        generator,
                        examples,
                        objective,
                        average,
                        recipe,
                        speed,
                    )
                    file = _File(
                        None if checkpoint is None else as_path(checkpoint),
                        {**_settings(run, seed, method, keep, names), **_names(loss=loss, metric=metric)},
                    )
                    soften = _softening(method, model, attached.units, recipe.epochs)
                    return _train(run, file, progress, soften)
    finally:
        model.to(origin)
        if speed.channels_last:
            lay_out(model, torch.contiguous_format)


@dataclass(frozen=True, eq=False)
class _Run:
    """A training: what it works with, and all that changes on the way and so belongs in a checkpoint."""

    fabric: Fabric
    module: nn.Module
    wrapped: Any
    model: nn.Module
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    examples: Examples
    objective: Objective
    average: Average | None
    recipe: Recipe
    speed: Speed

    def state(self) -> State:
        cuda = [torch.cuda.get_rng_state(index) for index in cuda_devices(self.fabric)]
        average = {} if self.average is None else {"average": self.average.values}
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": {"global": torch.get_rng_state(), "data": self.generator.get_state(), "cuda": cuda},
            **average,
        }

    def restore(self, state: State) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"]["global"])
        self.generator.set_state(state["random"]["data"])
        if self.average is not None:
            self.average.restore(state["average"])
        for index, value in zip(cuda_devices(self.fabric), state["random"]["cuda"], strict=False):
            torch.cuda.set_rng_state(value, index)


@dataclass(frozen=True)
class _File:
    """The checkpoint of a run: where it lies (``None``: nowhere) and the settings that it must have been made with."""

    path: Path | None
    settings: State

    def resume(self, run: _Run) -> list[Epoch]:
        """Restores a stored state; returns the rows of the epochs that are done."""
        if self.path is None:
            return []
        state = checkpoints.load(self.path)
        run.fabric.barrier()
        if state is None:
            # Stored before any work is done, so that a file that cannot be written is reported at once.
            self.store(run, [])
            return []
        checkpoints.same_model(self.path, state.get("model"), run.model.state_dict())
        checkpoints.same_run(self.path, state.get("settings"), self.settings)
        try:
            rows = [Epoch(*row) for row in state["rows"]]
            run.restore(state)
        except (LookupError, ValueError, TypeError, RuntimeError, AttributeError, ArithmeticError) as error:
            raise TopiaristError(f"the checkpoint {self.path} is damaged: delete it to start again") from error
        return rows

    def store(self, run: _Run, rows: list[Epoch]) -> None:
        """Writes the run as it is between two epochs."""
        if self.path is not None and run.fabric.is_global_zero:
            plain = [list(astuple(row)) for row in rows]
            checkpoints.save(self.path, {"settings": self.settings, **run.state(), "rows": plain})


def _with_sizes(method: Method, examples: Examples, epochs: int) -> Method:
    """Returns a method that knows how many examples and steps there are, which some penalties depend on."""
    count, steps = examples.count(), examples.steps()
    if count and steps:
        return method.in_training(count, epochs * steps)
    if count is None and type(method).in_training is not Method.in_training:
        raise TopiaristError(
            f"{method.name} depends on the number of training examples: give a loader or data set that has a length"
        )
    return method


def _softening(method: Method | None, model: nn.Module, graph: Graph | None, epochs: int) -> Callable[[int], None]:
    """Returns what soft pruning does after so many epochs; nothing for other methods."""
    if not isinstance(method, Soft):
        return lambda done: None
    if graph is None:
        raise TopiaristError("soft pruning needs the model's graph: pass graph=topiarist.trace(model, example_inputs)")
    return torch.no_grad()(lambda done: method.soften(model, graph, done, epochs))


def _train(run: _Run, file: _File, progress: Progress | None, soften: Callable[[int], None]) -> History:
    """Trains all epochs that are still to do."""
    recipe, rows, every = run.recipe, file.resume(run), run.speed.evaluate_every
    for number in range(len(rows), recipe.epochs):
        start = time.perf_counter()
        if number == 0:
            soften(0)  # never stored without a trained epoch, so that a resumed run repeats it
        rate = recipe.rate(number)
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        try:
            loss, trained = _epoch(run)
        except _DivergedError:
            kept = "" if file.path is None else f" (the state before this epoch is kept in {file.path})"
            raise TopiaristError(
                f"training diverged in epoch {number + 1} of {recipe.epochs}, its loss or a weight is no longer finite"
                f"{kept}: lower the learning rate from {recipe.lr:g}, for example to {recipe.lr / 10:g}, or look for "
                "NaN in the data"
            ) from None
        soften(number + 1)
        due = number + 1 == recipe.epochs or (every > 0 and (number + 1) % every == 0)
        with nullcontext() if run.average is None else run.average.in_place():
            accuracy, metric = run.examples.test(run.model) if due else (None, None)
        rows.append(Epoch(number + 1, rate, loss, trained, accuracy, time.perf_counter() - start, metric))
        file.store(run, rows)
        if progress is not None:
            progress(number + 1, recipe.epochs, rows[-1])
    if run.average is not None:
        run.average.exchange()
    return History(tuple(rows))


def _epoch(run: _Run) -> tuple[float, float]:
    """Makes one pass over the training set; returns the mean loss and the accuracy in per cent, NaN without classes."""
    device, rank, processes = run.fabric.device, run.fabric.global_rank, run.fabric.world_size
    totals, classes = torch.zeros(3, device=device), True
    for index, batch in enumerate(run.examples.epoch(run.generator, device)):
        size = batch_size(inputs_and_target(batch)[0])
        if size < processes:
            continue  # a last batch that leaves some process without an example
        run.wrapped.zero_grad()
        with running(batch, index + 1), compiling(run.speed.compiled):
            loss, right, own = run.objective(run.module, _own_share(batch, rank, processes, run.speed.channels_last))
            # The processes' gradients are averaged as if their shares of the batch were equal: weigh by the true sizes.
            run.fabric.backward(loss if processes == 1 else loss * (own * processes / size))
        run.wrapped.step()
        if run.average is not None:
            run.average.update()
        classes = classes and right is not None
        with torch.no_grad():
            right = torch.zeros_like(loss) if right is None else right.to(loss)
            totals += torch.stack((loss * own, right, torch.full_like(right, own)))
        if index % _CHECK_EVERY == _CHECK_EVERY - 1:
            _finite(run, totals)
    totals = _finite(run, totals)
    if not all(bool(torch.isfinite(parameter).all()) for parameter in run.model.parameters()):
        raise _DivergedError
    loss_sum, right_sum, seen = totals.tolist()
    if not seen:
        raise TopiaristError(f"the training data yield no batch of at least {processes} examples any more: mend them")
    return loss_sum / seen, 100.0 * right_sum / seen if classes else math.nan


def _own_share(batch: Batch, rank: int, processes: int, channels_last: bool) -> Batch:
    """Returns this process's examples of a batch, images laid out as wanted."""

    def change(tensor: Tensor) -> Tensor:
        tensor = tensor[rank::processes] if processes > 1 else tensor
        return tensor.contiguous(memory_format=torch.channels_last) if channels_last and tensor.ndim == 4 else tensor

    return map_tensors(batch, change) if processes > 1 or channels_last else batch


class _DivergedError(Exception):
    """The loss or a weight is no longer finite."""


def _finite(run: _Run, totals: Tensor) -> Tensor:
    """Sums the totals of all processes; raises where they are not finite."""
    if run.fabric.world_size > 1:
        totals = torch.as_tensor(run.fabric.all_reduce(totals, reduce_op="sum"))
    if not bool(torch.isfinite(totals).all()):
        raise _DivergedError
    return totals


def _check_types(recipe: object, speed: object, seed: object, progress: object) -> None:
    """Raises where an argument is of another kind, before anything long begins."""
    for name, value, legal, wanted in (
        ("recipe", recipe, isinstance(recipe, Recipe), "topiarist.Recipe, but got {}: write Recipe(epochs=2)"),
        ("speed", speed, isinstance(speed, Speed), "topiarist.train.Speed, but got {}: write Speed(devices=1)"),
        ("seed", seed, isinstance(seed, int) and -(2**63) <= seed < 2**63, "whole number of 64 bits, but got {}"),
        ("progress", progress, progress is None or callable(progress), "function or True, but got {}"),
    ):
        if not legal:
            raise TopiaristError(f"{name} must be a {wanted.format(shown(value))}")


def _names(**functions: object) -> State:
    """Returns what a checkpoint knows of a loss and a metric of the user's own: their names."""
    return {
        name: getattr(function, "__qualname__", type(function).__qualname__)
        for name, function in functions.items()
        if function is not None
    }


def _settings(run: _Run, seed: int, method: Method | None, keep: Keep | None, exclude: tuple[str, ...]) -> State:
    """Returns what must be equal for a checkpoint to be of the same run, as plain values."""
    digest = hashlib.sha256()
    for name in sorted(keep or {}):
        digest.update(name.encode() + b"\0" + bytes((keep or {})[name].to("cpu", torch.uint8).tolist()))
    excluded = {"exclude": list(exclude)} if exclude else {}  # none in checkpoints of older releases
    return {
        **run.recipe.to_json(),
        "seed": seed,
        "method": repr(method),
        "data": run.examples.identity(),
        "keep": digest.hexdigest(),
        **excluded,
    }
