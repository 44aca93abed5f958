"""NISP: propagates the importance of the final responses back to every unit (Yu et al. 2018)."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from topiarist.errors import TopiaristError
from topiarist.files import shown
from topiarist.graph import Graph, Group, Scores, Site, call_model, converted, map_floats
from topiarist.measure import (
    Batch,
    Inputs,
    Stats,
    batch_size,
    device_of,
    flat_response,
    inputs_and_target,
    map_tensors,
    mode,
    on_responses,
    to_device,
    unit_sums,
)
from topiarist.methods._linearised import LastLayer, Linearised
from topiarist.methods.base import Method


@dataclass(frozen=True)
class Nisp(Method):
    """Propagates importance scores back from the final response layer through the absolute weights.

    Formula: ``s_k = |W_{k+1}|^T s_{k+1}`` down from the final responses, the input of the last layer with weights; a
    unit's score is the sum over its locations. It is the gradient of ``<s, final responses>`` in a linear network with
    weights ``|W|`` and no biases: activations and normalisations pass through, pooling of either kind spreads scores
    uniformly over its window, and a residual stream adds what its branches send back. The final scores are the
    variances of the channels over examples and locations, or with ``ranking="inf-fs"`` (the paper's) ``s = row sums of
    (I - r A)^-1 - I``, ``r = 0.9 / spectral radius of A`` and ``A_ij = alpha max(sigma_i, sigma_j) + (1 - alpha) (1 -
    |corr_ij|)``, standard deviations over the largest one.

    Needs the model and data (inputs; no targets). Returns ``(units,)`` for each group whose responses a module yields
    and from which scores can be reached, in units of the final scores times weights; other groups are not pruned.
    Unlike the paper, scores of units that will be pruned are propagated too, so no ratio enters; where responses
    multiply each other (gates, attention) both get the score, spread uniformly over what the product sums; and
    correlations are Pearson's.

    Cost: one pass over the data, and one example forwards and backwards through a copy of the model in double
    precision. Memory: that copy, and for ``d`` final channels ``d`` sums, with Inf-FS ``d x d``.
    Use it: for networks that end in a classifier, to weigh all layers by what reaches it. Not where depth or width make
    the product of all ``|W|`` much alike for all units, nor before the classifier was trained.

    Raises:
        TopiaristError: a field is out of range, there is no data, no layer runs, the final responses do not vary, the
            scores overflow, or none reaches a unit.

    Paper: Yu, Li, Chen, Lai, Morariu, Han, Gao, Lin, Davis: "NISP: Pruning Networks using Neuron Importance Score
    Propagation", CVPR 2018.

    Attributes:
        ranking: how the final responses are scored: ``"variance"``, or ``"inf-fs"``, infinite feature selection.
        alpha: weight of the deviations against the correlations in Inf-FS, from 0 to 1.
    """

    family = "final response and correlation"
    needs = frozenset({"weights", "evaluations"})
    formula = r"s_k = |W_{k+1}|^{\top} s_{k+1}"
    paper = (
        "Yu, Li, Chen, Lai, Morariu, Han, Gao, Lin, Davis: "
        "NISP: Pruning Networks using Neuron Importance Score Propagation, CVPR 2018"
    )

    ranking: Literal["variance", "inf-fs"] = "variance"
    alpha: float = 0.5

    def __post_init__(self) -> None:
        if self.ranking not in ("variance", "inf-fs"):
            raise TopiaristError(f"ranking must be 'variance' or 'inf-fs', but got {shown(self.ranking)}")
        if not 0 <= self.alpha <= 1:
            raise TopiaristError(f"alpha must be between 0 and 1, but got {shown(self.alpha)}")

    def score(self, graph: Graph, stats: Stats) -> Scores:
        """Computes ``s_k = |W_{k+1}|^T s_{k+1}``, summed over locations."""
        if stats.model is None or stats.batches is None:
            raise TopiaristError("nisp runs the model on data: pass batches of inputs when statistics are collected")
        final, example = self._final(stats.model, stats.batches)
        scores = _propagated(stats.model, graph, example, final)
        if not scores:
            raise TopiaristError("the scores of nisp reach no unit of this network: use l1")
        return scores

    def _final(self, model: nn.Module, batches: Iterable[Batch]) -> tuple[Tensor, Inputs]:
        """Returns the scores of the final responses, ``(channels,)``, and the first example of the data."""
        example: Inputs = None
        count, total, products = 0, torch.zeros(()), torch.zeros(())
        with mode(model, training=False), torch.no_grad():
            for batch in batches:
                inputs = inputs_and_target(batch)[0]
                example = example or [_first(inputs)]
                with LastLayer() as last:
                    call_model(model, to_device(inputs, device_of(model)))
                z = _response(last).detach().movedim(last.axis, -1).flatten(0, -2).double()
                count, total = count + len(z), total + z.sum(0).cpu()
                products = products + (z.T @ z if self.ranking == "inf-fs" else z.square().sum(0)).cpu()
        if not count:
            raise TopiaristError("there is no batch in the data: pass at least one")
        mean, raw = total / count, products / count
        if self.ranking == "inf-fs":
            return inf_fs(_without_rounding(raw - torch.outer(mean, mean), raw), self.alpha), example[0]
        return _checked_variance(_without_rounding(raw - mean.square(), raw)), example[0]


def inf_fs(covariance: Tensor, alpha: float) -> Tensor:
    """Selects features by Inf-FS: the energy of all paths over the features that begin at each of them.

    Args:
        covariance: ``(features, features)``.
        alpha: weight of the deviations against the correlations.

    Returns:
        ``(features,)``, high where a feature varies and differs from the others; features that do not vary correlate
        with all others, for they add nothing.
    """
    sigma = _checked_variance(covariance.diagonal()).sqrt()
    scale = torch.outer(sigma, sigma)
    corr = torch.where(scale > 0, covariance / scale, 1.0).abs().clamp(max=1).fill_diagonal_(1)
    sigma = sigma / sigma.max()
    energy = alpha * torch.maximum(sigma[:, None], sigma) + (1 - alpha) * (1 - corr)
    radius = torch.linalg.eigvalsh(energy).abs().max()
    if not radius > 0:
        raise TopiaristError("all final responses are correlated with each other: use an alpha above 0")
    one = torch.eye(len(energy), dtype=energy.dtype)
    return (torch.linalg.inv(one - 0.9 / radius * energy) - one).sum(1)


def _propagated(model: nn.Module, graph: Graph, example: Inputs, final: Tensor) -> dict[str, Tensor]:
    """Returns the gradient of ``<final, final responses>`` by every group's response, summed over its locations."""
    twin = copy.deepcopy(model).double().requires_grad_(False).eval()
    seen: list[tuple[Group, Site, Tensor]] = []
    for _ in on_responses(twin, graph, lambda *response: seen.append(response), shield=True):
        pass  # the hooks die with the copy
    with torch.enable_grad(), Linearised() as last:
        call_model(twin, map_floats(to_device(converted(example, torch.float64), device_of(twin)), _tracked))
    response = _response(last)
    if not response.requires_grad or not seen:
        return {}
    seed = final.to(response).view(-1, *[1] * (response.ndim - last.axis - 1)).expand_as(response)
    gradients = torch.autograd.grad(response, [tensor for _, _, tensor in seen], seed, allow_unused=True)
    scores = {}
    for (group, site, _), gradient in zip(seen, gradients, strict=True):
        if gradient is None or not gradient.any():
            continue  # nothing reaches the classifier from here
        if not gradient.isfinite().all():
            raise TopiaristError(f"the scores of nisp overflow at {group.name!r}, the network is too deep: use l1")
        scores[group.name] = unit_sums(flat_response(gradient, site).sum((0, 2)), site).cpu()
    return scores


def _first(inputs: Inputs) -> Inputs:
    """Returns the first example: importance depends on shapes alone, so that one is enough."""
    examples = batch_size(inputs)
    return map_tensors(inputs, lambda x: x[:1] if x.ndim and len(x) == examples else x)


def _tracked(x: Tensor) -> Tensor:
    """Returns an input as part of the gradient's graph: a clone, which operators may write to."""
    return x.detach().requires_grad_().clone()


def _response(last: LastLayer) -> Tensor:
    if last.response is None:
        raise TopiaristError("nisp saw no convolution or linear layer run: use a method that needs the weights alone")
    return last.response


def _without_rounding(moments: Tensor, raw: Tensor) -> Tensor:
    """Returns central moments, with variances that are rounding errors of the raw ones set to 0."""
    variance, square = (moments.diagonal(), raw.diagonal()) if moments.ndim == 2 else (moments, raw)
    variance[variance <= 1e-12 * square] = 0
    return moments


def _checked_variance(variance: Tensor) -> Tensor:
    if not (variance > 0).any():
        raise TopiaristError("the responses before the classifier do not vary on this data: pass more examples")
    return variance
