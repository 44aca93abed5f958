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
from topiarist.files import GATE, shown
from topiarist.graph import Graph, Group, Keep, Scores, Slice
from topiarist.measure import Stats
from topiarist.methods._gates import Gated, Gates, broadcast, check_trained, gating, trainable, trained_with_gates
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
    parameters of gate ``j``; ``beta = 2/3``, ``gamma = -0.1``, ``zeta = 1.1``. When the network is evaluated, and for
    good in the end, ``z = min(1, max(0, sigmoid(log alpha) (zeta - gamma) + gamma))`` is multiplied into the weights.
    ``s_j = P(z_j > 0)``, without units: ``(units,)`` for each group that layers read, or for each weight tensor; 0
    where the weights are 0, and 1 where the network was not trained so. What is read by frozen weights has no gates and
    is not pruned. Without a budget all whose evaluated gate is 0 are pruned, but one of each group; with one, the
    lowest scores over all groups. A unit is multiplied in the weights that read it, that is behind its normalisation
    and activation.

    Counts: each parameter counts once, behind one gate, as in the paper. A weight of a linear layer counts behind the
    gate of the input that it reads; where that has none, behind the gate of the unit that it produces. A weight of a
    convolution counts behind the gate of the map that it produces; where that has none, behind the gate of the map
    that it reads. Biases and what normalises count with their unit, and what no gate removes does not count. So a
    weight between two gated groups counts until its own gate is shut, although either shuts it off.

    Inputs: with ``inputs`` each input of the network that a linear layer reads has a gate too, and each feature of a
    flattened map, beside the gate of the map: the paper's LeNets, whose widths of 784-300-100 and of 20-50-800-500 are
    numbers of gates. Shut ones leave columns of zeros in the weight that reads them, ``(weight != 0).any(0)``: they are
    no units, so nothing is cut, unless all of a map's features are shut, which prunes the map.

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
        dropout: the rate ``1 - sigmoid(log alpha)`` that gates start with.
        inputs: whether inputs and flattened features of linear layers have gates of their own.
        input_dropout: what gates on the network's inputs start with.
        weighted: whether a gate counts its parameters; otherwise each gate counts as one.
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
    inputs: bool = False
    input_dropout: float = 0.2
    weighted: bool = True
    examples: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.lam < math.inf:
            raise TopiaristError(
                f"lam must be a number from 0 on, the strength of the penalty, but got {shown(self.lam)}"
            )
        if self.granularity not in ("structure", "weight"):
            raise TopiaristError(f"granularity must be 'structure' or 'weight', but got {shown(self.granularity)}")
        for name, rate in (("dropout", self.dropout), ("input_dropout", self.input_dropout)):
            if not 0 < rate < 1:
                raise TopiaristError(f"{name} must be a rate between 0 and 1, but got {shown(rate)}")
        if self.inputs and self.granularity == "weight":
            raise TopiaristError("individual weights have gates of their own: leave out inputs, or the granularity")
        checked_examples(self.examples)

    def in_training(self, examples: int, steps: int) -> L0:
        """Sets ``N``, unless it was given."""
        return self if self.examples is not None else replace(self, examples=examples)

    def gates(self, model: nn.Module, graph: Graph) -> AbstractContextManager[nn.Module]:
        """Attaches one gate for each unit or weight; in the end they are multiplied into the weights."""
        graph, free = self.units(graph), trainable(model)
        gated = self._gated(graph, free)
        if self.inputs:
            gated = gated.with_inputs(graph, free)
        counts = parameters_of_gates(graph, gated) if self.weighted else torch.ones(gated.total)
        return gating(model, graph, _GATES, _Gates(model, gated, self._start(graph, gated), counts), _LEFT)

    def penalty(self, model: nn.Module, graph: Graph) -> Tensor:
        """Computes ``lam / N * sum_j |g_j| P(z_j > 0)``."""
        gates = _attached(model)
        return (
            self.lam
            / checked_examples(self.examples, self.name)
            * (gates.counts * open_probability(gates.log_alpha)).sum()
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

    def _start(self, graph: Graph, gated: Gated) -> Tensor:
        """Returns the mean location that each gate starts with: ``input_dropout`` where no unit feeds the input."""
        rates = torch.full((gated.total,), self.dropout)
        for name, (_, gate) in gated.inputs.items():
            fed = {int(at) for group in graph.groups for part in _read(group, name) for at in part.positions.flatten()}
            rates[gate[[at for at in range(len(gate)) if at not in fed and gate[at] >= 0]]] = self.input_dropout
        return torch.logit(1 - rates)

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


def parameters_of_gates(graph: Graph, gated: Gated) -> Tensor:
    """Counts each parameter once, behind one gate, and returns how many each gate has, ``(gates,)``."""
    counts = torch.zeros(gated.total, dtype=torch.int64)
    for name in graph.parameters:
        shape = graph.shapes[name]
        candidates = _candidates(graph, gated, name)
        axes = {axis for axis, _ in candidates}
        gate = torch.full([n if axis in axes or None in axes else 1 for axis, n in enumerate(shape)], -1)
        for axis, line in candidates:
            own = line.view(shape) if axis is None else broadcast(line, axis, len(shape))
            gate = torch.where(gate < 0, own, gate)
        counts += torch.bincount(gate[gate >= 0], minlength=gated.total) * (math.prod(shape) // gate.numel())
    return counts


def _candidates(graph: Graph, gated: Gated, name: str) -> list[tuple[int | None, Tensor]]:
    """Returns the gates along axes of a parameter, -1 where there is none; the first ones come first in counting it."""
    shape = graph.shapes[name]
    read: list[tuple[int | None, Tensor]] = []
    if name in gated.inputs:
        read.append((gated.inputs[name].axis, gated.inputs[name].gate))
    made: list[tuple[int | None, Tensor]] = []
    for group in graph.groups:
        for part in group.slices if group.name in gated.first else ():
            if part.tensor == name:
                line = torch.full((math.prod(shape) if part.axis is None else shape[part.axis],), -1)
                units = gated.first[group.name] + torch.arange(group.units)
                line[part.positions] = units.unsqueeze(1).expand(part.positions.shape)
                (read if part.role == "input" else made).append((part.axis, line))
    return [*made, *read] if len(shape) > 2 else [*read, *made]


def _read(group: Group, name: str) -> list[Slice]:
    return [part for part in group.by_role("input") if part.tensor == name]


def _attached(model: nn.Module) -> _Gates:
    gates = getattr(model, _GATES, None)
    if not isinstance(gates, _Gates):
        raise TopiaristError("l0 needs its gates in training: use topiarist.train.fit, or train within attach()")
    return gates


class _Gates(Gates):
    """Holds the gates' locations.

    Attributes:
        log_alpha: ``(gates,)``.
        counts: ``(gates,)`` what each counts in the penalty.
    """

    counts: Tensor

    def __init__(self, model: nn.Module, gated: Gated, start: Tensor, counts: Tensor) -> None:
        super().__init__(model, gated)
        first = model.get_parameter(next(iter(gated.tensors)))
        self.log_alpha = nn.Parameter(torch.normal(start, 0.01).to(first.device, first.dtype))
        self.register_buffer("counts", counts.to(first.device, first.dtype), persistent=False)

    def multipliers(self) -> Tensor:
        """Returns a new sample in training, and the evaluated gates otherwise."""
        return sample_gate(self.log_alpha) if self.training else mean_gate(self.log_alpha)

    def final(self) -> tuple[Tensor, Tensor]:
        """Returns the evaluated gates, and their locations for the score."""
        return mean_gate(self.log_alpha), self.log_alpha
