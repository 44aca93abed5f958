"""The graph of a network: its groups of units, what stays as it is, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from topiarist.errors import TopiaristError
from topiarist.files import suggestion
from topiarist.graph.groups import BLOCKS, Group, Keep, Pinned, Slice

if TYPE_CHECKING:
    import numpy as np

    from topiarist.graph.norms import Normed
    from topiarist.graph.solution import Solution


@dataclass(eq=False)
class Graph:
    """What can be removed from a network: groups of units, and what stays.

    Any keep with at least one True for every group is legal, and groups are independent of each other: where a row and
    a column meet in the same position, it is dead if either of them is.

    Attributes:
        groups: in the order in which the network produces them.
        shapes: of every parameter and buffer.
        parameters: names of the parameters, tied ones once.
        unknown: operators without a rule, which pinned all that they touched.
        solution: the solved trace: what costs, cuts and proofs are computed from.
        stays: module → why the branch that it adds cannot be removed, in a graph of blocks.
    """

    groups: tuple[Group, ...]
    shapes: Mapping[str, tuple[int, ...]]
    parameters: tuple[str, ...]
    unknown: tuple[str, ...]
    solution: Solution
    stays: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        rows = [f"  {group.name}: {group.units} units on {group.stage or 'weights'}" for group in self.groups]
        return "\n".join([f"Graph of {len(rows)} groups", *rows])

    def __getitem__(self, name: str) -> Group:
        try:
            return self._by_name[name]
        except KeyError:
            hint = suggestion(name, self._by_name, "`topiarist inspect` lists the groups")
            raise TopiaristError(f"the graph has no group named {name!r}: {hint}") from None

    @property
    def _by_name(self) -> dict[str, Group]:
        return {group.name: group for group in self.groups}

    @property
    def stages(self) -> dict[str, tuple[str, ...]]:
        """Names of the groups that are produced on feature maps of the same size."""
        found: dict[str, list[str]] = {}
        for group in self.groups:
            found.setdefault(group.stage, []).append(group.name)
        return {stage: tuple(names) for stage, names in found.items()}

    @property
    def selectors(self) -> tuple[str, ...]:
        """The norms that a declared channel selector follows."""
        return tuple(self.solution.selectors)

    @property
    def normed(self) -> tuple[Normed, ...]:
        """The layers whose outputs a batch norm alone reads, right behind them."""
        return self.solution.trace.norms.found()

    def scales(self, group: Group) -> tuple[Slice, ...]:
        """Where a group's units are scaled by a batch norm.

        That is the group's own scales; behind a channel selector those that it picks, of a norm that stays whole.
        """
        gathers = self.solution.trace.gathers
        own = tuple(part for part in group.by_role("scale") if f"{_head(part.tensor)}running_mean" in self.shapes)
        return own + tuple(
            Slice(gathers[part.tensor].scale, 0, gathers[part.tensor].picked[part.positions], "scale")
            for part in group.by_role("index")
            if part.tensor in gathers
        )

    @property
    def pinned(self) -> tuple[Pinned, ...]:
        """Every axis that no unit sits on, with the reason; in a graph of blocks the branches that are no units."""
        if self.of_blocks or self.stays:
            return tuple(Pinned(module, None, reason) for module, reason in self.stays.items())
        return self.solution.pinned(self.groups)

    def input_axis(self, tensor: str) -> int | None:
        """The axis along which a weight reads its inputs, those of one group in a grouped convolution.

        Returns:
            ``None`` where there is none, or no more than one input.
        """
        trace = self.solution.trace
        read = {int(mark.labels[0]) for mark in trace.marks if mark.role == "input"}
        axes = [axis for name, axis, labels in trace.sources if name == tensor and int(labels[0]) in read]
        return axes[0] if len(axes) == 1 else None

    def why(self, tensor: str, axis: int = 0) -> str:
        """Explains a pin: the chain of operators that ties an axis to something that must stay."""
        return self.solution.why(tensor, axis)

    def full(self) -> dict[str, Tensor]:
        """The keep that removes nothing."""
        return {group.name: torch.ones(group.units, dtype=torch.bool) for group in self.groups}

    @property
    def of_blocks(self) -> bool:
        """Whether its units are residual blocks."""
        return any(group.blocks for group in self.groups)

    def dead(self, keep: Keep) -> np.ndarray:
        """Bool over the solution's classes: True where a position goes with a unit that the keep removes."""
        units = {group.name: keep[group.name] for group in self.groups if group.name in keep and group.of_positions}
        return self.solution.dead(units)

    def blocks(self) -> Graph:
        """The same network with one unit per residual branch whose removal leaves the shortcut, all in one group.

        `topiarist.check` proves that each of them can go; the others are `pinned`, with the reason.
        """
        if self.of_blocks:
            return self
        blocks, stays = self.solution.trace.descent.branches()
        groups = (Group(BLOCKS, len(blocks), (), blocks=tuple(blocks)),) if blocks else ()
        return Graph(groups, self.shapes, self.parameters, self.unknown, self.solution, stays)

    def weights(self) -> Graph:
        """The same network with one unit per weight: a group for each parameter that a product multiplies with."""
        if any(group.of_weights for group in self.groups):
            return self
        multiplied = {c.weight: c.stage for c in reversed(self.solution.contractions) if c.weight is not None}
        groups = tuple(
            Group(name, numel, (Slice(name, None, torch.arange(numel).unsqueeze(1), "weight"),), multiplied[name])
            for name in self.parameters
            if name in multiplied and (numel := prod(self.shapes[name])) > 1
        )
        return Graph(groups, self.shapes, self.parameters, self.unknown, self.solution)

    def become(self, other: Graph) -> None:
        """Takes over what another graph of the same network found, so that whoever holds this one holds that."""
        self.groups, self.solution, self.stays = other.groups, other.solution, other.stays


def _head(tensor: str) -> str:
    """``"bn1.weight"`` → ``"bn1."``, ``"weight"`` → ``""``."""
    head, dot, _ = tensor.rpartition(".")
    return head + dot


def checked_keep(graph: Graph, keep: Keep) -> dict[str, Tensor]:
    """A keep with an entry for every group (all True where none was given), or an error that says what is wrong."""
    known = {group.name: group for group in graph.groups}
    for name in keep:
        graph[name]
    result = {}
    for name, group in known.items():
        mask = keep.get(name)
        if mask is None:
            result[name] = torch.ones(group.units, dtype=torch.bool)
            continue
        mask = torch.as_tensor(mask)
        if mask.dtype != torch.bool or mask.shape != (group.units,):
            raise TopiaristError(
                f"the keep of group {name!r} must be a bool tensor of {group.units} entries, not "
                f"{mask.dtype} of shape {tuple(mask.shape)}"
            )
        if not mask.any():
            raise TopiaristError(f"the keep of group {name!r} removes every unit; keep at least one")
        result[name] = mask.cpu()
    return result
