"""Training mode: whether a network takes another way through its code than in evaluation, which has to be traced too.

Most networks differ in their batch norms and dropouts alone, whose units are the same in both modes. What decides is
the code that ran in evaluation: nothing else can ask for the mode. Where a small module asks, such as a batch norm with
an activation or a stochastic depth, it is run alone in both modes, and the operators are compared.
"""

from __future__ import annotations

import ast
import dis
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from types import CodeType
from typing import Any

import torch
from torch import nn
from torch._ops import OpOverload
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._python_dispatch import TorchDispatchMode

from topiarist.graph.calls import ModuleStack
from topiarist.graph.code.source import spans_of, written
from topiarist.graph.inputs import Arguments, Keywords, modules_of, random_state_kept, tensors_in, twice_the_batch
from topiarist.graph.stand_ins import StandIns
from topiarist.graph.tracer import Blank, Tracer

NOISE = {"empty", "empty_like", "new_empty", "bernoulli", "bernoulli_", "rand", "rand_like", "native_dropout", "floor"}
NOISE |= {"floor_", "mul", "mul_", "div", "div_", "add", "add_"}
"""Operators that training may add, on anything but parameters: they scale by random numbers, and count batches."""

DROPOUTS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"}


def same_in_both(tracer: Tracer, model: nn.Module) -> bool:
    """Returns whether training mode shows nothing that the runs in evaluation did not.

    Args:
        tracer: after those runs.
        model: the network, in eval mode.
    """
    if tracer.mixes_in_training or any(map(_switches, modules_of(model).values())):
        return False
    asking = {module for module, code, ran in tracer.taken.codes() if _asks(code, ran)}
    alike = {_configuration(model.get_submodule(name)): name for name in sorted(asking)}
    if not alike:
        return True
    if not all(name in tracer.given for name in alike.values()):
        return False
    tracer.stack = ModuleStack(model)
    with tracer.stack, random_state_kept():
        return all(_same_alone(tracer, model.get_submodule(name), tracer.given[name]) for name in alike.values())


def _switches(module: nn.Module) -> bool:
    """Returns whether a module does something else in training, whatever its forward asks."""
    own = type(module).train is not nn.Module.train
    return own or (isinstance(module, _InstanceNorm) and module.track_running_stats)


def _asks(code: CodeType, ran: set[int] | None) -> bool:
    """Returns whether code asked for the mode; any of it may have run where that was not noted."""
    places = _places_that_ask(code)
    return bool(places) and (ran is None or not places.isdisjoint(ran))


@lru_cache(4096)
def _places_that_ask(code: CodeType) -> frozenset[int]:
    if "training" not in code.co_names and "training" not in code.co_consts:
        return frozenset()
    asking = (each.offset // 2 for each in dis.get_instructions(code) if each.argval == "training")
    spans, harmless = spans_of(code), _given_to_dropout(code)
    return frozenset(at for at in asking if spans[at] not in harmless)


def _given_to_dropout(code: CodeType) -> set[tuple[int, int, int, int] | None]:
    """Returns where code does no more with the mode than give it to a dropout."""
    function = written(code)
    calls = [node for node in ast.walk(function.node) if isinstance(node, ast.Call)] if function is not None else []
    return {
        (value.lineno, value.col_offset, value.end_lineno or 0, value.end_col_offset or 0)
        for call in calls
        if ast.unparse(call.func).rpartition(".")[2] in DROPOUTS
        for value in (*call.args, *(keyword.value for keyword in call.keywords))
        if isinstance(value, ast.Attribute)
    }


def _configuration(module: nn.Module) -> object:
    """Returns what decides which way a module takes: its class, switches and tensors, and those of what it holds."""
    return tuple(
        (
            type(inner),
            tuple((k, v) for k, v in vars(inner).items() if isinstance(v, bool | float | str | None)),
            tuple(k for k, v in (*inner._parameters.items(), *inner._buffers.items()) if v is not None),
        )
        for inner in module.modules()
    )


def _same_alone(tracer: Tracer, module: nn.Module, given: Sequence[object]) -> bool:
    """Returns whether a module runs the same operators in both modes, but for noise."""
    inputs = twice_the_batch([value.filled() if isinstance(value, Blank) else value for value in given])
    try:
        with tracer.taken, torch.no_grad():
            evaluation = _operators(module, inputs)
            training = _operators(module.train(), inputs)
    except Exception:  # it has to be seen in its place
        return False
    finally:
        module.eval()
    added = training - evaluation
    return not evaluation - training and all(name in NOISE and not reads for name, reads in added)


def _operators(module: nn.Module, inputs: Sequence[object]) -> Counter[tuple[str, bool]]:
    """Returns the operators that a module runs, each with whether it reads a parameter, and the shapes it returns."""
    with _Operators(module) as operators:
        out = module(*inputs)
    return operators.seen + Counter((str(tensor.shape), True) for tensor in tensors_in(out))


class _Operators(TorchDispatchMode):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.seen: Counter[tuple[str, bool]] = Counter()
        self.own = {id(parameter) for parameter in module.parameters()}
        self.stand_ins = StandIns()

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Arguments = (), kwargs: Keywords | None = None
    ) -> Any:
        given = tensors_in((args, kwargs))
        name = func.overloadpacket.__name__
        self.seen["batch_norm" if "batch_norm" in name else name, any(id(t) in self.own for t in given)] += 1
        return self.stand_ins.run(func, args, kwargs or {}, given)
