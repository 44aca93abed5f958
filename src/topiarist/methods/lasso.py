"""LASSO regression: selects the channels that a layer needs, and reconstructs its outputs (He et al. 2017)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from torch import Tensor, nn

from topiarist.budget import Budget, quota
from topiarist.errors import TopiaristError
from topiarist.files import shown
from topiarist.graph import Graph, Keep, Slice
from topiarist.measure import Stats
from topiarist.methods._reconstruction import (
    Locations,
    Readers,
    gram,
    grams,
    model_and_data,
    readers,
    scale_inputs,
    unit_entries,
)
from topiarist.methods._residuals import Residual, kept_positions, residuals
from topiarist.methods.base import Method
from topiarist.surgery import mask, with_values


@dataclass(frozen=True)
class Lasso(Method):
    """Feature reconstruction: selects channels by LASSO regression, then refits the next layer by least squares.

    Formula: with ``z_c`` what unit ``c`` adds to the ``m`` sampled output values of the layers that read it, and ``y``
    what these values should be, ``beta = argmin 1 / (2 m) |y - sum over c of beta_c z_c|^2 + lam |beta|_1``. A unit
    is kept where ``beta_c`` is not 0; ``lam`` is doubled, then bisected, until as many are kept as the budget says, and
    where their number jumps, those of largest ``|beta_c|``. Then ``W' = argmin |Y - X W'^T - b'|^2`` over all weights
    of the kept units, and the bias where there is one. Both solve for a layer in a network that is already pruned and
    repaired before it: ``X`` is what the layer reads there, ``Y`` its output in the original network, so that errors do
    not add up. Where the output, as it is or behind a batch norm, is added to a shortcut, ``Y`` is the original sum
    less the shortcut of the pruned network; sums behind a nonlinearity, a layer norm or a concatenation are not
    corrected. As in the authors' code the weights in ``z_c`` are the trained ones, ``beta`` only selects, and the two
    steps do not alternate. The ridge pulls ``W'`` to the trained weights where the samples say little.

    Needs the model and data, no targets. Selects units itself, ``(units,)`` for each group that only linear layers and
    ungrouped convolutions read; other groups are not pruned, and layers that read no pruned unit do not change. Groups
    that several layers read stack the outputs of all of them.

    Cost: about four passes over the examples for each group and two for each layer that reads it, of the original and
    the pruned network, ``locations * (inputs * k^2)^2`` products for the least squares of a layer with kernels of
    ``k^2`` entries, and their cube to solve them. Memory: twice ``(kept inputs * k^2)^2`` float64 numbers for one layer
    at a time, 340 MB for a 3x3 layer of 512 unpruned inputs and 170 MB at 70 %, ``units^2`` for the regression, and of
    one batch what one layer reads at the sampled locations and the outputs of its forward pass. Layers with more than
    8,192 weights an output are refitted by one scale for each unit instead.

    Use it: for the highest accuracy right after pruning, where there is data and no time to fine-tune. It takes longer
    than the other methods. Not where the sampled examples are few against the weights of one output.

    Raises:
        TopiaristError: a field is out of range, there is no budget or no data, or no group can be reconstructed.

    Paper: He, Zhang, Sun: "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017.

    Attributes:
        samples: locations drawn in each example and layer; all where there are fewer.
        examples: examples used, at most: the first ones of the data.
        ridge: how much a change of the weights costs, against the mean square of what a layer reads.
        seed: another seed draws other locations.
    """

    family = "feature reconstruction"
    needs = frozenset({"weights", "evaluations"})
    formula = (
        r"\min_{\beta, W} \frac{1}{2 N} \left\lVert Y - \sum_{i} \beta_i X_i W_i^{\top} \right\rVert_F^2 + "
        r"\lambda \lVert \beta \rVert_1, \qquad \lVert \beta \rVert_0 \le c'"
    )
    paper = "He, Zhang, Sun: Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017"

    samples: int = 10
    examples: int = 1000
    ridge: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("samples", "examples"):
            if not getattr(self, name) >= 1:
                raise TopiaristError(f"{name} must be at least 1, but got {shown(getattr(self, name))}")
        if not self.ridge > 0:
            raise TopiaristError(f"ridge must be a positive number, but got {shown(self.ridge)}")

    def select(self, graph: Graph, stats: Stats, budget: Budget | None) -> Keep:
        """Selects group by group, from front to back, in the network that is pruned and repaired before it."""
        model, _ = model_and_data(stats)
        reading = self._readers(graph, stats)
        keep, network = graph.full(), model
        pruned: list[str] = []
        for name, count in quota(graph, reading, budget).items():
            if count == graph[name].units:
                continue
            if pruned:
                network = mask(with_values(model, network), graph, keep)
                for layer in in_order(graph, reading[pruned[-1]]):
                    self._refit(network, layer, graph, keep, reading, stats)
            keep[name] = Path(*self.regression(network, stats, reading[name])).support(count)
            pruned.append(name)
        return keep

    def repair(self, model: nn.Module, graph: Graph, keep: Keep, stats: Stats) -> None:
        """Solves the least squares of every layer that reads a pruned group, from front to back."""
        if all(bool(keep[group.name].all()) for group in graph.groups):
            return
        reading = self._readers(graph, stats)
        for layer in in_order(graph, {layer for name in reading if not keep[name].all() for layer in reading[name]}):
            self._refit(model, layer, graph, keep, reading, stats)

    def regression(self, pruned: nn.Module, stats: Stats, parts: Mapping[str, Slice]) -> tuple[Tensor, Tensor]:
        """Computes ``Z^T Z / m`` and ``Z^T y / m`` of the group that some layers read, stacked over these layers.

        Args:
            pruned: the network so far, where the layers read.
            stats: of the original network, where the wanted outputs come from.
            parts: layer → where the units sit in its weight.

        Returns:
            Float64 ``(units, units)`` and ``(units,)``.
        """
        sums = {name: _Products(part) for name, part in parts.items()}
        for residual in self._residuals(pruned, list(parts), stats):
            sums[residual.name].add(residual)
        totals = [products.total() for products in sums.values()]
        size = sum(products.locations * products.outputs for products in sums.values())
        zz, zr = (torch.stack(each).sum(0) / size for each in zip(*totals, strict=True))
        return zz, zr + zz.sum(1)  # y is the sum of what the layers put out now, Z 1, and of the residual

    def _readers(self, graph: Graph, stats: Stats) -> Readers:
        """Returns the layers that read each group which can be reconstructed, as the first batch shows."""
        seen = grams(graph, stats, Locations(1, 1, self.seed))
        parts = readers(graph, model_and_data(stats)[0])
        return {group.name: parts[group.name] for group in graph.groups if group.name in seen}

    def _residuals(self, pruned: nn.Module, layers: list[str], stats: Stats) -> Iterator[Residual]:
        model, batches = model_and_data(stats)
        return residuals(model, pruned, layers, Locations(self.samples, self.examples, self.seed), batches)

    def _refit(self, network: nn.Module, name: str, graph: Graph, keep: Keep, reading: Readers, stats: Stats) -> None:
        """Fits the weight (and bias) of one layer of the network to the residual, in place."""
        weight = network.get_parameter(f"{name}.weight")
        inputs, outputs = (kept_positions(graph, keep, f"{name}.weight", axis).to(weight.device) for axis in (1, 0))
        if int(inputs.sum()) * weight[0, 0].numel() > _WIDE:
            for group, parts in reading.items():
                if name in parts:
                    self._rescale(network, name, parts[name], keep[group].cpu(), stats)
            return
        squares = _LeastSquares(inputs, outputs)
        for residual in self._residuals(network, [name], stats):
            squares.add(residual)
        squares.solve(self.ridge)

    def _rescale(self, network: nn.Module, name: str, part: Slice, kept: Tensor, stats: Stats) -> None:
        """Fits one scale for each kept unit, as ThiNet does: for layers too wide for all their weights."""
        zz, zy = self.regression(network, stats, {name: part})
        zz, zr = zz[kept][:, kept], (zy - zz.sum(1))[kept]
        scales = torch.ones(len(kept), dtype=torch.float64)
        scales[kept] += _ridge_solution(zz, zr[:, None], self.ridge)[:, 0]
        scale_inputs(network, [part], scales)


class Path:
    """Computes coefficients along the path of lambda, from the products of the design with itself and the response.

    ``beta(lam) = argmin 1/2 beta^T (Z^T Z / m) beta - beta^T (Z^T y / m) + lam |beta|_1``, which is LASSO's ``1 / (2 m)
    |y - Z beta|^2 + lam |beta|_1`` but for a constant, with one unknown for each unit however many rows ``Z`` has.
    scikit-learn's coordinate descent solves it on a square root of ``Z^T Z``, starting from the last answer.

    Args:
        zz: ``Z^T Z / m``, float64 ``(units, units)``.
        zy: ``Z^T y / m``, float64 ``(units,)``.

    Attributes:
        top: the least ``lam`` at which all coefficients are 0.
    """

    def __init__(self, zz: Tensor, zy: Tensor) -> None:
        self.zz, self.zy = zz.cpu().numpy(), zy.cpu().numpy()
        self.top = float(np.abs(self.zy).max())
        values, vectors = np.linalg.eigh(self.zz)
        strong = values > values.max() * 1e-12
        if not strong.any():
            raise TopiaristError("what a layer reads does not vary on this data: give lasso more samples, or more data")
        root = np.sqrt(values[strong] * len(values[strong]))
        self._design = np.asfortranarray((vectors[:, strong] * root).T)
        self._response = vectors[:, strong].T @ self.zy * len(root) / root
        self._last = np.ones_like(self.zy)

    def at(self, lam: float) -> np.ndarray:
        """Returns ``beta(lam)``, float64 ``(units,)``."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import Lasso as Solver

        solver = Solver(lam, fit_intercept=False, warm_start=True, tol=1e-7, max_iter=2000)
        solver.coef_ = self._last.copy()
        with _WARNINGS, warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # what it still lacks changes no choice
            solver.fit(self._design, self._response)
        self._last = np.asarray(solver.coef_)
        return self._last

    def support(self, count: int) -> Tensor:
        """Selects ``count`` units, bool ``(units,)``: those of the solution that has as many, by bisection over lambda.

        An upper bound is doubled from next to nothing until no more than ``count`` coefficients are not 0, then the
        interval is halved. Where the number of coefficients jumps over ``count``, the largest of the longer solution
        are kept; where the data leave too few, those as well that would come back first.
        """
        low = high = self.top * 2.0**-20
        best = beta = self.at(high)
        while np.count_nonzero(beta) > count and high < self.top:
            low, high, best = high, 2 * high, beta
            beta = self.at(high)
        for _ in range(_HALVINGS):
            if np.count_nonzero(beta) == count or low == high:
                break
            middle = (low + high) / 2
            beta = self.at(middle)
            if np.count_nonzero(beta) > count:
                low, best = middle, beta
            else:
                high = middle
        best = beta if np.count_nonzero(beta) == count else best
        pull = np.abs(self.zy - self.zz @ best)
        order = np.lexsort((-pull, -np.abs(best)))
        kept = torch.zeros(len(best), dtype=torch.bool)
        kept[torch.from_numpy(order[:count].copy())] = True
        return kept


class _Products:
    """Sums ``Z^T Z`` and ``Z^T r`` of one layer: ``z_c`` is what unit ``c`` adds to its outputs, ``r`` the residual.

    Both are centred, each output by itself, where the layer has a bias, which least squares will refit.
    """

    def __init__(self, part: Slice) -> None:
        self.part, self.locations = part, 0

    def add(self, residual: Residual) -> None:
        """Adds the sampled locations of one batch."""
        layer, r = residual.layer, residual.residual
        x, w = (unit_entries(values, self.part) for values in (residual.x, layer.weight.detach()))
        w = w * residual.scale[:, None, None]
        if not self.locations:
            self.centred, self.w, self.outputs = layer.bias is not None, w, len(w)
            self.zz, self.zr = w.new_zeros(w.shape[1], w.shape[1]), w.new_zeros(w.shape[1])
            self.x, self.r = torch.zeros_like(x[0]), torch.zeros_like(r[0])
        self.zz += gram(x, w)
        self.zr += (torch.einsum("mo,mce->oce", r, x) * w).sum((0, 2))
        self.x += x.sum(0)
        self.r += r.sum(0)
        self.locations += len(x)

    def total(self) -> tuple[Tensor, Tensor]:
        """Returns ``(units, units)`` and ``(units,)``, on the CPU."""
        if self.centred:
            z = torch.einsum("ce,oce->oc", self.x, self.w)
            zz, zr = self.zz - z.T @ z / self.locations, self.zr - self.r @ z / self.locations
            _constant_left_out(self.zz.diagonal(), zz, zr)
            return zz.cpu(), zr.cpu()
        return self.zz.cpu(), self.zr.cpu()


class _LeastSquares:
    """Fits all weights of the kept inputs of one layer to its residual."""

    def __init__(self, inputs: Tensor, outputs: Tensor) -> None:
        self.inputs, self.outputs, self.locations = inputs, outputs, 0

    def add(self, residual: Residual) -> None:
        """Adds the sampled locations of one batch."""
        x, r = residual.x[:, self.inputs].flatten(1).double(), residual.residual[:, self.outputs]
        if not self.locations:
            self.xx, self.xr = x.new_zeros(x.shape[1], x.shape[1]), x.new_zeros(x.shape[1], r.shape[1])
            self.x, self.r, self.scale = torch.zeros_like(x[0]), torch.zeros_like(r[0]), residual.scale[self.outputs]
        self.layer = residual.layer
        self.xx.addmm_(x.T, x)
        self.xr.addmm_(x.T, r)
        self.x += x.sum(0)
        self.r += r.sum(0)
        self.locations += len(x)

    @torch.no_grad()
    def solve(self, ridge: float) -> None:
        """Solves, and adds the solution to the layer's weight and bias."""
        layer = self.layer
        if layer.bias is not None:
            squares = self.xx.diagonal().clone()
            self.xx.addr_(self.x, self.x, alpha=-1 / self.locations)
            self.xr.addr_(self.x, self.r, alpha=-1 / self.locations)
            _constant_left_out(squares, self.xx, self.xr)
        step = _ridge_solution(self.xx, self.xr, ridge)
        offset = (self.r - self.x @ step) / self.locations
        audible = self.scale.abs() > _FAINT * self.scale.abs().max()
        scale = torch.where(audible, self.scale, torch.inf)
        rows, columns = self.outputs.nonzero(), self.inputs.nonzero().flatten()
        change = (step / scale).T.reshape(len(rows), len(columns), *layer.weight.shape[2:])
        layer.weight[rows, columns] += change.to(layer.weight)
        if layer.bias is not None:
            layer.bias[self.outputs] += (offset / scale).to(layer.bias)


def in_order(graph: Graph, layers: Iterable[str]) -> list[str]:
    """Returns layers in the order in which the network first uses their weights."""
    order: dict[str | None, int] = {}
    for contraction in graph.solution.record.contractions:
        order.setdefault(contraction.weight, len(order))
    return sorted(layers, key=lambda name: order.get(f"{name}.weight", len(order)))


def _constant_left_out(squares: Tensor, a: Tensor, b: Tensor) -> None:
    """Sets to 0, in place, the products of unknowns that do not vary: once centred, they are rounding alone.

    Args:
        squares: sums of squares ``(n,)`` before they were centred.
        a: products of the unknowns with each other, centred.
        b: their products with the response, centred.
    """
    constant = a.diagonal() <= _ROUNDING * squares
    a[constant], a[:, constant], b[constant] = 0, 0, 0


def _ridge_solution(a: Tensor, b: Tensor, ridge: float) -> Tensor:
    """Returns ``(A + ridge * mean(diag A) I)^-1 B``, in the memory of A and one more of its size.

    Raises:
        TopiaristError: the sum is not positive definite.
    """
    a.diagonal().add_(ridge * a.diagonal().mean() + torch.finfo(a.dtype).tiny)
    factor, fault = torch.linalg.cholesky_ex(a)
    if int(fault):
        raise TopiaristError("the least squares of lasso have no solution: raise its ridge, or give it more data")
    return torch.cholesky_solve(b, factor)


_WIDE = 8192
"""Weights of one output that least squares fits at most: the matrix of their products is half a gigabyte."""
_HALVINGS = 50
_WARNINGS = Lock()
"""Held while warnings are filtered: the filters are the process's."""
_ROUNDING = 1e-10
"""Share of a sum of squares below which what centring leaves of it is rounding."""
_FAINT = 1e-4
"""Outputs that a batch norm scales by less, against its largest scale, are not refitted."""
