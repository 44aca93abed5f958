"""One multiplier for each unit of a network: it stands in the parameters while the model runs, and goes into them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from topiarist.budget import Budget, allocate
from topiarist.errors import TopiaristError
from topiarist.files import register_gate
from topiarist.graph import Graph, Group, Scores
from topiarist.measure import Stats
from topiarist.methods._lengths import lengths_kept

if TYPE_CHECKING:
    from topiarist.methods.base import Method


class Place(NamedTuple):
    """Where multipliers meet a tensor: the axis, and whose multiplier at each position of it (-1: nobody's).

    Where the axis is ``None`` the numbers broadcast against the whole tensor.
    """

    axis: int | None
    structure: Tensor


class Scaled(NamedTuple):
    """What is multiplied: tensor → places, the number of each group's first structure, how many there are."""

    places: Mapping[str, Place]
    first: Mapping[str, int]
    total: int

    def with_units(self, graph: Graph, group: Group, free: Collection[str]) -> Scaled:
        """Adds the weights that read a group's units; several of the units' places may lie in one weight.

        To multiply what reads a unit is to multiply the unit itself, behind its normalisation and activation. A group
        that no weight reads, that something reads which is not free to be multiplied, or whose readers another group's
        multipliers have taken, is left out.
        """
        parts = group.by_role("input")
        if any(part.tensor not in free for part in parts):
            return self
        places = dict(self.places)
        for part in parts:
            assert part.axis is not None
            nobody = torch.full((graph.shapes[part.tensor][part.axis],), -1)
            index = places[part.tensor].structure.clone() if part.tensor in places else nobody
            if places.get(part.tensor, part).axis != part.axis or (index[part.positions] >= 0).any():
                return self
            index[part.positions] = (self.total + torch.arange(group.units)).unsqueeze(1).expand(part.positions.shape)
            places[part.tensor] = Place(part.axis, index)
        return self._with(places, group) if parts else self

    def with_weights(self, graph: Graph, group: Group, free: Collection[str]) -> Scaled:
        """Adds each weight of a tensor that is free to be multiplied as a structure of its own."""
        name = group.slices[0].tensor
        if name not in free:
            return self
        index = torch.full(graph.shapes[name], -1)
        index.view(-1)[group.slices[0].positions[:, 0]] = self.total + torch.arange(group.units)
        return self._with({**self.places, name: Place(None, index)}, group)

    def _with(self, places: Mapping[str, Place], group: Group) -> Scaled:
        return Scaled(places, {**self.first, group.name: self.total}, self.total + group.units)

    def alive(self, stats: Stats) -> Tensor:
        """Bool ``(total,)``: whether any of the entries that a structure's multiplier meets is not zero."""
        alive = torch.zeros(self.total, dtype=torch.bool)
        for name, (axis, structure) in self.places.items():
            weight = stats.tensor(name).detach().cpu() != 0
            if structure.ndim == 0:
                used = weight.any()
            else:
                others = [k for k in range(weight.ndim) if k != axis] if axis is not None else []
                used = weight.sum(others) > 0 if others else weight
            alive[structure[(structure >= 0) & used]] = True
        return alive

    def left(self, stats: Stats, suffix: str, default: float) -> Tensor:
        """Float64 ``(total,)``: what `Multipliers.fold` left under this suffix, or the default where it left none."""
        found = torch.full((self.total,), default, dtype=torch.float64)
        for name, (_, structure) in self.places.items():
            left = stats.tensors.get(name + suffix)
            if left is not None and left.shape == structure.shape:
                here = structure >= 0
                found[structure[here]] = left.double().cpu()[here]
        return found

    def unranked(self, stats: Stats, suffix: str) -> Tensor:
        """Bool ``(total,)``: structures that are not zero, and that nothing was left of under this suffix."""
        return self.left(stats, suffix, math.nan).isnan() & self.alive(stats)

    def by_group(self, graph: Graph, values: Tensor) -> dict[str, Tensor]:
        """One vector for all structures as one for each group."""
        return {name: values[first : first + graph[name].units] for name, first in self.first.items()}


class Multipliers(nn.Module, ABC):
    """The module that holds what the multipliers are made of; while the model runs, its parameters are seen multiplied.

    Args:
        model: whose parameters are multiplied.
        scaled: which entries of them.
    """

    def __init__(self, model: nn.Module, scaled: Scaled) -> None:
        super().__init__()
        # In tuples, so that the model's modules do not become modules of the gates.
        self._owners = tuple((model.get_submodule(name.rpartition(".")[0]), name) for name in scaled.places)
        holders = holders_of(model)
        self._holders = {name: tuple(holders[id(parameter_of(owner, name))]) for owner, name in self._owners}
        self._places = dict(scaled.places)

    @abstractmethod
    def multipliers(self) -> Tensor:
        """``(structures,)`` one for each structure, new for each run of the model."""

    @abstractmethod
    def final(self) -> tuple[Tensor, Tensor]:
        """``(structures,)`` twice: what goes into the parameters in the end, and what is left beside for the score."""

    def forward(self, x: Any) -> Any:
        """Hands on what it gets, for models that call all of their submodules in turn."""
        return x

    def _at(self, name: str, values: Tensor, rest: float) -> Tensor:
        """Each structure's value at its places in a tensor, and ``rest`` at nobody's."""
        padded = torch.cat([values, values.new_full((1,), rest)])  # the last one for -1
        return padded[self._places[name].structure.to(padded.device)]

    def _factor(self, name: str, values: Tensor, like: Tensor) -> Tensor:
        """What a parameter is multiplied by, broadcastable to it."""
        factor, axis = self._at(name, values, 1.0).to(like.dtype), self._places[name].axis
        return factor if axis is None else factor.view([-1 if k == axis else 1 for k in range(like.ndim)])

    def open(self, *_: Any) -> None:
        """Hook before the model runs: the multiplied values stand in front of the parameters, tied ones everywhere."""
        values = self.multipliers()
        for owner, name in self._owners:
            parameter = parameter_of(owner, name)
            product = parameter * self._factor(name, values, parameter)
            for holder, leaf in self._holders[name]:
                vars(holder)[leaf] = product

    def close(self, *_: Any) -> None:
        """Hook after it: they are gone."""
        for holders in self._holders.values():
            for holder, leaf in holders:
                vars(holder).pop(leaf, None)

    @torch.no_grad()
    def fold(self, suffix: str) -> None:
        """Multiplies the parameters for good, and leaves a buffer beside each, whose name is the parameter's and this.

        The buffer is not part of the state dict.
        """
        values, left = self.final()
        for owner, name in self._owners:
            parameter = parameter_of(owner, name)
            parameter.mul_(self._factor(name, values, parameter))
            register_gate(owner, name.rpartition(".")[2] + suffix, self._at(name, left, 1.0))


def parameter_of(owner: nn.Module, name: str) -> nn.Parameter:
    """A module's own parameter, whatever stands in front of it."""
    parameter = owner._parameters[name.rpartition(".")[2]]
    assert parameter is not None
    return parameter


def holders_of(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Id of a parameter → the modules that hold it, and by which name: several where it is tied."""
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for leaf, parameter in module._parameters.items():
            found.setdefault(id(parameter), []).append((module, leaf))
    return found


def trained(model: nn.Module) -> set[str]:
    """Names of the parameters that training may change: all but the frozen ones, tied ones by all of their names."""
    return {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.requires_grad}


def marked(graph: Graph, stats: Stats, suffix: str) -> set[str]:
    """Names of the parameters that a training left something of under this suffix; all, where there was none."""
    return {name for name in graph.parameters if name + suffix in stats.tensors} or set(graph.parameters)


def check_ranked(method: Method, graph: Graph, scores: Scores, unranked: Scores, budget: Budget) -> None:
    """Refuses a budget that takes units which no training has ranked; a rehearsal comes before the training.

    Args:
        method: whose training it is.
        graph: the groups.
        scores: of the units.
        unranked: group name → bool ``(units,)``.
        budget: what may stay.

    Raises:
        TopiaristError: it takes some, or cannot be met.
    """
    if method._rehearses or not any(bool(units.any()) for units in unranked.values()):
        return
    keep = allocate(graph, scores, budget, method.allocation)
    if any(bool((units & ~keep[name]).any()) for name, units in unranked.items()):
        raise TopiaristError(
            f"{method.name} has not trained the units that this budget takes: train the network with it in the same "
            "run, recipe=... (or leave --weights out), or give no budget; of a file of weights alone only zeros speak"
        )


@contextmanager
def submodule(model: nn.Module, name: str, module: nn.Module) -> Iterator[None]:
    """A module of the method's own in the model, as long as the context lasts.

    Raises:
        TopiaristError: the model has something of this name already.
    """
    if hasattr(model, name):
        raise TopiaristError(f"the model has a {name!r} of its own, where the gates must go: rename it")
    model.add_module(name, module)
    try:
        yield
    finally:
        delattr(model, name)


@contextmanager
def multiplied(model: nn.Module, graph: Graph, name: str, gates: Multipliers, suffix: str) -> Iterator[Multipliers]:
    """The model runs with multiplied parameters as long as the context lasts, and then has them for good.

    Args:
        model: the model.
        graph: its graph.
        name: of the gates in it.
        gates: the multipliers.
        suffix: of the buffers that they leave (see `Multipliers.fold`).
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
            with lengths_kept(model, graph.normed):
                gates.fold(suffix)
