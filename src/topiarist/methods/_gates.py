"""Gates: one multiplier for each unit of a network, in front of the parameters in training, and in them afterwards."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from topiarist.budget import Budget, allocate
from topiarist.errors import TopiaristError
from topiarist.files import register_gate
from topiarist.graph import Graph, Group, Scores
from topiarist.measure import Stats
from topiarist.methods._filter_norms import filter_norms_kept
from topiarist.methods.base import Method


class GateIndex(NamedTuple):
    """Says which gate multiplies which position on an axis of a tensor (-1: none).

    Where the axis is ``None`` the numbers broadcast against the tensor.
    """

    axis: int | None
    gate: Tensor


class Gated(NamedTuple):
    """Holds what gates multiply.

    Attributes:
        tensors: tensor → index of the gates of groups.
        first: group → number of its first gate.
        total: number of gates.
        inputs: tensor → index of the gates that belong to no group (see `with_inputs`).
    """

    tensors: Mapping[str, GateIndex] = {}
    first: Mapping[str, int] = {}
    total: int = 0
    inputs: Mapping[str, GateIndex] = {}

    def with_units(self, graph: Graph, group: Group, free: Collection[str]) -> Gated:
        """Adds the weights that read a group's units; several positions of the units may lie in one weight.

        To multiply what reads a unit is to multiply the unit itself, behind its normalisation and activation. A group
        that no weight reads, that something reads which is not free to be multiplied, or whose readers another group's
        gates multiply, is left out.
        """
        parts = group.by_role("input")
        if any(part.tensor not in free for part in parts):
            return self
        tensors = dict(self.tensors)
        for part in parts:
            assert part.axis is not None
            none = torch.full((graph.shapes[part.tensor][part.axis],), -1)
            gate = tensors[part.tensor].gate.clone() if part.tensor in tensors else none
            if tensors.get(part.tensor, part).axis != part.axis or (gate[part.positions] >= 0).any():
                return self
            gate[part.positions] = (self.total + torch.arange(group.units)).unsqueeze(1).expand(part.positions.shape)
            tensors[part.tensor] = GateIndex(part.axis, gate)
        return self.with_group(tensors, group) if parts else self

    def with_weights(self, graph: Graph, group: Group, free: Collection[str]) -> Gated:
        """Adds each weight of a tensor that is free to be multiplied, with a gate of its own."""
        name = group.slices[0].tensor
        if name not in free:
            return self
        gate = torch.full(graph.shapes[name], -1)
        gate.view(-1)[group.slices[0].positions[:, 0]] = self.total + torch.arange(group.units)
        return self.with_group({**self.tensors, name: GateIndex(None, gate)}, group)

    def with_group(self, tensors: Mapping[str, GateIndex], group: Group) -> Gated:
        """Adds the gates of a group, which are in ``tensors`` already."""
        first = {**self.first, group.name: self.total}
        return self._replace(tensors=tensors, first=first, total=self.total + group.units)

    def with_inputs(self, graph: Graph, free: Collection[str]) -> Gated:
        """Adds a gate for each input of a linear layer that no unit's gate has to itself.

        Those are what the network reads, and the features of a flattened map, several of which make up one unit.
        """
        inputs, total = dict(self.inputs), self.total
        for name in graph.parameters:
            axis = graph.input_axis(name)
            if axis is None or name not in free or len(graph.shapes[name]) != 2:
                continue
            gate = torch.full((graph.shapes[name][axis],), -1)
            shared = torch.ones_like(gate, dtype=torch.bool)
            if (own := self.tensors.get(name)) and own.axis == axis:
                uses = torch.bincount(own.gate[own.gate >= 0], minlength=self.total)
                shared = (own.gate < 0) | (uses[own.gate] > 1)
            gate[shared] = total + torch.arange(int(shared.sum()))
            inputs[name], total = GateIndex(axis, gate), total + int(shared.sum())
        return self._replace(inputs=inputs, total=total)

    def nonzero(self, stats: Stats) -> Tensor:
        """Returns bool ``(total,)``: whether any of the entries that a gate multiplies is not zero."""
        nonzero = torch.zeros(self.total, dtype=torch.bool)
        for name, (axis, gate) in self.tensors.items():
            weight = stats.tensor(name).detach().cpu() != 0
            if gate.ndim == 0:
                used = weight.any()
            else:
                others = [k for k in range(weight.ndim) if k != axis] if axis is not None else []
                used = weight.sum(others) > 0 if others else weight
            nonzero[gate[(gate >= 0) & used]] = True
        return nonzero

    def saved(self, stats: Stats, suffix: str, default: float) -> Tensor:
        """Returns what `Gates.fold` saved under this suffix, float64 ``(total,)``, or the default where it did not."""
        values = torch.full((self.total,), default, dtype=torch.float64)
        for name, (_, gate) in self.tensors.items():
            saved = stats.tensors.get(name + suffix)
            if saved is not None and saved.shape == gate.shape:
                gated = gate >= 0
                values[gate[gated]] = saved.double().cpu()[gated]
        return values

    def untrained(self, stats: Stats, suffix: str) -> Tensor:
        """Returns bool ``(total,)``: what is not zero, and has nothing saved under this suffix."""
        return self.saved(stats, suffix, math.nan).isnan() & self.nonzero(stats)

    def by_group(self, graph: Graph, values: Tensor) -> dict[str, Tensor]:
        """Splits one vector over all gates into one for each group."""
        return {name: values[first : first + graph[name].units] for name, first in self.first.items()}


class Gates(nn.Module, ABC):
    """Holds what the gates are made of; while the model runs, its parameters are seen multiplied.

    Args:
        model: whose parameters are multiplied.
        gated: which entries of them.
    """

    def __init__(self, model: nn.Module, gated: Gated) -> None:
        super().__init__()
        # In tuples, so that the model's modules do not become modules of the gates.
        names = dict.fromkeys([*gated.tensors, *gated.inputs])
        self._owners = tuple((model.get_submodule(name.rpartition(".")[0]), name) for name in names)
        holders = holders_of(model)
        self._holders = {name: tuple(holders[id(parameter_of(owner, name))]) for owner, name in self._owners}
        self._tensors = dict(gated.tensors)
        self._indices = {name: [by[name] for by in (gated.tensors, gated.inputs) if name in by] for name in names}

    @abstractmethod
    def multipliers(self) -> Tensor:
        """Returns the value of each gate, ``(gates,)``, new for each run of the model."""

    @abstractmethod
    def final(self) -> tuple[Tensor, Tensor]:
        """Returns ``(gates,)`` twice: what is multiplied into the parameters in the end, and what the score needs."""

    def forward(self, x: object) -> object:
        """Returns what it gets, for models that call all of their submodules in turn."""
        return x

    def _factor(self, name: str, values: Tensor, like: Tensor) -> Tensor:
        """Returns what a parameter is multiplied by, broadcastable to it."""
        factor = like.new_ones(())
        for axis, gate in self._indices[name]:
            own = _at(gate, values, 1.0).to(like.dtype)
            factor = factor * (own if axis is None else broadcast(own, axis, like.ndim))
        return factor

    def open(self, *_: object) -> None:
        """Puts multiplied values in front of the parameters, tied ones everywhere: a hook before the model runs."""
        values = self.multipliers()
        for owner, name in self._owners:
            parameter = parameter_of(owner, name)
            product = parameter * self._factor(name, values, parameter)
            for holder, leaf in self._holders[name]:
                vars(holder)[leaf] = product

    def close(self, *_: object) -> None:
        """Takes them away: a hook after the model ran."""
        for holders in self._holders.values():
            for holder, leaf in holders:
                vars(holder).pop(leaf, None)

    @torch.no_grad()
    def fold(self, suffix: str) -> None:
        """Multiplies the parameters for good, and saves a buffer beside each, named by the parameter and this suffix.

        The buffer is not part of the state dict.
        """
        values, saved = self.final()
        for owner, name in self._owners:
            parameter = parameter_of(owner, name)
            parameter.mul_(self._factor(name, values, parameter))
            if name in self._tensors:
                register_gate(owner, name.rpartition(".")[2] + suffix, _at(self._tensors[name].gate, saved, 1.0))


def broadcast(line: Tensor, axis: int, ndim: int) -> Tensor:
    """Returns a vector along one axis, shaped so that it broadcasts to a tensor of so many."""
    return line.view([-1 if k == axis else 1 for k in range(ndim)])


def _at(gate: Tensor, values: Tensor, rest: float) -> Tensor:
    """Returns each gate's value at its positions, and ``rest`` where there is no gate."""
    padded = torch.cat([values, values.new_full((1,), rest)])  # the last one for -1
    return padded[gate.to(padded.device)]


def parameter_of(owner: nn.Module, name: str) -> nn.Parameter:
    """Returns a module's own parameter, whatever is in front of it."""
    parameter = owner._parameters[name.rpartition(".")[2]]
    assert parameter is not None
    return parameter


def holders_of(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Returns the id of a parameter → the modules that hold it, and by which name: several where it is tied."""
    holders: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for leaf, parameter in module._parameters.items():
            holders.setdefault(id(parameter), []).append((module, leaf))
    return holders


def trainable(model: nn.Module) -> set[str]:
    """Returns the names of the parameters that are not frozen, of tied ones all names."""
    return {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.requires_grad}


def trained_with_gates(graph: Graph, stats: Stats, suffix: str) -> set[str]:
    """Returns the names of the parameters with something saved under this suffix; all, where there is none."""
    return {name for name in graph.parameters if name + suffix in stats.tensors} or set(graph.parameters)


def check_trained(method: Method, graph: Graph, scores: Scores, untrained: Scores, budget: Budget) -> None:
    """Refuses a budget that prunes units which the method has not trained; a dry run comes before the training.

    Args:
        method: whose training it is.
        graph: the groups.
        scores: of the units.
        untrained: group name → bool ``(units,)``.
        budget: how much is kept.

    Raises:
        TopiaristError: it prunes some, or cannot be met.
    """
    if method.is_dry_run or not any(bool(units.any()) for units in untrained.values()):
        return
    keep = allocate(graph, scores, budget, method.allocation)
    if any(bool((units & ~keep[name]).any()) for name, units in untrained.items()):
        raise TopiaristError(
            f"this budget prunes units that {method.name} has not trained: train the network with it in the same run, "
            "recipe=... (or leave --weights out), or give no budget; of a file of weights alone only zeros are pruned"
        )


@contextmanager
def submodule(model: nn.Module, name: str, module: nn.Module) -> Iterator[None]:
    """Adds a module of the method's own to the model, as long as the context lasts.

    Raises:
        TopiaristError: the model has something of this name already.
    """
    if hasattr(model, name):
        raise TopiaristError(f"the model has a {name!r} of its own, where the gates belong: rename it")
    model.add_module(name, module)
    try:
        yield
    finally:
        delattr(model, name)


@contextmanager
def gating(model: nn.Module, graph: Graph, name: str, gates: Gates, suffix: str) -> Iterator[Gates]:
    """Runs the model with multiplied parameters as long as the context lasts, and then folds the gates into them.

    Args:
        model: the model.
        graph: its graph.
        name: of the gates in it.
        gates: the gates.
        suffix: of the buffers that they save (see `Gates.fold`).
    """
    with submodule(model, name, gates):
        handles = (
            model.register_forward_pre_hook(gates.open),
            model.register_forward_hook(gates.close, always_call=True),
        )
        try:
            yield gates
        finally:
            for handle in handles:
                handle.remove()
            gates.close()
            with filter_norms_kept(model, graph.normed):
                gates.fold(suffix)
