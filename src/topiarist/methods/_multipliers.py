"""One multiplier for each unit of a network: it stands in the parameters while the model runs, and goes into them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from topiarist.errors import TopiaristError

if TYPE_CHECKING:
    from topiarist.graph.graph import Graph, Group
    from topiarist.stats import Stats


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

    def with_units(self, graph: Graph, group: Group) -> Scaled:
        """Adds the weights that read a group's units; several of the units' places may lie in one weight.

        To multiply what reads a unit is to multiply the unit itself, behind its normalisation and activation. A group
        that no weight reads, or whose readers another group's multipliers have taken, is left out.
        """
        parts = [part for part in group.by_role("input") if part.tensor in graph.parameters]
        places = dict(self.places)
        for part in parts:
            assert part.axis is not None
            free = torch.full((graph.shapes[part.tensor][part.axis],), -1)
            index = places[part.tensor].structure.clone() if part.tensor in places else free
            if places.get(part.tensor, part).axis != part.axis or (index[part.positions] >= 0).any():
                return self
            index[part.positions] = (self.total + torch.arange(group.units)).unsqueeze(1).expand(part.positions.shape)
            places[part.tensor] = Place(part.axis, index)
        return self._with(places, group) if parts else self

    def with_weights(self, graph: Graph, group: Group) -> Scaled:
        """Adds each weight of a tensor as a structure of its own."""
        name = group.slices[0].tensor
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
        # In a tuple, so that the model's modules do not become modules of the gates.
        self._owners = tuple((model.get_submodule(name.rpartition(".")[0]), name) for name in scaled.places)
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
        """Hook before the model runs: the multiplied values stand in front of the parameters."""
        values = self.multipliers()
        for owner, name in self._owners:
            parameter = parameter_of(owner, name)
            vars(owner)[name.rpartition(".")[2]] = parameter * self._factor(name, values, parameter)

    def close(self, *_: Any) -> None:
        """Hook after it: they are gone."""
        for owner, name in self._owners:
            vars(owner).pop(name.rpartition(".")[2], None)

    @torch.no_grad()
    def fold(self, suffix: str) -> None:
        """Multiplies the parameters for good, and leaves a buffer beside each, whose name is the parameter's and this.

        The buffer is not part of the state dict.
        """
        values, left = self.final()
        for owner, name in self._owners:
            parameter = parameter_of(owner, name)
            parameter.mul_(self._factor(name, values, parameter))
            leave(owner, name.rpartition(".")[2] + suffix, self._at(name, left, 1.0))


def parameter_of(owner: nn.Module, name: str) -> nn.Parameter:
    """A module's own parameter, whatever stands in front of it."""
    parameter = owner._parameters[name.rpartition(".")[2]]
    assert parameter is not None
    return parameter


def leave(owner: nn.Module, name: str, value: Tensor) -> None:
    """A buffer outside the state dict, which `Stats.tensor` sees."""
    owner.register_buffer(name, value.detach().clone(), persistent=False)


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
def multiplied(model: nn.Module, name: str, gates: Multipliers, suffix: str) -> Iterator[Multipliers]:
    """The model runs with multiplied parameters as long as the context lasts, and then has them for good.

    Args:
        model: the model.
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
            gates.fold(suffix)
