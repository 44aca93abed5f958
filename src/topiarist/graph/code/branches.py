"""Branches: parts of a network's code that no example took, and which of them a cut makes unsafe.

Sizes and numbers are corrected where an example showed them. Code that never ran may compute sizes of its own: with
literals that a cut makes wrong, or with a scale from a width. Such a branch gets one clear error in a cut network, in
the place of a wrong number; every other branch stays as it is.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import CodeType, FrameType
from typing import Any, NamedTuple, cast

from torch import nn

from topiarist.graph.code.dangers import DIVIDES, OWN, UNSAFE, Look, body_of, likeness
from topiarist.graph.code.places import Place, Root, Step, callers, is_library, root_of
from topiarist.graph.code.source import FunctionNode, Span, Written, is_straight, spans_of, straight_lines
from topiarist.graph.inputs import modules_of


class Branch(NamedTuple):
    """A part of the code that no example took.

    Attributes:
        module: in whose forward it is.
        place: where; the last step is the part itself.
        line: ``file:line``.
        unsafe: it states widths, computes a number from a size, or runs a module that never ran.
        divides: it divides sizes by others, which is right where the module needs no correction.
        sizes: what it gives for sizes, as it is written: unsafe where the same had to be corrected elsewhere.
        attributes: integers of the module among these sizes: unsafe where no example showed what they are the size of.
        elsewhere: another module, or another call, took it.
    """

    module: str
    place: Place
    line: str
    unsafe: bool
    divides: bool
    sizes: frozenset[str]
    attributes: frozenset[str]
    elsewhere: bool


Ran = dict[CodeType, set[int]]
"""The instructions of each code that ran."""


@dataclass(eq=False)
class Taken:
    """Records which instructions of the network's code run; a context, beside any tracer that is at work.

    Attributes:
        top: returns the name of the running module.
        seen: by module and function, with the steps that lead to it, what ran.
        known: by module, function and its callers, where its instructions are noted.
    """

    top: Callable[[], str]
    seen: dict[tuple[str, Place, str, str], tuple[Root, Ran]] = field(default_factory=dict)
    known: dict[tuple[object, ...], set[int] | None] = field(default_factory=dict)
    _libraries: dict[int, tuple[bool, object]] = field(default_factory=dict)

    def _ran(self, frame: FrameType) -> set[int] | None:
        """Returns where the instructions of a function are noted; ``None`` where it is none of the network's."""
        if (root := root_of(frame)) is None:
            return None
        _, codes = self.seen.setdefault((self.top(), root.steps, root.name, root.function.source), (root, {}))
        return codes.setdefault(frame.f_code, set())

    def codes(self) -> Iterator[tuple[str, CodeType, set[int] | None]]:
        """Yields all code that ran, with the module that ran it and, where they were noted, the instructions."""
        for key, ran in self.known.items():
            yield cast("str", key[0]), cast("CodeType", key[1]), ran

    def __enter__(self) -> Taken:
        importlib.import_module("torch._dynamo")  # torch does at a first call: half a minute while every line is traced
        self._before: Any = sys.gettrace()
        sys.settrace(self._called)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(self._before)

    def _called(self, frame: FrameType, event: str, arg: object) -> Any:
        outer = self._before(frame, event, arg) if self._before is not None else None
        names = frame.f_globals
        if (library := self._libraries.get(id(names))) is None:
            library = self._libraries[id(names)] = (is_library(frame), names)
        if library[0]:
            return outer
        key = (self.top(), frame.f_code, *callers(frame))
        if key not in self.known:
            self.known[key] = self._ran(frame)
        if (ran := self.known[key]) is None:
            return outer
        if is_straight(frame.f_code):
            ran.update(range(len(spans_of(frame.f_code))))
            return outer
        together = straight_lines(frame.f_code)
        frame.f_trace_opcodes, frame.f_trace_lines = not together, bool(together) or outer is not None

        def ran_here(frame: FrameType, event: str, arg: object) -> Any:
            nonlocal outer
            if event == "opcode":
                ran.add(frame.f_lasti // 2)
                return ran_here
            if event == "line" and together:
                instructions = together.get(frame.f_lasti)
                frame.f_trace_opcodes = instructions is None
                ran.update(instructions or ())
            if outer is not None:
                outer = outer(frame, event, arg)
            return ran_here

        return ran_here


class unwatched:  # noqa: N801  (reads as an adverb in `with unwatched():`)
    """Context of work that is none of the network's, in which no instruction is noted."""

    def __enter__(self) -> None:
        self._watching = sys.gettrace()
        sys.settrace(None)

    def __exit__(self, *error: object) -> None:
        sys.settrace(self._watching)


def untaken(taken: Taken, model: nn.Module, ran: set[str]) -> tuple[Branch, ...]:
    """Returns the branches that were not taken, in functions that ran.

    Args:
        taken: the instructions that ran.
        model: the network.
        ran: names of the modules that ran.
    """
    modules = modules_of(model)
    alike: dict[tuple[str, str], dict[frozenset[tuple[int, int, int, int]], list[Block]]] = {}
    untaken: list[list[Block]] = []
    for (_, _, name, source), (root, codes) in taken.seen.items():
        known, ran_here = alike.setdefault((name, source), {}), _spans_that_ran(codes)
        if ran_here not in known:
            known[ran_here] = _untaken_blocks(root.function.node, ran_here)
        untaken.append(known[ran_here])
    branches: list[Branch] = []
    looked_at: dict[tuple[object, ...], list[Branch]] = {}
    for (module, steps, name, source), blocks in zip(taken.seen, untaken, strict=True):
        if not blocks:
            continue
        root, _ = taken.seen[module, steps, name, source]
        key = (name, source, id(blocks), likeness(modules.get(module), module, ran))
        if key not in looked_at:
            look = Look(modules.get(module), root.names, ran, module)
            others = alike[name, source].values()
            looked_at[key] = [_branch(look, root.function, name, block, others) for block in blocks]
        branches += [b._replace(module=module, place=(*steps, *b.place)) for b in looked_at[key]]
    return tuple(branches)


def _branch(look: Look, function: Written, name: str, block: Block, others: Collection[list[Block]]) -> Branch:
    dangers = look.at(block.parts, function.node)
    return Branch(
        "",
        (Step(name, function.source, block_span(function, block)),),
        f"{function.filename.rpartition('/')[2]}:{block.parts[0].lineno}",
        unsafe=UNSAFE in dangers,
        divides=DIVIDES in dangers,
        sizes=frozenset(each for each in dangers - {UNSAFE, DIVIDES} if not each.startswith(OWN)),
        attributes=frozenset(each.removeprefix(OWN) for each in dangers if each.startswith(OWN)),
        elsewhere=not all(_holds(other, block) for other in others),
    )


def _spans_that_ran(codes: Ran) -> frozenset[tuple[int, int, int, int]]:
    spans = {span for code, instructions in codes.items() for span in map(spans_of(code).__getitem__, instructions)}
    return frozenset(span for span in spans if span is not None)


def _holds(blocks: Sequence[Block], block: Block) -> bool:
    """Returns whether a part of the code is among blocks, or inside one of them."""
    first, last = block.parts[0], block.parts[-1]
    end = (last.end_lineno or 0, last.end_col_offset or 0)
    return any(_within((first.lineno, first.col_offset, *end), other.parts) for other in blocks)


class Block(NamedTuple):
    """A part of a function that a run may leave out: the statements of a list from one on, or an expression."""

    parts: Sequence[ast.stmt] | Sequence[ast.expr]
    holder: list[ast.stmt] | None


def blocks_of(node: ast.AST) -> Iterator[Block]:
    """Returns the parts of a statement or expression that a run may leave out, the largest first."""
    if isinstance(node, ast.IfExp):
        yield from (Block([part], None) for part in (node.body, node.orelse))
    elif isinstance(node, ast.BoolOp):
        yield from (Block([value], None) for value in node.values[1:])
    elif isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp):
        yield Block([node.elt], None)
    else:
        for held in (getattr(node, key, None) for key in ("body", "orelse", "finalbody")):
            if isinstance(held, list):
                yield from (Block(held[at:], held) for at in range(len(held)))


def block_span(function: Written, block: Block) -> Span:
    """Returns the position of a block."""
    first, last = function.span(block.parts[0]), function.span(block.parts[-1])
    return Span(*first[:2], *last[2:])


@lru_cache(maxsize=4096)
def _untaken_blocks(node: ast.AST, spans: frozenset[tuple[int, int, int, int]]) -> list[Block]:
    """Returns the largest blocks of a function in which nothing ran."""
    found: list[Block] = []

    def walk(node: ast.AST) -> None:
        skipped: set[int] = set()
        for block in blocks_of(node):
            new = not skipped.intersection(map(id, block.parts))
            if new and not any(_within(span, block.parts) for span in spans):
                found.append(block)
                skipped.update(map(id, block.parts))
        for child in ast.iter_child_nodes(node):
            uncalled = isinstance(child, FunctionNode) and not any(_within(span, body_of(child)) for span in spans)
            if id(child) not in skipped and not uncalled:  # it may run later, by itself
                walk(child)

    walk(node)
    return found


def _within(span: tuple[int, int, int, int], parts: Sequence[ast.stmt] | Sequence[ast.expr]) -> bool:
    begin, end = (parts[0].lineno, parts[0].col_offset), (parts[-1].end_lineno, parts[-1].end_col_offset)
    return begin <= span[:2] and span[2:] <= end
