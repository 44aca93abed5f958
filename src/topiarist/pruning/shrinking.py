"""Shrinking: channels, neurons and heads that sparse weights made dead are removed, and proved like any cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from topiarist.architecture import Architecture
from topiarist.budget import Cost, cost
from topiarist.errors import TopiaristError
from topiarist.graph import (
    Graph,
    Group,
    Keep,
    Slice,
    call_model,
    check_finite,
    converted,
    counting,
    fast_path_off,
    map_floats,
    named_tensors,
    trace,
    unwrapped,
)
from topiarist.measure import watching
from topiarist.methods import sum_by_unit
from topiarist.surgery import TOLERANCE, Answer, Proof, answer, copied, cut, difference, mask, prove, with_values


@dataclass(frozen=True, eq=False)
class Shrunk:
    """Holds the result of shrinking.

    Attributes:
        model: the smaller network.
        architecture: its shape.
        proof: that the cut computes what the mask does.
        drift: max |shrunk − given| / max |given| over the outputs, in float64: what removing the dead changed.
        before: MACs, parameters and activation memory of the dense network of the given shape.
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
    """Removes the units that zero weights made dead: a sparse network becomes a smaller one that computes the same.

    A unit is dead if all weights that read it are zero, or all that produce it: then it is the same number for every
    input, and what it adds to the layers that read it is added to their biases (Han et al. 2015 remove such neurons
    when they fine-tune). Removing dead units may make others dead, so this is repeated until there are none. Zeros
    elsewhere are kept, and so is a dead unit that is not zero where a layer without a bias or with padding reads it,
    or where an operator compares it with others, such as a layer norm or a maximum over channels. Each removal is
    checked in float64 on the example inputs, on noise, and on noise that is much larger or has the opposite sign:
    every linear layer and convolution and the outputs must give what they gave before, to 1e-10 of the largest value.

    The network is shrunk as it is evaluated. In training a batch norm behind a dead layer would give another constant
    than the one that was added to a bias.

    Args:
        model: a network with zeros among its weights; it is not changed.
        example_inputs: as for `trace`.
        graph: its graph, where it was traced before.

    Returns:
        The smaller network with its shape, its proof and its costs; the network as it is where nothing is dead.

    Raises:
        TopiaristError: the model cannot be traced, its weights are not finite, or the cut cannot be proved.
    """
    model = unwrapped(model)
    check_finite(model)
    graph = trace(model, example_inputs) if graph is None else graph
    if graph.kind != "structure":
        raise TopiaristError("shrink removes channels and neurons: give the graph of trace(), not its weights")
    double = copied(model).double().eval()
    with torch.no_grad(), fast_path_off(), counting(double, graph.outputs):
        search = _Search(double, graph, _probes(converted(example_inputs, torch.float64)))
        keep, values = search.without_dead()
        repaired = copied(model)
        repaired.load_state_dict(values.state_dict())  # in the precision of the model
        proof = prove(repaired, graph, keep, example_inputs)
        drift = search.drift(cut(values, graph, keep))
    if not proof.agrees or not drift <= TOLERANCE:
        raise TopiaristError(
            f"shrinking cannot be proved ({proof.reason or f'the outputs moved by {drift:.1e}'}): "
            "pass graph=topiarist.check(model, topiarist.trace(model, example_inputs), example_inputs)"
        )
    smaller = cut(repaired, graph, keep)
    before, after = cost(graph), cost(graph, keep)
    return Shrunk(smaller, Architecture.of(graph, keep), proof, drift, before, after, graph, keep)


def _probes(inputs: Any) -> tuple[Any, ...]:
    """Returns the inputs, noise around them, and that noise larger and with the opposite sign."""
    generator = torch.Generator().manual_seed(0)
    noisy = map_floats(inputs, lambda x: x + torch.rand(x.shape, generator=generator).to(x))
    return (inputs, noisy, *(map_floats(noisy, partial(torch.mul, other=factor)) for factor in (-1.0, 10.0, -100.0)))


@dataclass(frozen=True, eq=False)
class _Search:
    """Searches a network for dead units.

    Attributes:
        model: the network, in double precision.
        graph: its graph.
        inputs: what it is run on.
        answers: of the network as it was given, one for each input.
        responses: linear layer or convolution → what each of its calls returned in that network.
    """

    model: nn.Module
    graph: Graph
    inputs: tuple[Any, ...]
    answers: list[Answer] = field(default_factory=list)
    responses: dict[str, list[Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        def record(name: str, _: nn.Module, __: Tensor, output: Tensor) -> None:
            self.responses.setdefault(name, []).append(output.clone())

        full = mask(self.model, self.graph, self.graph.full())  # built of the same modules as what is compared with it
        with watching(_layers(full), record):
            self.answers.extend(answer(full, x) for x in self.inputs)

    def without_dead(self) -> tuple[dict[str, Tensor], nn.Module]:
        """Returns a keep without dead units, and the network with these at zero and their constants in biases."""
        keep, values = self.graph.full(), self.model
        compared = _compared(self.graph)
        tried = {name: torch.full_like(kept, name in compared) for name, kept in keep.items()}
        while True:
            untried = {group.name: dead(group, values) & ~tried[group.name] for group in self.graph.groups}
            if not any(bool(units.any()) for units in untried.values()):
                return keep, values
            tried = {name: tried[name] | units for name, units in untried.items()}
            constants = _Constants.of(mask(values, self.graph, keep), self.inputs)
            units = [
                (group, int(unit))
                for group in self.graph.groups
                for unit in untried[group.name].nonzero()
                if constants.foldable(group, int(unit), values)
            ]
            keep = self._pruned(keep, values, [(group.name, unit) for group, unit in units])
            values = self._folded(values, keep)[0]

    def drift(self, model: nn.Module) -> float:
        """Returns how far the outputs are from those of the network that was given."""
        return max(
            difference(answer(model, x, given).outputs, given.outputs)
            for x, given in zip(self.inputs, self.answers, strict=True)
        )

    def _pruned(self, keep: dict[str, Tensor], values: nn.Module, units: list[tuple[str, int]]) -> dict[str, Tensor]:
        """Returns the keep without those of some units whose removal changes nothing; searches by halves."""
        if not units:
            return keep
        trial = {name: kept.clone() for name, kept in keep.items()}
        for name, unit in units:
            trial[name][unit] = trial[name].sum() == 1  # each group keeps one unit
        network, same = self._folded(values, trial)
        if same and self.drift(mask(network, self.graph, trial)) <= TOLERANCE:
            return trial
        if len(units) == 1:
            return keep
        half = len(units) // 2
        return self._pruned(self._pruned(keep, values, units[:half]), values, units[half:])

    def _folded(self, values: nn.Module, keep: Keep) -> tuple[nn.Module, bool]:
        """Returns the network with what a keep removes at zero, and the constants that these units added in biases.

        Also whether every layer returns what it did before, at the outputs that are kept.
        """
        masked, kept = mask(values, self.graph, keep), self.graph.kept(keep)
        calls: dict[str, int] = {}
        same = True

        def fold(name: str, layer: nn.Module, _: Tensor, output: Tensor) -> Tensor | None:
            nonlocal same
            call = calls[name] = calls.get(name, -1) + 1
            before = self.responses[name][call]
            every = torch.ones(output.shape[_axis(layer, output)], dtype=torch.bool)
            compared = _shaped(kept.get((f"{name}.weight".removeprefix("."), 0), every), output, layer)
            lost = (before - output) * compared
            replaced = None
            if call == 0 and layer.bias is not None:
                constant = lost.movedim(_axis(layer, lost), 0).flatten(1)[:, 0].clone()
                layer.get_parameter("bias").add_(constant)
                lost = (lost - _shaped(constant, output, layer)) * compared
                replaced = output + _shaped(constant, output, layer)
            same = same and float(lost.abs().max()) <= TOLERANCE * float(before.abs().max())
            return replaced

        with watching(_layers(masked), fold):
            for x in self.inputs:
                call_model(masked, x)
        return with_values(values, masked), same


@dataclass(frozen=True, eq=False)
class _Constants:
    """Holds what the layers of a network read, channel by channel.

    Attributes:
        span: layer → largest and smallest number that it read in each channel, ``(channels,)`` twice.
    """

    span: dict[str, tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, model: nn.Module, inputs: tuple[Any, ...]) -> _Constants:
        """Measures them on some inputs."""
        span: dict[str, tuple[Tensor, Tensor]] = {}

        def record(name: str, layer: nn.Module, x: Tensor, output: Tensor) -> None:
            rows = x.movedim(_axis(layer, x), 0).flatten(1)
            high, low = rows.amax(1), rows.amin(1)
            if name in span:
                high, low = torch.maximum(high, span[name][0]), torch.minimum(low, span[name][1])
            span[name] = high, low

        with watching(_layers(model), record):
            for x in inputs:
                call_model(model, x)
        return cls(span)

    def foldable(self, group: Group, unit: int, model: nn.Module) -> bool:
        """Returns whether each reader of a dead unit ignores it, or can hold what it adds in its bias."""
        tensors = named_tensors(model)

        def used(part: Slice) -> bool:
            tensor = tensors[part.tensor]
            positions = part.positions[unit].to(tensor.device)
            return part.axis is None or bool(tensor.index_select(part.axis, positions).any())

        if not any(used(part) for part in group.slices if part.role != "input"):
            return True  # nothing produces it and nothing is added: it is zero
        for part in filter(used, group.by_role("input")):
            name = part.tensor.rpartition(".")[0]
            if name not in self.span or part.axis != 1 or not part.tensor.endswith("weight"):
                return False  # what is read was not recorded
            layer = model.get_submodule(name)
            size = tensors[part.tensor].shape[1]
            channels = torch.cat([part.positions[unit] + k * size for k in range(getattr(layer, "groups", 1))])
            high, low = (ends[channels] for ends in self.span[name])
            if bool((high == 0).all() and (low == 0).all()):
                continue
            if not torch.allclose(high, low, rtol=1e-12, atol=0) or not _takes_constants(layer):
                return False
        return True


def _takes_constants(layer: nn.Module) -> bool:
    """Returns whether a constant adds the same at all positions of a layer's output, so that its bias can hold it."""
    padding = getattr(layer, "padding", 0)
    padded = padding != "valid" if isinstance(padding, str) else any(padding) if isinstance(padding, tuple) else padding
    return layer.bias is not None and not padded


def _compared(graph: Graph) -> set[str]:
    """Returns the groups whose units some operator compares with each other: a norm over channels, a maximum."""
    compared = set()
    for group in graph.groups:
        keep = graph.full()
        keep[group.name] = torch.arange(group.units) != 0
        dead_classes = graph.dead(keep)
        for statistic in graph.solution.record.statistics:
            if statistic.kind != "product" and any(
                graph.solution.kept(v, dead_classes) is not None for v in statistic.vectors
            ):
                compared.add(group.name)
    return compared


def dead(group: Group, model: nn.Module) -> Tensor:
    """Finds the units that no weight reads, or no weight produces.

    Returns:
        Bool ``(units,)``.
    """
    tensors = named_tensors(model)

    def unused(role: str) -> Tensor:
        parts = [part for part in group.by_role(role) if part.axis is not None]
        if not parts:
            return torch.zeros(group.units, dtype=torch.bool)
        nonzero = [sum_by_unit(part, (tensors[part.tensor] != 0).cpu().float()) for part in parts]
        return torch.stack(nonzero).sum(0) == 0

    return unused("input") | unused("output")


def _layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Returns the linear layers and convolutions of a model, with their names."""
    kinds = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
    return [(name, module) for name, module in model.named_modules() if isinstance(module, kinds)]


def _shaped(values: Tensor, output: Tensor, layer: nn.Module) -> Tensor:
    """Returns one value for each channel of a layer's output, shaped to broadcast to it."""
    shape = [1] * output.ndim
    shape[_axis(layer, output)] = -1
    return values.to(output.device).view(shape)


def _axis(layer: nn.Module, output: Tensor) -> int:
    """Returns the axis of a layer's output that its biases lie on."""
    if isinstance(layer, nn.Linear):
        return output.ndim - 1
    return output.ndim - len(getattr(layer, "kernel_size", ())) - 1
