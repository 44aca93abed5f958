"""The layers that read a group, and what each unit adds to their outputs at sampled places.

An output of a layer that reads a group is a sum of one contribution from each unit. Which units can go is then a
question about the Gram matrix of those contributions: ThiNet and LASSO regression both ask it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from topiarist.errors import TopiaristError
from topiarist.graph import Graph, Group, Slice, call_model
from topiarist.measure import (
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

_ROOM = 2**24
"""Numbers that may be in memory at once while contributions are multiplied."""


def readers(graph: Graph, model: nn.Module) -> dict[str, dict[str, Slice]]:
    """The layers that read each group.

    Returns:
        Group name → layer name → where the units sit in its weight. Groups that nothing reads, or that something other
        than a linear layer or an ungrouped convolution reads, are left out.
    """
    found = {group.name: _readers(group, model) for group in graph.groups}
    return {name: parts for name, parts in found.items() if parts}


def grams(graph: Graph, stats: Stats, places: Places) -> dict[str, Tensor]:
    """``G = sum over m of xhat_m xhat_m^T``, with ``xhat_mc`` what unit ``c`` adds to output value ``m``.

    The output values are those of all channels at places drawn at random in each reading layer; several layers that
    read one group are stacked. One pass over the data in eval mode; what stays in memory is one ``(units, units)`` for
    each group and reading layer.

    Args:
        graph: the network's groups.
        stats: of the network as it is before the cut, with its data.
        places: where the layers are watched.

    Returns:
        Group name → float64 ``(units, units)`` on the CPU; groups that cannot be read at every reader are left out.

    Raises:
        TopiaristError: there is no data, no group can be read, or what a layer reads is not finite.
    """
    model, batches = watched(stats)
    found = readers(graph, model)
    sums = _Grams(found, places)
    names = sorted({name for parts in found.values() for name in parts})
    layers = [(name, model.get_submodule(name)) for name in names]
    with watching(layers, sums.see), mode(model, training=False), torch.no_grad():
        for inputs in places.batches(batches, model) if names else ():
            call_model(model, inputs)
    return sums.answer() or _refuse()


def watched(stats: Stats) -> tuple[nn.Module, Iterable[Any]]:
    """The model and its data.

    Raises:
        TopiaristError: one of them is missing.
    """
    if stats.model is None or stats.batches is None:
        raise TopiaristError(
            "this method watches what layers read: collect its statistics with data, batches of inputs"
        )
    return stats.model, stats.batches


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


def _readers(group: Group, model: nn.Module) -> dict[str, Slice]:
    parts: dict[str, Slice] = {}
    for part in group.by_role("input"):
        name, _, leaf = part.tensor.rpartition(".")
        if leaf != "weight" or part.axis != 1 or not _is_read(model.get_submodule(name)):
            return {}
        both = torch.cat([parts[name].positions, part.positions], 1) if name in parts else part.positions
        parts[name] = replace(part, positions=both)
    return parts


def _is_read(layer: nn.Module) -> bool:
    return is_plain(layer) and getattr(layer, "groups", 1) == 1


def _refuse() -> Any:
    raise TopiaristError(
        "no group is read by linear layers and ungrouped convolutions alone, which this method watches: take l1"
    )


class Drawn(NamedTuple):
    """Places of one batch in one layer: for each the row of its input and the window on that row, ``(places,)``."""

    row: Tensor
    at: Tensor


@dataclass(eq=False)
class Places:
    """Where layers are watched: places drawn at random in each example, and how far the data have gone.

    A layer's input begins with the axis of examples, or with examples and places in one axis, examples first. An
    example's places depend on the seed, the layer and the example's number alone.

    Attributes:
        samples: places drawn in each example, all if there are fewer.
        examples: examples looked at, at most: the first ones.
        seed: another seed draws other places.
        start: number of the batch's first example.
        size: examples in the batch.
        used: how many of them are looked at.
    """

    samples: int
    examples: int
    seed: int
    start: int = 0
    size: int = 0
    used: int = 0

    def batches(self, batches: Iterable[Any], model: nn.Module) -> Iterator[Any]:
        """The inputs of one batch after the other, on the model's device, until enough examples were seen.

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

    def patches(self, name: str, layer: Layer, x: Tensor) -> tuple[Tensor, Drawn] | None:
        """What a layer multiplies with its weight at each sampled place, ``(places, inputs, entries)``.

        Returns:
            The patches and the places; ``None`` where the layer's input does not have the examples in front.

        Raises:
            TopiaristError: what it reads is not finite.
        """
        cells, under = windows_of(layer, x)
        rows, remainder = divmod(len(cells), self.size)
        if remainder or not rows:
            return None
        drawn = [self._draw(name, self.start + example, rows * len(under)) for example in range(self.used)]
        places = torch.stack(drawn).to(x.device)
        row = places // len(under) + rows * torch.arange(self.used, device=x.device)[:, None]
        row, at = row.flatten(), (places % len(under)).flatten()
        inputs = torch.arange(cells.shape[1], device=x.device)
        found = cells[row[:, None, None], inputs[:, None], under.to(x.device)[at][:, None]]
        if not found.isfinite().all():
            raise TopiaristError(f"what {name!r} reads is not finite: check the data and the checkpoint")
        return found, Drawn(row, at)

    def _draw(self, name: str, example: int, places: int) -> Tensor:
        if places <= self.samples:
            return torch.arange(places)
        chance = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}:{name}:{example}".encode()))
        return torch.randperm(places, generator=chance)[: self.samples]


@dataclass(eq=False)
class _Grams:
    """Adds up the Gram matrices while the model runs.

    Attributes:
        found: group → layer → slice, as `readers` gives them.
        places: where the layers are watched.
        sums: ``(group, layer)`` → ``(units, units)``.
        strange: layers whose input does not have the examples in front.
    """

    found: dict[str, dict[str, Slice]]
    places: Places
    sums: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    strange: set[str] = field(default_factory=set)

    def see(self, name: str, layer: Layer, x: Tensor, _: Tensor) -> None:
        """Adds what one call of a layer reads."""
        read = self.places.patches(name, layer, x)
        if read is None:
            self.strange.add(name)
            return
        for group, parts in self.found.items():
            if name in parts:
                sum_ = gram(*(by_unit(values, parts[name]) for values in (read[0], layer.weight.detach()))).cpu()
                self.sums[group, name] = self.sums[group, name] + sum_ if (group, name) in self.sums else sum_

    def answer(self) -> dict[str, Tensor]:
        """The groups that were seen at every layer that reads them."""
        seen = {name for _, name in self.sums} - self.strange  # a layer's weight may be used without calling the layer
        return {
            group: torch.stack([self.sums[group, name] for name in parts]).sum(0)
            for group, parts in self.found.items()
            if seen >= parts.keys()
        }


def output_at(layer: Layer, output: Tensor, drawn: Drawn) -> Tensor:
    """``(places, outputs)`` in float64: a tensor of the shape of a layer's output, at some places."""
    if isinstance(layer, nn.Linear):
        return output.detach().reshape(-1, output.shape[-1])[drawn.row].double()
    batched = output if output.ndim == len(layer.kernel_size) + 2 else output[None]
    return batched.detach().flatten(2)[drawn.row, :, drawn.at].double()


def by_unit(values: Tensor, part: Slice) -> Tensor:
    """``(rows, inputs, ...)`` → float64 ``(rows, units, entries)``."""
    return values.reshape(*values.shape[:2], -1)[:, part.positions.to(values.device)].flatten(2).double()


def gram(x: Tensor, w: Tensor) -> Tensor:
    """``G_cd = sum over m, o of xhat_moc xhat_mod`` with ``xhat_moc = sum over e of x_mce w_oce``.

    Args:
        x: ``(places, units, entries)`` what is read.
        w: ``(outputs, units, entries)`` what it is multiplied with.

    Returns:
        ``(units, units)``, by the cheaper of two ways to the same sum.
    """
    places, units, entries = x.shape
    outputs = len(w)
    total = x.new_zeros(units, units)
    if places * outputs < (places + outputs) * entries * (entries + 1) // 2:
        for part in x.split(max(1, _ROOM // (outputs * units))):
            xhat = torch.einsum("mce,oce->moc", part, w).flatten(0, 1)
            total += xhat.T @ xhat
        return total
    for e in range(entries):  # sum over e, f of (x_e^T x_f) * (w_e^T w_f), which is symmetric in e and f
        for f in range(e + 1):
            pair = (x[..., e].T @ x[..., f]) * (w[..., e].T @ w[..., f])
            total += pair if e == f else pair + pair.T
    return total
