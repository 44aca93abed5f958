"""A network whose sparse weights run fast on this machine's CPU."""

from __future__ import annotations

import math
import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from topiarist.errors import TopiaristError
from topiarist.files import shown
from topiarist.graph import Inputs, arguments_of, tensors_in
from topiarist.measure import device_of, threads_set
from topiarist.sparse.capture import captured
from topiarist.sparse.code import code_of
from topiarist.sparse.machine import Machine, host
from topiarist.sparse.tuning import Tuner

if TYPE_CHECKING:
    from topiarist.sparse.plan import Plan

PLANS = 8
"""Shapes of inputs for which a network's plan is kept."""
TOLERANCE = 1e-4
"""Largest difference from torch, relative to the largest output."""
ROUNDED = 0.02
"""The same, where weights are held in 16 bits."""
CLEAR = 1.1
"""How much faster torch's operators with several threads must make a network, for these stay in the way of others."""
WORTH = 0.95
"""A plan is taken where it takes at most 1 / 0.95 of torch's time."""


class SparseModule(nn.Module):
    """Runs a network by kernels for its sparse weights; what they do not take runs in torch, unchanged.

    A plan is made for each shape of inputs, when it comes first. Outputs have no gradients. The weights are those of
    the time when the plan was made.

    Attributes:
        model: the network.
        threads: that run together.
    """

    def __init__(
        self,
        model: nn.Module,
        threads: int = 1,
        *,
        machine: Machine | None = None,
        tune: bool = True,
        always: bool = False,
        halves: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.threads, self.machine = model, threads, machine
        self.tune, self.always, self.halves = tune, always, halves
        self._plans: OrderedDict[Any, Plan | str] = OrderedDict()
        self._process, self._lock = os.getpid(), threading.RLock()
        self.training = False

    def train(self, mode: bool = True) -> SparseModule:
        """Returns itself: it always evaluates."""
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the network."""
        with self._alone():
            plan, leaves = self.plan(args, kwargs)
            if not isinstance(plan, str):
                return plan.run(leaves)
            with self._apart():
                return self.model(*args, **kwargs)

    def _alone(self) -> threading.RLock:
        """Returns a lock, so that one thread runs; a process that was forked meanwhile has a lock of its own."""
        if self._process != os.getpid():
            self._process, self._lock = os.getpid(), threading.RLock()
        return self._lock

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """Context in which torch's settings are this module's, whatever the caller's are."""
        with torch.inference_mode(False), torch.no_grad(), threads_set(self.threads):
            yield

    def plan(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Plan | str, list[Any]]:
        """Returns the plan for such arguments, or a sentence that says why they run in torch; and their leaves."""
        nesting: Any = len(args)
        leaves = list(args)
        if kwargs or not all(isinstance(leaf, Tensor) for leaf in leaves):
            leaves, tree = tree_flatten((tuple(args), dict(kwargs)))
            nesting = repr(tree)
        key = (nesting, tuple(map(_form, leaves)))
        if key not in self._plans:
            with self._apart():
                self._plans[key] = self._made(args, kwargs, leaves)
            if isinstance(self._plans[key], str):
                warnings.warn(f"{self._plans[key]}; it runs in torch", stacklevel=5)
            while len(self._plans) > PLANS:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return self._plans[key], leaves

    def _made(self, args: Sequence[Any], kwargs: Mapping[str, Any], leaves: list[Any]) -> Plan | str:
        reason = unsuitable(self.model, leaves)
        if reason:
            return reason
        try:
            code = code_of(self.machine or host())  # which says where llvmlite is missing
            from topiarist.sparse.plan import planned  # whose kernels are written with it

            tuner = Tuner(code.machine, self.tune)
            tuner.read()
            network = captured(self.model, args, kwargs)
            plan = planned(network, code, self.threads, tuner, halves=self.halves)
        except TopiaristError as error:
            return str(error).partition(": run")[0]
        reason = self._compared(plan, leaves, lambda: self.model(*args, **kwargs), tuner)
        tuner.write()
        return reason or plan

    def _compared(self, plan: Plan, leaves: list[Any], in_torch: Callable[[], Any], tuner: Tuner) -> str:
        """Returns why a plan is not taken: it differs from torch, or is slower; else nothing."""
        expected, got = tensors_in(in_torch()), tensors_in(plan.run(leaves))
        difference = max((_difference(a, b) for a, b in zip(got, expected, strict=True)), default=0.0)
        if not difference <= (ROUNDED if self.halves else TOLERANCE):
            return f"kernels differ from torch by {difference:.1e} of the largest output"
        speed = 1.0 if self.always else self._speed(plan, leaves, in_torch, tuner)
        return f"kernels would take {1 / speed:.2f} times torch's time" if speed < WORTH else ""

    def _speed(self, plan: Plan, leaves: list[Any], in_torch: Callable[[], Any], tuner: Tuner) -> float:
        """Returns how many times as fast as torch a plan is, with as many threads for torch's operators as is best."""
        speeds = {}
        for plan.torch_threads in dict.fromkeys((self.threads, 1)):
            key = f"{plan.key} {plan.torch_threads}"
            speeds[plan.torch_threads] = tuner.speed(key, in_torch, lambda: plan.run(leaves))
        plan.torch_threads = self.threads if speeds[self.threads] > CLEAR * speeds[1] else 1
        return speeds[plan.torch_threads]

    def seconds(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Returns how long each layer takes while the network runs, by name; what is no layer under ``""``.

        Raises:
            TopiaristError: the network runs in torch; the sentence says why.
        """
        with self._alone():
            plan, leaves = self.plan(args, kwargs)
            if isinstance(plan, str):
                raise TopiaristError(f"{plan}, so zeros make nothing faster: prune channels, or give no latency")
            with self._apart():
                return plan.seconds(leaves)

    def report(self) -> str:
        """Returns what runs by kernels and what in torch, by the shapes of inputs."""
        lines = []
        for shapes, plan in self._plans.items():
            lines.append(", ".join("×".join(map(str, form[0])) for form in shapes[1] if form[0]) + ":")
            lines += [f"  {line}" for line in ([plan] if isinstance(plan, str) else plan.lines)]
        return "\n".join(lines)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the plans, which are made anew."""
        return {**self.__dict__, "_plans": OrderedDict(), "_lock": None, "_process": 0}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begins without plans."""
        self.__dict__.update(state)
        self._lock = threading.RLock()


def _form(leaf: Any) -> tuple[Any, ...]:
    """Returns what a plan depends on of an argument: shape and type of a tensor, else the value."""
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.dtype, leaf.device.type
    return (), type(leaf), leaf if isinstance(leaf, int | float | str | bytes | None) else repr(leaf)


def _difference(got: Tensor, expected: Tensor) -> float:
    """Returns max |got − expected| / max |expected|; what is NaN or infinite in one must be so in the other."""
    if got.shape != expected.shape:
        return math.inf
    if not got.is_floating_point() and not got.is_complex():
        return 0.0 if bool((got == expected).all()) else math.inf
    same = (got == expected) | (got.isnan() & expected.isnan())
    if bool(same.all()):
        return 0.0
    gap = (got - expected).abs().masked_fill(same, 0.0)
    return float(gap.max() / expected.abs().nan_to_num(0, 0, 0).max().clamp_min(1e-30))


def unsuitable(model: nn.Module, leaves: Sequence[Any]) -> str:
    """Returns why a network cannot run by kernels; nothing where it can."""
    if device_of(model).type != "cpu" or any(t.device.type != "cpu" for t in tensors_in(leaves)):
        return "kernels run on the CPU, and the network or its input is elsewhere"
    if any(module.training for module in model.modules()):
        return "the network is in training mode: call model.eval() and compile it again"
    wrong = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32}
    if wrong:
        return f"kernels take float32 and the network has {min(map(str, wrong)).removeprefix('torch.')} weights"
    return ""


def compile(
    model: nn.Module,
    example_inputs: Inputs,
    threads: int = 1,
    *,
    machine: Machine | None = None,
    tune: bool = True,
    always: bool = False,
    halves: bool = False,
) -> SparseModule:
    """Makes a network run fast by its zeros, on this machine's CPU, and checks that its outputs are torch's.

    Args:
        model: the network, in eval mode; prune it first.
        example_inputs: as for `topiarist.trace`; other shapes are planned for when they come.
        threads: that run together, at least 1.
        machine: a processor other than the one at hand.
        tune: block sizes are measured, for some seconds the first time; else they are guessed.
        always: kernels run also where torch is faster.
        halves: linear layers on one vector hold their weights in 16 bits (bfloat16) and compute in 32; outputs may then
            differ by 0.02 of the largest.

    Returns:
        The network with the same call and the same outputs, to 1e-4 of the largest.

    Raises:
        TopiaristError: threads is not a whole number of at least 1.
    """
    if not isinstance(threads, int) or isinstance(threads, bool) or not 1 <= threads <= 1024:
        raise TopiaristError(f"threads must be a whole number from 1 to 1024, but got {shown(threads)}")
    made = SparseModule(model, threads, machine=machine, tune=tune, always=always, halves=halves)
    args, kwargs = arguments_of(example_inputs)
    with made._alone():
        made.plan(args, kwargs)
    return made
