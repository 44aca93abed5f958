"""Normalisation over survivors: the part of a mask that zeroed parameters cannot express.

A layer norm over 768 features of which 200 are zero is not a layer norm over 568. In a masked model such operators
gather the survivors, normalise them and scatter them back among zeros.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from topiarist.graph import Graph, Keep
from topiarist.graph.calls import in_training
from topiarist.graph.dropins import swap_in

MIXING = ("native_layer_norm", "_fused_rms_norm", "rms_norm", "native_group_norm")


class _Normalising(TorchDispatchMode):
    """Replaces the normalisations in one call of a module."""

    def __init__(self, owner: SurvivorForward, table: dict[int, tuple[str, dict[int, Tensor]]]) -> None:
        super().__init__()
        self.owner, self.table, self.seen = owner, table, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if SurvivorForward.running[-1] is not self.owner or not _mixes(func, args, kwargs):
            return func(*args, **kwargs)
        found = self.table.get(self.seen)
        self.seen += 1
        return func(*args, **kwargs) if found is None else normalise(func, args, kwargs, *found)


def _mixes(func: Any, args: Any, kwargs: Any) -> bool:
    name = func.overloadpacket.__name__
    if "batch_norm" not in name:
        return name in MIXING
    names = [argument.name for argument in func._schema.arguments]
    return in_training(func, {**dict(zip(names, args, strict=False)), **kwargs})


def normalise(func: Any, args: Any, kwargs: Any, kind: str, kept: dict[int, Tensor]) -> Any:
    """One normalisation over the survivors of its input; zeros elsewhere."""
    x, rest = args[0], list(args[1:])
    first = x.ndim - len(rest[0]) if kind == "layer" else 1
    small = x
    for axis, indices in kept.items():
        small = small.index_select(axis, indices)
        for k, tensor in enumerate(rest):
            if isinstance(tensor, Tensor) and axis >= first and kind != "batch":
                rest[k] = tensor.index_select(axis - first, indices)
    if kind == "layer":
        rest[0] = list(small.shape[first:])
    elif kind == "group":
        channels, groups = rest[3], rest[5]
        rest[3] = small.shape[1]
        rest[5] = len(torch.unique(kept[1] // (channels // groups)))
    out = func(small, *rest, **kwargs)
    result = out[0] if isinstance(out, tuple) else out
    for axis, indices in kept.items():
        shape = list(result.shape)
        shape[axis] = x.shape[axis]
        result = result.new_zeros(shape).index_copy(axis, indices, result)
    return (result, *out[1:]) if isinstance(out, tuple) else result


class SurvivorForward:
    """A forward in which the module's own normalisations see survivors only."""

    running: list[SurvivorForward | None] = [None]  # noqa: RUF012  (the stack of all running ones)

    def __init__(self, module: nn.Module, tables: dict[int, dict[int, tuple[str, dict[int, Tensor]]]]) -> None:
        self.module, self.tables, self.calls = module, tables, 0
        self.inner = module.__dict__.get("forward")  # a shim, or a forward of the instance's own

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the module's forward; dead positions take no part in its normalisations."""
        table = self.tables.get(self.calls % (max(self.tables) + 1), {})
        self.calls += 1
        SurvivorForward.running.append(self)
        try:
            with _Normalising(self, table):
                forward = self.inner or type(self.module).forward.__get__(self.module)
                return forward(*args, **kwargs)
        finally:
            SurvivorForward.running.pop()


def install_survivors(model: nn.Module, graph: Graph, keep: Keep) -> None:
    """Gives the modules whose normalisations lose positions a forward that leaves those out."""
    swap_in(model)
    dead = graph.dead(keep)
    tables: dict[str, dict[int, dict[int, tuple[str, dict[int, Tensor]]]]] = {}
    for (module, call, number), statistic in graph.solution.trace.statistics.items():
        kept = {a: k for a, v in enumerate(statistic.vectors) if (k := graph.solution.kept(v, dead)) is not None}
        tables.setdefault(module, {}).setdefault(call, {})
        if kept:
            tables[module][call][number] = (statistic.kind, kept)
    if not any(entry for table in tables.values() for entry in table.values()):
        return
    for name, table in tables.items():  # also those that lose nothing: each counts its own operators
        owner = model.get_submodule(name)
        owner.__dict__["forward"] = SurvivorForward(owner, table)
