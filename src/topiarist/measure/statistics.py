"""The statistics that can be measured while a model runs.

A statistic hooks itself into the model and adds what it sees to float64 sums, one set for each group. Sums of one
batch, of ten, or of several machines add up to the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from topiarist.graph import Graph, Group, Site
from topiarist.measure.watching import flat_response, on_responses, unit_sums


class Watch:
    """Collects what the statistics see while the model runs over one batch after the other."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, str], Tensor] = {}
        self._requests: list[tuple[Tensor, Callable[[Tensor], None]]] = []

    def add(self, group: str, key: str, value: Tensor | float) -> None:
        """Adds to a sum."""
        number = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
        self.sums[group, key] = self.sums[group, key] + number if (group, key) in self.sums else number

    def gradient(self, tensor: Tensor, add: Callable[[Tensor], None]) -> None:
        """Requests the gradient of the loss, summed over the examples, with respect to a tensor of this batch."""
        self._requests.append((tensor, add))

    def backward(self, loss: Tensor) -> None:
        """Computes the gradients that were requested; no ``.grad`` is touched.

        The graph is retained, so that whoever gets one may compute more.
        """
        requests, self._requests = self._requests, []
        if not requests or not loss.requires_grad:
            return
        tensors = [tensor for tensor, _ in requests]
        gradients = torch.autograd.grad(loss, tensors, allow_unused=True, retain_graph=True)
        for (tensor, add), gradient in zip(requests, gradients, strict=True):
            add(torch.zeros_like(tensor) if gradient is None else gradient)  # the loss does not depend on it


class Statistic(Protocol):
    """Measures something while a model runs. A method may bring its own."""

    @property
    def name(self) -> str:
        """What a method's ``needs`` calls it, and what its keys begin with."""

    @property
    def gradients(self) -> bool:
        """Whether it requests gradients, so that a loss is computed."""

    def watch(self, model: nn.Module, graph: Graph, run: Watch) -> Iterable[RemovableHandle]:
        """Hooks itself into the model, to add to the sums of each group; the hooks are removed after the data."""


@dataclass(frozen=True)
class Activations:
    """Measures sums over examples and locations of each unit's response, after its activation function.

    Keys: ``activations.count`` (how many values went in), ``.sum``, ``.squares`` and ``.zeros`` (values ``<= 0``: what
    a ReLU makes zero, also where it is a function that no hook sees), each ``(units,)`` but the count.
    """

    name: str = "activations"
    gradients: bool = False

    def watch(self, model: nn.Module, graph: Graph, run: Watch) -> Iterable[RemovableHandle]:
        """Adds up in the forward pass."""

        def show(group: Group, site: Site, response: Tensor) -> None:
            z = flat_response(response, site)
            run.add(group.name, "activations.count", z.shape[0] * z.shape[2] * site.positions.shape[1])
            run.add(group.name, "activations.sum", unit_sums(z.sum((0, 2), dtype=torch.float64), site))
            run.add(group.name, "activations.squares", unit_sums(z.double().square().sum((0, 2)), site))
            run.add(group.name, "activations.zeros", unit_sums((z <= 0).sum((0, 2)), site))

        return on_responses(model, graph, show)


@dataclass(frozen=True)
class Gradients:
    """Measures the first-order effect of removing a unit (the Taylor criterion of Molchanov et al. 2017).

    Keys: ``gradients.count`` (examples) and ``gradients.taylor`` ``(units,)``, the sum over examples of
    ``|mean over locations of dL/dz * z|`` with ``L`` the loss of that example.
    """

    name: str = "gradients"
    gradients: bool = True

    def watch(self, model: nn.Module, graph: Graph, run: Watch) -> Iterable[RemovableHandle]:
        """Adds up when the gradients are there."""

        def show(group: Group, site: Site, response: Tensor) -> None:
            def add(gradient: Tensor) -> None:
                effect = flat_response(response.detach() * gradient, site).mean(2, dtype=torch.float64)
                effect = effect[:, site.positions.to(effect.device)].mean(2).abs()
                run.add(group.name, "gradients.count", len(effect))
                run.add(group.name, "gradients.taylor", effect.sum(0))

            run.gradient(response, add)

        return on_responses(model, graph, show, shield=True)


@dataclass(frozen=True)
class Covariance:
    """Measures how the units of a group vary together, each pooled over locations to one value per example.

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

        def show(group: Group, site: Site, response: Tensor) -> None:
            z = flat_response(response, site).double()
            units = site.positions.to(z.device)
            pooled = z.amax(2)[:, units].amax(2) if self.pool == "max" else z.mean(2)[:, units].mean(2)
            run.add(group.name, f"{self.name}.count", len(pooled))
            run.add(group.name, f"{self.name}.sum", pooled.sum(0))
            run.add(group.name, f"{self.name}.products", pooled.T @ pooled)

        return on_responses(model, graph, show)


STATISTICS: Mapping[str, Statistic] = {
    statistic.name: statistic for statistic in (Activations(), Gradients(), Covariance("max"), Covariance("mean"))
}
"""What a method's ``needs`` may name."""
