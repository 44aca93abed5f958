"""A network whose sparse weights run fast on this machine's CPU."""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from topiarist.errors import TopiaristError
from topiarist.files import shown
from topiarist.graph import Inputs, arguments_of, call_model, tensors_in
from topiarist.measure import device_of, threads_set
from topiarist.sparse.capture import captured
from topiarist.sparse.code import code_of
from topiarist.sparse.machine import Machine, host
from topiarist.sparse.plan import Plan, planned
from topiarist.sparse.tuning import Tuner, timed

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
        self._lock = threading.RLock()
        self.training = False

    def train(self, mode: bool = True) -> SparseModule:
        """Returns itself: it always evaluates."""
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the network."""
        with self._lock, torch.no_grad(), threads_set(self.threads):
            plan = self.plan(args, kwargs)
            return self.model(*args, **kwargs) if isinstance(plan, str) else plan.run(args, kwargs)

    def plan(self, args: Any, kwargs: Any) -> Plan | str:
        """Returns the plan for such inputs, or a sentence that says why they run in torch."""
        key = tuple((tuple(t.shape), t.dtype) for t in tensors_in([args, kwargs]))
        if key not in self._plans:
            self._plans[key] = self._made(kwargs if kwargs and not args else tuple(args))
            if isinstance(self._plans[key], str):
                warnings.warn(f"{self._plans[key]}; it runs in torch", stacklevel=4)
            while len(self._plans) > PLANS:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return self._plans[key]

    def _made(self, inputs: Inputs) -> Plan | str:
        reason = unsuitable(self.model, inputs)
        if reason:
            return reason
        try:
            code = code_of(self.machine or host())
            tuner = Tuner(code.machine, self.tune)
            tuner.read()
            plan = planned(captured(self.model, inputs), code, self.threads, tuner, halves=self.halves)
        except TopiaristError as error:
            return str(error).partition(": run")[0]
        reason = self._compared(plan, inputs, tuner)
        tuner.write()
        return reason or plan

    def _compared(self, plan: Plan, inputs: Inputs, tuner: Tuner) -> str:
        """Returns why a plan is not taken: it differs from torch, or is slower; else nothing."""
        args, kwargs = arguments_of(inputs)
        with torch.no_grad(), threads_set(self.threads):
            expected, got = tensors_in(call_model(self.model, inputs)), tensors_in(plan.run(args, kwargs))
            speed = 1.0 if self.always else self._speed(plan, inputs, tuner)
        difference = max((_difference(a, b) for a, b in zip(got, expected, strict=True)), default=0.0)
        if difference > (ROUNDED if self.halves else TOLERANCE):
            return f"kernels differ from torch by {difference:.1e} of the largest output"
        return f"kernels would take {1 / speed:.2f} times torch's time" if speed < WORTH else ""

    def _speed(self, plan: Plan, inputs: Inputs, tuner: Tuner) -> float:
        """Returns how many times as fast as torch a plan is, with as many threads for torch's operators as is best."""
        args, kwargs = arguments_of(inputs)
        speeds = {}
        for plan.torch_threads in dict.fromkeys((self.threads, 1)):
            key = f"{plan.key} {plan.torch_threads}"
            speeds[plan.torch_threads] = tuner.speed(
                key, lambda: call_model(self.model, inputs), lambda: plan.run(args, kwargs)
            )
        plan.torch_threads = self.threads if speeds[self.threads] > CLEAR * speeds[1] else 1
        return speeds[plan.torch_threads]

    def seconds(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Returns how long each layer takes while the network runs, by name; what is no layer under ``""``."""
        with self._lock, torch.no_grad(), threads_set(self.threads):
            plan = self.plan(args, kwargs)
            return (
                {"": timed(lambda: self.model(*args, **kwargs))}
                if isinstance(plan, str)
                else plan.seconds(args, kwargs)
            )

    def report(self) -> str:
        """Returns what runs by kernels and what in torch, by the shapes of inputs."""
        lines = []
        for shapes, plan in self._plans.items():
            lines.append(", ".join("×".join(map(str, shape)) for shape, _ in shapes) + ":")
            lines += [f"  {line}" for line in ([plan] if isinstance(plan, str) else plan.lines)]
        return "\n".join(lines)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the plans, which are made anew."""
        return {**self.__dict__, "_plans": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begins without plans."""
        self.__dict__.update(state)
        self._lock = threading.RLock()


def _difference(got: Tensor, expected: Tensor) -> float:
    """Returns max |got − expected| / max |expected|."""
    if not got.is_floating_point():
        return 0.0 if bool((got == expected).all()) else 1.0
    if not got.numel():
        return 0.0
    return float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def unsuitable(model: nn.Module, inputs: Inputs) -> str:
    """Returns why a network cannot run by kernels; nothing where it can."""
    if device_of(model).type != "cpu" or any(t.device.type != "cpu" for t in tensors_in(inputs)):
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
    made.plan(args, kwargs)
    return made
