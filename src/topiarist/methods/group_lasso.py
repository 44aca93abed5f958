"""Group lasso: training drives all weights of filters, channels or columns to zero (Wen et al. 2016)."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NoReturn

import torch
from torch import Tensor, nn

from topiarist.errors import TopiaristError
from topiarist.files import shown
from topiarist.graph import Graph, Group, Scores, Slice
from topiarist.measure import Stats
from topiarist.methods.base import Method, sum_by_unit

_KINDS = ("filter", "channel", "both", "unit", "column")

# A floor of sums of squares: with it the gradient of a norm at 0 is the number 0.
_TINY = sys.float_info.min


@dataclass(frozen=True)
class GroupLasso(Method):
    """Trains with a group lasso penalty (structured sparsity learning) and prunes units of small norm.

    Formula: ``L = loss + lam * sum over groups theta of ||theta||``, whose subgradient at 0 is 0. The groups: for
    ``"filter"`` the weights of one layer that produce a unit; for ``"channel"`` those of one layer that read it;
    ``"both"`` (SSL) adds these two sums; for ``"unit"`` its filters in all layers, which a residual stream ties; for
    ``"column"`` the weights ``W[:, c, i, j]`` that read one location ``i, j`` of unit ``c``. The proximal solver takes
    no gradient of it, but after every step ``theta = max(0, 1 - lr * lam * sqrt(P) / ||theta||) * theta`` with ``P``
    numbers in the group, biases counted in with filters and units; groups then become exactly 0. ``s_j = ||theta_j||``
    over all filters of unit ``j``, or over all weights that read it for ``"channel"`` and ``"column"``. Needs a network
    trained so. Returns ``(units,)``, in units of the weights, for each group that such weights belong to; only the
    weights of units that can be pruned are penalised.

    Cost: a pass over the weights at each step, with columns also an index of their size. The score reads the weights.

    Zeros: with the solver ``"gradient"`` no group ever becomes exactly 0, but hovers about it by a step of the
    optimiser; Wen et al. set weights below 1e-4 to 0 after every step, ``zero_below=1e-4``. The proximal solver makes
    zeros. What no slice of a removable unit holds is never penalised: pinned units, 1-D parameters of norms, and biases
    under the gradient. Not here: the paper's depth, a group for a whole layer behind a shortcut (`sss` removes blocks).

    Use it: where a network is trained anyhow, and has no batch norms whose scales say as much. A batch norm undoes
    the size of the filters before it, so there prefer ``"channel"``, or slimming. Columns make sparse filters rather
    than dead units. Where groups share weights (rows and columns of one matrix) their proximal steps follow each other.

    Raises:
        TopiaristError: ``lam`` is negative or infinite, kind or solver is unknown, the proximal solver is asked for
            ``"both"``, or the network has no such groups.

    Paper: Wen, Wu, Wang, Chen, Li: "Learning Structured Sparsity in Deep Neural Networks", NIPS 2016. The proximal
    solver: Alvarez, Salzmann: "Learning the Number of Neurons in Deep Networks", NIPS 2016. Columns: Lebedev,
    Lempitsky: "Fast ConvNets Using Group-wise Brain Damage", CVPR 2016.

    Attributes:
        lam: strength of the penalty.
        kind: which weights become zero together: ``"filter"``, ``"channel"``, ``"both"``, ``"unit"`` or ``"column"``.
        solver: ``"gradient"`` of the penalty, or ``"proximal"``: a step after the optimiser's.
        share: of the groups that are penalised in each layer, those of smallest norm. The gradual scheme of Lebedev and
            Lempitsky raises it from training to training up to the sparsity that is wanted.
        zero_below: absolute value below which a penalised weight is set to 0 after each step.
    """

    family = "sparsity penalties"
    target = "automatic"
    needs = frozenset({"weights", "training"})
    allocation = "global"
    formula = r"L = \mathrm{loss} + \lambda \sum_{g} \lVert \theta_g \rVert_2, \qquad s_j = \lVert \theta_j \rVert_2"
    paper = "Wen, Wu, Wang, Chen, Li: Learning Structured Sparsity in Deep Neural Networks, NIPS 2016"

    lam: float = 5e-3
    kind: Literal["filter", "channel", "both", "unit", "column"] = "filter"
    solver: Literal["gradient", "proximal"] = "gradient"
    share: float = 1.0
    zero_below: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.lam < math.inf:
            raise TopiaristError(
                f"lam must be a number from 0 on, the strength of the penalty, but got {shown(self.lam)}"
            )
        if self.kind not in _KINDS:
            raise TopiaristError(f"kind must be one of {', '.join(_KINDS)}, but got {shown(self.kind)}")
        if self.solver not in ("gradient", "proximal"):
            raise TopiaristError(f"solver must be 'gradient' or 'proximal', but got {shown(self.solver)}")
        if not 0 < self.share <= 1:
            raise TopiaristError(
                f"share must be a share of the groups, above 0 and up to 1, but got {shown(self.share)}"
            )
        if not 0 <= self.zero_below < math.inf:
            raise TopiaristError(f"zero_below must be a number from 0 on, but got {shown(self.zero_below)}")
        if self.solver == "proximal" and self.kind == "both":
            raise TopiaristError(
                "filters and channels overlap, so that no proximal step solves both: use the solver 'gradient', or one "
                "of the two kinds"
            )

    def penalty(self, model: nn.Module, graph: Graph) -> Tensor:
        """Computes ``lam * sum ||theta||``; 0 if the solver is proximal."""
        if self.solver == "proximal":
            return torch.zeros(())
        norms = [_norms(bundle, model.get_parameter) for bundle in self._bundles(graph)]
        return self.lam * torch.cat([each[self._penalised(each)] for each in norms]).sum()

    @torch.no_grad()
    def proximal(self, model: nn.Module, graph: Graph, lr: float) -> None:
        """Sets ``theta = max(0, 1 - lr * lam * sqrt(P) / ||theta||) * theta``, if the solver is proximal."""
        for bundle in self._bundles(graph) if self.solver == "proximal" else ():
            root = math.sqrt(sum(_numbers(part, graph.shapes[part.tensor]) for part in bundle))
            norms = _norms(bundle, model.get_parameter)
            factors = torch.ones_like(norms)
            few = self._penalised(norms)
            factors[few] = (1 - lr * self.lam * root / norms[few]).clamp(min=0)
            for part in bundle:
                _multiply(model.get_parameter(part.tensor), part, factors)
        for name in {part.tensor for bundle in self._bundles(graph) for part in bundle} if self.zero_below else ():
            weight = model.get_parameter(name)
            weight.masked_fill_(weight.abs() < self.zero_below, 0)

    def _penalised(self, norms: Tensor) -> Tensor:
        """Returns which groups of one layer are penalised: the share of smallest norm, one at least."""
        return norms.detach().argsort()[: max(1, round(self.share * len(norms)))]

    def score(self, graph: Graph, stats: Stats) -> Scores:
        """Computes ``s_j = ||theta_j||``."""
        role = "input" if self.kind in ("channel", "column") else "output"
        matrices = {group.name: _matrices(graph, group, role) for group in graph.groups}
        return {name: _norms(parts, stats.tensor) for name, parts in matrices.items() if parts} or self._refuse()

    def _bundles(self, graph: Graph) -> list[list[Slice]]:
        """Returns the slices whose entries make up the groups, one group a row: those in one list belong together."""
        return [bundle for group in graph.groups for bundle in self._bundles_of(graph, group)] or self._refuse()

    def _bundles_of(self, graph: Graph, group: Group) -> list[list[Slice]]:
        filters, channels = _matrices(graph, group, "output"), _matrices(graph, group, "input")
        biases = group.by_role("bias") if self.solver == "proximal" else ()
        if self.kind == "column":
            return [[_columns(part, graph.shapes[part.tensor])] for part in channels]
        if self.kind == "unit":
            return [[*filters, *biases]] if filters else []
        made = [[part, *(bias for bias in biases if _layer(bias) == _layer(part))] for part in filters]
        read = [[part] for part in channels]
        return {"filter": made, "channel": read, "both": made + read}[self.kind]

    def _refuse(self) -> NoReturn:
        raise TopiaristError(
            f"group_lasso found no weights of the kind {shown(self.kind)} on units that can be pruned: "
            "use another kind, or `topiarist inspect` to see what pins the units"
        )


def _matrices(graph: Graph, group: Group, role: str) -> list[Slice]:
    """Returns the parameters of two or more axes that produce a group (``"output"``) or read it (``"input"``)."""
    own = set(graph.parameters)
    return [part for part in group.by_role(role) if part.tensor in own and len(graph.shapes[part.tensor]) >= 2]


def _layer(part: Slice) -> str:
    return part.tensor.rpartition(".")[0]


def _columns(part: Slice, shape: tuple[int, ...]) -> Slice:
    """Returns one row for each column that reads a unit, with its indices in the flattened weight."""
    assert part.axis is not None
    outputs = 1 if part.axis == 0 else 0  # transposed convolutions read along axis 0
    indices = torch.arange(math.prod(shape)).view(shape).index_select(part.axis, part.positions.flatten())
    return Slice(part.tensor, None, indices.movedim(outputs, -1).flatten(0, -2), part.role)


def _norms(bundle: list[Slice], tensor: Callable[[str], Tensor]) -> Tensor:
    """Returns the norm of each group: of row ``j`` of all slices together."""
    squares = [sum_by_unit(part, tensor(part.tensor).square()) for part in bundle]
    return torch.stack(squares).sum(0).clamp(min=_TINY).sqrt()


def _numbers(part: Slice, shape: tuple[int, ...]) -> int:
    """Returns how many entries a row has."""
    return part.positions.shape[1] * (1 if part.axis is None else math.prod(shape) // shape[part.axis])


def _multiply(weight: Tensor, part: Slice, factors: Tensor) -> None:
    """Multiplies each row of a slice by its factor, in place."""
    shape = [weight.numel()] if part.axis is None else [weight.shape[part.axis]]
    line = torch.ones(shape, dtype=weight.dtype, device=weight.device)
    line[part.positions] = factors.to(line).unsqueeze(1).expand(part.positions.shape)
    if part.axis is None:
        weight.mul_(line.view_as(weight))
    else:
        weight.mul_(line.view([-1 if axis == part.axis else 1 for axis in range(weight.ndim)]))
