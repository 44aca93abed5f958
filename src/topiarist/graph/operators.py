"""Sees every operator that a network runs, with its real tensors, and applies the rule of its family."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from topiarist.errors import TopiaristError
from topiarist.graph.calls import FILLS, mixing_kind
from topiarist.graph.code.branches import unwatched
from topiarist.graph.code.places import line_of_code
from topiarist.graph.inputs import Arguments, Keywords, tensors_in
from topiarist.graph.labels import labelled
from topiarist.graph.rules import apply_rule, undefined_after
from topiarist.graph.stand_ins import StandIns, reads_values
from topiarist.graph.tracer import Tracer


class OperatorMode(TorchDispatchMode):
    """Lets labels travel through the operators that run while the mode is on.

    Args:
        tracer: what rules talk to.
        deadline: `time.monotonic` by which the run must be done.
        stand_ins: for what heavy operators would compute; without them all is computed.
    """

    def __init__(self, tracer: Tracer, deadline: float, stand_ins: StandIns | None) -> None:
        super().__init__()
        self.tracer, self.deadline, self.stand_ins = tracer, deadline, stand_ins

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Arguments = (), kwargs: Keywords | None = None
    ) -> Any:
        with unwatched():
            return self._followed(func, args, kwargs or {})

    def _followed(self, func: OpOverload, args: Arguments, kwargs: Keywords) -> Any:
        """Runs an operator, and lets labels travel through it."""
        tracer, lifetimes = self.tracer, self.tracer.lifetimes
        if lifetimes is not None:
            lifetimes.begin()
        given = tensors_in(args) + tensors_in(kwargs)
        out = func(*args, **kwargs) if self.stand_ins is None else self.stand_ins.run(func, args, kwargs, given)
        if time.monotonic() > self.deadline:
            raise TopiaristError(
                "tracing took longer than its time limit; trace with a smaller example input, or raise `seconds`"
            )
        tracer.algebra.add_origin(func.overloadpacket.__name__, tracer.stack.top, line_of_code())
        sources = [source for tensor in given if (source := tracer.of(tensor).source) is not None]
        tracer.record.touched.update(sources)
        tracer.descent.follow(func, args, kwargs, given, sources, out)
        tracer.read_positions(given)
        tracer.reads_values = tracer.reads_values or reads_values(func, args)
        if given or func.overloadpacket.__name__ in FILLS:
            try:
                known = apply_rule(tracer, func, args, kwargs, out, given)
            except (ValueError, IndexError, KeyError, TypeError, AssertionError, RuntimeError):
                known = False
            if not known:
                self._pin_unknown(str(func), given, out)
            elif undefined_after(func, args, given, tracer):
                tracer.note_undefined(tensors_in(out))
        if lifetimes is not None:
            for tensor in tensors_in(out):
                lifetimes.made(tensor, tracer.vectors_of(tensor), given)
        moved = {tracer.of(tensor).source for tensor in tensors_in(out)}  # a view of a weight is no use of it yet
        tracer.norms.read(given, set(sources) - moved)
        if (kind := mixing_kind(func, args, kwargs)) is not None:
            tracer.mixed(kind)
        return out

    def _pin_unknown(self, operator: str, given: Sequence[Tensor], out: object) -> None:
        tracer = self.tracer
        reached = [v for tensor in given for v in tracer.vectors_of(tensor) if v is not None]
        if any(labelled(v) for v in reached):
            tracer.record.unknown[operator] += 1
        tracer.algebra.pin_all(reached, f"operator without a rule: {operator}")
        for tensor in tensors_in(out):
            tracer.put(tensor, [None] * tensor.ndim)
