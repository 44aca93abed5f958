"""The training loop, on Lightning Fabric: seeded, resumable, and stopped with a reason when it diverges."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from topiarist.budget import Name, as_names, spelled
from topiarist.data import Data
from topiarist.errors import TopiaristError
from topiarist.files import one_line, shown
from topiarist.graph import Graph, Keep, unwrapped
from topiarist.measure import accuracy, check_fits, class_scores, device_of, mode
from topiarist.methods import Method, Soft
from topiarist.train import checkpoint as checkpoints
from topiarist.train.attaching import as_method, attach
from topiarist.train.checkpoint import State
from topiarist.train.dropout import corrected_dropout
from topiarist.train.history import Epoch, History, Progress
from topiarist.train.recipe import Recipe
from topiarist.train.speed import Speed

if TYPE_CHECKING:
    from lightning_fabric import Fabric


_CHECK_EVERY = 100  # steps between two looks at the loss: each look waits for the device


def fit(
    model: nn.Module,
    data: Data,
    recipe: Recipe | None = None,
    *,
    seed: int = 0,
    method: Method | str | None = None,
    graph: Graph | None = None,
    keep: Keep | None = None,
    exclude: Name | Collection[Name] = (),
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
    speed: Speed | None = None,
) -> History:
    """Trains a classifier in place on the cross-entropy, by SGD or Adam as the recipe says.

    The same seed gives the same weights, to the bit on a CPU with the same number of threads. With a checkpoint the
    state is stored after every epoch, and a later call continues from it to the result of an uninterrupted run. Threads
    share torch's random state: train in one of them at a time, or in processes.

    Under ``torchrun`` with ``speed.devices`` > 1 each process trains on its share of every batch.

    Args:
        model: yields class scores ``(N, classes)``; its device and modes are restored.
        data: what to train and test on.
        recipe: epochs, rates and so on; ``Recipe.paper()`` where none is given.
        seed: of the order of examples, the augmentation, dropout and gates; the global random state is restored.
        method: a method, or its name, whose training-time roles are attached (see `attach`); soft pruning also acts
            before the first epoch and after each one.
        graph: the model's graph; needed with ``keep`` and with a method that acts in training.
        keep: group name → bool ``(units,)`` of ``graph.weights()``; what it removes stays zero, and dropout
            before layers with pruned weights is lowered (Han et al. 2015, see `corrected_dropout`).
        exclude: what the method leaves to plain training, named as in `topiarist.Budget` (see `attach`).
        checkpoint: file to store the training in and to resume from.
        progress: called after each epoch as ``progress(epoch, epochs, row)``.
        speed: device, precision and so on; ``Speed()`` where none is given.

    Returns:
        History: one row an epoch.

    Raises:
        TopiaristError: the model does not fit the data, the graph is missing, a name means nothing in it, the loss
            diverges, the checkpoint is of another run, damaged, or cannot be written, or several devices have one
            process.
        KeyboardInterrupt: the user stopped it; the checkpoint holds the last finished epoch.
    """
    recipe, speed = recipe or Recipe.paper(), speed or Speed()
    method, model = as_method(method), unwrapped(model)
    names = spelled(as_names(exclude), model)
    if isinstance(method, Method) and (examples := len(data.train_y)):
        method = method.in_training(examples, recipe.epochs * -(-examples // recipe.batch_size))
    fabric = _fabric(speed)
    origin = device_of(model)
    try:
        check_fits(model.to(fabric.device), data)
        data = _resident(data, fabric.device)
        if speed.channels_last:
            _lay_out(model, torch.channels_last)
        optimizer = _optimizer(model, recipe, fabric)
        with mode(model, training=True), torch.random.fork_rng(devices=_cuda(fabric)):
            torch.manual_seed(seed)
            example = data.example().to(fabric.device)
            with (
                attach(method, model, optimizer, graph, keep, exclude=names) as attached,
                corrected_dropout(model, example, attached.removed),
            ):
                step = _compiled(model, fabric.device) if speed.compiled else model
                module, wrapped = fabric.setup(step, optimizer)  # after the gates, so that it sees their parameters
                generator = torch.Generator().manual_seed(seed)
                run = _Run(fabric, module, wrapped, model, optimizer, generator, data, recipe, speed)
                file = _File(
                    None if checkpoint is None else Path(checkpoint), _settings(run, seed, method, keep, names)
                )
                soften = _softening(method, model, attached.units, recipe.epochs)
                with _compiling(speed.compiled):
                    return _train(run, file, progress, soften)
    finally:
        model.to(origin)
        if speed.channels_last:
            _lay_out(model, torch.contiguous_format)


@dataclass(frozen=True, eq=False)
class _Run:
    """A training: what it works with, and all that changes on the way and so belongs in a checkpoint."""

    fabric: Fabric
    module: nn.Module
    wrapped: Any
    model: nn.Module
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    data: Data
    recipe: Recipe
    speed: Speed

    def state(self) -> State:
        cuda = [torch.cuda.get_rng_state(index) for index in _cuda(self.fabric)]
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": {"global": torch.get_rng_state(), "data": self.generator.get_state(), "cuda": cuda},
        }

    def restore(self, state: State) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"]["global"])
        self.generator.set_state(state["random"]["data"])
        for index, value in zip(_cuda(self.fabric), state["random"]["cuda"], strict=False):
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
                f"{kept}: lower the learning rate from {recipe.lr:g}, for example to {recipe.lr / 10:g}"
            ) from None
        soften(number + 1)
        due = number + 1 == recipe.epochs or (every > 0 and (number + 1) % every == 0)
        tested = accuracy(run.model, run.data) if due and len(run.data.test_y) else None
        rows.append(Epoch(number + 1, rate, loss, trained, tested, time.perf_counter() - start))
        file.store(run, rows)
        if progress is not None:
            progress(number + 1, recipe.epochs, rows[-1])
    return History(tuple(rows))


def _epoch(run: _Run) -> tuple[float, float]:
    """Makes one pass over the training set; returns the mean loss and the accuracy in per cent."""
    data, device, rank, processes = run.data, run.fabric.device, run.fabric.global_rank, run.fabric.world_size
    totals = torch.zeros(3, device=device)
    recipe = run.recipe
    batches = data.batches("train", recipe.batch_size, run.generator, device, augmented=recipe.augment)
    for index, (x, y) in enumerate(batches):
        size = len(y)
        if size < processes:
            continue  # a last batch that leaves some process without an example
        x, y = x[rank::processes], y[rank::processes]
        if run.speed.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        run.wrapped.zero_grad()
        scores = class_scores(run.module(x), plain=True)
        loss = cross_entropy(scores, y)
        # The processes' gradients are averaged as if their shares of the batch were equal: weigh by the true sizes.
        run.fabric.backward(loss if processes == 1 else loss * (len(y) * processes / size))
        run.wrapped.step()
        with torch.no_grad():
            right = (scores.argmax(1) == y).sum()
            totals += torch.stack((loss * len(y), right, torch.full_like(right, len(y))))
        if index % _CHECK_EVERY == _CHECK_EVERY - 1:
            _finite(run, totals)
    totals = _finite(run, totals)
    if not all(bool(torch.isfinite(parameter).all()) for parameter in run.model.parameters()):
        raise _DivergedError
    loss_sum, right_sum, seen = totals.tolist()
    return loss_sum / seen, 100.0 * right_sum / seen


class _DivergedError(Exception):
    """The loss or a weight is no longer finite."""


def _finite(run: _Run, totals: Tensor) -> Tensor:
    """Sums the totals of all processes; raises where they are not finite."""
    if run.fabric.world_size > 1:
        totals = torch.as_tensor(run.fabric.all_reduce(totals, reduce_op="sum"))
    if not bool(torch.isfinite(totals).all()):
        raise _DivergedError
    return totals


def _resident(data: Data, device: torch.device) -> Data:
    """Moves the data to a GPU where it fits well, so that batches are picked and augmented there."""
    if device.type != "cuda":
        return data
    size = sum(part.numel() * part.element_size() for part in (data.train_x, data.test_x))
    return data.to(device) if size < torch.cuda.mem_get_info(device)[0] / 4 else data


def _lay_out(model: nn.Module, order: torch.memory_format) -> None:
    """Holds the weights of convolutions in this order in memory; their values and shapes stay."""
    model.to(memory_format=order)  # type: ignore[call-overload]  # which torch's own annotations lack


def _compiled(model: nn.Module, device: torch.device) -> Any:
    """Returns the model with a compiled forward and backward; the parameters are the same ones."""
    return torch.compile(model, dynamic=False, mode="reduce-overhead" if device.type == "cuda" else None)


@contextmanager
def _compiling(compiled: bool) -> Iterator[None]:
    """Reports what the compiler cannot do, which it finds out in the first steps."""
    try:
        yield
    except Exception as error:
        if not compiled or not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise TopiaristError(f"the model cannot be compiled here ({one_line(error)}): leave compiled out") from error


def _fabric(speed: Speed) -> Fabric:
    # Imported here since it takes a second, which attaching a method or reading a recipe need not wait for.
    from lightning_fabric import Fabric

    try:
        fabric = Fabric(accelerator=speed.accelerator, devices=speed.devices, precision=speed.precision)  # type: ignore[arg-type]
        processes = getattr(fabric.strategy, "cluster_environment", None)  # only with several devices
        started = processes is None or processes.creates_processes_externally  # else Fabric would run the script again
        if started:
            fabric.launch()
    except Exception as error:
        raise TopiaristError(
            f"cannot train with accelerator={shown(speed.accelerator)}, devices={shown(speed.devices)}, "
            f"precision={shown(speed.precision)} ({one_line(error)}): choose what this machine has, or leave them out"
        ) from error
    if not started:
        count = fabric.world_size
        raise TopiaristError(
            f"training on {count} devices takes a process for each: start the script with `torchrun --nproc-per-node "
            f"{count} SCRIPT`, or leave devices out"
        )
    return fabric


def _optimizer(model: nn.Module, recipe: Recipe, fabric: Fabric) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise TopiaristError("the model has no parameter that requires a gradient: unfreeze some")
    fused = fabric.device.type in ("cpu", "cuda")  # one call for all tensors; small networks are bound by calls
    if recipe.optimizer == "adam":
        betas = (recipe.momentum, 0.999)
        return torch.optim.Adam(trained, lr=recipe.lr, betas=betas, weight_decay=recipe.weight_decay, fused=fused)
    return torch.optim.SGD(
        trained,
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
        fused=fused,
    )


def _cuda(fabric: Fabric) -> list[int]:
    """Returns the CUDA device whose random state matters, if any."""
    return [fabric.device.index or 0] if fabric.device.type == "cuda" else []


def _settings(run: _Run, seed: int, method: Method | None, keep: Keep | None, exclude: tuple[str, ...]) -> State:
    """Returns what must be equal for a checkpoint to be of the same run, as plain values."""
    digest = hashlib.sha256()
    for name in sorted(keep or {}):
        digest.update(name.encode() + b"\0" + bytes((keep or {})[name].to("cpu", torch.uint8).tolist()))
    data = [run.data.name, len(run.data.train_y), *run.data.train_x.shape[1:]]
    excluded = {"exclude": list(exclude)} if exclude else {}  # none in checkpoints of older releases
    return {
        **asdict(run.recipe),
        "seed": seed,
        "method": repr(method),
        "data": data,
        "keep": digest.hexdigest(),
        **excluded,
    }
