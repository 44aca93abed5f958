"""The loop that walks a program: kernels with their arguments, one after the other, by several threads in step.

A program is an array of (kernel, arguments) pairs. After each kernel all threads wait for one another: each adds 1 to
the kernel's counter, and goes on once the counter has reached the number of threads times the runs so far.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir

from topiarist.sparse.kernels.emit import I32, I64, KERNEL, NOTHING, POINTER, Kernel, i64

POINTERS = (
    "program",  # void*[steps, 2]: kernels and their arguments
    "counters",  # int64*[steps]
)
INTEGERS = (
    "first",  # step
    "last",
    "threads",
    "runs",  # so far, this one too
    "rest",  # int(*)(): gives the processor to another thread, or 0
)
PATIENCE = 4096
"""Looks at a counter before a thread gives its processor to another one."""


class Walk(NamedTuple):
    """The loop, as a kernel.

    Attributes:
        pauses: the processor is an x86, whose instruction ``pause`` runs between two looks.
    """

    pauses: bool = False

    @property
    def name(self) -> str:
        """Returns a name that says all."""
        return f"walk{'_pausing' * self.pauses}"

    def ir(self) -> str:
        """Returns the loop as LLVM IR."""
        return _walk(self)


def _walk(walk: Walk) -> str:
    """Returns the loop as LLVM IR."""
    k = Kernel(walk.name, 4, POINTERS, INTEGERS)
    b = k.builder
    program, threads = k["program"], k["threads"]
    enough = b.mul(threads, k["runs"])
    together = b.icmp_signed(">", threads, i64(1))
    with k.loop(k["first"], k["last"]) as step:
        kernel = k.load(program, b.mul(step.index, i64(2)), KERNEL.as_pointer())
        arguments = k.load(program, b.add(b.mul(step.index, i64(2)), i64(1)), POINTER)
        b.call(kernel, [arguments, k.thread])
        with b.if_then(together):
            _wait(k, k.at(k["counters"], step.index, I64), enough, walk.pauses)
    return k.finished()


def _wait(k: Kernel, counter: Any, enough: Any, pauses: bool) -> None:
    """Writes the wait for the other threads: looks again and again, and rests now and then."""
    b, before = k.builder, k.builder.block
    b.atomic_rmw("add", counter, i64(1), "seq_cst")
    look, again, rest, after = (k.function.append_basic_block(name) for name in ("look", "again", "rest", "after"))
    b.branch(look)
    b.position_at_end(look)
    looks = b.phi(I64)
    come = b.load_atomic(counter, "seq_cst", 8, typ=I64)
    b.cbranch(b.icmp_signed(">=", come, enough), after, again)
    b.position_at_end(again)
    more = b.add(looks, i64(1))
    if pauses:
        k.instruction("llvm.x86.sse2.pause", NOTHING)
    resting = b.inttoptr(k["rest"], ir.FunctionType(I32, []).as_pointer())
    tired = b.icmp_signed("==", b.and_(more, i64(PATIENCE - 1)), i64(0))
    b.cbranch(b.and_(tired, b.icmp_signed("!=", k["rest"], i64(0))), rest, look)
    b.position_at_end(rest)
    b.call(resting, [])
    b.branch(look)
    looks.add_incoming(i64(0), before)
    looks.add_incoming(more, again)
    looks.add_incoming(more, rest)
    b.position_at_end(after)
