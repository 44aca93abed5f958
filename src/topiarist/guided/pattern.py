"""What the two kinds of design pattern share: how one meets a budget, moves to other maps, and becomes JSON."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor

from topiarist.architecture import Architecture
from topiarist.budget import Budget, allocate
from topiarist.errors import TopiaristError
from topiarist.files import read_json, shown, write_json
from topiarist.graph import Graph, Group, Keep

FORMAT, VERSION = "topiarist.pattern", 1


class Pattern(ABC):
    """Says how a network's units are shared out between its stages, whatever its depth, its width, and its classes.

    A stage is all groups that are produced on feature maps of one size (`Group.stage`).

    Attributes:
        stages: size of the feature map, as ``"14x14"`` → what is kept there.
    """

    kind: ClassVar[str]
    stages: Mapping[str, Any]

    def on(self, graph: Graph) -> Self:
        """Returns the same pattern for a network on feature maps of other sizes: by their order, first for first.

        The stages of layers without a map, ``"1"`` and ``""``, keep their names.

        Args:
            graph: of the network.

        Raises:
            TopiaristError: the network has more or fewer sizes of maps than the pattern.
        """
        ours, theirs = _maps(self.stages), _maps(graph.stages)
        if len(ours) != len(theirs):
            raise TopiaristError(
                f"the pattern has {len(ours)} stages of feature maps ({', '.join(ours)}), but the network "
                f"{len(theirs)} ({', '.join(theirs)}): use a network with as many"
            )
        names = dict(zip(ours, theirs, strict=True))
        return replace(self, stages={names.get(stage, stage): kept for stage, kept in self.stages.items()})  # type: ignore[type-var]

    @abstractmethod
    def _lacks(self, graph: Graph, group: Group) -> str:
        """Returns what the pattern does not say about a group; empty where it says all."""

    def _grown(self, graph: Graph, budget: Budget, thresholds: Mapping[str, Tensor]) -> Keep:
        """Scales the pattern until the budget is used up.

        Every unit has a threshold: the least factor at which the scaled pattern keeps it. To prune the highest
        thresholds is a global allocation, so that floors, multiples and exact costs are those of every other budget.
        """
        if not isinstance(budget, Budget):
            raise TopiaristError(f"the budget of a pattern must be a topiarist.Budget, but got {shown(budget)}")
        if budget.allocation == "uniform":
            raise TopiaristError("the pattern itself shares the budget out: leave allocation out, or use uniform()")
        names = [group.name for group in graph.groups]
        excluded, fixed = budget.excluded(graph), budget.own_ratios(graph)
        lacking = {g.name: self._lacks(graph, g) for g in graph.groups if g.name not in {*excluded, *fixed}}
        lacking = {name: what for name, what in lacking.items() if what}
        for name, what in list(lacking.items())[:1]:
            others = f" and {len(lacking) - 1} more groups are" if len(lacking) > 1 else " is"
            raise TopiaristError(
                f"the pattern has no {what}, where {name}{others}: use pattern.on(graph) where maps have other "
                "sizes, or give them a ratio in the budget"
            )
        scores = {name: -thresholds[name] for name in names if name not in excluded}
        return allocate(graph, scores, budget, "global")

    @abstractmethod
    def _plain(self) -> dict[str, object]:
        """Returns the stages as values of `json`."""

    def to_json(self) -> dict[str, object]:
        """Returns plain values for `json`."""
        return {"format": FORMAT, "version": VERSION, "kind": self.kind, "stages": self._plain()}

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Reads what `to_json` returned.

        Raises:
            TopiaristError: the value is no pattern of this kind, of an unknown version, or damaged.
        """
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise TopiaristError("this is no design pattern: give the JSON file that a pattern's save wrote")
        if value.get("version") != VERSION:
            raise TopiaristError(
                f"the pattern has version {shown(value.get('version'))}, this release reads {VERSION}: upgrade "
                "topiarist"
            )
        if value.get("kind") != cls.kind:
            raise TopiaristError(
                f"this is a pattern of {shown(value.get('kind'))}, not of {shown(cls.kind)}: give one of these"
            )
        return cls(value.get("stages"))  # type: ignore[call-arg]  # a dataclass of stages

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the JSON file.

        Raises:
            TopiaristError: it cannot be written.
        """
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads the JSON file.

        Raises:
            TopiaristError: there is no such file, or it is no pattern of this kind.
        """
        return cls.from_json(read(path))


def read(path: str | os.PathLike[str]) -> object:
    """Reads the values in a JSON file.

    Raises:
        TopiaristError: there is no such file, or it is no JSON.
    """
    return read_json(Path(path), "the pattern", "give a file that a pattern's save wrote")


def groups_of(architectures: tuple[Architecture, ...]) -> Iterator[tuple[Architecture, Group, Tensor]]:
    """Yields every group of some architectures, with what is kept of it.

    Raises:
        TopiaristError: there are none, or something else was given.
    """
    if not architectures:
        raise TopiaristError("a pattern is the average of architectures: give at least one")
    for architecture in architectures:
        if not isinstance(architecture, Architecture):
            raise TopiaristError(
                f"a pattern averages topiarist.Architectures, but got {type(architecture).__name__}: "
                "use pruned.architecture, or Architecture.of(graph, keep)"
            )
        for group in architecture.groups:
            yield architecture, group, architecture.keep[group.name]


def _maps(stages: Iterable[str]) -> list[str]:
    return [stage for stage in stages if stage not in ("", "1")]
