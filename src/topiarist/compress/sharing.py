"""Weight sharing: the nonzero weights of each layer are replaced by few distinct values, which can be trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor, nn

from topiarist.compress.clusters import Init, cluster
from topiarist.compress.inputs import checked_state, identity
from topiarist.errors import TopiaristError
from topiarist.files import shown, suggestion
from topiarist.surgery import copied

CONVOLUTION_BITS, LINEAR_BITS = 8, 5
"""Bits of a weight in the paper's networks."""
MOST_BITS = 12


@dataclass(frozen=True, eq=False)
class Shared:
    """A network whose layers have few distinct weights.

    Attributes:
        model: the network.
        labels: parameter → int64 of its shape: 0 for a zero, else 1 + the number of the weight's centroid.
        losses: parameter → Σ (weight - centroid)², as sharing left it.
    """

    model: nn.Module
    labels: Mapping[str, Tensor]
    losses: Mapping[str, float]

    @contextmanager
    def tied(self) -> Iterator[nn.Module]:
        """Trains the centroids: in this context all weights of a centroid move together, and zeros stay zero.

        A centroid's gradient is the sum of those of its weights, ∂L/∂C_k = Σ_{i: label i = k} ∂L/∂w_i: each weight gets
        that sum as its own gradient, so an optimiser changes them all alike. It works in any loop and with any
        optimiser that treats each weight individually; weight decay acts on a centroid as on a weight. Parameters that
        are frozen do not change.

        Yields:
            The model.

        Raises:
            TopiaristError: the model has lost a parameter, or its zeros moved (an optimiser kept their momentum: make
                a new one).
        """
        parameters = dict(self.model.named_parameters())
        if missing := self.labels.keys() - parameters.keys():
            raise TopiaristError(f"the model has no parameter {shown(min(missing))} any more: share its weights again")
        with ExitStack() as stack:
            for name, labels in self.labels.items():
                if parameters[name].requires_grad:  # what is frozen does not move
                    stack.callback(parameters[name].register_hook(_Summed(labels)).remove)
            try:
                yield self.model
            finally:
                for name, labels in self.labels.items():
                    _tie(parameters[name], labels)

    def centroids(self) -> dict[str, Tensor]:
        """Returns parameter → its centroids as they are now, ``(k,)``."""
        parameters = dict(self.model.named_parameters())
        return {name: _centroids(parameters[name].detach(), labels) for name, labels in self.labels.items()}


class _Summed:
    """A hook of a gradient: replaces each weight's gradient by the sum over its centroid's weights, 0 for zeros."""

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels.flatten()
        self.count = int(self.labels.max()) + 1 if labels.numel() else 1

    def __call__(self, gradient: Tensor) -> Tensor:
        self.labels = self.labels.to(gradient.device)
        sums = torch.zeros(self.count, dtype=torch.float64, device=gradient.device)
        sums.index_add_(0, self.labels, gradient.detach().flatten().double())
        sums[0] = 0
        return sums.to(gradient.dtype)[self.labels].view_as(gradient)


def _centroids(weights: Tensor, labels: Tensor) -> Tensor:
    """Returns the value of one weight of each centroid; they are all equal."""
    flat = labels.flatten().cpu()
    values = torch.zeros(int(flat.max()) + 1 if len(flat) else 1, dtype=weights.dtype)
    return values.index_copy_(0, flat, weights.flatten().cpu())[1:]


@torch.no_grad()
def _tie(weights: Tensor, labels: Tensor) -> None:
    """Makes the weights of a centroid equal to the last bit: vector units may round some of them differently."""
    table = torch.cat([torch.zeros(1, dtype=weights.dtype), _centroids(weights, labels)])
    tied = table[labels.cpu()].to(weights.device)
    if weights.isfinite().all() and not torch.allclose(weights, tied, rtol=1e-3, atol=1e-6):
        raise TopiaristError("weights of one centroid differ now: make a new optimiser before centroids are trained")
    weights.copy_(tied)


def share(
    model: nn.Module,
    bits: int | Mapping[str, int] | None = None,
    init: Init = "linear",
    *,
    steps: int = 1000,
    seed: int = 0,
) -> Shared:
    """Shares the weights of each layer: k-means over its nonzero weights, each of which becomes its centroid.

    A layer with b bits has 2^b - 1 centroids and zero, so that b bits code a weight. Zeros stay zero; biases and the
    parameters of normalisations are not shared.

    Args:
        model: usually pruned; it is not changed.
        bits: of a weight, 1 to 12: one number for all parameters with at least two axes; or glob → number, where the
            first that matches a parameter's name counts, parameters that none matches are not shared, and a bias may be
            named too; by default the paper's 8 for convolutions and 5 for linear layers.
        init: first centroids, see `topiarist.compress.cluster`.
        steps: of Lloyd's algorithm, at most.
        seed: of ``init="random"``.

    Returns:
        A new model, the assignment of its weights, and their squared errors.

    Raises:
        TopiaristError: bits out of range, a glob that matches no parameter or comes too late, nothing to share, or
            weights that are not finite or of a type too narrow to be shared.

    Paper:
        Han, Mao, Dally: Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and
        Huffman Coding, ICLR 2016.
    """
    if not isinstance(model, nn.Module):
        raise TopiaristError(f"share() takes a network, not a {type(model).__name__}: share_state() takes a state dict")
    made = copied(model)
    labels, losses = _share_all(dict(made.named_parameters()), bits, init, steps, seed)
    return Shared(made, labels, losses)


def share_state(
    state: Mapping[str, Tensor],
    bits: int | Mapping[str, int] | None = None,
    init: Init = "linear",
    *,
    steps: int = 1000,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Shares the weights in a state dict, as `share` does those of a model.

    Returns:
        A new state dict; tied tensors stay tied.
    """
    if isinstance(state, nn.Module):
        raise TopiaristError("share_state() takes a state dict: share() takes a network")
    made: dict[tuple[object, ...], Tensor] = {}
    copies = {}
    for name, value in checked_state(state).items():
        copies[name] = made.setdefault(identity(value), value.detach().resolve_conj().resolve_neg().clone())
    _share_all(copies, bits, init, steps, seed)
    return copies


def _share_all(
    parameters: Mapping[str, Tensor], bits: int | Mapping[str, int] | None, init: Init, steps: int, seed: int
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Shares weights in place; returns labels and losses by name."""
    labels, losses = {}, {}
    for name, width in _widths(parameters, bits).items():
        labels[name], losses[name] = _share(parameters[name], width, init, steps, seed)
    return labels, losses


def _widths(tensors: Mapping[str, Tensor], bits: int | Mapping[str, int] | None) -> dict[str, int]:
    """Returns the bits of each parameter that is to be shared; of tied ones the first name counts."""
    first = {id(value): name for name, value in reversed(list(tensors.items()))}
    parameters = {
        name: value
        for name, value in tensors.items()
        if value.is_floating_point() and first[id(value)] == name and not _is_statistic(name)
    }
    if isinstance(bits, Mapping):
        widths = _named(parameters, bits)
    else:
        weights = {name: p.ndim for name, p in parameters.items() if p.ndim > 1}
        default = {name: CONVOLUTION_BITS if axes > 2 else LINEAR_BITS for name, axes in weights.items()}
        widths = default if bits is None else dict.fromkeys(weights, bits)
    for name, width in widths.items():
        if type(width) is not int or not 1 <= width <= MOST_BITS:
            raise TopiaristError(f"{name} cannot have {shown(width)} bits: give a whole number from 1 to {MOST_BITS}")
        if parameters[name].element_size() < 2:
            raise TopiaristError(f"{name} is of {parameters[name].dtype}, too narrow to be shared: convert it first")
    if not widths:
        raise TopiaristError("no weights would be shared: give bits for parameters, as a number or as {glob: number}")
    return widths


def _named(parameters: Mapping[str, Tensor], bits: Mapping[str, int]) -> dict[str, int]:
    """Returns parameter → bits of the first glob that matches its name; each glob must be the first for one."""
    for glob in bits:
        if not isinstance(glob, str):
            raise TopiaristError(
                f"bits are given for {shown(glob)}: give them for the name of a parameter, or a glob on names"
            )
    globs = {name: next((glob for glob in bits if fnmatchcase(name, glob)), None) for name in parameters}
    for glob in bits:
        if glob in globs.values():
            continue
        if late := [name for name in parameters if fnmatchcase(name, glob)]:
            raise TopiaristError(
                f"the bits for {shown(glob)} never apply, for {shown(globs[late[0]])} matches {late[0]} before it: "
                "put it first"
            )
        some = ", ".join(sorted(parameters, key=lambda name: -parameters[name].ndim)[:3])
        raise TopiaristError(
            f"bits are given for {shown(glob)}, which matches no parameter: "
            + suggestion(glob, parameters, f"name some such as {some}")
        )
    return {name: bits[glob] for name, glob in globs.items() if glob is not None}


def _is_statistic(name: str) -> bool:
    """Returns whether a tensor is a running statistic: a state dict has them beside its parameters."""
    return name.rpartition(".")[2] in ("running_mean", "running_var")


@torch.no_grad()
def _share(parameter: Tensor, bits: int, init: Init, steps: int, seed: int) -> tuple[Tensor, float]:
    """Shares the weights of one parameter in place; returns their labels and the squared error."""
    flat = parameter.detach().flatten().cpu().to(torch.float64).numpy()
    positions = np.flatnonzero(flat)
    clusters = cluster(flat[positions], (1 << bits) - 1, init, steps=steps, seed=seed)
    centroids = torch.from_numpy(clusters.centroids).to(parameter.dtype)
    values, codes = torch.unique(centroids, return_inverse=True)  # two may round to one; none may round to zero
    table = torch.where(values == 0, torch.finfo(parameter.dtype).tiny, values)
    labels = torch.zeros(len(flat), dtype=torch.int64)
    labels[positions] = 1 + codes[torch.from_numpy(clusters.labels)]
    parameter.copy_(torch.cat([table.new_zeros(1), table])[labels].view_as(parameter))
    return labels.view_as(parameter), clusters.losses[-1]
