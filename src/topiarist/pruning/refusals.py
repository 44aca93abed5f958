"""What a pruning refuses before anything long begins: wrong inputs, and units that cannot be pruned as asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from topiarist.budget import Budget, allocate
from topiarist.data import Data
from topiarist.errors import TopiaristError
from topiarist.files import shown
from topiarist.graph import Graph, check_finite, hindrance, unwrapped_names
from topiarist.measure import check_fits
from topiarist.methods import Method, Rule, Selector
from topiarist.pruning.request import Pruning


def check_inputs(model: nn.Module, request: Pruning, data: Any, initial: Any) -> None:
    """Raises where something is missing, or the model fails on the data, before anything long begins."""
    check_finite(model)
    trains = request.trains
    if trains and data is None:
        raise TopiaristError(f"{request.method.name} is to train the network: give data, such as a DataLoader")
    if request.rewind != (initial is not None):
        missing = "initial=, the state dict before training" if request.rewind else "rewind=True in the request"
        raise TopiaristError(f"rewinding takes both a request that asks for it and the initial values: add {missing}")
    if initial is not None:
        _check_initial(model, initial)
    if isinstance(data, Data) and (trains or statistics_needed(request) - {"weights", "training"}):
        check_fits(model, data)


def _check_initial(model: nn.Module, initial: Any) -> None:
    """Raises where values to rewind to are not of this network's names, shapes and types."""
    remedy = "give a copy of model.state_dict() as it was before training"
    if not isinstance(initial, Mapping):
        raise TopiaristError(f"initial must be a state dict, but got {type(initial).__name__}: {remedy}")
    own = model.state_dict()
    initial = unwrapped_names(initial, own)
    for name in {**own, **initial}:
        if name not in own or name not in initial:
            place = "initial" if name in own else "the network"
            raise TopiaristError(f"initial is of another network, {place} has no {shown(name)}: {remedy}")
        here, there = (_form(values[name]) for values in (own, initial))
        if here != there:
            raise TopiaristError(f"initial is of another network, its {name} is {there} and not {here}: {remedy}")


def _form(value: object) -> str:
    """Returns what a value must have in common with the one that takes its place."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    if value.layout != torch.strided or value.is_meta:
        return "no dense tensor"
    kind = "floating-point" if value.is_floating_point() else "complex" if value.is_complex() else "whole"
    return f"{kind} of shape {tuple(value.shape)}"


def statistics_needed(request: Pruning) -> frozenset[Any]:
    """Returns what must be measured for a request."""
    repairer = request.repairer
    return request.method.needs if repairer is None else request.method.needs | repairer.needs


def check_units(request: Pruning, units: Graph) -> None:
    """Raises where these units cannot be pruned as the request says; no training has begun by then."""
    method, budget, steps = request.method, request.budget, request.steps.count
    if not units.groups:
        raise TopiaristError(hindrance(units))
    if budget is not None and (steps > 1 or request.trains):
        check_reachable(method, units, budget, steps)
    if steps > 1 and isinstance(method, Rule) and method.budget(units) is not None:
        raise TopiaristError(
            f"{method.name} has the widths of one cut in its fields: leave steps out, or give a budget"
        )
    if steps > 1 and units.kind == "block":
        raise TopiaristError(f"{method.name} removes blocks in one cut: leave steps out")
    if budget is not None and budget.latency is not None and units.kind == "block":
        raise TopiaristError(
            f"{method.name} removes blocks, which a latency budget does not price: give macs or params"
        )


def check_reachable(method: Method, units: Graph, budget: Budget, steps: int) -> None:
    """Raises where a budget cannot be met, or names what does not exist."""
    budget.excluded(units)
    budget.own_ratios(units)
    if method.granularity == "weight" or isinstance(method, Selector) or budget.only_excludes:
        return
    floor = budget.floor if budget.floor >= 1 else budget.floor**steps
    if budget.latency is not None:
        return  # what can be reached is known when the layers are measured
    scores = {group.name: torch.ones(group.units) for group in units.groups}
    allocate(units, scores, replace(budget, floor=floor), method.allocation)
