"""What can be removed, as values: units that compete with each other, and where each of them sits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from topiarist.graph.blocks import Block

Keep = Mapping[str, Tensor]
"""Group name → bool tensor ``(units,)``: True where the unit is kept."""

Scores = Mapping[str, Tensor]
"""Group name → float tensor ``(units,)``: high where the unit is worth keeping."""

Kind = Literal["structure", "weight", "block"]
"""What a unit is: positions on axes (channels, neurons, heads), an individual weight, or a residual block."""

KeptPositions = dict[tuple[str, int | None], Tensor]
"""(tensor, axis) → bool over the positions of that axis; axis ``None``: over the flattened tensor."""

BLOCKS = "blocks"
"""Name of the group of all residual blocks."""


@dataclass(frozen=True, eq=False)
class Slice:
    """Where the units of a group sit in one tensor.

    Attributes:
        tensor: dotted name of the parameter or buffer in the model.
        axis: the axis that the units lie on; ``None`` counts positions in the flattened tensor (one unit a weight).
        positions: int64 ``(units, k)``; row ``u`` lists the positions of unit ``u`` on that axis.
        role: what the tensor does with the unit: ``"output"`` (a weight that produces it: its filter), ``"input"`` (a
            weight that reads it), ``"bias"``, ``"scale"`` and ``"shift"`` (a normalisation's affine part),
            ``"statistic"`` (running mean or variance), ``"index"`` (the numbers by which a channel selector picks it),
            ``"weight"`` (the unit is this weight) or ``"other"``.
    """

    tensor: str
    axis: int | None
    positions: Tensor
    role: str = "other"


@dataclass(frozen=True, eq=False)
class Site:
    """Where the units of a group can be seen while the model runs: the output of a module.

    Attributes:
        module: dotted name of the module.
        axis: axis of its output, counted from the front of the traced shape.
        positions: int64 ``(units, k)``, as in a `Slice`.
        kind: class name of the module, for example ``"Conv2d"`` or ``"ReLU"``.
        call: which call of the module it is, where one forward pass calls it several times.
    """

    module: str
    axis: int
    positions: Tensor
    kind: str
    call: int = 0


@dataclass(frozen=True, eq=False)
class Group:
    """Units that compete with each other and the tensors that carry them (a "dependency group").

    Attributes:
        name: the module that produces the units first, for example ``"layer1.0.conv1"``; where one tensor carries
            several groups a suffix tells them apart (``"attn.qkv:rows"`` are heads, ``"attn.qkv:columns"`` widths).
        units: how many units there are.
        slices: where they sit; the first one is the tensor that the group is named after. None where units are blocks.
        stage: size of the feature map that the units are produced on, for example ``"32x32"``.
        find_sites: yields the `sites`, when they are asked for.
        blocks: the residual branch that each unit is, in a graph of blocks.
    """

    name: str
    units: int
    slices: tuple[Slice, ...]
    stage: str = ""
    find_sites: Iterable[Site] = field(default=(), repr=False)
    blocks: tuple[Block, ...] = ()

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Returns the module outputs that carry the units, in the order of execution."""
        return tuple(self.find_sites)

    @property
    def kind(self) -> Kind:
        """Returns what its units are."""
        return "block" if self.blocks else "weight" if self.slices[0].axis is None else "structure"

    def by_role(self, role: str) -> tuple[Slice, ...]:
        """Returns the slices that play one role (see `Slice`)."""
        return tuple(part for part in self.slices if part.role == role)


class Pinned(NamedTuple):
    """An axis of a tensor that is kept as it is, and why; in a graph of blocks a module, without an axis."""

    tensor: str
    axis: int | None
    reason: str


def kept_positions(groups: Iterable[Group], shapes: Mapping[str, tuple[int, ...]], keep: Keep) -> KeptPositions:
    """Returns what a keep leaves of each axis that units of the groups sit on.

    Args:
        groups: with their slices.
        shapes: of the tensors, by name.
        keep: group name → bool ``(units,)``; a group without an entry keeps everything.

    Returns:
        (tensor, axis) → bool over the positions of that axis, or over the flattened tensor where the axis is ``None``;
        True where the keep removes none of the units there.
    """
    positions: KeptPositions = {}
    for group in groups:
        for part in group.slices:
            shape = shapes[part.tensor]
            size = prod(shape) if part.axis is None else shape[part.axis]
            kept = positions.setdefault((part.tensor, part.axis), torch.ones(size, dtype=torch.bool))
            if group.name in keep:
                kept[part.positions[~keep[group.name].cpu()].flatten()] = False
    return positions


def broadcast_kept(kept: Tensor, axis: int | None, shape: Sequence[int]) -> Tensor:
    """Returns an entry of `kept_positions`, shaped so that it broadcasts to a tensor of this shape."""
    return kept.view(list(shape) if axis is None else [-1 if d == axis else 1 for d in range(len(shape))])


def removed_blocks(groups: Iterable[Group], keep: Keep) -> tuple[Block, ...]:
    """Returns the residual blocks that a keep removes."""
    return tuple(
        block
        for group in groups
        if group.name in keep
        for block, kept in zip(group.blocks, keep[group.name].tolist(), strict=False)
        if not kept
    )
