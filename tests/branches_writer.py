"""The writer of random networks with branches: classes, helper functions and branches around drawn statements.

A statement is a few lines that make another `x` of `x`, of the same shape. The writer puts statements into branches
(`if self.training`, optional arguments, lengths, batches), into loops and behind early returns, and says one thing in
any of Python's ways.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

IN = 5
"""Channels or features of every input."""

Statement = Callable[["Writer"], list[str]]
STATEMENTS: dict[str, list[Statement]] = {"tokens": [], "images": []}


def statement(kind: str, weight: int = 1) -> Callable[[Statement], Statement]:
    """Registers a function that draws lines which make another `x` of `x`, of the same shape."""

    def register(draw: Statement) -> Statement:
        STATEMENTS[kind].extend([draw] * weight)
        return draw

    return register


class UnfitError(Exception):
    """What was drawn does not fit here; something else is drawn."""


@dataclass
class Network:
    """What is drawn of a whole network, so far."""

    kind: str
    width: int
    chance: random.Random
    helpers: dict[str, str] = field(default_factory=dict)
    options: set[str] = field(default_factory=set)

    def pick(self, *options: Any) -> Any:
        return self.chance.choice(options)

    def often(self, share: float) -> bool:
        return self.chance.random() < share


class Writer:
    """Draws one class: its parts, its methods, its forward."""

    def __init__(self, net: Network) -> None:
        self.net, self.width = net, net.width
        self.pick, self.often = net.pick, net.often
        self.parts: dict[str, str] = {}
        self.shared: dict[tuple[str, str], str] = {}
        self.methods: list[str] = []
        self.count = 0
        self.inside = 0  # of how many branches

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def module(self, source: str, role: str = "") -> str:
        """A submodule; in a branch it is mostly one that runs anyhow, since what never runs is never pruned."""
        known = self.shared.get((source, role))
        if known is not None and (self.inside or self.often(0.15)):
            return known
        if self.inside and self.often(0.9):
            raise UnfitError
        name = self.name("part")
        self.parts[name] = source
        if not self.inside:
            self.shared[source, role] = f"self.{name}"
        return f"self.{name}"

    def number(self, value: int | str) -> str:
        name = self.name("n")
        self.parts[name] = str(value)
        return f"self.{name}"

    def either(self, value: int) -> str:
        """A number as a literal or an attribute."""
        return self.pick(str(value), self.number(value))

    def helper(self, arguments: str, body: list[str]) -> str:
        """A function of the file, plain or decorated."""
        name = f"helper{len(self.net.helpers) + 1}"
        head = ["@counted"] if self.often(0.3) else []
        self.net.helpers[name] = "\n".join([*head, f"def {name}({arguments}):", *indented(body)])
        return name

    def method(self, arguments: str, body: list[str]) -> str:
        name = self.name("method")
        static = self.often(0.2) and not any("self." in line for line in body)
        head = ["@staticmethod"] if static else []
        given = arguments if static else f"self, {arguments}"
        self.methods.extend([*head, f"def {name}({given}):", *indented(body), ""])
        return f"self.{name}"

    def option(self, name: str) -> str:
        self.net.options.add(name)
        return name

    def applied(self, names: list[str], expression: Callable[[str], str]) -> list[str]:
        """Lines that give each name its expression of itself, by one of Python's ways to say something once."""
        joined = ", ".join(names)
        single = len(names) == 1
        body = expression("t")
        ways = ["inline", "lambda", "nested", "list", "map", "method", "method"]
        way = self.pick(*ways, *["helper", "helper"] * ("self." not in body))
        if way == "inline":
            return [f"{name} = {expression(name)}" for name in names]
        if way == "list":
            bracket = self.pick("[{}]", "({})", "tuple({})") if not single else "[{}]"
            return [f"{joined}{',' * single} = " + bracket.format(f"{body} for t in ({joined},)")]
        if way == "map":
            return [f"{joined}{',' * single} = map(lambda t: {body}, ({joined},))"]
        function, lines = self.name("part_of"), []
        if way == "lambda":
            lines = [f"{function} = lambda t: {body}"]
        elif way == "nested":
            lines = [f"def {function}(t):", f"    return {body}"]
        elif way == "method":
            function = self.method("t", [f"return {body}"])
        else:
            function = self.helper("t", [f"return {body}"])
        return [*lines, *(f"{name} = {function}({name})" for name in names)]

    @contextmanager
    def branch(self) -> Iterator[None]:
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    def condition(self) -> str:
        name = self.pick("training", "training", "gain", "other", "steps", "size", "batch")
        axis = {"tokens": 1, "images": 2}[self.net.kind]
        if name == "size":
            self.option("size")
            return self.pick(f"x.shape[{axis}] > 6", f"x.size({axis}) % 5 == 2", f"x.shape[{axis}] >= 7")
        if name == "batch":
            self.option("batch")
            return self.pick("x.shape[0] > 4", "len(x) == 6")
        if name == "steps":
            return f"{self.option('steps')} > 1"
        return "self.training" if name == "training" else f"{self.option(name)} is not None"

    def simple(self) -> list[str]:
        for _ in range(20):
            try:
                return self.pick(*STATEMENTS[self.net.kind])(self)
            except UnfitError:
                continue
        return [self.pick("x = x * 0.5", "x = x.tanh()", "x = F.gelu(x)", "x = x + 1")]

    def branched(self) -> list[str]:
        """A statement, perhaps in a branch, a loop, or after an early return."""
        way = self.pick("plain", "plain", "if", "if", "else", "loop", "return")
        if way == "plain":
            return self.simple()
        if way == "loop":
            count = self.pick("self.times", "steps", "2")
            if count == "steps":
                self.option("steps")
            self.parts["times"] = "2"
            body = self.simple()
            if self.often(0.3):
                return ["step = 0", f"while step < {count}:", *indented([*body, "step += 1"])]
            return [f"for step in range({count}):", *indented(body)]
        if way == "return":
            with self.branch():
                early = [] if self.often(0.5) else self.simple()
                return [f"if {self.condition()}:", *indented([*early, self.pick("return x", "return x * 0.5")])]
        before = self.simple()
        condition = self.condition()
        with self.branch():
            inner = self.branched() if self.often(0.2) else self.simple()
            lines = [*before, f"if {condition}:", *indented(inner)]
            if way == "else":
                lines += ["else:", *indented(self.simple())]
        return lines


def indented(lines: list[str]) -> list[str]:
    return [f"    {line}" if line else "" for line in lines]


ARGUMENTS = "x, gain=None, other=None, mask=None, steps=1"
GIVEN = "gain, other, mask, steps"


def written_class(name: str, writer: Writer, arguments: str, lines: list[str]) -> str:
    text = "\n".join([*writer.methods, *lines])
    used = {part: source for part, source in writer.parts.items() if re.search(rf"\bself\.{part}\b", text)}
    parts = [f"self.{part} = {source}" for part, source in used.items()]
    body = ["def __init__(self):", *indented(["super().__init__()", *parts]), ""]
    body += [*writer.methods, f"def forward(self, {arguments}):", *indented(lines)]
    return "\n".join([f"class {name}(nn.Module):", *indented(body), ""])


IMPORTS = """\
import functools
import math

import torch
import torch.nn.functional as F
from torch import nn


def counted(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper

"""


MEMORY = """
class Memory(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.proj = (nn.Linear({width}, {width}) for _ in range(4))
        self.heads = 2

    def forward(self, x, past=None):
        b, n, c = x.shape
        q, k, v = (f(x).view(b, n, {heads}, {part}).transpose(1, 2) for f in (self.q, self.k, self.v))
        if past is not None:
            k, v = (torch.cat([old, new], 2) for old, new in zip(past, (k, v)))
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj(y.transpose(1, 2).flatten(2)), (k, v)

"""


def memory(net: Network) -> str:
    """Attention that is given keys and values of the past, and returns them with its own."""
    heads = net.pick("2", "self.heads")
    part = net.pick(str(net.width // 2), "-1", f"c // {heads}", f"self.k.out_features // {heads}")
    net.options.add("past")
    return MEMORY.format(width=net.width, heads=heads, part=part)


def source_of(net: Network) -> str:
    """A file with a class `Network`; its branches ask for ``net.options``."""
    kind, chance = net.kind, net.chance
    blocks = []
    for k in range(chance.choice([1, 1, 2])):
        writer = Writer(net)
        lines = [line for _ in range(chance.choice([1, 2, 3])) for line in writer.branched()]
        if chance.random() < 0.3:
            lines = [f"if {writer.option('gain')} is not None:", "    x = x * gain", *lines]
        blocks.append(written_class(f"Block{k}", writer, ARGUMENTS, [*lines, "return x"]))
    whole = Writer(net)
    whole.parts |= {"stem": f"nn.Linear({IN}, {net.width})" if kind == "tokens" else f"nn.Conv2d({IN}, {net.width}, 1)"}
    whole.parts |= {"head": f"nn.Linear({net.width}, 3)"}
    names = [f"Block{k}()" for k in range(len(blocks))]
    if chance.random() < 0.3:
        whole.parts["blocks"] = f"nn.ModuleList([{', '.join(names)}])"
        lines = ["for block in self.blocks:", f"    x = block(x, {GIVEN})"]
    else:
        whole.parts |= {f"block{k}": name for k, name in enumerate(names)}
        order = [*range(len(blocks)), *([chance.randrange(len(blocks))] if chance.random() < 0.2 else [])]
        keywords = "gain=gain, other=other, mask=mask, steps=steps"
        lines = [f"x = self.block{k}(x, {chance.choice([GIVEN, keywords])})" for k in order]
    ends = {
        "tokens": ["self.head(x)", "self.head(x.mean(1))", "self.head(x[:, 0])", "(self.head(x), x.shape[1])"],
        "images": [
            "self.head(x.mean((2, 3)))", "self.head(x.flatten(2).amax(-1))", "self.head(x.movedim(1, -1))",
            "{'logits': self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))}",
        ],
    }[kind]  # fmt: skip
    begin = ["x = self.stem(x)", "if other is not None:", "    other = self.stem(other)"]
    end = chance.choice(ends)
    if kind == "tokens" and chance.random() < 0.2:
        blocks.append(memory(net))
        whole.parts["memory"] = "Memory()"
        lines, end = [*lines, "x, kept = self.memory(x, past)"], "self.head(x), *kept"
    network = written_class("Network", whole, f"{ARGUMENTS}, past=None", [*begin, *lines, f"return {end}"])
    helpers = [helper + "\n\n" for helper in net.helpers.values()]
    return "\n".join([IMPORTS, *helpers, *(block + "\n" for block in blocks), network])
