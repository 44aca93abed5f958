"""What can be measured while a model runs, one statistic each.

A statistic hooks itself into the model and adds what it sees to float64 sums, one set for each group. Sums of one
batch, of ten, or of several machines add up to the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from topiarist.graph import Graph, Group, Site


class Watch:
    """One run of the model over one batch after the other, as the statistics see it."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, str], Tensor] = {}
        self._wanted: list[tuple[Tensor, Callable[[Tensor], None]]] = []

    def add(self, group: str, key: str, value: Tensor | float) -> None:
        """Adds to a sum."""
        number = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
        self.sums[group, key] = self.sums[group, key] + number if (group, key) in self.sums else number

    def gradient(self, tensor: Tensor, then: Callable[[Tensor], None]) -> None:
        """Asks for the gradient of the loss, summed over the examples, with respect to a tensor of this batch."""
        self._wanted.append((tensor, then))

    def backward(self, loss: Tensor) -> None:
        """Hands out the gradients that were asked for; no ``.grad`` is touched.

        The graph stays, so that whoever gets one may ask for more.
        """
        wanted, self._wanted = self._wanted, []
        if not wanted or not loss.requires_grad:
            return
        gradients = torch.autograd.grad(loss, [tensor for tensor, _ in wanted], allow_unused=True, retain_graph=True)
        for (_, then), gradient in zip(wanted, gradients, strict=True):
            if gradient is not None:
                then(gradient)


class Statistic(Protocol):
    """Something that can be measured while a model runs. A method may bring its own."""

    @property
    def name(self) -> str:
        """What a method's ``needs`` calls it, and what its keys begin with."""

    @property
    def gradients(self) -> bool:
        """Whether it asks for gradients, so that a loss is computed."""

    def watch(self, model: nn.Module, graph: Graph, run: Watch) -> Iterable[RemovableHandle]:
        """Hooks itself into the model, to add to the sums of each group; the hooks are removed after the data."""


ACTIVATIONS = frozenset(name for name, found in vars(nn.modules.activation).items() if isinstance(found, type)) - {
    "Module", "Parameter", "Tensor", "MultiheadAttention", "Softmax", "Softmax2d", "LogSoftmax", "Softmin",
}  # fmt: skip


def response_sites(graph: Graph) -> dict[str, Site]:
    """Where each group's responses are measured: after the activation function that follows the layer producing it.

    That is the first activation among the outputs before another layer adds to the same units; without one (it may
    be a plain function), the last layer with weights before that, whose output is what the function gets.

    Returns:
        Group name → site, for the groups that some module's output carries behind an axis of examples.
    """
    holders = {name.rpartition(".")[0] for name in graph.shapes}
    parents = {holder[:at] for holder in holders for at, letter in enumerate(holder) if letter == "."}
    found = {group.name: _response_site(group, holders - parents) for group in graph.groups}
    return {name: site for name, site in found.items() if site is not None}


def _response_site(group: Group, leaves: set[str]) -> Site | None:
    producers = {part.tensor.rpartition(".")[0] for part in group.by_role("output")}
    found: Site | None = None
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
        if found is None or site.module in leaves:
            found = site
    return found


def on_responses(
    model: nn.Module, graph: Graph, see: Callable[[Group, Site, Tensor], None], *, shield: bool = False
) -> Iterator[RemovableHandle]:
    """Calls ``see`` with every group's response.

    With ``shield`` the network goes on with a copy, so that what was seen survives operators that work in place, and is
    part of the gradient's graph even where all parameters are frozen.
    """
    for name, site in response_sites(graph).items():
        # A module may be called several times in one forward pass, with other units each time.
        calls = _Calls()
        yield model.register_forward_pre_hook(calls.restart)
        hook = _Hook(graph[name], site, see, shield, calls)
        yield model.get_submodule(site.module).register_forward_hook(hook)


class _Calls:
    """Counts the calls of a module in one forward pass of the network."""

    def __init__(self) -> None:
        self.number = 0

    def restart(self, module: nn.Module, args: Any) -> None:
        self.number = 0


@dataclass(frozen=True, eq=False)
class _Hook:
    """Shows one call of one module to a statistic."""

    group: Group
    site: Site
    see: Callable[[Group, Site, Tensor], None]
    shield: bool
    calls: _Calls

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Tensor | None:
        self.calls.number += 1
        if self.calls.number - 1 != getattr(self.site, "call", 0):
            return None
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return None
        if not self.shield:
            self.see(self.group, self.site, output.detach())
            return None
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        self.see(self.group, self.site, output)
        return output.clone()


def lines(response: Tensor, site: Site) -> Tensor:
    """``(examples, positions, places)``."""
    return response.movedim(site.axis, 1).flatten(2) if response.ndim > 2 else response[:, :, None]


def by_unit(values: Tensor, site: Site) -> Tensor:
    """``(positions,)`` summed into ``(units,)``."""
    return values[site.positions.to(values.device)].sum(1)


@dataclass(frozen=True)
class Activations:
    """Sums over examples and places of each unit's response, after its activation function.

    Keys: ``activations.count`` (how many values went in), ``.sum``, ``.squares`` and ``.zeros`` (values ``<= 0``: what
    a ReLU makes zero, also where it is a function that no hook sees), each ``(units,)`` but the count.
    """

    name: str = "activations"
    gradients: bool = False

    def watch(self, model: nn.Module, graph: Graph, run: Watch) -> Iterable[RemovableHandle]:
        """Adds up in the forward pass."""

        def see(group: Group, site: Site, response: Tensor) -> None:
            z = lines(response, site)
            run.add(group.name, "activations.count", z.shape[0] * z.shape[2] * site.positions.shape[1])
            run.add(group.name, "activations.sum", by_unit(z.sum((0, 2), dtype=torch.float64), site))
            run.add(group.name, "activations.squares", by_unit(z.double().square().sum((0, 2)), site))
            run.add(group.name, "activations.zeros", by_unit((z <= 0).sum((0, 2)), site))

        return on_responses(model, graph, see)


@dataclass(frozen=True)
class Gradients:
    """First-order effect of removing a unit (the Taylor criterion of Molchanov et al. 2017).

    Keys: ``gradients.count`` (examples) and ``gradients.taylor`` ``(units,)``, the sum over examples of
    ``|mean over places of dL/dz * z|`` with ``L`` the loss of that example.
    """

    name: str = "gradients"
    gradients: bool = True

    def watch(self, model: nn.Module, graph: Graph, run: Watch) -> Iterable[RemovableHandle]:
        """Adds up when the gradients are there."""

        def see(group: Group, site: Site, response: Tensor) -> None:
            def then(gradient: Tensor) -> None:
                effect = lines(response.detach() * gradient, site).mean(2, dtype=torch.float64)
                effect = effect[:, site.positions.to(effect.device)].mean(2).abs()
                run.add(group.name, "gradients.count", len(effect))
                run.add(group.name, "gradients.taylor", effect.sum(0))

            run.gradient(response, then)

        return on_responses(model, graph, see, shield=True)


@dataclass(frozen=True)
class Covariance:
    """How the units of a group vary together, each reduced to one value per example by pooling over places.

    Keys: ``NAME.count`` (examples), ``NAME.sum`` ``(units,)`` and ``NAME.products`` ``(units, units)``; the covariance
    is ``products / count - mean mean^T`` (`topiarist.measure.covariance`).

    Attributes:
        pool: ``"max"`` or ``"mean"``.
    """

    pool: Literal["max", "mean"] = "max"
    gradients: bool = False

    @property
    def name(self) -> str:
        """``covariance-max`` or ``covariance-mean``."""
        return f"covariance-{self.pool}"

    def watch(self, model: nn.Module, graph: Graph, run: Watch) -> Iterable[RemovableHandle]:
        """Adds up in the forward pass."""

        def see(group: Group, site: Site, response: Tensor) -> None:
            z = lines(response, site).double()
            places = site.positions.to(z.device)
            pooled = z.amax(2)[:, places].amax(2) if self.pool == "max" else z.mean(2)[:, places].mean(2)
            run.add(group.name, f"{self.name}.count", len(pooled))
            run.add(group.name, f"{self.name}.sum", pooled.sum(0))
            run.add(group.name, f"{self.name}.products", pooled.T @ pooled)

        return on_responses(model, graph, see)


STATISTICS: Mapping[str, Statistic] = {
    statistic.name: statistic for statistic in (Activations(), Gradients(), Covariance("max"), Covariance("mean"))
}
"""What a method's ``needs`` may name."""
