"""Shrinking: channels, neurons and heads that sparse weights left dead are removed, and proved like any cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from topiarist.architecture import Architecture
from topiarist.costs import Cost, cost
from topiarist.errors import TopiaristError
from topiarist.graph import Graph, Keep, check_finite, trace
from topiarist.graph.calls import changed, converted, run
from topiarist.graph.graph import Group
from topiarist.methods.base import sum_by_unit
from topiarist.proof import TOLERANCE, Proof, difference, prove
from topiarist.surgery import copied, cut, mask, with_values
from topiarist.survivors import fast_path_off


@dataclass(frozen=True, eq=False)
class Shrunk:
    """What shrinking gave.

    Attributes:
        model: the smaller network.
        architecture: its shape.
        proof: that the cut computes what the mask does.
        drift: max |shrunk − given| / max |given| over the outputs, in float64: what removing the dead changed.
        before: MACs and parameters of the dense network of the given shape.
        after: those of the smaller one.
        graph: of the network that was given.
        keep: group name → bool ``(units,)``.
    """

    model: nn.Module
    architecture: Architecture
    proof: Proof
    drift: float
    before: Cost
    after: Cost
    graph: Graph
    keep: Mapping[str, Tensor]


def shrink(model: nn.Module, example_inputs: Any, *, graph: Graph | None = None) -> Shrunk:
    """Removes the units that zero weights left dead: a sparse network becomes a smaller one that computes the same.

    A unit is dead if all weights that read it are zero, or all that produce it: then it is the same number for every
    input, and what it adds to the layers that read it goes into their biases (Han et al. 2015 remove such neurons
    when they fine-tune). The dead may leave others dead, so this goes on until none is left. Each candidate is tried
    in float64, on the example inputs and on noise: what changes the outputs by more than 1e-10 of the largest stays,
    such as a constant that meets a convolution's padding, or a layer without a bias. Zeros in what is left stay.

    Args:
        model: a network with zeros among its weights; it stays as it is.
        example_inputs: as for `trace`.
        graph: its graph, where it was traced before.

    Returns:
        The smaller network with its shape, its proof and its costs; the network as it is where nothing is dead.

    Raises:
        TopiaristError: the model cannot be traced, its weights are not finite, or the cut cannot be proved.
    """
    check_finite(model)
    graph = trace(model, example_inputs) if graph is None else graph
    if graph.of_blocks or any(group.of_weights for group in graph.groups):
        raise TopiaristError("shrink removes channels and neurons: give the graph that trace returns, not its weights")
    inputs = converted(example_inputs, torch.float64)
    noise = changed(inputs, lambda x: x + torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).to(x))
    with torch.no_grad(), fast_path_off():
        work = _Work(copied(model).double().eval(), graph, (inputs, noise))
        keep, values = work.all_dead()
        repaired = copied(model)
        repaired.load_state_dict(values.state_dict())  # in the precision of the model
        proof = prove(repaired, graph, keep, example_inputs)
        drift = work.drift(cut(values, graph, keep))
    if not proof.max_rel_diff <= TOLERANCE or not drift <= TOLERANCE:
        raise TopiaristError(
            f"shrinking cannot be proved ({proof.reason or f'the outputs moved by {drift:.1e}'}): "
            "pass graph=trace(model, example_inputs).check(model, example_inputs)"
        )
    smaller = cut(repaired, graph, keep)
    before, after = cost(graph), cost(graph, keep)
    return Shrunk(smaller, Architecture.of(graph, keep), proof, drift, before, after, graph, keep)


@dataclass(frozen=True, eq=False)
class _Work:
    """The search for the dead.

    Attributes:
        model: the network, in double precision.
        graph: its graph.
        inputs: on which it is watched.
        outputs: of the network as it was given, one for each input.
        seen: reader → what it gave then, one for each input.
    """

    model: nn.Module
    graph: Graph
    inputs: tuple[Any, ...]
    outputs: list[Any] = field(default_factory=list)
    seen: dict[str, list[Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        def see(name: str, _: nn.Module, output: Tensor) -> None:
            self.seen.setdefault(name, []).append(output.clone())

        with _hooked(self.model, self._readers(self.graph.groups), see):
            self.outputs.extend(run(self.model, x) for x in self.inputs)

    def all_dead(self) -> tuple[dict[str, Tensor], nn.Module]:
        """What stays, and the network with its dead units zero and their constants in the biases of their readers."""
        keep, values = self.graph.full(), self.model
        tried: dict[str, Tensor] = {name: ~stays for name, stays in keep.items()}
        while True:
            found = {group.name: dead(group, values) & ~tried[group.name] for group in self.graph.groups}
            units = [(name, int(unit)) for name, mask in found.items() for unit in mask.nonzero()]
            if not units:
                return keep, values
            for name, unit in units:
                tried[name][unit] = True
            keep = self._less(keep, values, units)
            values = self._without(values, keep)

    def drift(self, model: nn.Module) -> float:
        """How far the outputs are from those of the network that was given."""
        return max(difference(run(model, x), y) for x, y in zip(self.inputs, self.outputs, strict=True))

    def _less(self, keep: dict[str, Tensor], values: nn.Module, units: list[tuple[str, int]]) -> dict[str, Tensor]:
        """The keep without those of some units whose removal changes nothing, found by halves."""
        trial = {name: stays.clone() for name, stays in keep.items()}
        for name, unit in units:
            trial[name][unit] = trial[name].sum() == 1  # one unit of each group must stay
        if self.drift(mask(self._without(values, trial), self.graph, trial)) <= TOLERANCE:
            return trial
        if len(units) == 1:
            return keep
        half = len(units) // 2
        return self._less(self._less(keep, values, units[:half]), values, units[half:])

    def _without(self, values: nn.Module, keep: Keep) -> nn.Module:
        """The network with what a keep removes at zero, and the constants that this takes away in biases instead."""
        masked = mask(values, self.graph, keep)
        losing = [group for group in self.graph.groups if not keep[group.name].all()]
        given: dict[str, list[Tensor]] = {}

        def mend(name: str, reader: nn.Module, output: Tensor) -> Tensor | None:
            calls = given.setdefault(name, [])
            calls.append(output)
            if len(calls) > 1 or len(self.seen.get(name, [])) != len(self.inputs):
                return None  # mended already, or called several times
            lost = _constant(self.seen[name][0] - output, reader)
            reader.get_parameter("bias").add_(lost)
            return output + _along(lost, output, reader)

        with _hooked(masked, self._readers(losing), mend):
            for x in self.inputs:
                run(masked, x)
        return with_values(values, masked)

    def _readers(self, groups: tuple[Group, ...] | list[Group]) -> list[str]:
        """The layers with a bias that read some groups."""
        names = {part.tensor.rpartition(".")[0] for group in groups for part in group.by_role("input")}
        return sorted(name for name in names if _has_bias(self.model.get_submodule(name)))


def dead(group: Group, model: nn.Module) -> Tensor:
    """Which units no weight reads, or no weight produces.

    Returns:
        Bool ``(units,)``.
    """

    def nothing(role: str) -> Tensor:
        parts = [part for part in group.by_role(role) if part.axis is not None]
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        if not parts:
            return torch.zeros(group.units, dtype=torch.bool)
        return torch.stack([sum_by_unit(part, (tensors[part.tensor] != 0).cpu().float()) for part in parts]).sum(0) == 0

    return nothing("input") | nothing("output")


@contextmanager
def _hooked(model: nn.Module, names: list[str], act: Callable[[str, nn.Module, Tensor], Any]) -> Iterator[None]:
    """Calls ``act`` with each output of some layers, while open; what it returns stands in the output's place."""

    def hook(name: str) -> Any:
        return lambda layer, _, output: act(name, layer, output) if isinstance(output, Tensor) else None

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _has_bias(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) and layer.bias is not None


def _constant(lost: Tensor, layer: nn.Module) -> Tensor:
    """What each output of a layer lost, where that is the same at all places and examples, else 0."""
    rows = lost.movedim(_axis(layer, lost), 0).flatten(1)
    first = rows[:, 0]
    same = (rows - first[:, None]).abs().amax(1) <= 1e-12 * (1 + first.abs())
    return first * same


def _along(values: Tensor, output: Tensor, layer: nn.Module) -> Tensor:
    shape = [1] * output.ndim
    shape[_axis(layer, output)] = -1
    return values.view(shape)


def _axis(layer: nn.Module, output: Tensor) -> int:
    """The axis of a layer's output that its biases lie on."""
    if isinstance(layer, nn.Linear):
        return output.ndim - 1
    return output.ndim - len(getattr(layer, "kernel_size", ())) - 1


__all__ = ["Shrunk", "dead", "shrink"]
