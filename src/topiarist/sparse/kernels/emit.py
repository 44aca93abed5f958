"""Writes LLVM IR: vectors of floats, loops with carried values, and arguments that a kernel reads from one array.

Every kernel has one signature, ``void kernel(int64 *arguments, int64 thread)``, so that a program is an array of
kernels with their arguments, and the loop that walks it is compiled too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F32, POINTER, NOTHING = ir.FloatType(), ir.PointerType(), ir.VoidType()
KERNEL = ir.FunctionType(NOTHING, [POINTER, I64])
FLOAT_BYTES = 4


def i64(value: int) -> ir.Constant:
    """Returns an integer constant."""
    return ir.Constant(I64, value)


class Loop:
    """A loop that is being written.

    Attributes:
        index: the counter.
        values: what is carried: in the body of this turn, after the loop of the last.
        then: what the next turn begins with; the body sets it where values are carried.
    """

    def __init__(self, index: Any, values: list[Any]) -> None:
        self.index, self.values = index, values
        self.then: Sequence[Any] = values


class Kernel:
    """One kernel that is being written: `builder` for plain instructions, and what they are made of here.

    Args:
        name: of the function.
        lanes: floats of a vector.
        pointers, integers: names of the array's entries, in this order.
    """

    def __init__(self, name: str, lanes: int, pointers: Sequence[str], integers: Sequence[str]) -> None:
        self.module, self.lanes = ir.Module(name), lanes
        self.vector, self.integers = ir.VectorType(F32, lanes), ir.VectorType(I32, lanes)
        self.function = ir.Function(self.module, KERNEL, name)
        self.builder = ir.IRBuilder(self.function.append_basic_block("entry"))
        array, self.thread = self.function.args
        kinds = {**dict.fromkeys(pointers, POINTER), **dict.fromkeys(integers, I64)}
        self.arguments = {name: self.load(array, i64(at), kind) for at, (name, kind) in enumerate(kinds.items())}

    def __getitem__(self, name: str) -> Any:
        """Returns an argument."""
        return self.arguments[name]

    def at(self, base: Any, index: Any, of: Any = F32) -> Any:
        """Returns the address of an element."""
        return self.builder.gep(base, [index], source_etype=of)

    def load(self, base: Any, index: Any, of: Any) -> Any:
        """Reads an element; a vector needs no alignment beyond that of its elements."""
        element = of.element if isinstance(of, ir.VectorType) else of
        align = FLOAT_BYTES if isinstance(of, ir.VectorType) else None
        return self.builder.load(self.at(base, index, element), typ=of, align=align)

    def store(self, value: Any, base: Any, index: Any) -> None:
        """Writes a float, or a vector of floats."""
        self.builder.store(value, self.at(base, index), align=FLOAT_BYTES)

    def floats(self, base: Any, count: int) -> list[Any]:
        """Reads vectors that lie one after the other."""
        return [self.load(base, i64(k * self.lanes), self.vector) for k in range(count)]

    def every_second(self, base: Any) -> Any:
        """Reads a vector of every second float, and nothing behind the last of them."""
        first = self.load(base, i64(0), self.vector)
        second = self.load(base, i64(self.lanes - 1), self.vector)  # ends with the last one that is taken
        taken = [2 * n if 2 * n < self.lanes else 2 * n + 1 for n in range(self.lanes)]
        return self.builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(I32, self.lanes), taken))

    def store_first(self, count: Any, vector: Any, base: Any, index: Any) -> None:
        """Writes so many lanes of a vector, and what is there already behind them."""
        lanes = ir.Constant(ir.VectorType(I64, self.lanes), list(range(self.lanes)))
        counted = self.builder.insert_element(ir.Constant(lanes.type, ir.Undefined), count, ir.Constant(I32, 0))
        zeros = ir.Constant(self.integers, [0] * self.lanes)
        inside = self.builder.icmp_signed("<", lanes, self.builder.shuffle_vector(counted, counted, zeros))
        self.store(self.builder.select(inside, vector, self.load(base, index, self.vector)), base, index)

    def spread(self, value: Any) -> Any:
        """Returns a vector that holds one float in all lanes."""
        empty = ir.Constant(self.vector, ir.Undefined)
        first = self.builder.insert_element(empty, value, ir.Constant(I32, 0))
        lanes = ir.Constant(ir.VectorType(I32, self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, empty, lanes)

    def like(self, value: Any, number: float) -> Any:
        """Returns a number as a float, or in all lanes, as a value is."""
        return F32(number) if value.type == F32 else self.spread(F32(number))

    def intrinsic(self, name: str, *operands: Any) -> Any:
        """Calls an intrinsic of LLVM whose operands and result are all floats, or all vectors."""
        of = operands[0].type
        full = f"llvm.{name}.f32" if of == F32 else f"llvm.{name}.v{self.lanes}f32"
        kind = ir.FunctionType(of, [of] * len(operands))
        return self.builder.call(self._declared(full, kind), operands)

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """Returns a × b + c, fused where the processor can; of floats or vectors."""
        return self.intrinsic("fmuladd", a, b, c)

    def at_least(self, value: Any, bound: float) -> Any:
        """Returns the larger of a value and a bound; what is no number passes."""
        limit = self.like(value, bound)
        return self.builder.select(self.builder.fcmp_ordered("<", value, limit), limit, value)

    def at_most(self, value: Any, bound: float) -> Any:
        """Returns the smaller of a value and a bound; what is no number passes."""
        limit = self.like(value, bound)
        return self.builder.select(self.builder.fcmp_ordered(">", value, limit), limit, value)

    def prefetch(self, address: Any) -> None:
        """Asks for a line of memory that is read soon."""
        name, numbers = "llvm.prefetch.p0", [ir.Constant(I32, n) for n in (0, 3, 1)]  # for reading, to keep, data
        kind = ir.FunctionType(NOTHING, [POINTER, I32, I32, I32])
        self.builder.call(self._declared(name, kind), [address, *numbers])

    def instruction(self, name: str, result: Any, *operands: Any) -> Any:
        """Calls an instruction of one processor."""
        kind = ir.FunctionType(result, [operand.type for operand in operands])
        return self.builder.call(self._declared(name, kind), operands)

    def _declared(self, name: str, kind: ir.FunctionType) -> ir.Function:
        return self.module.globals.get(name) or ir.Function(self.module, kind, name)

    def sum(self, vector: Any) -> Any:
        """Returns the sum of a vector's lanes, in any order."""
        name = f"llvm.vector.reduce.fadd.v{self.lanes}f32"
        kind = ir.FunctionType(F32, [F32, self.vector])
        return self.builder.call(self._declared(name, kind), [F32(0.0), vector], fastmath=("reassoc",))

    @contextmanager
    def loop(self, first: Any, last: Any, values: Sequence[Any] = (), step: int = 1) -> Iterator[Loop]:
        """Writes a loop over first, first + step, … below last, whose body is what the context writes."""
        before = self.builder.block
        head, body, after = (self.function.append_basic_block(name) for name in ("head", "body", "after"))
        self.builder.branch(head)
        self.builder.position_at_end(head)
        index = self.builder.phi(I64)
        carried = [self.builder.phi(value.type) for value in values]
        self.builder.cbranch(self.builder.icmp_signed("<", index, last), body, after)
        self.builder.position_at_end(body)
        loop = Loop(index, carried)
        yield loop
        following = self.builder.add(index, i64(step))
        for phi, start, then in zip((index, *carried), (first, *values), (following, *loop.then), strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(then, self.builder.block)
        self.builder.branch(head)
        self.builder.position_at_end(after)

    def either(self, condition: Any, yes: Any, no: Any) -> list[Any]:
        """Writes two branches, each a function that returns values; returns those of the branch that is taken."""
        then, other, after = (self.function.append_basic_block(name) for name in ("then", "else", "joined"))
        self.builder.cbranch(condition, then, other)
        given = []
        for block, write in ((then, yes), (other, no)):
            self.builder.position_at_end(block)
            given.append((write(), self.builder.block))
            self.builder.branch(after)
        self.builder.position_at_end(after)
        joined = []
        for pair in zip(*(values for values, _ in given), strict=True):
            phi = self.builder.phi(pair[0].type)
            for value, (_, block) in zip(pair, given, strict=True):
                phi.add_incoming(value, block)
            joined.append(phi)
        return joined

    def finished(self) -> str:
        """Returns the kernel as text."""
        self.builder.ret_void()
        return str(self.module)
