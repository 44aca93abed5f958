"""Watching a model run: what its layers read, and how the units of each group respond.

Everything that sees a model run does so by `on_calls`, which shows each call of some modules to a function.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from topiarist.graph import Graph, Group, Site

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
"""Layers whose output is a sum over the entries of their input."""

Func = Callable[..., Any]
Args = Sequence[Any]
Kwargs = Mapping[str, Any]

Show = Callable[[str, Any, Any, Any], Tensor | None]
"""Gets the name of a module, the module, and input and output of one call; what it returns replaces the output."""


def on_calls(modules: Iterable[tuple[str, nn.Module]], show: Show) -> Iterator[RemovableHandle]:
    """Hooks a function into modules: it sees every call of them, until the handles are removed.

    Args:
        modules: each with the name that the function is given.
        show: gets the name, the module, its first argument (detached) and its output, and returns another output or
            ``None``.
    """

    def hook(name: str) -> Callable[..., Tensor | None]:
        def call(module: nn.Module, args: Args, kwargs: Kwargs, output: object) -> Tensor | None:
            x = args[0] if args else next(iter(kwargs.values()), None)
            return show(name, module, x.detach() if isinstance(x, Tensor) else x, output)

        return call

    for name, module in modules:
        yield module.register_forward_hook(hook(name), with_kwargs=True)


@contextmanager
def watching(modules: Iterable[tuple[str, nn.Module]], show: Show) -> Iterator[None]:
    """Hooks a function into modules as `on_calls` does, as long as the context lasts."""
    with ExitStack() as handles:
        for handle in on_calls(modules, show):
            handles.callback(handle.remove)
        yield


class FunctionMode(TorchFunctionMode):
    """Makes the calls of torch functions while it is open, so that a subclass may inspect or replace them."""

    def __torch_function__(self, func: Func, types: object, args: Args = (), kwargs: Kwargs | None = None) -> Any:
        """Makes a call by `call`."""
        return self.call(getattr(func, "__name__", "").strip("_"), func, args, kwargs or {})

    def call(self, name: str, func: Func, args: Args, kwargs: Kwargs) -> Any:
        """Makes a call of the function of this name, without its underscores."""
        return func(*args, **kwargs)


def is_plain(module: nn.Module) -> TypeGuard[Layer]:
    """Returns whether a module is a linear layer or a convolution and nothing more.

    Subclasses may compute something else with the same weight.
    """
    return type(module) in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def windows_of(layer: Layer, x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns a layer's input, and what of it each location of the output reads.

    Returns:
        The input ``(rows, inputs, cells)``, padded, and int64 ``(locations, entries)``: the cells under the kernel.
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1], 1), torch.zeros(1, 1, dtype=torch.int64)
    axes = len(layer.kernel_size)
    x = x if x.ndim == axes + 2 else x[None]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    windows = torch.zeros(1, 1, dtype=torch.int64)
    sizes = zip(x.shape[2:], layer.kernel_size, layer.stride, layer.dilation, strict=True)
    for size, kernel, stride, dilation in sizes:
        reach = dilation * (kernel - 1)
        starts, steps = torch.arange(0, size - reach, stride), dilation * torch.arange(kernel)
        cells = starts[:, None] + steps
        windows = (size * windows[:, None, :, None] + cells[None, :, None, :]).flatten(2).flatten(0, 1)
    return x.flatten(2), windows


ACTIVATIONS = frozenset(name for name, value in vars(nn.modules.activation).items() if isinstance(value, type)) - {
    "Module", "Parameter", "Tensor", "MultiheadAttention", "Softmax", "Softmax2d", "LogSoftmax", "Softmin",
}  # fmt: skip
"""Class names of activation functions that work entry by entry."""


def response_sites(graph: Graph) -> dict[str, Site]:
    """Returns where each group is measured: after the activation function that follows the layer producing it.

    That is the first activation among the outputs before another layer adds to the same units; without one (it may
    be a plain function), the last layer with weights before that, whose output is what the function gets.

    Returns:
        Group name → site, for the groups that some module's output carries behind an axis of examples.
    """
    holders = {name.rpartition(".")[0] for name in graph.shapes}
    parents = {holder[:at] for holder in holders for at, letter in enumerate(holder) if letter == "."}
    sites = {group.name: _response_site(group, holders - parents) for group in graph.groups}
    return {name: site for name, site in sites.items() if site is not None}


def _response_site(group: Group, leaves: set[str]) -> Site | None:
    producers = {part.tensor.rpartition(".")[0] for part in group.by_role("output")}
    last: Site | None = None
    produced = False
    for site in group.sites:
        if site.axis == 0:
            continue  # nothing tells the examples apart
        if site.module in producers:
            if produced:
                break
            produced = True
        if site.kind in ACTIVATIONS:
            return site
        if last is None or site.module in leaves:
            last = site
    return last


def on_responses(
    model: nn.Module, graph: Graph, show: Callable[[Group, Site, Tensor], None], *, shield: bool = False
) -> Iterator[RemovableHandle]:
    """Calls ``show`` with every group's response.

    With ``shield`` the network goes on with a copy, so that the response outlives operators that work in place, and is
    part of the gradient's graph even where all parameters are frozen.
    """
    at: dict[str, list[tuple[Group, Site]]] = defaultdict(list)
    for name, site in response_sites(graph).items():
        at[site.module].append((graph[name], site))
    calls: Counter[str] = Counter()  # of one forward pass: a module may be called again, with other units

    def respond(name: str, _: nn.Module, __: object, output: object) -> Tensor | None:
        number, calls[name] = calls[name], calls[name] + 1
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return None
        for group, site in at[name]:
            if site.call == number and shield:
                output = output if output.requires_grad else output.detach().requires_grad_()
                show(group, site, output)
                output = output.clone()
            elif site.call == number:
                show(group, site, output.detach())
        return output if shield else None

    yield model.register_forward_pre_hook(lambda *_: calls.clear())
    yield from on_calls(((name, model.get_submodule(name)) for name in at), respond)


def flat_response(response: Tensor, site: Site) -> Tensor:
    """Returns a response as ``(examples, positions, locations)``."""
    return response.movedim(site.axis, 1).flatten(2) if response.ndim > 2 else response[:, :, None]


def unit_sums(values: Tensor, site: Site) -> Tensor:
    """Sums ``(positions,)`` into ``(units,)``."""
    return values[site.positions.to(values.device)].sum(1)
