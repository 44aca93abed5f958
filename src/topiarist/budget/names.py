"""Names in a budget: from what a user calls parts of a network to groups of units.

A name is that of a layer, of a module with all that is in it, of a parameter or buffer, or of a group; a glob pattern
on any of these; or a module itself. What names mean is decided here alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from glob import escape
from typing import NoReturn

import torch
from torch import Tensor, nn

from topiarist.errors import TopiaristError
from topiarist.files import shown, suggestion
from topiarist.graph import Graph, Group

Name = str | nn.Module
"""What a budget calls a part of a network: a name, a glob pattern, or the module itself."""


class GroupName(str):
    """Names one group and nothing else: the layer of the same name may read other groups too."""

    __slots__ = ()


def spelled(names: Iterable[Name], model: nn.Module) -> tuple[str, ...]:
    """Returns names in place of modules; tensors with several names also by the one that a graph has.

    Args:
        names: names, glob patterns, modules.
        model: the network that they are part of.

    Raises:
        TopiaristError: a module is not part of the model.
    """
    names = tuple(names)
    if not names:
        return ()
    own = {id(module): name for name, module in model.named_modules()}
    first: dict[int, str] = {}
    tied: dict[str, str] = {}  # a further name of a tensor → its first one
    for tensors in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
        for name, tensor in tensors:
            if first.setdefault(id(tensor), name) != name:
                tied[name] = first[id(tensor)]
    made: list[str] = []
    for each in names:
        if isinstance(each, nn.Module) and id(each) not in own:
            raise TopiaristError(
                f"a module that is named ({type(each).__name__}) is not part of this model: take it from the model "
                "that is given, as model.layer1, or give its name"
            )
        name = (escape(own[id(each)]) or "*") if isinstance(each, nn.Module) else each
        behind = {} if isinstance(name, GroupName) else {tied[t]: None for t in tied if _within(t, name)}
        if not behind or any(_within(tensor, name) for tensor in first.values()):
            made.append(name)
        made += [escape(tensor) for tensor in behind if not _within(tensor, name)]
    return tuple(dict.fromkeys(made))


def plain(names: Iterable[Name]) -> tuple[str, ...]:
    """Returns names as they are, where modules cannot be understood.

    Raises:
        TopiaristError: there is a module among them.
    """
    checked = []
    for name in names:
        if not isinstance(name, str):
            raise TopiaristError(
                f"a module ({type(name).__name__}) is named where its network is not known: give its name; "
                "prune, fit and attach take modules"
            )
        checked.append(name)
    return tuple(checked)


def units_of(names: Iterable[Name], graph: Graph) -> dict[str, Tensor]:
    """Returns the units that must stay so that all that is named keeps its shape, on every axis.

    Args:
        names: names and glob patterns; the name of a group that is also that of a layer stands for the layer.
        graph: of units of any kind.

    Returns:
        Group name → bool ``(units,)``: every unit of a group that lies on a tensor which is named, whatever the tensor
        does with it; in a graph of blocks, those that hold such a tensor. Groups without such units are not listed.

    Raises:
        TopiaristError: a name means nothing in this network, or is a module.
    """
    found: dict[str, Tensor] = {}
    for name in plain(names):
        tensors = set() if isinstance(name, GroupName) else _tensors(name, graph)
        known = bool(tensors)
        for group in graph.groups:
            units = _units(group, name, tensors, graph)
            if units is not None:
                known = True
                found[group.name] = units | found[group.name] if group.name in found else units
        if not known:
            _refuse(name, graph)
    return found


def groups_made_by(name: Name, graph: Graph) -> list[str]:
    """Returns the groups whose units are produced where a name points to; of a group's own name, that group alone.

    Args:
        name: a name or a glob pattern.
        graph: of units of any kind.

    Raises:
        TopiaristError: it means nothing in this network, nothing that can be pruned is produced there, or it is a
            module.
    """
    (text,) = plain([name])
    exact = [group.name for group in graph.groups if text in (group.name, escape(group.name))]
    if exact:
        return exact
    tensors = _tensors(text, graph)
    made = [
        group.name
        for group in graph.groups
        if _matches(group.name, text) or any(part.tensor in tensors for part in group.slices if part.role != "input")
    ]
    if not made and tensors:
        raise TopiaristError(
            f"nothing that {shown(text)} produces can be pruned: leave its ratio out; `topiarist inspect` says what "
            "pins it"
        )
    return made or _refuse(text, graph)


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


def _within(tensor: str, pattern: str) -> bool:
    """Returns whether a pattern matches a tensor, or a module that holds it."""
    return any(_matches(name, pattern) for name in _path(tensor))


def _path(name: str) -> Iterator[str]:
    """Yields a dotted name, and those of the modules around it."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def _tensors(pattern: str, graph: Graph) -> set[str]:
    return {tensor for tensor in graph.shapes if _within(tensor, pattern)}


def _units(group: Group, name: str, tensors: set[str], graph: Graph) -> Tensor | None:
    """Returns bool ``(units,)``: which units of a group lie on what is named; ``None`` where none does."""
    if group.name == name or (not isinstance(name, GroupName) and _matches(group.name, name)):
        return torch.ones(group.units, dtype=torch.bool)
    if group.blocks:
        units = torch.tensor([_matches(b.name, name) or any(map(b.holds, tensors)) for b in group.blocks])
        return units if units.any() else None
    named = any(part.tensor in tensors for part in (*group.slices, *graph.scales(group)))
    return torch.ones(group.units, dtype=torch.bool) if named else None


def _refuse(name: str, graph: Graph) -> NoReturn:
    groups, modules = [group.name for group in graph.groups], [each for each in graph.solution.record.types if each]
    if any(_matches(module, name) for module in modules):
        raise TopiaristError(
            f"{shown(name)} names modules without parameters, whose size is that of others: name a layer"
        )
    known = list(dict.fromkeys((*groups, *modules, *graph.shapes)))
    hint = suggestion(name, known, f"name some such as {', '.join(known[:3])}, or a glob on such names")
    raise TopiaristError(f"{shown(name)} matches no group, module or parameter: {hint}")
