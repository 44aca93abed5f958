"""What trains a model continues with the smaller one: optimisers with their state, averages, gathered gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from topiarist.errors import TopiaristError
from topiarist.files import shown
from topiarist.graph import class_names, is_sharded, named_tensors, unwrapped
from topiarist.surgery.optimizer_state import cut_state, layouts_of
from topiarist.surgery.plans import Plan, apply_plan

Change = Callable[[], None]
"""A change that is known to be possible, made when all of them are."""


class Attachment:
    """Marks a hook of an optimiser that works on the tensors of one model, which a cut would take away from it."""


def as_optimizer(value: object) -> Optimizer | None:
    """Returns an optimiser; of a wrapper, such as Accelerate's, the one within; ``None`` for all else."""
    while hasattr(value, "param_groups") and hasattr(inner := getattr(value, "optimizer", None), "param_groups"):
        value = inner
    return value if isinstance(value, Optimizer) else None


@torch.no_grad()
def carry_over(model: nn.Module, smaller: nn.Module, work: Plan, training: Sequence[Any]) -> None:
    """Lets what trains a model continue with the smaller one.

    Args:
        model: the model before the cut; its gradients move to the smaller one.
        smaller: what the cut returned.
        work: the cut.
        training: optimisers and averages, which are changed in place: all of them, or none where one is refused.

    Raises:
        TopiaristError: one of them is of another network, or cannot be cut; or the model is distributed.
    """
    if "DistributedDataParallel" in class_names(model):
        raise TopiaristError(
            "the model is wrapped in DistributedDataParallel, which holds the tensors of before: give the network "
            "within, model.module, and wrap the smaller one"
        )
    swap = _Swap.of(unwrapped(model), smaller, work)
    changes = [change for each in training for change in _changes(each, swap)]
    for change in changes:
        change()
    swap.move_gradients()


def check_training(model: nn.Module, work: Plan, training: Sequence[Any]) -> None:
    """Raises where what trains a model could not be carried over, long before the cut.

    Args:
        model: the network.
        work: a cut of it that removes nothing.
        training: as for `carry_over`; not changed.
    """
    swap = _Swap.of(model, model, work)
    for each in training:
        for _ in _changes(each, swap):
            pass


@dataclass(frozen=True, eq=False)
class _Swap:
    """A network and the smaller one that takes its place.

    Attributes:
        work: the cut.
        old: the plain network before it.
        smaller: the network after it.
        names: parameter (by id) → its name.
        successors: parameter (by id) → the one in its place; those of removed blocks have none.
    """

    work: Plan
    old: nn.Module
    smaller: nn.Module
    names: Mapping[int, str]
    successors: Mapping[int, nn.Parameter]

    @classmethod
    def of(cls, old: nn.Module, smaller: nn.Module, work: Plan) -> _Swap:
        new = dict(smaller.named_parameters(remove_duplicate=False))
        named = old.named_parameters(remove_duplicate=False)
        successors = {id(parameter): new[name] for name, parameter in named if name in new}
        return cls(work, old, smaller, {id(p): name for name, p in old.named_parameters()}, successors)

    def succeeded(self, parameters: Sequence[Any]) -> list[Any]:
        """Returns what takes the places of parameters; those of other networks stay, those of removed blocks do not."""
        return [
            self.successors.get(id(each), each)
            for each in parameters
            if id(each) in self.successors or id(each) not in self.names
        ]

    def move_gradients(self) -> None:
        """Hands what backward has summed up so far to the smaller network."""
        for parameter in self.old.parameters():
            gradient, parameter.grad = parameter.grad, None
            if gradient is not None and id(parameter) in self.successors:
                self.successors[id(parameter)].grad = self.work.of(self.names[id(parameter)], gradient)


def _changes(given: Any, swap: _Swap) -> Iterator[Change]:
    """Yields what one optimiser or average needs."""
    optimizer, module = as_optimizer(given), getattr(given, "module", None)
    if optimizer is not None:
        _check_gathered(optimizer)
        if not any(id(p) in swap.names for group in optimizer.param_groups for p in group["params"]):
            raise TopiaristError(
                f"this {type(optimizer).__name__} holds no parameter of this model: give the optimizer that trains it"
            )
        for each in _nested(optimizer):
            yield _of_optimizer(each, swap)
    elif isinstance(module, nn.Module):
        yield _of_average(given, unwrapped(module), swap)
    elif isinstance(given, MutableMapping):
        yield _of_values(given, swap)
    else:
        raise TopiaristError(
            f"{type(given).__name__} is not known here: give optimizers, averages with the network in .module, and "
            "dicts of name and tensor (schedulers and gradient scalers follow their optimizer; a copy of the model is "
            "cut by topiarist.cut)"
        )


def _check_gathered(optimizer: Optimizer) -> None:
    """Raises where a process has a part of what an optimiser remembers, which it cannot cut alone."""
    kind = type(optimizer).__name__
    if any(is_sharded(parameter) for group in optimizer.param_groups for parameter in group["params"]):
        raise TopiaristError(
            f"the parameters of this {kind} are sharded (FSDP), and no process has all of them: load "
            "get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True)) into an "
            "optimizer of the plain model, and give that"
        )
    if any(base.__name__ == "ZeroRedundancyOptimizer" for base in type(optimizer).__mro__):
        raise TopiaristError(
            f"{kind} shares its state among the processes, and none has all of it: load its consolidated state_dict() "
            "into a plain optimizer of the model, give that, and load the cut state into a new one"
        )


def _nested(optimizer: Optimizer) -> Iterator[Optimizer]:
    """Yields an optimiser, and those that it steps itself, as Lookahead and SAM do."""
    yield optimizer
    for value in vars(optimizer).values():
        if isinstance(value, Optimizer):
            yield from _nested(value)


def _of_optimizer(optimizer: Optimizer, swap: _Swap) -> Change:
    """Prepares an optimiser: the same object, its groups and its state with the new parameters."""
    hooks = (*optimizer._optimizer_step_pre_hooks.values(), *optimizer._optimizer_step_post_hooks.values())
    if any(isinstance(hook, Attachment) for hook in hooks):
        raise TopiaristError(
            "a method is attached to this optimizer and works on the tensors of before: leave its context, cut, and "
            "attach it to the smaller model"
        )
    kind, layouts = type(optimizer).__name__, layouts_of(optimizer)
    state = {}
    for key, value in optimizer.state.items():
        for new in swap.succeeded([key]):
            ours = id(key) in swap.names
            state[new] = cut_state(value, swap.names[id(key)], layouts, swap.work, kind) if ours else value
    groups = [_of_group(group, swap) for group in optimizer.param_groups]
    replaced = _Replaced(tuple(ref(p) for g in optimizer.param_groups for p in g["params"] if id(p) in swap.names))

    def change() -> None:
        optimizer.state.clear()
        optimizer.state.update(state)
        for group, new in zip(optimizer.param_groups, groups, strict=True):
            for key, values in new.items():
                group[key][:] = values  # the same list, which some optimisers hold elsewhere too
        optimizer.register_step_pre_hook(replaced)

    return change


def _of_group(group: Mapping[str, Any], swap: _Swap) -> dict[str, list[Any]]:
    """Returns the new parameters of a group, and their names where it has any."""
    new = {"params": swap.succeeded(group["params"])}
    if "param_names" in group:
        pairs = zip(group["param_names"], group["params"], strict=True)
        new["param_names"] = [name for name, parameter in pairs if swap.succeeded([parameter])]
    return new


def _of_average(holder: Any, average: nn.Module, swap: _Swap) -> Change:
    """Prepares an averaged network: the same holder, with the average of the smaller network in it."""
    _check_average(named_tensors(average), named_tensors(swap.old))
    smaller = apply_plan(average, swap.work)
    return lambda: setattr(holder, "module", smaller)


def _of_values(values: MutableMapping[str, Any], swap: _Swap) -> Change:
    """Prepares an average that is a dict of name and tensor."""
    own = named_tensors(swap.old)
    _check_average(values, {name: own[name] for name in values if name in own})
    remaining = named_tensors(swap.smaller)
    smaller = {name: swap.work.of(name, value.detach()) for name, value in values.items() if name in remaining}

    def change() -> None:
        values.clear()
        values.update(smaller)

    return change


def _check_average(values: Mapping[str, Any], own: Mapping[str, Tensor]) -> None:
    """Raises where an average is of another network."""
    for name in {**own, **values}:
        value = values.get(name)
        if is_sharded(value):
            raise TopiaristError(f"{shown(name)} of the average is sharded (FSDP): give its full_tensor()")
        if name not in own or not isinstance(value, Tensor) or value.shape != own[name].shape:
            raise TopiaristError(
                f"the average is of another network, it differs in {shown(name)}: give the average of this model"
            )


@dataclass(frozen=True, eq=False)
class _Replaced:
    """Refuses a step while a parameter that was replaced has a gradient: the loss came from the model of before.

    The gradients are dropped, so that the next step can be taken.
    """

    parameters: tuple[ref[Tensor], ...]

    def __call__(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        alive = (parameter() for parameter in self.parameters)
        reached = [parameter for parameter in alive if parameter is not None and parameter.grad is not None]
        for parameter in reached:
            parameter.grad = None
        if reached:
            raise TopiaristError(
                "this optimizer trains the smaller model, but the loss came from the model of before the cut: compute "
                "it with what the cut returned"
            )
