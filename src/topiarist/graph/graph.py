"""The graph of a network: its groups of units, what is pinned, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod

import numpy as np
import torch
from torch import Tensor

from topiarist.errors import TopiaristError
from topiarist.files import shown, suggestion
from topiarist.graph.groups import BLOCKS, Group, Keep, KeptPositions, Kind, Pinned, Slice, kept_positions
from topiarist.graph.norms import Normed
from topiarist.graph.outputs import Outputs
from topiarist.graph.reading import Unread, unread_parts
from topiarist.graph.selector import NORM, SELECTOR, ChannelSelector
from topiarist.graph.solution import Solution


@dataclass(frozen=True, eq=False)
class Graph:
    """What can be removed from a network: groups of units, and what is pinned.

    Any keep with at least one True for every group is legal, and groups are independent of each other: where a row and
    a column meet in the same position, it is dead if either of them is.

    Attributes:
        groups: in the order in which the network produces them.
        shapes: of every parameter and buffer.
        parameters: names of the parameters, tied ones once.
        unknown: operators without a rule, which pinned all that they touched.
        solution: the solved record of the run: what costs, cuts and proofs are computed from.
        kind: what the units are.
        irremovable: module → why the branch that it adds cannot be removed, in a graph of blocks.
    """

    groups: tuple[Group, ...]
    shapes: Mapping[str, tuple[int, ...]]
    parameters: tuple[str, ...]
    unknown: tuple[str, ...]
    solution: Solution
    kind: Kind = "structure"
    irremovable: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        rows = [f"  {group.name}: {group.units} units on {group.stage or 'weights'}" for group in self.groups]
        return "\n".join([f"Graph of {len(rows)} groups", *rows])

    def __getitem__(self, name: str) -> Group:
        try:
            return self._by_name[name]
        except KeyError:
            hint = suggestion(name, self._by_name, "`topiarist inspect` lists the groups")
            raise TopiaristError(f"the graph has no group named {shown(name)}: {hint}") from None

    @cached_property
    def _by_name(self) -> dict[str, Group]:
        return {group.name: group for group in self.groups}

    @property
    def stages(self) -> dict[str, tuple[str, ...]]:
        """Returns the names of the groups that are produced on feature maps of the same size."""
        stages: dict[str, list[str]] = {}
        for group in self.groups:
            stages.setdefault(group.stage, []).append(group.name)
        return {stage: tuple(names) for stage, names in stages.items()}

    @property
    def selectors(self) -> tuple[str, ...]:
        """Returns the norms that a declared channel selector follows."""
        types = self.solution.record.types
        names = [name.rpartition(".") for name, kind in types.items() if issubclass(kind, ChannelSelector)]
        return tuple(norm for norm, _, last in names if last == SELECTOR and issubclass(types[norm], NORM))

    @property
    def outputs(self) -> Outputs | None:
        """Returns what counts of what the network returns, as `trace` was given it; ``None`` for all."""
        return self.solution.record.counts

    @property
    def unread(self) -> dict[str, Unread]:
        """Returns what nothing reads in evaluation: module, or parameter alone → how many parameters it holds.

        No output that counts is computed from it: heads for training, layers that are never called.
        """
        read = self.solution.record.read
        return unread_parts({name: self.shapes[name] for name in self.parameters}, read[False], read[True])

    def reads(self, group: Group) -> bool:
        """Returns whether some output that counts is computed from a group's tensors in evaluation."""
        read = self.solution.record.read[False]
        return bool(group.blocks) or any(part.tensor in read for part in group.slices)

    @property
    def normed(self) -> tuple[Normed, ...]:
        """Returns the layers whose outputs a batch norm alone reads, right behind them."""
        return self.solution.record.normed

    def scales(self, group: Group) -> tuple[Slice, ...]:
        """Returns where a group's units are scaled by a batch norm.

        That is the group's own scales; behind a channel selector those that it picks, of a norm that is not cut.
        """
        gathers = self.solution.record.gathers
        own = tuple(part for part in group.by_role("scale") if f"{_head(part.tensor)}running_mean" in self.shapes)
        return own + tuple(
            Slice(gathers[part.tensor].scale, 0, gathers[part.tensor].picked[part.positions], "scale")
            for part in group.by_role("index")
            if part.tensor in gathers
        )

    @property
    def pinned(self) -> tuple[Pinned, ...]:
        """Returns every axis that no unit sits on, with the reason; of blocks the branches that are no units."""
        if self.kind == "structure":
            return self.solution.pinned(self.groups)
        return tuple(Pinned(module, None, reason) for module, reason in self.irremovable.items())

    def input_axis(self, tensor: str) -> int | None:
        """Returns the axis along which a weight reads its inputs, those of one group in a grouped convolution.

        Returns:
            ``None`` where there is none, or no more than one input.
        """
        record = self.solution.record
        read = {int(mark.labels[0]) for mark in record.marks if mark.role == "input"}
        axes = [axis for name, axis, labels in record.sources if name == tensor and int(labels[0]) in read]
        return axes[0] if len(axes) == 1 else None

    def why(self, tensor: str, axis: int = 0) -> str:
        """Explains a pin: the chain of operators that ties an axis to something that must stay."""
        return self.solution.why(tensor, axis)

    def full(self) -> dict[str, Tensor]:
        """Returns the keep that removes nothing."""
        return {group.name: torch.ones(group.units, dtype=torch.bool) for group in self.groups}

    def without(self, units: Keep) -> Graph:
        """Returns the same network with fewer units: those that are True here are none, and so stay as they are."""
        groups = []
        for group in self.groups:
            rest = ~units.get(group.name, torch.zeros(group.units, dtype=torch.bool))
            if not rest.all():
                slices = tuple(replace(part, positions=part.positions[rest]) for part in group.slices)
                blocks = tuple(block for block, stays in zip(group.blocks, rest.tolist(), strict=False) if stays)
                group = replace(group, units=int(rest.sum()), slices=slices, blocks=blocks, find_sites=())
            if group.units:
                groups.append(group)
        return replace(self, groups=tuple(groups))

    def kept(self, keep: Keep) -> KeptPositions:
        """Returns what a keep leaves of each axis that units sit on: (tensor, axis) → bool over its positions.

        With one unit a weight the axis is ``None``, and the positions are those of the flattened tensor.
        """
        return kept_positions(self.groups, self.shapes, keep)

    def dead(self, keep: Keep) -> np.ndarray:
        """Returns bool over the solution's classes: True where a position is removed with a unit."""
        return self.solution.dead(keep if self.kind == "structure" else {})

    def blocks(self) -> Graph:
        """Returns the same network with one unit per residual block that can be removed, all in one group.

        `topiarist.check` proves that each of them can go; the others are `pinned`, with the reason.
        """
        if self.kind == "block":
            return self
        record = self.solution.record
        groups = (Group(BLOCKS, len(record.blocks), (), blocks=record.blocks),) if record.blocks else ()
        return replace(self, groups=groups, kind="block", irremovable=record.irremovable)

    def weights(self) -> Graph:
        """Returns the same network with one unit per weight: a group for each parameter that products use."""
        if self.kind == "weight":
            return self
        multiplied = {c.weight: c.stage for c in reversed(self.solution.record.contractions) if c.weight is not None}
        groups = tuple(
            Group(name, numel, (Slice(name, None, torch.arange(numel).unsqueeze(1), "weight"),), multiplied[name])
            for name in self.parameters
            if name in multiplied and (numel := prod(self.shapes[name])) > 1
        )
        return replace(self, groups=groups, kind="weight", irremovable={})


def _head(tensor: str) -> str:
    """Returns the module's part of a name: ``"bn1.weight"`` → ``"bn1."``, ``"weight"`` → ``""``."""
    head, dot, _ = tensor.rpartition(".")
    return head + dot


def checked_keep(graph: Graph, keep: Keep) -> dict[str, Tensor]:
    """Returns a keep with an entry for every group, all True where none was given.

    Raises:
        TopiaristError: an entry is of no group, of another size or type, or removes every unit.
    """
    if not isinstance(graph, Graph):
        raise TopiaristError(f"this is a {type(graph).__name__} and no graph: give what topiarist.trace returned")
    if not isinstance(keep, Mapping):
        raise TopiaristError(f"keep must map groups to booleans, as allocate gives it, but got {type(keep).__name__}")
    checked = graph.full()
    for name, kept in keep.items():
        units = graph[name].units
        try:
            kept = torch.as_tensor(kept)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TopiaristError(
                f"the keep of group {shown(name)} must be a bool tensor of {units} entries, not {shown(kept)}"
            ) from error
        if kept.dtype != torch.bool or kept.shape != (units,):
            raise TopiaristError(
                f"the keep of group {shown(name)} must be a bool tensor of {units} entries, not "
                f"{kept.dtype} of shape {tuple(kept.shape)}"
            )
        if not kept.any():
            raise TopiaristError(f"the keep of group {shown(name)} removes every unit; keep at least one")
        checked[name] = kept.cpu()
    return checked
