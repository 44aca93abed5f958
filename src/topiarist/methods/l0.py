"""L0 regularisation: hard-concrete gates learn which units or weights to prune (Louizos et al. 2018)."""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from topiarist.budget import Budget
from topiarist.errors import TopiaristError
from topiarist.files import GATE
from topiarist.graph import Graph, Group, Keep, Scores
from topiarist.measure import Stats
from topiarist.methods._gates import Gated, Gates, check_trained, gating, trainable, trained_with_gates
from topiarist.methods.base import Method, checked_examples

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
"""The paper's temperature, and the ends of the interval that the concrete variable is stretched to."""
_GATES = "l0_gates"
"""Name of the submodule that holds the gates while the network trains."""
_LEFT = f"{GATE}l0"
"""Added to a tensor's name for the buffer that keeps its gates' locations after the training."""
_MOST = math.log(100)
"""How far from 0 a location may go, as in the authors' code; gates are exactly 0 or 1 from 2.4 on."""


@dataclass(frozen=True)
class L0(Method):
    """Trains hard-concrete gates under an L0 penalty, the expected number of parameters behind them.

    Formula: in training each gate is ``z = min(1, max(0, s (zeta - gamma) + gamma))`` with ``s = sigmoid((log u - log(1
    - u) + log alpha) / beta)`` and a new uniform ``u`` at every run of the model; ``L = loss + lam / N * sum_j |g_j|
    P(z_j > 0)`` with ``P(z > 0) = sigmoid(log alpha - beta log(-gamma / zeta))``, ``N`` training examples and ``|g_j|``
    parameters of unit ``j``; ``beta = 2/3``, ``gamma = -0.1``, ``zeta = 1.1``. When the network is evaluated, and for
    good in the end, ``z = min(1, max(0, sigmoid(log alpha) (zeta - gamma) + gamma))`` is multiplied into the weights.
    ``s_j = P(z_j > 0)``, without units: ``(units,)`` for each group that layers read, or for each weight tensor; 0
    where the weights are 0, and 1 where the network was not trained so. What is read by frozen weights has no gates and
    is not pruned. Without a budget all whose evaluated gate is 0 are pruned, but one of each group; with one, the
    lowest scores over all groups. A unit is multiplied in the weights that read it, that is behind its normalisation
    and activation.

    Cost: the training's own, and a product with the gated weights at each step.

    Use it: to train a network and find its shape at once, with Adam as in the paper: its step does not depend on the
    size of a gradient that is divided by ``N``, as that of the gates is. Gates start at a half: a trained network that
    is to be pruned starts with a ``dropout`` near 0 instead. The gates are saved in a file beside the weights
    (`topiarist.save`); a state dict alone has only their zeros.

    Raises:
        TopiaristError: a field is out of range, the network has no such units, the number of training examples is not
            known, the gates are not attached, or a budget prunes units that were not trained with gates.

    Paper: Louizos, Welling, Kingma: "Learning Sparse Neural Networks through L0 Regularization", ICLR 2018.

    Attributes:
        lam: strength of the penalty, for each parameter and the loss summed over all training examples.
        granularity: ``"structure"`` gates units, ``"weight"`` individual weights.
        dropout: the rate ``1 - sigmoid(log alpha)`` that gates start with; the paper takes 0.5, and 0.2 for inputs.
        weighted: whether a unit counts as many parameters as it has; otherwise each counts as one.
        examples: ``N``, of the training set; `topiarist.train.fit` knows it, loops of your own give it.
    """

    family = "gates and noise"
    target = "automatic"
    needs = frozenset({"weights", "training"})
    allocation = "global"
    formula = (
        r"L = \mathrm{loss} + \frac{\lambda}{N} \sum_j |g_j| \, "
        r"\sigma\!\left(\log \alpha_j - \beta \log \frac{-\gamma}{\zeta}\right)"
    )
    paper = "Louizos, Welling, Kingma: Learning Sparse Neural Networks through L0 Regularization, ICLR 2018"

    lam: float = 0.1
    granularity: Literal["structure", "weight"] = "structure"  # type: ignore[misc]  # a choice here, one of the class elsewhere
    dropout: float = 0.5
    weighted: bool = True
    examples: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.lam < math.inf:
            raise TopiaristError(f"lam must be a number from 0 on, the strength of the penalty, but got {self.lam!r}")
        if self.granularity not in ("structure", "weight"):
            raise TopiaristError(f"granularity must be 'structure' or 'weight', but got {self.granularity!r}")
        if not 0 < self.dropout < 1:
            raise TopiaristError(f"dropout must be a rate between 0 and 1, but got {self.dropout!r}")
        checked_examples(self.examples)

    def in_training(self, examples: int, steps: int) -> L0:
        """Sets ``N``, unless it was given."""
        return self if self.examples is not None else replace(self, examples=examples)

    def gates(self, model: nn.Module, graph: Graph) -> AbstractContextManager[nn.Module]:
        """Attaches one gate for each unit or weight; in the end they are multiplied into the weights."""
        graph = self.units(graph)
        gated = self._gated(graph, trainable(model))
        sizes = [_size(graph, graph[name]) if self.weighted else 1 for name in gated.first]
        counts = torch.tensor([graph[name].units for name in gated.first])
        gates = _Gates(model, gated, self.dropout, torch.tensor(sizes).repeat_interleave(counts))
        return gating(model, graph, _GATES, gates, _LEFT)

    def penalty(self, model: nn.Module, graph: Graph) -> Tensor:
        """Computes ``lam / N * sum_j |g_j| P(z_j > 0)``."""
        gates = _attached(model)
        return (
            self.lam
            / checked_examples(self.examples, self.name)
            * (gates.sizes * open_probability(gates.log_alpha)).sum()
        )

    def proximal(self, model: nn.Module, graph: Graph, lr: float) -> None:
        """Keeps the locations in the range from which gates come back, as the authors' code does."""
        _attached(model).log_alpha.clamp_(-_MOST, _MOST)

    def score(self, graph: Graph, stats: Stats) -> Scores:
        """Computes ``s_j = P(z_j > 0)``."""
        graph = self.units(graph)
        gated = self._gated(graph, trained_with_gates(graph, stats, _LEFT))
        return gated.by_group(graph, open_probability(gated.saved(stats, _LEFT, math.inf)) * gated.nonzero(stats))

    def select(self, graph: Graph, stats: Stats, budget: Budget | None) -> Keep | None:
        """Keeps all whose gate is open when the network is evaluated, and at least one of each group."""
        graph = self.units(graph)
        gated = self._gated(graph, trained_with_gates(graph, stats, _LEFT))
        if budget is not None:
            untrained = gated.by_group(graph, gated.untrained(stats, _LEFT))
            check_trained(self, graph, self.score(graph, stats), untrained, budget)
            return None
        log_alpha = gated.saved(stats, _LEFT, math.inf)
        kept = (mean_gate(log_alpha) > 0) & gated.nonzero(stats)
        keep = {**graph.full(), **gated.by_group(graph, kept)}
        for name, scores in gated.by_group(graph, open_probability(log_alpha)).items():
            if not keep[name].any():
                keep[name] = torch.zeros_like(keep[name])
                keep[name][scores.argmax()] = True
        return keep

    def _gated(self, graph: Graph, free: Collection[str]) -> Gated:
        """Returns the weights that each gate multiplies, among those that are free to be multiplied."""
        gated = Gated()
        for group in graph.groups:
            add = gated.with_weights if group.kind == "weight" else gated.with_units
            gated = add(graph, group, free)
        if not gated.total:
            raise TopiaristError(
                "l0 found no unit that layers read with trainable weights: unfreeze weights, remove parametrizations, "
                "see what pins units (`topiarist inspect`), or use granularity 'weight'"
            )
        return gated


def sample_gate(log_alpha: Tensor) -> Tensor:
    """Draws a hard-concrete ``z`` for each location from torch's global random state of its device."""
    tiny = torch.finfo(log_alpha.dtype).eps
    u = torch.rand_like(log_alpha).clamp(tiny, 1 - tiny)
    s = torch.sigmoid((u.log() - (-u).log1p() + log_alpha) / BETA)
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def mean_gate(log_alpha: Tensor) -> Tensor:
    """Returns the ``z`` that a network is evaluated with; exactly 0 where ``log alpha <= -2.398``."""
    return (log_alpha.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def open_probability(log_alpha: Tensor) -> Tensor:
    """Returns ``P(z > 0)``."""
    return torch.sigmoid(log_alpha - BETA * math.log(-GAMMA / ZETA))


def _size(graph: Graph, group: Group) -> float:
    """Returns how many parameters one unit of a group has."""
    shapes = [(graph.shapes[part.tensor], part) for part in group.slices if part.tensor in graph.parameters]
    return sum(
        part.positions.shape[1] * (1 if part.axis is None else math.prod(shape) // shape[part.axis])
        for shape, part in shapes
    )


def _attached(model: nn.Module) -> _Gates:
    gates = getattr(model, _GATES, None)
    if not isinstance(gates, _Gates):
        raise TopiaristError("l0 needs its gates in training: use topiarist.train.fit, or train within attach()")
    return gates


class _Gates(Gates):
    """Holds the gates' locations.

    Attributes:
        log_alpha: ``(gates,)``.
        sizes: ``(gates,)`` what each counts in the penalty.
    """

    sizes: Tensor

    def __init__(self, model: nn.Module, gated: Gated, dropout: float, sizes: Tensor) -> None:
        super().__init__(model, gated)
        first = model.get_parameter(next(iter(gated.tensors)))
        start = torch.normal(math.log((1 - dropout) / dropout), 0.01, (gated.total,))
        self.log_alpha = nn.Parameter(start.to(first.device, first.dtype))
        self.register_buffer("sizes", sizes.to(first.device, first.dtype), persistent=False)

    def multipliers(self) -> Tensor:
        """Returns a new sample in training, and the evaluated gates otherwise."""
        return sample_gate(self.log_alpha) if self.training else mean_gate(self.log_alpha)

    def final(self) -> tuple[Tensor, Tensor]:
        """Returns the evaluated gates, and their locations for the score."""
        return mean_gate(self.log_alpha), self.log_alpha
