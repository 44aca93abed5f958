"""Proves rules of operators: cut and mask agree at random keeps, and zeros are where a rule claims them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from topiarist.errors import TopiaristError
from topiarist.graph import (
    Arguments,
    Graph,
    Inputs,
    Keep,
    Keywords,
    ModuleStack,
    arguments_of,
    call_model,
    converted,
    hindrance,
    is_own,
    map_floats,
    tensors_in,
    trace,
)
from topiarist.surgery.checking import random_keep
from topiarist.surgery.cutting import mask
from topiarist.surgery.plans import copied
from topiarist.surgery.proof import Proof, prove


def check_rule(model: nn.Module | Callable[..., Any], inputs: Inputs, *, keeps: int = 4) -> Proof:
    """Proves the rules of the operators that a network or a function runs: for tests of rules that a user declares.

    Cuts at random keeps must compute what the masked network does, in float64, nothing may hold what a rule claims to
    be zero, and something must be left to prune. Nothing is repaired, as `prune` does by pinning what it cannot prove.

    Args:
        model: a network; or an operator or function of tensors, every floating-point input of which becomes a weight,
            so that all of its axes could be pruned.
        inputs: as for `trace`; for a function its arguments.
        keeps: how many cuts are tried.

    Returns:
        The proof with the largest difference.

    Raises:
        TopiaristError: an operator has no rule, a rule is wrong or fails, or it leaves nothing to prune.
    """
    inputs = converted(inputs, torch.float64)
    if isinstance(model, nn.Module):
        proofs = list(_proofs(copied(model).double().eval(), inputs, keeps))
    else:
        probes = [_Probe(model, inputs, zero=zero) for zero in (True, False)]
        proofs = [proof for probe in probes for proof in _proofs(probe, inputs, keeps)]
    return max(proofs, key=lambda proof: proof.max_rel_diff)


class _Function(nn.Module):
    """A function as a module, so that what it returns is noted."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = lambda *args, **kwargs: function(*args, **kwargs)  # which can be copied, unlike an operator

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


class _Probe(nn.Module):
    """A function between weights: each floating-point input is one, and each such output is multiplied with one.

    Args:
        function: the function.
        inputs: its arguments.
        zero: whether pruned positions of the inputs hold zeros; exp(0) = 1 where not.
    """

    def __init__(self, function: Callable[..., Any], inputs: Inputs, *, zero: bool) -> None:
        super().__init__()
        self.function, self.zero = _Function(function), zero
        args, kwargs = arguments_of(map_floats(inputs, torch.clone))
        with torch.no_grad():
            outputs = [out for out in tensors_in(function(*args, **kwargs)) if out.is_floating_point()]
        floats = [given for given in tensors_in(inputs) if given.is_floating_point()]
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in (*floats, *outputs)]
        self.given, self.reading = nn.ParameterList(drawn[: len(floats)]), nn.ParameterList(drawn[len(floats) :])
        self.eval()

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        weights = iter(self.given)
        args, kwargs = map_floats((inputs, named), lambda _: self._opened(next(weights)))
        outputs = [out for out in tensors_in(self.function(*args, **kwargs)) if out.is_floating_point()]
        return torch.stack([(out * weight).sum() for out, weight in zip(outputs, self.reading, strict=True)])

    def _opened(self, weight: Tensor) -> Tensor:
        return weight.clone() if self.zero else weight.exp()


class _Seeing(TorchDispatchMode):
    """Notes the operators whose rules a user declared."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Arguments = (), kwargs: Keywords | None = None) -> Any:
        if is_own(func):
            self.names[func._schema.name] = None
        return func(*args, **(kwargs or {}))


def _proofs(model: nn.Module, inputs: Inputs, keeps: int) -> Iterator[Proof]:
    """Yields the proofs of random cuts, all of which hold."""
    with torch.no_grad(), _Seeing() as seen:
        call_model(copied(model), inputs)
    rules = f"the rule of {' or '.join(seen.names)}" if seen.names else "a rule"
    graph = trace(model, inputs)
    if graph.unknown:
        raise TopiaristError(f"{graph.unknown[0]} has no rule; declare one with topiarist.rule")
    if not graph.groups:
        raise TopiaristError(f"with {rules}, {hindrance(graph)}")
    for seed in range(keeps):
        keep = random_keep(graph, seed)
        if where := _false_zero(model, graph, keep, inputs):
            raise TopiaristError(
                f"{rules} is wrong: it claims zeros, but pruned positions of what {where} returns are not zero before "
                "the cut; claim them with zero= only where they are"
            )
        proof = prove(model, graph, keep, inputs)
        if not proof.agrees:
            raise TopiaristError(
                f"{rules} is wrong: {proof.reason}; unify axes that must lose the same positions, and pin those whose "
                "positions depend on each other"
            )
        yield proof


def _false_zero(model: nn.Module, graph: Graph, keep: Keep, inputs: Inputs) -> str:
    """Returns the module that returns something else where zeros are claimed; empty where none does."""
    solution, dead, false = graph.solution, graph.dead(keep), list[str]()

    def see(name: str, call: int, output: object) -> None:
        for tensor, traced in zip(tensors_in(output), solution.record.outputs.get((name, call), ()), strict=False):
            for axis, vector in enumerate(traced.vectors if traced.zero else ()):
                if (kept := solution.kept(vector, dead)) is not None:
                    others = tensor.index_fill(axis, kept, 0)
                    false.extend([name or "the network"] if bool((others != 0).any()) else ())

    masked = mask(model, graph, keep)
    with torch.no_grad(), ModuleStack(masked, on_exit=see):
        call_model(masked, inputs)
    return false[0] if false else ""
