"""Layer-compensated pruning: one ranking over all layers, with a compensation for each (Chin et al. 2018)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from operator import itemgetter
from typing import Literal, Self

import torch
from torch import Tensor, nn

from topiarist.budget import Budget, allocate
from topiarist.errors import TopiaristError
from topiarist.files import shown
from topiarist.graph import Graph, Keep, Scores, call_model
from topiarist.measure import (
    Batch,
    Evaluation,
    Stats,
    batch_size,
    collect,
    cross_entropy,
    device_of,
    evaluate_batches,
    first_examples,
    inputs_and_target,
    to_device,
)
from topiarist.methods.base import Method
from topiarist.methods.l1 import L1
from topiarist.methods.taylor import Taylor
from topiarist.surgery import cut, masked

_CHOICES = {"form": ("shift", "affine"), "metric": ("l2", "l1", "taylor"), "fitness": ("accuracy", "loss")}
"""Fields that take one of a few values."""


@dataclass(frozen=True)
class LCP(Method):
    """Layer-compensated pruning: ranks all filters together after a shift per layer, found by evolution.

    Formula: ``s_lj = alpha_l * m_lj + beta_l`` for unit ``j`` of group ``l``; the lowest of all groups are pruned until
    the budget is met. ``m`` is the squared L2 norm of the filters that produce the unit, their L1 norm, or the Taylor
    criterion; ``alpha_l = exp(a_l)`` (1 in the form ``"shift"``, the paper's) and ``beta_l = b_l * std(m_l)``. Aging
    evolution optimises ``a`` and ``b``: the first member is the identity, ``a = b = 0``, those that fill the population
    have all entries from ``N(0, 1)``; then the best of a random tournament gets a child, and the oldest member dies. In
    a share of the child's groups ``b`` moves by ``N(0, 1)`` and ``a`` by ``N(0, (1 - i / (1.25 * candidates))^2)``
    (``i`` the number of candidates so far): steps of scales shrink, steps of shifts do not. The best candidate of all
    wins: highest accuracy right after pruning, of equal ones lowest loss (or, with the fitness ``"loss"``, the other
    way round). Needs the model and data with targets. Selects units itself, ``(units,)`` for each group that ``m``
    scores; others are not pruned.

    Constants: population, tournament, candidates, the share of groups, the steps' sizes, the metric and the safeguard
    are those of LeGR's code. Its fitness is the loss after 200 steps of training, ``fitness="loss", steps=200``; ours
    is the accuracy without any, which costs one forward pass. Its identity is the last of the first population, ours
    the first.

    Data: the first ``examples`` of the batches that it is given, which `topiarist.prune` takes from the training
    examples in random order; the test examples are never used. To evaluate on examples that the network has not been
    trained on, train on ``data.split(0.1)`` and prune with ``data.held_out(0.1)``.

    Cost: one cut and one forward pass of the smaller network over the held-out examples for each candidate with a keep
    of its own; keeps that come again are not evaluated again. Memory: the held-out examples and one smaller network.

    Use it: where the widths matter and minutes are affordable, for instance when norms of layers cannot be compared;
    then fine-tune as usual. Use the form ``"affine"``, its successor LeGR's, where norms differ by orders of magnitude
    between layers, since shifts are drawn in units of each layer's own spread.

    Raises:
        TopiaristError: a field is out of range, or there is no budget, no data, no target, or no data to tune on.

    Paper: Chin, Zhang, Marculescu: "Layer-compensated Pruning for Resource-constrained Convolutional Neural Networks",
    2018; the constants are those of its successor, Chin, Ding, Zhang, Marculescu: "Towards Efficient Model Compression
    via Learned Global Ranking", CVPR 2020.

    Attributes:
        form: ``"shift"`` compensates by ``beta`` alone, ``"affine"`` by ``alpha`` as well (LeGR).
        metric: ``"l2"`` (squared), ``"l1"`` or ``"taylor"``, which ranks the units within a group.
        fitness: what candidates are compared by on the held-out examples: ``"accuracy"``, where it is equal the loss,
            or ``"loss"``.
        population: members that live at the same time.
        tournament: members that are drawn, of which the best is the parent.
        candidates: members in all, the first population included.
        mutated: share of the groups that change in a child; one at least.
        examples: held-out examples that a candidate is evaluated on.
        steps: fine-tuning steps before a candidate is evaluated, on batches behind the held-out examples.
        lr: learning rate of those steps, by SGD with momentum 0.9.
        safeguard: share of its units that every group keeps, where the budget has no floor of its own.
        seed: another seed draws other candidates.
    """

    family = "weight magnitude and norms"
    target = "automatic"
    needs = frozenset({"weights", "evaluations"})
    allocation = "global"
    formula = (
        r"\text{remove the lowest } s_{lj} + \beta_l \text{ of all layers}, \qquad \beta^* = "
        r"\arg\max_{\beta} \mathrm{fitness}(\text{network pruned by } \beta)"
    )
    paper = (
        "Chin, Zhang, Marculescu: Layer-compensated Pruning for Resource-constrained Convolutional Neural Networks, "
        "arXiv 2018"
    )

    form: Literal["shift", "affine"] = "shift"
    metric: Literal["l2", "l1", "taylor"] = "l2"
    fitness: Literal["accuracy", "loss"] = "accuracy"
    population: int = 64
    tournament: int = 16
    candidates: int = 400
    mutated: float = 0.1
    examples: int = 512
    steps: int = 0
    lr: float = 0.01
    safeguard: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise TopiaristError(f"{name} must be one of {', '.join(known)}, but got {shown(getattr(self, name))}")
        least = {"population": 1, "tournament": 1, "candidates": 1, "examples": 1, "steps": 0, "seed": 0}
        for name, least_of_it in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not least_of_it <= value < 2**63:
                raise TopiaristError(f"{name} must be a whole number, at least {least_of_it}, but got {shown(value)}")
        if not 0 < self.lr < math.inf:
            raise TopiaristError(f"lr must be a finite number above 0, but got {shown(self.lr)}")
        if not 0 <= self.mutated <= 1:
            raise TopiaristError(f"mutated must be a share of the groups, from 0 to 1, but got {shown(self.mutated)}")
        if not 0 <= self.safeguard < 1:
            raise TopiaristError(f"safeguard must be a share from 0 on and below 1, but got {shown(self.safeguard)}")

    def dry_run(self) -> Self:
        """Returns the method with the first candidate alone."""
        return replace(self, candidates=1)

    def select(self, graph: Graph, stats: Stats, budget: Budget | None) -> Keep:
        """Returns the keep of the best candidate."""
        if budget is None:
            raise TopiaristError("lcp needs a budget: give macs, params or ratio, the fraction kept")
        if budget.n_of_m is not None:
            raise TopiaristError("lcp is structured, and N:M sparsity is not: give macs, params or ratio")
        if budget.floor == 1 and self.safeguard:
            budget = replace(budget, floor=self.safeguard)
        trials = _Trials(self, graph, stats)
        metric = self._metrics(graph, stats)
        chance = torch.Generator().manual_seed(self.seed)

        def keep(genes: Tensor) -> Keep:
            return allocate(graph, compensated(metric, genes), budget, self.allocation)

        def fitness(genes: Tensor, number: int) -> tuple[float, float]:
            accuracy, loss = trials.evaluate(keep(genes))
            stats.report("lcp: candidates", number + 1, self.candidates)
            return (accuracy, -loss) if self.fitness == "accuracy" else (-loss, accuracy)

        def draw(parent: Tensor | None, number: int) -> Tensor:
            return self._draw(len(metric), parent, number, chance)

        best = evolve(
            draw,
            fitness,
            population=self.population,
            tournament=self.tournament,
            candidates=self.candidates,
            chance=chance,
        )
        return keep(best)

    def _metrics(self, graph: Graph, stats: Stats) -> Scores:
        """Returns ``m``: group name → ``(units,)``."""
        if self.metric == "taylor":
            taylor = Taylor()
            assert stats.model is not None
            return taylor.score(graph, collect(stats.model, graph, stats.batches, taylor.needs))
        norms = L1(p=2 if self.metric == "l2" else 1).score(graph, stats)
        return {name: norm.double() ** (2 if self.metric == "l2" else 1) for name, norm in norms.items()}

    def _draw(self, groups: int, parent: Tensor | None, number: int, chance: torch.Generator) -> Tensor:
        """Draws the genes ``(2, groups)`` of a candidate: ``a`` and ``b`` of each group.

        Args:
            groups: how many there are.
            parent: whose child it is; without one it belongs to the first population.
            number: of the candidate, from 0.
            chance: the source of randomness.
        """
        noise = torch.randn(2, groups, generator=chance, dtype=torch.float64)
        if self.form == "shift":
            noise[0] = 0
        if parent is None:
            return noise if number else torch.zeros_like(noise)
        changed = torch.randperm(groups, generator=chance)[: max(1, round(self.mutated * groups))]
        child = parent.clone()
        step = torch.tensor([[1 - number / (1.25 * self.candidates)], [1.0]], dtype=torch.float64)
        child[:, changed] += step * noise[:, changed]
        return child


def compensated(metric: Scores, genes: Tensor) -> Scores:
    """Returns ``s_lj = exp(a_l) * m_lj + b_l * std(m_l)``.

    Args:
        metric: group name → ``(units,)``.
        genes: ``(2, groups)``, ``a`` and ``b``.
    """
    return {name: a.exp() * m + b * m.std(correction=0) for (name, m), a, b in zip(metric.items(), *genes, strict=True)}


def evolve(
    draw: Callable[[Tensor | None, int], Tensor],
    fitness: Callable[[Tensor, int], tuple[float, float]],
    *,
    population: int,
    tournament: int,
    candidates: int,
    chance: torch.Generator,
) -> Tensor:
    """Runs aging evolution: the best of a random few gets a child, and the oldest of all dies, however good it is.

    Args:
        draw: ``(parent, number)`` → genes of a candidate; the first population has no parents.
        fitness: ``(genes, number)`` → what is compared, high = good.
        population: members that live at the same time.
        tournament: members that are drawn, of which the best is the parent.
        candidates: members in all.
        chance: the source of randomness.

    Returns:
        The genes of the best candidate of all, the first of those where several are.
    """
    living: deque[tuple[tuple[float, float], Tensor]] = deque(maxlen=population)
    best: tuple[tuple[float, float], Tensor] | None = None
    for number in range(candidates):
        parent = None
        if number >= population:
            drawn = torch.randperm(population, generator=chance)[:tournament].tolist()
            parent = max((living[at] for at in drawn), key=itemgetter(0))[1]
        genes = draw(parent, number)
        living.append((fitness(genes, number), genes))
        if best is None or living[-1][0] > best[0]:
            best = living[-1]
    assert best is not None
    return best[1]


class _Trials:
    """Evaluates keeps on held-out examples, each keep once.

    Args:
        method: how many examples and steps.
        graph: the network's groups.
        stats: of the network, with the model and its data.
    """

    def __init__(self, method: LCP, graph: Graph, stats: Stats) -> None:
        if stats.model is None or stats.batches is None:
            raise TopiaristError("lcp evaluates its candidates on data: pass batches of pairs (inputs, target)")
        if stats.loss is not cross_entropy:
            raise TopiaristError("lcp evaluates its candidates by accuracy and cross entropy: leave loss out")
        self.method, self.graph, self.model = method, graph, stats.model
        self.held_out = list(first_examples(stats.batches, method.examples))
        self.rest = list(islice(_behind(stats.batches, method.examples), method.steps))
        if method.steps and not self.rest:
            raise TopiaristError("lcp has no batch behind the held-out examples to tune on: use fewer examples")
        self.known: dict[bytes, Evaluation] = {}

    def evaluate(self, keep: Keep) -> Evaluation:
        """Returns accuracy and loss of the pruned network."""
        key = torch.cat([keep[group.name] for group in self.graph.groups]).numpy().tobytes()
        if key not in self.known:
            self.known[key] = self._evaluate(keep)
        return self.known[key]

    def _evaluate(self, keep: Keep) -> Evaluation:
        # The cut network computes what the masked one does in less time, unless it fails: then `prune` says why.
        try:
            return evaluate_batches(self._tuned(cut(self.model, self.graph, keep)), self.held_out)
        except (TopiaristError, RuntimeError):
            with masked(self.model, self.graph, keep) as model:
                return evaluate_batches(model, self.held_out)

    def _tuned(self, small: nn.Module) -> nn.Module:
        """Fine-tunes for a few steps, in place, the same ones for every candidate."""
        if not self.method.steps:
            return small
        trained = [parameter for parameter in small.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=self.method.lr, momentum=0.9)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(self.method.seed)  # of dropout
            small.train()
            device = device_of(small)
            for number in range(self.method.steps):
                inputs, target = inputs_and_target(self.rest[number % len(self.rest)])
                optimizer.zero_grad()
                cross_entropy(call_model(small, to_device(inputs, device)), to_device(target, device)).backward()
                optimizer.step()
        return small


def _behind(batches: Iterable[Batch], examples: int) -> Iterator[Batch]:
    """Yields the batches that begin behind the first examples."""
    for batch in batches:
        if examples <= 0:
            yield batch
        examples -= batch_size(inputs_and_target(batch)[0])
