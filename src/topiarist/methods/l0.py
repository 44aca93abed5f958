"""L0 regularisation by hard-concrete gates: units or weights that learn to be switched off (Louizos et al. 2018)."""

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
from topiarist.methods._multipliers import Multipliers, Scaled, check_ranked, marked, multiplied, trained
from topiarist.methods.base import Method, checked_examples

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
"""The paper's temperature, and the ends of the interval that the concrete variable is stretched to."""
_GATES = "l0_gates"
"""Name of the submodule that holds the gates while the network trains."""
_LEFT = f"{GATE}l0"
"""What is put to a tensor's name for the buffer that keeps its gates' locations after the training."""
_MOST = math.log(100)
"""How far from 0 a location may go, as in the authors' code; gates are exactly 0 or 1 from 2.4 on."""


@dataclass(frozen=True)
class L0(Method):
    """Trains with random gates that can be exactly 0, and a penalty on the expected number of parameters behind them.

    Formula: in training each gate is ``z = min(1, max(0, s (zeta - gamma) + gamma))`` with
    ``s = sigmoid((log u - log(1 - u) + log alpha) / beta)`` and a new uniform ``u`` at every run of the model;
    ``L = loss + lam / N * sum_j |g_j| P(z_j > 0)`` with ``P(z > 0) = sigmoid(log alpha - beta log(-gamma / zeta))``,
    ``N`` training examples and ``|g_j|`` parameters of unit ``j``; ``beta = 2/3``, ``gamma = -0.1``, ``zeta = 1.1``.
    When the network is evaluated, and for good in the end, ``z = min(1, max(0, sigmoid(log alpha) (zeta - gamma) +
    gamma))`` is multiplied into the weights. ``s_j = P(z_j > 0)``, without units: ``(units,)`` for each group that
    layers read, or for each weight tensor; 0 where the weights are 0, and 1 where the network was not trained so.
    What is read by frozen weights has no gates and stays whole.
    Without a budget all whose evaluated gate is 0 go, but one of each group stays; with one, the lowest scores go over
    all groups. A unit is multiplied in the weights that read it, which is where it is seen behind its normalisation.

    Cost: the training's own, and a product with the gated weights at each step.

    Use it: to train a network and find its shape at once, with Adam as in the paper: its step does not depend on the
    size of a gradient that is divided by ``N``, as that of the gates is. Gates start at a half: a trained network that
    is to be pruned starts with a ``dropout`` near 0 instead. The gates are kept in a file beside the
    weights' (`topiarist.save`); of a state dict alone only the zeros speak.

    Raises:
        TopiaristError: a field is out of range, the network has no such units, the number of training examples is not
            known, the gates are not attached, or a budget takes units that were not trained with gates.

    Paper: Louizos, Welling, Kingma: "Learning Sparse Neural Networks through L0 Regularization", ICLR 2018.

    Attributes:
        lam: strength of the penalty, for each parameter and the loss summed over all training examples.
        granularity: ``"structure"`` gates units, ``"weight"`` single weights.
        dropout: the rate ``1 - sigmoid(log alpha)`` that gates start with; the paper takes 0.5, and 0.2 for inputs.
        weighted: whether a unit counts as its parameters do; otherwise each counts as one.
        examples: ``N``, of the training set; `topiarist.train.fit` knows it, loops of your own give it.
    """

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
        """Knows ``N``, unless it was given."""
        return self if self.examples is not None else replace(self, examples=examples)

    def gates(self, model: nn.Module, graph: Graph) -> AbstractContextManager[nn.Module]:
        """One gate for each unit or weight; in the end they are multiplied into the weights."""
        graph = self.units(graph)
        scaled = self._scaled(graph, trained(model))
        sizes = [_size(graph, graph[name]) if self.weighted else 1 for name in scaled.first]
        counts = torch.tensor([graph[name].units for name in scaled.first])
        gates = _Gates(model, scaled, self.dropout, torch.tensor(sizes).repeat_interleave(counts))
        return multiplied(model, graph, _GATES, gates, _LEFT)

    def penalty(self, model: nn.Module, graph: Graph) -> Tensor:
        """``lam / N * sum_j |g_j| P(z_j > 0)``."""
        gates = _attached(model)
        return self.lam / checked_examples(self.examples, self.name) * (gates.sizes * opens(gates.log_alpha)).sum()

    def proximal(self, model: nn.Module, graph: Graph, lr: float) -> None:
        """Keeps the locations in the range from which gates come back, as the authors' code does."""
        _attached(model).log_alpha.clamp_(-_MOST, _MOST)

    def score(self, graph: Graph, stats: Stats) -> Scores:
        """``s_j = P(z_j > 0)``."""
        graph = self.units(graph)
        scaled = self._scaled(graph, marked(graph, stats, _LEFT))
        return scaled.by_group(graph, opens(scaled.left(stats, _LEFT, math.inf)) * scaled.alive(stats))

    def select(self, graph: Graph, stats: Stats, budget: Budget | None) -> Keep | None:
        """All whose gate is open when the network is evaluated; one of a group always stays."""
        graph = self.units(graph)
        scaled = self._scaled(graph, marked(graph, stats, _LEFT))
        if budget is not None:
            unranked = scaled.by_group(graph, scaled.unranked(stats, _LEFT))
            check_ranked(self, graph, self.score(graph, stats), unranked, budget)
            return None
        log_alpha = scaled.left(stats, _LEFT, math.inf)
        kept = (mean_gate(log_alpha) > 0) & scaled.alive(stats)
        keep = {**graph.full(), **scaled.by_group(graph, kept)}
        for name, scores in scaled.by_group(graph, opens(log_alpha)).items():
            if not keep[name].any():
                keep[name] = torch.zeros_like(keep[name])
                keep[name][scores.argmax()] = True
        return keep

    def _scaled(self, graph: Graph, free: Collection[str]) -> Scaled:
        """The weights that each gate multiplies, among those that are free to be multiplied."""
        scaled = Scaled({}, {}, 0)
        for group in graph.groups:
            add = scaled.with_weights if group.of_weights else scaled.with_units
            scaled = add(graph, group, free)
        if not scaled.total:
            raise TopiaristError(
                "l0 found no unit that layers read with weights that train: thaw frozen ones, take off "
                "parametrizations, ask `topiarist inspect` what pins units, or take granularity 'weight'"
            )
        return scaled


def sample_gate(log_alpha: Tensor) -> Tensor:
    """A hard-concrete ``z`` for each location, drawn from torch's global random state of its device."""
    tiny = torch.finfo(log_alpha.dtype).eps
    u = torch.rand_like(log_alpha).clamp(tiny, 1 - tiny)
    s = torch.sigmoid((u.log() - (-u).log1p() + log_alpha) / BETA)
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def mean_gate(log_alpha: Tensor) -> Tensor:
    """The ``z`` that a network is evaluated with; exactly 0 where ``log alpha <= -2.398``."""
    return (log_alpha.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def opens(log_alpha: Tensor) -> Tensor:
    """``P(z > 0)``."""
    return torch.sigmoid(log_alpha - BETA * math.log(-GAMMA / ZETA))


def _size(graph: Graph, group: Group) -> float:
    """How many parameters one unit of a group carries."""
    parts = [part for part in group.slices if part.tensor in graph.parameters]
    shapes = [(math.prod(graph.shapes[part.tensor]), graph.shapes[part.tensor], part) for part in parts]
    return sum(
        part.positions.shape[1] * (1 if part.axis is None else numel // shape[part.axis])
        for numel, shape, part in shapes
    )


def _attached(model: nn.Module) -> _Gates:
    gates = getattr(model, _GATES, None)
    if not isinstance(gates, _Gates):
        raise TopiaristError("l0 trains its gates with the model: use topiarist.train.fit, or train within attach()")
    return gates


class _Gates(Multipliers):
    """The gates' locations.

    Attributes:
        log_alpha: ``(structures,)``.
        sizes: ``(structures,)`` what each counts in the penalty.
    """

    sizes: Tensor

    def __init__(self, model: nn.Module, scaled: Scaled, dropout: float, sizes: Tensor) -> None:
        super().__init__(model, scaled)
        first = model.get_parameter(next(iter(scaled.places)))
        start = torch.normal(math.log((1 - dropout) / dropout), 0.01, (scaled.total,))
        self.log_alpha = nn.Parameter(start.to(first.device, first.dtype))
        self.register_buffer("sizes", sizes.to(first.device, first.dtype), persistent=False)

    def multipliers(self) -> Tensor:
        """A new sample in training, the gates' last word in evaluation."""
        return sample_gate(self.log_alpha) if self.training else mean_gate(self.log_alpha)

    def final(self) -> tuple[Tensor, Tensor]:
        """The evaluated gates, and their locations for the score."""
        return mean_gate(self.log_alpha), self.log_alpha
