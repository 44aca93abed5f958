"""The layers that read a group, and what each unit adds to their outputs at sampled locations.

An output of a layer that reads a group is a sum of one contribution from each unit. How well the outputs can be
reconstructed from some of the units is then a question about the Gram matrix of the contributions: ThiNet and LASSO
regression both ask it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from topiarist.errors import TopiaristError
from topiarist.graph import Graph, Group, Slice, call_model
from topiarist.measure import (
    Batch,
    Inputs,
    Layer,
    Stats,
    batch_size,
    device_of,
    inputs_and_target,
    is_plain,
    mode,
    to_device,
    watching,
    windows_of,
)

_NUMBERS = 2**24
"""Numbers that may be in memory at once while contributions are multiplied."""

Readers = Mapping[str, Mapping[str, Slice]]
"""Group name → name of a layer that reads it → where the units sit in its weight."""


def readers(graph: Graph, model: nn.Module) -> Readers:
    """Returns the layers that read each group.

    Groups that nothing reads, or that something other than a linear layer or an ungrouped convolution reads, are left
    out.
    """
    parts = {group.name: _readers(group, model) for group in graph.groups}
    return {name: layers for name, layers in parts.items() if layers}


def _readers(group: Group, model: nn.Module) -> dict[str, Slice]:
    parts: dict[str, Slice] = {}
    for part in group.by_role("input"):
        name, _, leaf = part.tensor.rpartition(".")
        layer = model.get_submodule(name)
        if leaf != "weight" or part.axis != 1 or not is_plain(layer) or getattr(layer, "groups", 1) != 1:
            return {}
        both = torch.cat([parts[name].positions, part.positions], 1) if name in parts else part.positions
        parts[name] = replace(part, positions=both)
    return parts


def model_and_data(stats: Stats) -> tuple[nn.Module, Iterable[Batch]]:
    """Returns the model and its data.

    Raises:
        TopiaristError: one of them is missing.
    """
    if stats.model is None or stats.batches is None:
        raise TopiaristError("this method runs the model on data: collect its statistics with batches of inputs")
    return stats.model, stats.batches


def grams(graph: Graph, stats: Stats, locations: Locations) -> dict[str, Tensor]:
    """Measures ``G = sum over m of xhat_m xhat_m^T``, with ``xhat_mc`` what unit ``c`` adds to output value ``m``.

    The output values are those of all channels at sampled locations of each layer that reads a group; several layers
    are stacked. One pass over the data in eval mode; what stays in memory is one ``(units, units)`` for each group and
    layer that reads it.

    Args:
        graph: the network's groups.
        stats: of the network before pruning, with its data.
        locations: where the layers are sampled.

    Returns:
        Group name → float64 ``(units, units)`` on the CPU; groups that cannot be seen at every reader are left out.

    Raises:
        TopiaristError: there is no data, no group can be seen, or what a layer reads is not finite.
    """
    model, batches = model_and_data(stats)
    sums = _Grams(readers(graph, model), locations)
    names = sorted({name for layers in sums.readers.values() for name in layers})
    with (
        watching([(name, model.get_submodule(name)) for name in names], sums.add),
        mode(model, training=False),
        torch.no_grad(),
    ):
        for inputs in locations.batches(batches, model) if names else ():
            call_model(model, inputs)
    complete = sums.complete()
    if not complete:
        raise TopiaristError(
            "this method needs groups that only linear layers and ungrouped convolutions read, and this network has "
            "none: use l1"
        )
    return complete


@dataclass(eq=False)
class _Grams:
    """Adds up the Gram matrices while the model runs.

    Attributes:
        readers: of each group.
        locations: where the layers are sampled.
        sums: ``(group, layer)`` → ``(units, units)``.
        unclear: layers whose input does not have the examples in front.
    """

    readers: Readers
    locations: Locations
    sums: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    unclear: set[str] = field(default_factory=set)

    def add(self, name: str, layer: Layer, x: Tensor, _: Tensor) -> None:
        """Adds what one call of a layer reads."""
        sampled = self.locations.patches(name, layer, x)
        if sampled is None:
            self.unclear.add(name)
            return
        for group, layers in self.readers.items():
            if name in layers:
                read, weight = (unit_entries(v, layers[name]) for v in (sampled[0], layer.weight.detach()))
                total = gram(read, weight).cpu()
                self.sums[group, name] = self.sums[group, name] + total if (group, name) in self.sums else total

    def complete(self) -> dict[str, Tensor]:
        """Returns the matrices of the groups that were seen at every layer that reads them."""
        seen = {name for _, name in self.sums} - self.unclear  # a weight may be used without its layer being called
        return {
            group: torch.stack([self.sums[group, name] for name in layers]).sum(0)
            for group, layers in self.readers.items()
            if seen >= layers.keys()
        }


def gram(x: Tensor, w: Tensor) -> Tensor:
    """Returns ``G_cd = sum over m, o of xhat_moc xhat_mod`` with ``xhat_moc = sum over e of x_mce w_oce``.

    Args:
        x: ``(locations, units, entries)`` what is read.
        w: ``(outputs, units, entries)`` what it is multiplied with.

    Returns:
        ``(units, units)``, by the cheaper of two ways to the same sum.
    """
    locations, units, entries = x.shape
    outputs = len(w)
    total = x.new_zeros(units, units)
    if locations * outputs < (locations + outputs) * entries * (entries + 1) // 2:
        for part in x.split(max(1, _NUMBERS // (outputs * units))):
            xhat = torch.einsum("mce,oce->moc", part, w).flatten(0, 1)
            total += xhat.T @ xhat
        return total
    for e in range(entries):  # sum over e, f of (x_e^T x_f) * (w_e^T w_f), which is symmetric in e and f
        for f in range(e + 1):
            pair = (x[..., e].T @ x[..., f]) * (w[..., e].T @ w[..., f])
            total += pair if e == f else pair + pair.T
    return total


def unit_entries(values: Tensor, part: Slice) -> Tensor:
    """Returns values ``(rows, inputs, ...)`` as float64 ``(rows, units, entries)``."""
    return values.reshape(*values.shape[:2], -1)[:, part.positions.to(values.device)].flatten(2).double()


def scale_inputs(model: nn.Module, parts: Iterable[Slice], scales: Tensor) -> None:
    """Multiplies weights that read a group, each unit's by its scale, in place.

    Args:
        model: the masked model.
        parts: where the units sit in these weights, on their second axis.
        scales: ``(units,)``.
    """
    with torch.no_grad():
        for part in parts:
            weight = model.get_parameter(part.tensor)
            factor = torch.ones(weight.shape[1], dtype=torch.float64)
            factor[part.positions] = scales.cpu()[:, None]
            weight.mul_(factor.to(weight).view(1, -1, *[1] * (weight.ndim - 2)))


class Sample(NamedTuple):
    """Locations of one batch in one layer: the row of the input and the window on it, ``(locations,)`` each."""

    row: Tensor
    window: Tensor


@dataclass(eq=False)
class Locations:
    """Draws locations at random in each example, and counts the examples.

    A layer's input begins with the axis of examples, or with examples and locations in one axis, examples first. An
    example's locations depend on the seed, the layer and the example's number alone.

    Attributes:
        samples: locations drawn in each example, all if there are fewer.
        examples: examples used, at most: the first ones.
        seed: another seed draws other locations.
        start: number of the batch's first example.
        size: examples in the batch.
        used: how many of them are used.
    """

    samples: int
    examples: int
    seed: int
    start: int = 0
    size: int = 0
    used: int = 0

    def batches(self, batches: Iterable[Batch], model: nn.Module) -> Iterator[Inputs]:
        """Yields the inputs of one batch after the other, on the model's device, until enough examples were seen.

        Raises:
            TopiaristError: there is none.
        """
        device = device_of(model)
        self.start = 0
        for batch in batches:
            inputs, _ = inputs_and_target(batch)
            self.size = batch_size(inputs)
            self.used = min(self.size, self.examples - self.start)
            if self.size:
                yield to_device(inputs, device)
            self.start += self.size
            if self.start >= self.examples:
                break
        if not self.start:
            raise TopiaristError("there is no batch in the data: pass at least one")

    def patches(self, name: str, layer: Layer, x: Tensor) -> tuple[Tensor, Sample] | None:
        """Returns what a layer multiplies with its weight at each sampled location, ``(locations, inputs, entries)``.

        Returns:
            The patches and the locations; ``None`` where the layer's input does not have the examples in front.

        Raises:
            TopiaristError: what it reads is not finite.
        """
        cells, windows = windows_of(layer, x)
        rows, remainder = divmod(len(cells), self.size)
        if remainder or not rows:
            return None
        numbers = [self._draw(name, self.start + example, rows * len(windows)) for example in range(self.used)]
        drawn = torch.stack(numbers).to(x.device)
        row = drawn // len(windows) + rows * torch.arange(self.used, device=x.device)[:, None]
        row, window = row.flatten(), (drawn % len(windows)).flatten()
        inputs = torch.arange(cells.shape[1], device=x.device)
        patches = cells[row[:, None, None], inputs[:, None], windows.to(x.device)[window][:, None]]
        if not patches.isfinite().all():
            raise TopiaristError(f"what {name!r} reads is not finite: check the data and the checkpoint")
        return patches, Sample(row, window)

    def _draw(self, name: str, example: int, count: int) -> Tensor:
        if count <= self.samples:
            return torch.arange(count)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}:{name}:{example}".encode()))
        return torch.randperm(count, generator=generator)[: self.samples]


def output_at(layer: Layer, output: Tensor, sample: Sample) -> Tensor:
    """Returns a tensor of the shape of a layer's output at sampled locations, float64 ``(locations, outputs)``."""
    if isinstance(layer, nn.Linear):
        return output.detach().reshape(-1, output.shape[-1])[sample.row].double()
    batched = output if output.ndim == len(layer.kernel_size) + 2 else output[None]
    return batched.detach().flatten(2)[sample.row, :, sample.window].double()
