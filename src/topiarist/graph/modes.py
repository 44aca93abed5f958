"""Training mode: whether a network takes another way through its code than in evaluation, which has to be traced too.

Most networks differ in their batch norms and dropouts alone, whose units are the same in both modes. What decides is
the code that ran in evaluation: other code is reached only through code that asks for the mode. Where a small module
asks, such as a batch norm with an activation or a stochastic depth, it is run alone in both modes, and must compute the
same of the same tensors.
"""

from __future__ import annotations

import ast
import dis
from collections.abc import Sequence
from functools import lru_cache
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._python_dispatch import TorchDispatchMode

from topiarist.graph.calls import ModuleStack
from topiarist.graph.code.source import spans_of, written
from topiarist.graph.inputs import (
    Arguments,
    Keywords,
    map_tensors,
    modules_of,
    named_tensors,
    random_state_kept,
    tensors_in,
    twice_the_batch,
)
from topiarist.graph.stand_ins import StandIns
from topiarist.graph.tracer import Blank, Given, Tracer

MAKING = {"empty", "empty_like", "new_empty", "rand", "rand_like", "randn", "randn_like", "full", "new_full", "ones"}
"""Operators that draw random numbers, or make tensors to draw them into."""
SCALES = {"mul", "mul_", "div", "div_"}
DROPOUTS = {
    f"{owner}.{name}"
    for owner in ("F", "functional", "nn.functional", "torch.nn.functional", "torch")
    for name in ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
}


def same_in_both(tracer: Tracer, model: nn.Module) -> bool:
    """Returns whether training mode shows nothing that the runs in evaluation did not.

    Args:
        tracer: after those runs.
        model: the network, in eval mode.
    """
    if tracer.mixes_in_training or any(map(_switches, modules_of(model).values())):
        return False
    asking = {module for module, code, ran in tracer.taken.codes() if _asks(code, ran)}
    one_of_each = {_configuration(model.get_submodule(name)): name for name in sorted(asking)}
    if not one_of_each:
        return True
    tracer.stack = ModuleStack(model)
    with tracer.stack, random_state_kept():
        return all(
            _same_alone(tracer, model.get_submodule(name), tracer.given.get(name)) for name in one_of_each.values()
        )


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
    spans, harmless = spans_of(code), _given_to_dropout(code)
    asking = (each.offset // 2 for each in dis.get_instructions(code) if _names_the_mode(each))
    return frozenset(at for at in asking if spans[at] not in harmless)


def _names_the_mode(instruction: dis.Instruction) -> bool:
    named = instruction.argval
    several = isinstance(named, tuple | frozenset) and instruction.opname != "KW_NAMES"
    return bool(named == "training" or (several and "training" in named))


def _given_to_dropout(code: CodeType) -> set[tuple[int, int, int, int] | None]:
    """Returns where code does no more with the mode than give it to torch's dropout."""
    function = written(code) if "training" in code.co_names else None
    calls = [node for node in ast.walk(function.node) if isinstance(node, ast.Call)] if function is not None else []
    return {
        (value.lineno, value.col_offset, value.end_lineno or 0, value.end_col_offset or 0)
        for call in calls
        if ast.unparse(call.func) in DROPOUTS
        for value in (*call.args, *(keyword.value for keyword in call.keywords))
        if isinstance(value, ast.Attribute)
    }


def _configuration(module: nn.Module) -> object:
    """Returns what decides which way a module takes: its class, attributes, which tensors it has, and its modules."""
    return tuple(
        (
            type(inner),
            tuple((k, v if isinstance(v, _PLAIN) else id(v)) for k, v in vars(inner).items() if k not in _INTERNAL),
            tuple(k for k, v in (*inner._parameters.items(), *inner._buffers.items()) if v is not None),
        )
        for inner in module.modules()
    )


_PLAIN = (bool, int, float, str, type(None))
_INTERNAL = frozenset(vars(nn.Module()))


def _same_alone(tracer: Tracer, module: nn.Module, given: Given | None) -> bool:
    """Returns whether a module computes the same in both modes, but for a random scale of each example."""
    if given is None:
        return False
    filled = [[_filled(value) for value in given[0]], {key: _filled(value) for key, value in given[1].items()}]
    args, kwargs = twice_the_batch(filled)
    try:
        with tracer.taken, torch.no_grad():
            evaluation = _computed(module, args, kwargs)
            training = _computed(module.train(), args, kwargs)
    finally:
        module.eval()
    return evaluation is not None and evaluation == training


def _filled(value: object) -> object:
    return value.filled() if isinstance(value, Blank) else value


def _computed(module: nn.Module, args: Sequence[object], kwargs: Keywords) -> object:
    """Returns what a module computes: every operator with what it is given, and what is returned.

    ``None`` where it fails, such as one that needs its surroundings: then the whole network is traced.
    """
    operators = _Operators(module, tensors_in((args, kwargs)))
    try:
        with operators:
            out = module(*args, **kwargs)
    except Exception:  # whatever the user's code raises
        return None
    return operators.ran, [(operators.origin(tensor), tensor.shape) for tensor in tensors_in(out)], type(out)


class _Operators(TorchDispatchMode):
    """Notes the operators that a module runs, and where the tensors come from.

    Attributes:
        ran: name and arguments of each operator; tensors by their origin.
        origins: by the id of a tensor, the tensor and its origin: a name, or an operator and which of its results.
        counts: ids of the module's integer tensors, which count batches.
        drawn: ids of tensors with one random number for each example.
        shape: of the first input.
        stand_ins: run heavy operators without their values.
    """

    def __init__(self, module: nn.Module, given: Sequence[Tensor]) -> None:
        super().__init__()
        named = [*named_tensors(module).items(), *((str(k), tensor) for k, tensor in enumerate(given))]
        self.origins: dict[int, tuple[Tensor, object]] = {id(tensor): (tensor, name) for name, tensor in named}
        self.counts = {id(t) for _, t in named_tensors(module).items() if not t.is_floating_point()}
        self.ran: list[object] = []
        self.drawn: set[int] = set()
        self.shape = given[0].shape if given else torch.Size()
        self.stand_ins = StandIns()

    def origin(self, tensor: Tensor) -> Any:
        return self.origins[id(tensor)][1] if id(tensor) in self.origins else None

    def _is_one_for_each(self, tensor: Tensor) -> bool:
        """Returns whether a tensor has one entry for each example."""
        return tensor.ndim == len(self.shape) > 1 and len(tensor) == self.shape[0] and set(tensor.shape[1:]) <= {1}

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Arguments = (), kwargs: Keywords | None = None
    ) -> Any:
        given, name = tensors_in((args, kwargs)), func.overloadpacket.__name__
        numbered = repr(map_tensors([*args, kwargs], self.origin))
        read = [tensor for tensor in given if id(tensor) not in self.drawn]
        out = self.stand_ins.run(func, args, kwargs or {}, given)
        made = tensors_in(out)
        if name in MAKING and all(map(self._is_one_for_each, made)):
            read = []
        elif given and id(given[0]) in self.counts and name == "add_":
            return out  # how many batches a norm has seen
        if not read:
            self.drawn.update(map(id, made))
            self.origins.update((id(tensor), (tensor, "drawn")) for tensor in made)
        elif name in SCALES and len(read) == 1 < len(given):
            self.origins[id(made[0])] = made[0], self.origin(read[0])
        else:
            norm = "batch_norm" in name
            self.ran.append(("batch_norm", [self.origin(t) for t in given]) if norm else (name, numbered))
            self.origins.update((id(tensor), (tensor, (len(self.ran), k))) for k, tensor in enumerate(made))
        return out
