"""What a mask does beyond zeroed parameters: operators that mix positions leave the dead ones out.

A layer norm over 768 features of which 200 are zero is not a layer norm over 568. In a masked model norms gather
the kept positions and scatter what they make of them back among zeros; reductions and products run over kept
positions only.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from topiarist.graph import Arguments, Graph, Keep, Keywords, mixing_kind, use_dropins

Table = dict[tuple[str, int], dict[int, Tensor]]
"""(kind, how many of it before in this call, also in children) → axis of the input → kept indices."""


class _OverKept(TorchDispatchMode):
    """Replaces the operators that mix positions in one call of a module; counts them as the tracer does."""

    def __init__(self, table: Table) -> None:
        super().__init__()
        self.table, self.seen = table, Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Arguments = (), kwargs: Keywords | None = None) -> Any:
        kwargs = kwargs or {}
        kind = mixing_kind(func, args, kwargs)
        if kind is None:
            return func(*args, **kwargs)
        number, self.seen[kind] = self.seen[kind], self.seen[kind] + 1
        kept = self.table.get((kind, number))
        return func(*args, **kwargs) if kept is None else over_kept(func, args, kwargs, kind, kept)


def over_kept(func: Any, args: Arguments, kwargs: Keywords, kind: str, kept: dict[int, Tensor]) -> Any:
    """Runs one operator over the kept positions of its input; zeros elsewhere."""
    if kind == "product":
        at = 1 if func.overloadpacket.__name__ in ("addmm", "baddbmm", "addmv") else 0
        filled = scatter(gather(args[at], kept), kept, args[at].shape)
        return func(*args[:at], filled, *args[at + 1 :], **kwargs)
    if kind == "reduction":
        return func(gather(args[0], kept), *args[1:], **kwargs)
    if kind == "weight norm":
        out, norms = func(gather(args[0], kept), gather(args[1], kept), *args[2:], **kwargs)
        return scatter(out, kept, args[0].shape), norms
    return normalise(func, args, kwargs, kind, kept)


def gather(x: Tensor, kept: dict[int, Tensor]) -> Tensor:
    """Returns the kept positions of a tensor."""
    for axis, indices in kept.items():
        x = x.index_select(axis, indices.to(x.device))
    return x


def scatter(x: Tensor, kept: dict[int, Tensor], shape: torch.Size) -> Tensor:
    """Returns the inverse: kept positions among zeros."""
    for axis, indices in kept.items():
        wide = [*x.shape[:axis], shape[axis], *x.shape[axis + 1 :]]
        x = x.new_zeros(wide).index_copy(axis, indices.to(x.device), x)
    return x


def normalise(func: Any, args: Arguments, kwargs: Keywords, kind: str, kept: dict[int, Tensor]) -> Any:
    """Runs one normalisation over the kept positions of its input; zeros elsewhere."""
    x, rest = args[0], list(args[1:])
    first = x.ndim - len(rest[0]) if kind == "layer" else 1
    small = gather(x, kept)
    for axis, indices in kept.items():
        for k, tensor in enumerate(rest):
            if isinstance(tensor, Tensor) and axis >= first and kind != "batch":
                rest[k] = tensor.index_select(axis - first, indices.to(tensor.device))
    if kind == "layer":
        rest[0] = list(small.shape[first:])
    elif kind == "group":
        channels, groups = rest[3], rest[5]
        rest[3] = small.shape[1]
        rest[5] = len(torch.unique(kept[1] // (channels // groups)))
    out = func(small, *rest, **kwargs)
    if isinstance(out, tuple):
        return (scatter(out[0], kept, x.shape), *out[1:])
    return scatter(out, kept, x.shape)


class MaskedForward:
    """A forward in which the module's own operators see kept positions only."""

    def __init__(self, module: nn.Module, tables: dict[int, Table], period: int) -> None:
        self.module, self.tables, self.period, self.calls = module, tables, period, 0
        self.inner = module.__dict__.get("forward")  # a shim, or a forward of the instance's own
        if isinstance(self.inner, MaskedForward):  # masked before: what both masks keep
            self.tables = {call: _both(tables.get(call, {}), self.inner.tables.get(call, {})) for call in range(period)}
            self.inner = self.inner.inner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the module's forward; dead positions take no part in what mixes positions."""
        table = self.tables.get(self.calls % self.period, {})
        self.calls += 1
        with _OverKept(table):
            forward = self.inner or type(self.module).forward.__get__(self.module)
            return forward(*args, **kwargs)


def _both(new: Table, old: Table) -> Table:
    """Returns of every operator what two masks keep."""
    common: Table = {}
    for place in {*new, *old}:
        here, there = new.get(place, {}), old.get(place, {})
        both = {axis: k[torch.isin(k, there[axis])] for axis, k in here.items() if axis in there}
        common[place] = {**there, **here, **both}
    return common


def install_masked_forwards(model: nn.Module, graph: Graph, keep: Keep) -> None:
    """Gives modules whose operators would mix in dead positions a forward that leaves those out."""
    use_dropins(model)
    record, dead = graph.solution.record, graph.dead(keep)
    tables: dict[str, dict[int, Table]] = {}
    for (module, call, kind, number), statistic in record.statistics.items():
        kept = {a: k for a, v in enumerate(statistic.vectors) if (k := graph.solution.kept(v, dead)) is not None}
        if kept:
            tables.setdefault(module, {}).setdefault(call, {})[kind, number] = kept
    for name, table in tables.items():
        owner = model.get_submodule(name)
        period = 1 + max(call for module, call in record.outputs if module == name)
        owner.__dict__["forward"] = MaskedForward(owner, table, period)
