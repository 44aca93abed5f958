"""Runs kernels: a program is walked by this thread and its helpers, without Python's lock."""

from __future__ import annotations

import ctypes
import os
import platform
import threading
import weakref
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from functools import cache
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from topiarist.sparse.code import Code, Kernel
from topiarist.sparse.grids import FLOATS
from topiarist.sparse.kernels import walk

_WALK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)


class Given(NamedTuple):
    """The address of a tensor that is known when a program runs.

    Attributes:
        key: names the tensor among the values of the run.
        offset: bytes behind its beginning.
        shape: of a tensor that is made for the run, and written; none where it is read.
    """

    key: Any
    offset: int = 0
    shape: tuple[int, ...] | None = None

    def tensor(self, values: MutableMapping[Any, Any]) -> Tensor:
        """Returns the tensor, its floats one after the other."""
        if self.shape is not None:
            values[self.key] = torch.empty(self.shape, **FLOATS)
        tensor: Tensor = values[self.key]
        if tensor.dtype is torch.float32 and tensor.is_contiguous() and not tensor.is_neg():
            return tensor
        return tensor.resolve_neg().to(torch.float32).contiguous()


class Step:
    """One kernel with its arguments.

    Args:
        kernel: what runs.
        pointers, integers: names of its arguments, in order.
        given: the arguments; arrays stand for their addresses, and are kept alive.
        name: of the layer that it computes; empty where it computes none.

    Attributes:
        arguments: as the kernel reads them.
        later: those that are known when the program runs, by their index.
    """

    def __init__(
        self,
        kernel: Kernel,
        pointers: Sequence[str],
        integers: Sequence[str],
        given: Mapping[str, Any],
        name: str = "",
    ) -> None:
        self.kernel, self.held, self.name = kernel, dict(given), name
        plain = [given[name] for name in (*pointers, *integers)]
        wrong = [name for name, v in given.items() if isinstance(v, np.ndarray) and not v.flags.c_contiguous]
        assert not wrong, wrong
        self.later = [(at, v) for at, v in enumerate(plain) if isinstance(v, Given)]
        self.arguments = np.array([_number(v) for v in plain], np.int64)


def _number(argument: Any) -> int:
    """Returns an argument as kernels read it: arrays by their addresses; what is known later as 0."""
    if isinstance(argument, np.ndarray):
        return int(argument.ctypes.data)
    return 0 if isinstance(argument, Given) else int(argument)


class Team:
    """This thread and its helpers, which run one program after the other, never two at a time.

    Attributes:
        threads: how many they are.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._process, self._helpers = 0, list[_Helper]()
        self._here = -1

    def run(self, call: Any, arguments: np.ndarray, keep: Sequence[Any]) -> None:
        """Calls a kernel with the number of each thread; what it reads is kept alive until all are done."""
        if self.threads > 1 and self._process != os.getpid():  # a fork has no threads but the one that forked
            self._process, self._here = os.getpid(), -1
            self._helpers = [_Helper() for _ in range(self.threads - 1)]
        if self._helpers:
            self._keep_apart()
        address = arguments.ctypes.data
        for number, helper in enumerate(self._helpers):
            helper.work.put((call, address, number + 1, arguments, keep))
        call(address, 0)

    def _keep_apart(self) -> None:
        """Keeps the helpers off the processor of this thread: after a pause the system wakes them there, to wait."""
        here = _processor()
        if here >= 0 and here != self._here:
            others = os.sched_getaffinity(0) - {here}
            for helper in self._helpers:
                with suppress(OSError):  # ended, or not allowed
                    os.sched_setaffinity(helper.thread.native_id or 0, others or {here})
            self._here = here

    def dismiss(self) -> None:
        """Waits until the helpers have nothing left to do, and lets them go; the next run has others."""
        for helper in self._helpers:
            helper.work.put(None)
            helper.thread.join()
        self._process, self._helpers, self._here = 0, [], -1


GONE = 1 << 60
"""A counter at which no thread waits for another one."""


class Program:
    """Steps that run one after the other, each by all threads together."""

    def __init__(self, steps: Sequence[Step], code: Code, team: Team) -> None:
        self.steps, self.code, self.team, self.runs = list(steps), code, team, 0
        self._later = [(step.arguments, at, given) for step in steps for at, given in step.later]
        pairs = [(code.address(step.kernel), step.arguments.ctypes.data) for step in steps]
        self._pairs = np.array(pairs, np.int64).reshape(-1, 2)
        self._counters = np.zeros(len(steps), np.int64)
        given = {"program": self._pairs, "counters": self._counters, "first": 0, "last": len(steps)}
        given |= {"threads": team.threads, "runs": 0, "rest": _rest()}
        loop = walk.Walk(pauses=platform.machine() in ("x86_64", "AMD64"))
        self._arguments = Step(loop, walk.POINTERS, walk.INTEGERS, given).arguments
        self._process = os.getpid()
        self._runs_at = (*walk.POINTERS, *walk.INTEGERS).index("runs")
        self._call = _WALK(code.address(loop))

    def __call__(self, values: MutableMapping[Any, Any] | None = None) -> None:
        """Runs the steps; calls must not overlap.

        Args:
            values: the tensors that steps read and write beside their own, by key.
        """
        tensors = []
        for arguments, at, given in self._later:
            tensors.append(given.tensor({} if values is None else values))
            arguments[at] = tensors[-1].data_ptr() + given.offset
        if self._process != os.getpid():  # forked, perhaps in the middle of a run
            self._process, self.runs, self._counters[:] = os.getpid(), 0, 0
        try:
            self.runs += 1
            self._arguments[self._runs_at] = self.runs
            self.team.run(self._call, self._arguments, (self.steps, self._pairs, self._counters, tensors))
        except BaseException:  # Ctrl-C, before this thread took part: the helpers wait for it
            self._counters[:] = GONE
            self.team.dismiss()
            self._counters[:], self.runs = 0, 0
            raise

    @property
    def parts(self) -> list[Program]:
        """Returns a program for each step."""
        return [Program([step], self.code, self.team) for step in self.steps]


class _Helper:
    """A thread that waits for work; it ends with what it helps."""

    def __init__(self) -> None:
        self.work: SimpleQueue[Any] = SimpleQueue()
        self.thread = threading.Thread(target=_help, args=(self.work,), daemon=True)
        self.thread.start()
        weakref.finalize(self, self.work.put, None)


def _help(work: SimpleQueue[Any]) -> None:
    while (given := work.get()) is not None:
        call, address, number, *_ = given  # the rest is what it reads, kept alive
        call(address, number)


@cache
def _getcpu() -> Any:
    """Returns the function that says on which processor a thread is; none where the system has no such."""
    try:
        return ctypes.CDLL(None).sched_getcpu if hasattr(os, "sched_setaffinity") else None
    except (AttributeError, OSError, TypeError):
        return None


def _processor() -> int:
    """Returns the processor of this thread; -1 where that is not known."""
    getcpu = _getcpu()
    return -1 if getcpu is None else int(getcpu())


@cache
def _rest() -> int:
    """Returns the address of what gives the processor to another thread; 0 where the system has no such function."""
    try:
        return ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value or 0
    except (AttributeError, OSError, TypeError):
        return 0
