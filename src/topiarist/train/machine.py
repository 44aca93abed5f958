"""What a training runs on: devices and precision through Lightning Fabric, the compiler, layouts, optimisers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from topiarist.data import Data
from topiarist.errors import TopiaristError
from topiarist.files import one_line, shown
from topiarist.measure import device_of, mode
from topiarist.train.recipe import Recipe
from topiarist.train.speed import Speed

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def launched(speed: Speed) -> Fabric:
    """Returns Fabric with its processes running.

    Raises:
        TopiaristError: the machine lacks what is asked for, or there is one process for several devices.
    """
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


def optimizer_of(model: nn.Module, recipe: Recipe, fabric: Fabric) -> torch.optim.Optimizer:
    """Returns the recipe's optimiser of all parameters that are trained."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise TopiaristError("the model has no parameter that requires a gradient: unfreeze some")
    fused = fabric.device.type in ("cpu", "cuda")  # one call for all tensors; small networks are bound by calls
    if recipe.optimizer in ("adam", "adamw"):
        kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
        betas = (recipe.momentum, 0.999)
        return kind(trained, lr=recipe.lr, betas=betas, weight_decay=recipe.weight_decay, fused=fused)
    return torch.optim.SGD(
        trained,
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
        fused=fused,
    )


def check_values(network: object, what: str) -> None:
    """Raises where something is no network, or one without values."""
    if not isinstance(network, nn.Module):
        raise TopiaristError(f"the {what} must be a torch.nn.Module, but got {shown(network)}: give a network")
    if any(tensor.is_meta or is_lazy(tensor) for tensor in (*network.parameters(), *network.buffers())):
        raise TopiaristError(f"the {what} has no values yet (lazy or meta tensors): run it once, or load its weights")


@contextmanager
def teaching(teacher: nn.Module | None, model: nn.Module, device: torch.device) -> Iterator[None]:
    """Puts a teacher on a device and in eval mode while open.

    Raises:
        TopiaristError: it shares weights with the network that it teaches, or has none.
    """
    if teacher is None:
        yield
        return
    check_values(teacher, "teacher")
    if set(map(id, teacher.parameters())) & set(map(id, model.parameters())):
        raise TopiaristError("the teacher shares weights with the network: give a copy of it, as copy.deepcopy makes")
    origin = device_of(teacher)
    with mode(teacher.to(device), training=False):
        try:
            yield
        finally:
            teacher.to(origin)


def resident(data: Data, device: torch.device) -> Data:
    """Moves the data to a GPU where it fits well, so that batches are picked and augmented there."""
    if device.type != "cuda":
        return data
    size = sum(part.numel() * part.element_size() for part in (data.train_x, data.test_x))
    return data.to(device) if size < torch.cuda.mem_get_info(device)[0] / 4 else data


def lay_out(model: nn.Module, order: torch.memory_format) -> None:
    """Holds the weights of convolutions in this order in memory; their values and shapes stay."""
    model.to(memory_format=order)  # type: ignore[call-overload]  # which torch's own annotations lack


def compiled(model: nn.Module, device: torch.device) -> Any:
    """Returns the model with a compiled forward and backward; the parameters are the same ones."""
    return torch.compile(model, dynamic=False, mode="reduce-overhead" if device.type == "cuda" else None)


@contextmanager
def compiling(compiled: bool) -> Iterator[None]:
    """Reports what the compiler cannot do, which it finds out in the first steps."""
    try:
        yield
    except Exception as error:
        if not compiled or not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise TopiaristError(f"the model cannot be compiled here ({one_line(error)}): leave compiled out") from error


def cuda_devices(fabric: Fabric) -> list[int]:
    """Returns the CUDA device whose random state matters, if any."""
    return [fabric.device.index or 0] if fabric.device.type == "cuda" else []
