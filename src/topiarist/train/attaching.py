"""The training-time roles of a method, attached to any loop through the hooks of its optimiser."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from topiarist.budget import Name, as_names, spelled, units_of
from topiarist.errors import TopiaristError
from topiarist.files import shown
from topiarist.graph import Graph, Keep, broadcast_kept, kept_positions, unwrapped
from topiarist.methods import Gate, Method, Penalty, Proximal, Soft, make
from topiarist.surgery import Attachment, as_optimizer, check_shapes
from topiarist.train.own_step import optimizer_like, step_along

Masks = list[tuple[nn.Parameter, Tensor]]
"""Parameters, each with the entries that are held at zero, bool of its shape."""


@dataclass(frozen=True, eq=False)
class Attached:
    """What `attach` added to the loop.

    Attributes:
        parameters: the gates' own parameters, which the optimiser trains as its last group, without weight decay.
        removed: parameter name → bool tensor of its shape, True where the entry is held at zero.
        units: what the method acts on: the graph without what is excluded; ``None`` where no graph was given.
        own: the gates' own optimiser, where they were to have one.
    """

    parameters: tuple[nn.Parameter, ...]
    removed: Mapping[str, Tensor]
    units: Graph | None
    own: Optimizer | None = None


def removed_entries(model: nn.Module, graph: Graph, keep: Keep) -> dict[str, Tensor]:
    """Returns the entries of each parameter that a keep removes.

    The keep alone decides: a kept weight that happens to be zero is not among them.

    Args:
        model: the traced model, or one with the same parameters.
        graph: its units (`Graph.weights` of a trace for unstructured sparsity).
        keep: group name → bool ``(units,)``.

    Returns:
        Parameter name → bool tensor of the parameter's shape, True where a removed unit lies; parameters that
        keep all of their entries are not listed.

    Raises:
        TopiaristError: the keep does not fit the graph, or the graph does not fit the model.
    """
    if not isinstance(keep, Mapping):
        raise TopiaristError(f"keep must map groups to booleans, as allocate gives it, but got {type(keep).__name__}")
    known = {group.name for group in graph.groups}
    for name, kept in keep.items():
        if name not in known:
            raise TopiaristError(
                f"the keep names the group {shown(name)}, which this graph lacks: allocate it on this graph"
            )
        group = graph[name]
        if not isinstance(kept, Tensor) or kept.dtype != torch.bool or kept.shape != (group.units,):
            raise TopiaristError(f"the keep of {shown(name)} is {_kind(kept)}: give {group.units} booleans, one a unit")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    shapes = {name: tuple(tensor.shape) for name, tensor in [*parameters.items(), *model.named_buffers()]}
    try:
        positions = kept_positions(graph.groups, shapes, keep)
    except (KeyError, IndexError) as error:
        raise TopiaristError("the model is smaller than the keep expects: trace this model again") from error
    dead: dict[str, Tensor] = {}
    for (name, axis), kept in positions.items():
        if name in parameters and not kept.all():
            parameter = parameters[name]
            removed = ~broadcast_kept(kept, axis, parameter.shape).to(parameter.device)
            dead[name] = removed | dead.get(name, torch.zeros_like(parameter, dtype=torch.bool))
    return dead


def as_method(method: object) -> Method | None:
    """Returns the method that a name, a class or a value stands for; any value with a training-time role will do."""
    if method is None:
        return None
    if isinstance(method, Penalty | Proximal | Gate | Soft) and not isinstance(method, Method | type):
        return cast("Method", method)
    return make(cast("Method", method))  # which explains what a method is to whoever gave none


def _acted_on(
    method: Method | None, model: nn.Module, graph: Graph | None, exclude: Name | Collection[Name]
) -> Graph | None:
    """Returns what a method acts on in training: the graph, without the units of what is excluded.

    Args:
        method: whose units they are; a value with a training-time role alone takes the graph as it is.
        model: the network.
        graph: its graph, if it is known.
        exclude: names, or modules of the model.

    Raises:
        TopiaristError: there is no graph to exclude from, a name means nothing in it, or a module is not of the model.
    """
    names = as_names(exclude)
    if not names:
        return graph
    if graph is None:
        raise TopiaristError(
            "excluding from a training needs the model's graph: pass graph=topiarist.trace(model, example_inputs)"
        )
    units = method.units(graph) if isinstance(method, Method) else graph
    return units.without(units_of(spelled(names, model), units))


def _kind(kept: object) -> str:
    return f"{kept.dtype} {tuple(kept.shape)}" if isinstance(kept, Tensor) else type(kept).__name__


@contextmanager
def attach(
    method: Method | str | None,
    model: nn.Module,
    optimizer: Optimizer,
    graph: Graph | None = None,
    keep: Keep | None = None,
    *,
    exclude: Name | Collection[Name] = (),
    own_step: bool = False,
) -> Iterator[Attached]:
    """Attaches what a method does while a network trains to the training loop that runs in this context.

    The loop itself is unchanged; whatever it calls, ``optimizer.step()`` first adds the gradient of the penalty to the
    gradient of the loss, and afterwards takes the proximal step. Gates multiply their units in between. With a keep,
    the removed weights are zero at the start and stay zero: their gradients are cleared before each step, and they and
    their momentum after it. At the end of the context, or at an exception, all of it is detached.

    Args:
        method: a method, its registered name, or ``None`` to apply a keep alone. Roles that it lacks do nothing. An
            optimiser knows no epochs: in a loop of your own call `soften` of soft pruning between them, on the units
            of what this yields.
        model: the model that trains.
        optimizer: any optimiser over its parameters, also in a wrapper such as Accelerate's. Learning-rate schedulers
            belong inside the context, since gates add a parameter group. The proximal step sees the learning rate of
            the first parameter group.
        graph: the model's graph; every role and every keep needs it.
        keep: group name → bool ``(units,)``, usually of ``graph.weights()``. With units that are not weights the
            parameters are held at zero all the same, but normalisations over channels still count the removed ones:
            cut the model instead where that matters.
        exclude: what the method leaves alone, named as in `topiarist.Budget`: it gets no penalty, no gates, no
            proximal step, and neither do units that are tied to it.
        own_step: whether gates get an optimiser of their own, like the first group's, which steps with the given one:
            for schedulers that exist already, and state dicts without the gates.

    Yields:
        Attached: the gates' parameters, the masks in use, and the units that the method acts on.

    Raises:
        TopiaristError: the graph is missing, the keep does not fit it, a name means nothing in it, or the optimiser
            holds other parameters.

    Examples:
        >>> with attach("slimming", model, optimizer, graph):  # doctest: +SKIP
        ...     for x, y in batches:
        ...         optimizer.zero_grad()
        ...         cross_entropy(model(x), y).backward()
        ...         optimizer.step()
    """
    method, model = as_method(method), unwrapped(model)
    optimizer = _within(optimizer)
    if keep is not None and isinstance(graph, Graph):
        check_shapes(model, graph.shapes)
    _check(method, model, optimizer, graph, keep)
    units = _acted_on(method, model, graph, exclude)
    with ExitStack() as stack:
        gates: tuple[nn.Parameter, ...] = ()
        if isinstance(method, Gate) and units is not None:
            module = stack.enter_context(method.gates(model, units))
            gates = tuple(parameter for parameter in module.parameters() if parameter.requires_grad)
        own = optimizer_like(optimizer, gates) if gates and own_step else None
        if gates and own is None:
            _add_group(optimizer, gates, stack)
        removed = removed_entries(model, graph, keep) if graph is not None and keep is not None else {}
        masks = [(model.get_parameter(name), entries) for name, entries in removed.items()]
        _clear(masks, optimizer)
        penalty = proximal = None
        if isinstance(method, Penalty) and units is not None:
            penalty = partial(method.penalty, model, units)
        if isinstance(method, Proximal) and units is not None:
            proximal = partial(method.proximal, model, units)
        if penalty or masks:
            stack.callback(optimizer.register_step_pre_hook(_BeforeStep(penalty, masks, own)).remove)
        if proximal or masks or gates:
            stack.callback(optimizer.register_step_post_hook(_AfterStep(proximal, masks, own)).remove)
        yield Attached(gates, removed, units, own)


def _within(optimizer: object) -> Optimizer:
    """Returns the optimiser whose steps the hooks see."""
    within = as_optimizer(optimizer)
    if within is None:
        raise TopiaristError(
            f"a method is attached to a torch.optim.Optimizer, but got {type(optimizer).__name__}: give the one that "
            "trains the model"
        )
    return within


@dataclass(frozen=True)
class _BeforeStep(Attachment):
    """Runs before each step: the penalty's gradient, also at gates with an optimiser of their own; then the masks."""

    penalty: Callable[[], Tensor] | None
    masks: Masks
    own: Optimizer | None = None

    def __call__(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self.add(optimizer)
            return None
        # L-BFGS and its kin compute the gradient inside the step, several times: each one gets the penalty.
        return (args[0],), {**kwargs, "closure": self.around(closure, optimizer)}

    def around(self, closure: Callable[[], Tensor | None], optimizer: Optimizer) -> Callable[[], Tensor | None]:
        def penalised() -> Tensor | None:
            loss = closure()
            extra = self.add(optimizer)
            return loss if loss is None or extra is None else loss + extra

        return penalised

    @torch.no_grad()
    def add(self, optimizer: Optimizer) -> Tensor | None:
        value = None
        if self.penalty is not None:
            groups = [*optimizer.param_groups, *(self.own.param_groups if self.own else ())]
            parameters = [p for group in groups for p in group["params"] if p.requires_grad]
            with torch.enable_grad():
                value = self.penalty()
            value = _add_gradient(value, parameters, getattr(optimizer, "grad_scale", None))
        for parameter, entries in self.masks:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(entries, 0)
        return value


@dataclass(frozen=True)
class _AfterStep(Attachment):
    """Runs after each step: the step of the gates' own optimiser, the proximal step, then the masks."""

    proximal: Callable[[float], object] | None
    masks: Masks
    own: Optimizer | None = None

    @torch.no_grad()
    def __call__(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        infinite = getattr(optimizer, "found_inf", None)
        skipped = infinite is not None and bool(infinite)
        if self.own is not None and not skipped:
            step_along(self.own, optimizer)
        if self.proximal is not None and not skipped:
            self.proximal(float(optimizer.param_groups[0]["lr"]))
        if self.own is not None:
            self.own.zero_grad()
        _clear(self.masks, optimizer)


def _add_gradient(value: Tensor, parameters: list[nn.Parameter], scale: Tensor | None) -> Tensor:
    """Adds the gradient of the penalty ``value`` to ``.grad``; ``scale`` is that of a loss scaler not yet undone."""
    if value.requires_grad:
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(value, parameters, allow_unused=True), strict=True
        ):
            if gradient is None:
                continue
            if scale is not None:
                gradient = gradient * scale
            if parameter.grad is None:
                # A copy of the parameter's own layout: autograd may hand out expanded or shared tensors.
                parameter.grad = torch.empty_like(parameter).copy_(gradient)
            else:
                parameter.grad.add_(gradient)
    return value.detach()


@torch.no_grad()
def _clear(masks: Masks, optimizer: Optimizer) -> None:
    """Zeroes the removed entries of the weights, their gradients, and the optimiser's tensors of the same shape."""
    for parameter, entries in masks:
        parameter.masked_fill_(entries, 0)
        if parameter.grad is not None:
            parameter.grad.masked_fill_(entries, 0)
        for value in optimizer.state[parameter].values() if parameter in optimizer.state else ():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                value.masked_fill_(entries, 0)


def _check(
    method: Method | None, model: nn.Module, optimizer: Optimizer, graph: Graph | None, keep: Keep | None
) -> None:
    roles = isinstance(method, Penalty | Proximal | Gate)
    if graph is None and (roles or keep is not None):
        raise TopiaristError(
            "attaching a method or a keep needs the model's graph: pass graph=topiarist.trace(model, example_inputs)"
        )
    own = {id(parameter) for parameter in model.parameters()}
    if own and not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise TopiaristError(
            "the optimizer holds no parameter of this model: build it from model.parameters() after the model was cut"
        )


def _add_group(optimizer: Optimizer, gates: tuple[nn.Parameter, ...], stack: ExitStack) -> None:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if any(id(gate) in held for gate in gates):
        return  # the user has added them already
    first = optimizer.param_groups[0]
    group: dict[str, Any] = {key: value for key, value in first.items() if key != "params"}
    group["params"] = list(gates)
    if "weight_decay" in group:
        group["weight_decay"] = 0.0
    optimizer.add_param_group(group)

    def remove() -> None:
        # Identified by its members: loading an optimiser's state makes new dicts of all groups.
        mine = {id(gate) for gate in gates}
        optimizer.param_groups[:] = [
            other for other in optimizer.param_groups if not any(id(p) in mine for p in other["params"])
        ]
        for gate in gates:
            optimizer.state.pop(gate, None)

    stack.callback(remove)
