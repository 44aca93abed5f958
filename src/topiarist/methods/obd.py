"""Optimal Brain Damage: prunes weights whose removal the curvature of the loss allows (LeCun et al. 1990)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from topiarist.errors import TopiaristError
from topiarist.files import shown
from topiarist.graph import Graph, Scores
from topiarist.measure import Stats, Watch
from topiarist.methods._example_gradients import ExampleGradients, curvature_factors, on_example_gradients
from topiarist.methods.base import Method, checked_scores, indices_of, weights_of

Kind = Literal["gauss_newton", "fisher"]


@dataclass(frozen=True)
class DiagonalCurvature:
    """Measures the diagonal of the curvature of the loss by every weight, in one of two forms.

    Keys, of each weight tensor: ``NAME.count`` (examples) and ``NAME.squares`` ``(weights,)``, the sum over examples.

    Attributes:
        kind: ``"gauss_newton"``, the sum over classes of ``(J_n^T s_nc)^2`` with ``sum over c of s_c s_c^T`` the
            curvature of the cross entropy by the class scores; or ``"fisher"``, ``(dL_n/dw)^2`` for any loss.
    """

    kind: Kind = "gauss_newton"
    gradients: bool = True

    @property
    def of_cross_entropy(self) -> bool:
        """Returns whether it is right for the cross entropy alone."""
        return self.kind == "gauss_newton"

    @property
    def name(self) -> str:
        """Computes ``curvature-gauss_newton`` or ``curvature-fisher``."""
        return f"curvature-{self.kind}"

    def watch(self, model: nn.Module, graph: Graph, run: Watch) -> Iterable[RemovableHandle]:
        """Adds up when the gradients are there."""

        def show(gradients: ExampleGradients, by_scores: Tensor) -> None:
            for name in gradients.weights:
                run.add(name, f"{self.name}.count", len(by_scores))
            for s in curvature_factors(gradients.z) if self.kind == "gauss_newton" else (by_scores,):
                for name, values in gradients.squares(s):
                    run.add(name, f"{self.name}.squares", values)

        return on_example_gradients(model, graph, run, show)


@dataclass(frozen=True)
class OBD(Method):
    """Optimal Brain Damage: scores a weight by the diagonal of the loss's Hessian.

    Formula: ``s_k = 1/2 h_kk w_k^2``, with ``h_kk`` the curvature of the mean loss along weight ``k``. ``gauss_newton``
    is the diagonal of the Gauss-Newton matrix of the mean cross entropy, ``h_kk = mean over examples of (J^T (diag(p) -
    p p^T) J)_kk``, with ``J`` the gradients of the class scores and ``p`` their softmax: the paper's Hessian less the
    second derivatives of the network (its Levenberg-Marquardt form), which ReLUs do not have. The paper propagates
    squared weights backwards once, which drops what the paths through a layer have in common; here the gradients of
    every class are propagated, which is exact. ``fisher`` is an approximation that the paper does not have, the
    empirical Fisher ``h_kk = mean over examples of (dL/dw_k)^2`` at the data's labels, of any loss. Needs data with
    targets. Returns ``(units,)`` for each weight tensor, in units of the loss, so that one threshold serves all.

    Cost: for ``gauss_newton`` as many backward passes as there are classes (times locations, where an example has
    several), for ``fisher`` one, and one more to check. That holds for the weights of linear layers and convolutions.
    Weights that are used otherwise (attention in one module, transposed convolutions, tied or re-parametrised weights)
    take as many for every example: give such networks small batches and few examples. Memory: what training on the
    batches takes, and what the kernels of all convolutions read.

    Use it: for trained networks, a part of the weights at a time with training in between. With many classes use
    ``fisher``, on examples that the network does not fit perfectly, since those have gradients of 0.

    Raises:
        TopiaristError: ``curvature`` is neither word, nothing was measured, all of it is 0, or the graph is not one of
            weights.

    Paper: LeCun, Denker, Solla: "Optimal Brain Damage", NIPS 1989.

    Attributes:
        curvature: ``"gauss_newton"``, exact for cross entropy, or ``"fisher"``, quicker and approximate.
    """

    family = "loss sensitivity (gradients, Hessian)"
    granularity = "weight"
    target = "automatic"
    needs = frozenset({DiagonalCurvature()})
    allocation = "global"
    formula = r"s_k = \frac{1}{2}\, h_{kk}\, w_k^2"
    paper = "LeCun, Denker, Solla: Optimal Brain Damage, NIPS 1989"

    curvature: Kind = "gauss_newton"

    def __post_init__(self) -> None:
        if self.curvature not in ("gauss_newton", "fisher"):
            raise TopiaristError(f"curvature must be 'gauss_newton' or 'fisher', but got {shown(self.curvature)}")
        object.__setattr__(self, "needs", frozenset({DiagonalCurvature(self.curvature)}))

    def score(self, graph: Graph, stats: Stats) -> Scores:
        """Computes ``s_k = h_kk w_k^2 / 2``."""
        weights = {group: weights_of(group, stats).double().cpu() for group in graph.groups}
        key = f"curvature-{self.curvature}.squares"
        measured = [group for group in weights if (group.name, key) in stats.sums]
        if not measured:
            raise TopiaristError(
                "obd has no curvature of any weight: collect what this method needs, with targets that the loss uses"
            )
        h = {group: stats.mean(group.name, key)[indices_of(group)] for group in measured}
        scores = {group.name: h[group] * weights[group].square() / 2 for group in measured}
        return checked_scores(self, scores, "use other data, or magnitude")
