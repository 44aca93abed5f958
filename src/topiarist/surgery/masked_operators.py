"""What a mask does beyond zeroed parameters: operators that mix positions leave the dead ones out.

A layer norm over 768 features of which 200 are zero is not a layer norm over 568. In a masked model norms gather
the kept positions and scatter what they make of them back among zeros; reductions and products run over kept
positions only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from topiarist.errors import TopiaristError
from topiarist.graph import (
    Arguments,
    Form,
    Graph,
    Keep,
    Keywords,
    Trail,
    form_of,
    mixing_kind,
    trails_here,
    use_dropins,
)
from topiarist.surgery.forwards import Forward

Kept = dict[int, Tensor]
"""Axis of an operator's input → kept indices."""


class Entry(NamedTuple):
    """What an operator keeps: from where its module was called, in which call, and the kept indices."""

    outer: Trail
    call: tuple[int, int]
    kept: Kept


Table = dict[tuple[str, Trail], list[Entry]]
"""(kind, where in the module's code) → what it keeps, in the order of execution."""


class Likeness:
    """Which of the traced runs the masked network's present call is like: an operator may keep other positions in each.

    Attributes:
        runs: what the traced runs were called with.
        run: the number of the one that is most alike, from 1; 0 where no call of the whole network has begun.
        calls: how often each module was called since.
    """

    def __init__(self, runs: Sequence[Form]) -> None:
        self.runs = runs
        self.run = 0
        self.calls = Counter[str]()

    def begin(self, form: Form) -> None:
        """Notes that a call of the network begins."""
        self.run = 1 + max(range(len(self.runs)), key=lambda k: (self.runs[k].likeness(form), -k))
        self.calls.clear()


class _OverKept(TorchDispatchMode):
    """Replaces the operators that mix positions in one call of a module."""

    def __init__(self, table: Table, run: int, call: int) -> None:
        super().__init__()
        self.table, self.run, self.call, self.seen = table, run, call, Counter[tuple[str, Trail]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Arguments = (), kwargs: Keywords | None = None) -> Any:
        kwargs = kwargs or {}
        kind = mixing_kind(func, args, kwargs)
        kept = self._kept(kind) if kind is not None else {}
        return over_kept(func, args, kwargs, kind, kept) if kind is not None and kept else func(*args, **kwargs)

    def _kept(self, kind: str) -> Kept:
        """Returns what the operator keeps that runs here."""
        trails = trails_here()
        key = (kind, trails.inner)
        entries = self.table.get(key, [])
        number, self.seen[key] = self.seen[key], self.seen[key] + 1
        if not entries or all(_equal(entry.kept, entries[0].kept) for entry in entries[1:]):
            return entries[0].kept if entries else {}
        entries = [e for e in entries if e.call[0] == self.run] or entries
        entries = [e for e in entries if e.outer == trails.outer[: len(e.outer)]] or entries
        calls = sorted({entry.call for entry in entries})
        mine = [entry for entry in entries if entry.call == calls[self.call % len(calls)]]
        return mine[number % len(mine)].kept


def _equal(left: Kept, right: Kept) -> bool:
    return left is right or (left.keys() == right.keys() and all(torch.equal(left[a], right[a]) for a in left))


def over_kept(func: Any, args: Arguments, kwargs: Keywords, kind: str, kept: Kept) -> Any:
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


def gather(x: Tensor, kept: Kept) -> Tensor:
    """Returns the kept positions of a tensor."""
    for axis, indices in kept.items():
        x = x.index_select(axis, indices.to(x.device))
    return x


def scatter(x: Tensor, kept: Kept, shape: torch.Size) -> Tensor:
    """Returns the inverse: kept positions among zeros."""
    for axis, indices in kept.items():
        wide = [*x.shape[:axis], shape[axis], *x.shape[axis + 1 :]]
        x = x.new_zeros(wide).index_copy(axis, indices.to(x.device), x)
    return x


def normalise(func: Any, args: Arguments, kwargs: Keywords, kind: str, kept: Kept) -> Any:
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


class MaskedForward(Forward):
    """A forward in which the module's own operators see kept positions only."""

    def __init__(self, module: nn.Module, name: str, table: Table, likeness: Likeness) -> None:
        super().__init__(module)
        self.name, self.table, self.likeness = name, table, likeness
        if isinstance(self.inner, MaskedForward):  # masked before: what both masks keep
            self.table = _both(table, self.inner.table)
            self.inner = self.inner.inner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the module's forward; dead positions take no part in what mixes positions.

        Raises:
            TopiaristError: the network is traced or exported, where this would be lost.
        """
        exporting = getattr(torch.compiler, "is_exporting", bool)  # torch 2.6 lacks it
        if torch._C._get_tracing_state() is not None or exporting():
            raise TopiaristError(
                "a masked network cannot be traced or exported; export the cut one, which computes the same"
            )
        forward = self.__wrapped__
        if not self.name:  # the whole network
            self.likeness.begin(form_of(forward, args, kwargs, training=self.module.training))
        calls = self.likeness.calls
        calls[self.name] += 1
        with _OverKept(self.table, self.likeness.run, calls[self.name] - 1):
            return forward(*args, **kwargs)


def _both(new: Table, old: Table) -> Table:
    """Returns of every operator what two masks keep."""
    common = {**old, **new}
    for place in new.keys() & old.keys():
        common[place] = [
            entry._replace(kept=_kept_by_both(entry.kept, other.kept))
            for entry, other in zip(new[place], old[place], strict=True)
        ]
    return common


def _kept_by_both(here: Kept, there: Kept) -> Kept:
    return {**there, **here, **{a: k[torch.isin(k, there[a])] for a, k in here.items() if a in there}}


def install_masked_forwards(model: nn.Module, graph: Graph, keep: Keep) -> None:
    """Gives modules whose operators would mix in dead positions a forward that leaves those out."""
    use_dropins(model)
    dead = graph.dead(keep)
    tables: dict[str, Table] = {"": {}}
    needed = {""}
    for kind, vectors, module, call, trails in graph.solution.record.statistics:
        kept = {a: k for a, v in enumerate(vectors) if (k := graph.solution.kept(v, dead)) is not None}
        tables.setdefault(module, {}).setdefault((kind, trails.inner), []).append(Entry(trails.outer, call, kept))
        needed.update([module] if kept else [])
    likeness = Likeness(graph.solution.record.runs)
    for name in sorted(needed) if len(needed) > 1 or tables[""] else ():
        owner = model.get_submodule(name)
        owner.__dict__["forward"] = MaskedForward(owner, name, tables[name], likeness)
