"""Blocks: residual branches, whose removal leaves the shortcut.

While the network is traced, every tensor remembers which calls of modules it descends from, one bit a call. Where two
tensors are added and the calls behind one of them are a strict part of those behind the other, the rest of the latter
is a residual branch: ``x + F(x)``. Its modules can be removed together; this file knows structure alone, and the proof
that a removal computes what it should is that of any cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from topiarist.graph.by_tensor import ByTensor
from topiarist.graph.inputs import Arguments, Keywords, modules_of, tensors_in


class Part(NamedTuple):
    """A module of a branch.

    Attributes:
        module: dotted name.
        outputs: length of the tuple that it returns, its tensor first; 0 where it returns a tensor.
    """

    module: str
    outputs: int = 0


class Block(NamedTuple):
    """A residual branch that can be removed.

    Attributes:
        name: the module that adds it to the shortcut; where one module adds several, the largest module in it.
        parts: the outermost modules that lie entirely within it, in the order of execution.
        tips: the modules (parts or within them) whose own parameters come last: the branch is zero where these are.
    """

    name: str
    parts: tuple[Part, ...]
    tips: tuple[str, ...]

    def holds(self, name: str) -> bool:
        """Returns whether a module, or a tensor by its name, lies within the branch."""
        return any(name == part.module or name.startswith(f"{part.module}.") for part in self.parts)


class _Use(NamedTuple):
    """An operator, or the caller, who reads the outputs.

    Attributes:
        call: bit of the call that ran it.
        behind: what is behind what it read.
        tensors: those of the model that it read.
        bit: its own, where it read any.
        readers: when what it made was read.
    """

    call: int
    behind: int
    tensors: tuple[str, ...]
    bit: int
    readers: list[int]


class _Made(NamedTuple):
    """What is behind a tensor, and when it was made or written."""

    behind: int
    time: int


class _Sum(NamedTuple):
    """An addition: when, its bit, the calls behind both sides, the calls that were running and the innermost module."""

    time: int
    bit: int
    left: int
    right: int
    running: int
    module: str


class Descent:
    """What each tensor descends from.

    Integers whose bits stand for the input (bit 0), for calls of modules, for operators that read a tensor of the
    model, and for sums; `times` tells by the bit which operators ran in the call, or are the operator or the sum.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[Tensor]) -> None:
        self._modules = modules_of(model)
        self._parameters = dict(model.named_parameters())
        self._names = {id(held): name for name, held in (*self._modules.items(), *self._parameters.items())}
        self.sizes = {name: parameter.numel() for name, parameter in self._parameters.items()}
        self.owners = [""]
        self.times: list[list[int]] = [[]]
        self.running = [self._bit("")]
        self.outputs: dict[str, int] = {}
        self.uses: list[_Use] = []
        self.sums: list[_Sum] = []
        self._behind = ByTensor[_Made]()
        self._written: dict[int, _Made] = {}
        for tensor in inputs:
            self._behind[tensor] = _Made(1, -1)
        self._looked_at = 0  # what is behind numbers that the program took out of tensors

    def within(self, module: str) -> frozenset[str]:
        """Returns the names of the modules in a module, itself included."""
        return frozenset(self._names[id(inner)] for inner in self._modules[module].modules())

    def parameters(self, module: str) -> tuple[str, ...]:
        """Returns the names of the parameters in a module."""
        return tuple(self._names[id(parameter)] for parameter in self._modules[module].parameters())

    def _bit(self, owner: str) -> int:
        self.owners.append(owner)
        self.times.append([])
        return 1 << (len(self.owners) - 1)

    def enter(self, name: str) -> None:
        """Notes that a call of a module begins."""
        self.running.append(self._bit(name))

    def leave(self, name: str, output: Any) -> None:
        """Notes that it ends."""
        self.running.pop()
        self.outputs[name] = len(output) if isinstance(output, (tuple, list)) else 0

    def finish(self, outputs: Sequence[Tensor]) -> None:
        """Notes that what the network returns is used once more, by whoever called it."""
        for tensor in outputs:
            self._use([tensor], (), 0)

    def _makers(self, tensor: Tensor) -> Iterator[_Made]:
        if (made := self._behind.get(tensor)) is not None:
            yield made
        if (written := self._written.get(tensor.untyped_storage()._cdata)) is not None:
            yield written

    def read_by(self, outputs: Sequence[Tensor]) -> set[str]:
        """Returns the tensors of the model from which outputs were computed, or numbers that the program looked at."""
        behind = self._looked_at
        for tensor in outputs:
            behind |= self._of(tensor)
        return {tensor for use in self.uses if use.bit & behind for tensor in use.tensors}

    def _of(self, tensor: Tensor) -> int:
        behind = 0
        for made in self._makers(tensor):
            behind |= made.behind
        return behind

    def _use(self, given: Sequence[Tensor], tensors: tuple[str, ...], bit: int) -> _Use:
        """Notes that tensors are read."""
        behind, time = 0, len(self.uses)
        for made in (made for tensor in given for made in self._makers(tensor)):
            behind |= made.behind
            if made.time >= 0:
                self.uses[made.time].readers.append(time)
        self.uses.append(_Use(self.running[-1], behind, tensors, bit, []))
        return self.uses[-1]

    def follow(
        self, func: Any, args: Arguments, kwargs: Keywords, given: Sequence[Tensor], tensors: Sequence[str], out: Any
    ) -> None:
        """Notes an operator: what it returns descends from what it was given, and from the running call."""
        bit, time = self._bit("") if tensors else 0, len(self.uses)
        use = self._use(given, tuple(tensors), bit)
        results = tensors_in(out)
        added = self._sum(self._of(args[0]), self._of(args[1])) if _adds(func, args, kwargs, results) else 0
        after = use.behind
        for own in (use.call, bit, added):
            after |= own
            if own:
                self.times[own.bit_length() - 1].append(time)
        if not results:
            self._looked_at |= after
        aliases = [returned.alias_info for returned in func._schema.returns]
        written = any(alias is not None and alias.is_write for alias in aliases)
        for tensor in results:
            key = tensor.untyped_storage()._cdata
            if written:  # whoever shares this memory sees it
                before = self._written.get(key)
                self._written[key] = _Made(after if before is None else before.behind | after, time)
            elif all(alias is None for alias in aliases):
                self._written.pop(key, None)  # fresh memory, perhaps at an old address
            self._behind[tensor] = _Made(after, time)

    def _sum(self, left: int, right: int) -> int:
        if not left & right & 1:
            return 0  # one side does not come from the input: a table, a bias, a mask
        running = 0
        for bit in self.running:
            running |= bit
        bit = self._bit("")
        self.sums.append(
            _Sum(len(self.uses) - 1, bit, left, right, running, self.owners[self.running[-1].bit_length() - 1])
        )
        return bit

    def residual_blocks(self) -> tuple[tuple[Block, ...], dict[str, str]]:
        """Returns the blocks that can be removed, and for the others the reason, by the module that adds them."""
        solver = _Branches(self)
        blocks: list[Block] = []
        irremovable: dict[str, str] = {}
        inside = 0  # the bits of all these blocks: sums within them are nobody's shortcut
        for s in reversed(self.sums):
            left, right = s.left & ~s.right & ~s.running, s.right & ~s.left & ~s.running
            sides = [side for side in (left, right) if any(solver.names(side))]
            if len(sides) == 2 and not s.bit & inside:
                first = next(solver.names(min(sides, key=int.bit_count)))
                irremovable[s.module] = f"its shortcut is not the identity, {first} is on it"
            elif len(sides) == 1:
                block = solver.block(s, sides[0])
                if isinstance(block, Block):
                    blocks.insert(0, block)
                    inside |= sides[0]
                else:
                    irremovable[s.module] = block
        return _named(blocks, self), irremovable


class _Branches:
    """Looks for the modules of a branch, given the calls in it."""

    def __init__(self, descent: Descent) -> None:
        self.descent = descent
        self._own: dict[str, int] = {}
        self._calls: dict[str, int] = {}
        self.reads: dict[str, list[int]] = {}
        for time, use in enumerate(descent.uses):
            owner = descent.owners[use.call.bit_length() - 1]
            self._own[owner] = self._own.get(owner, 0) | use.call
            for tensor in use.tensors:
                self.reads.setdefault(tensor, []).append(time)
        self.ran = {owner for owner in descent.owners if owner}

    def names(self, calls: int) -> Iterator[str]:
        """Returns the modules that calls belong to, in the order of execution."""
        seen = set()
        for k in _bits(calls):
            name = self.descent.owners[k]
            if name and name not in seen:
                seen.add(name)
                yield name

    def calls(self, module: str) -> int:
        """Returns the calls of a module, and of those in it, that ran operators."""
        if module not in self._calls:
            self._calls[module] = 0
            for inner in self.descent.within(module):
                self._calls[module] |= self._own.get(inner, 0)
        return self._calls[module]

    def _inside(self, module: str, branch: int) -> bool:
        return module in self.ran and not self.calls(module) & ~branch

    def _times(self, branch: int) -> list[int]:
        """Returns when the operators of a branch ran."""
        return sorted({time for k in _bits(branch) for time in self.descent.times[k]})

    def _read(self, branch: int, bit: int) -> set[int]:
        """Returns when something was read that descends from a branch, and not from the sum of this bit."""
        uses, read = self.descent.uses, set[int]()
        todo = self._times(branch)
        while todo:
            new = {time for time in uses[todo.pop()].readers if not uses[time].behind & bit} - read
            read |= new
            todo += new
        return read

    def block(self, s: _Sum, branch: int) -> Block | str:
        """Returns the block of a sum, or why there is none."""
        descent = self.descent
        modules: dict[str, None] = {}
        for name in self.names(branch):
            if not self._inside(name, branch):
                if any(parameter.rpartition(".")[0] == name for parameter in descent.parameters(name)):
                    return f"{name} is used outside of the branch as well"
                continue  # a shared activation function: it is kept
            outer = [name[:at] for at, letter in enumerate(name) if letter == "." and self._inside(name[:at], branch)]
            modules.setdefault(outer[0] if outer else name)
        within = frozenset(inner for module in modules for inner in descent.within(module))
        parameters = {parameter for module in modules for parameter in descent.parameters(module)}
        if not parameters:
            return "its branch has no parameters"
        shared = "its branch shares parameters with another part of the network"
        uses = descent.uses
        found = [(t, shared) for p in parameters for t in self.reads.get(p, ()) if not uses[t].call & branch]
        found += [
            (time, "what its branch computes on the way is used elsewhere as well")
            for time in self._read(branch, s.bit)
            if time > s.time or not uses[time].call & (branch | s.running)
        ]
        if found:
            return min(found)[1]
        if any(parameter.rpartition(".")[0] not in within for parameter in parameters):
            return shared
        tips = self._tips(branch, within)
        parts = tuple(Part(module, descent.outputs[module]) for module in modules)
        return Block(s.module, parts, tuple(sorted(tips)))

    def _tips(self, branch: int, within: frozenset[str]) -> frozenset[str]:
        """Returns the modules with parameters of their own that no other one in the branch reads from."""
        read: dict[str, int] = {}
        made: dict[str, int] = {}
        for use in (self.descent.uses[time] for time in self._times(branch)):
            for owner in {tensor.rpartition(".")[0] for tensor in use.tensors if tensor in self.descent.sizes}:
                if use.call & branch and owner in within:
                    read[owner] = read.get(owner, 0) | use.behind
                    made[owner] = made.get(owner, 0) | use.bit
        return frozenset(
            tip for tip, bits in made.items() if not any(read[other] & bits for other in read if other != tip)
        )


def _bits(calls: int) -> Iterator[int]:
    """Returns which bits are set, the lowest first."""
    while calls:
        lowest = calls & -calls
        calls ^= lowest
        yield lowest.bit_length() - 1


def _named(blocks: Sequence[Block], descent: Descent) -> tuple[Block, ...]:
    """Returns blocks with names that tell them apart."""
    names = Counter(block.name for block in blocks)

    def size(part: Part) -> int:
        return sum(descent.sizes[parameter] for parameter in descent.parameters(part.module))

    return tuple(
        block._replace(name=max(block.parts, key=size).module) if not block.name or names[block.name] > 1 else block
        for block in blocks
    )


def _adds(func: Any, args: Arguments, kwargs: Keywords, results: Sequence[Tensor]) -> bool:
    """Returns whether an operator adds two tensors of one shape."""
    if func.overloadpacket.__name__ not in ("add", "add_") or kwargs.get("alpha", 1) != 1:
        return False
    return (
        len(args) > 1
        and all(isinstance(arg, Tensor) and arg.shape == results[0].shape for arg in args[:2])
        and results[0].is_floating_point()
    )
