"""Sparse variational dropout: every weight learns its own noise, and those that are noise alone go (Molchanov 2017)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from topiarist.budget import Budget
from topiarist.errors import TopiaristError
from topiarist.files import GATE, register_gate
from topiarist.graph import Graph, Keep, Scores, Slice
from topiarist.measure import Stats
from topiarist.methods._multipliers import check_ranked, marked, parameter_of, submodule, trained
from topiarist.methods.base import Method, checked_examples

K1, K2, K3 = 0.63576, 1.87320, 1.48695
"""The paper's constants of the approximated divergence."""
_MOST = 8.0
"""How far from 0 ``log alpha`` counts, as in the authors' code: beyond, the noise follows the weight."""
_SMALL = 1e-8
"""What is added to ``theta^2`` under the logarithm and to a variance under its root."""
_PURE = 100.0
"""``log alpha`` of a weight that is 0, which has no scale to measure its noise by."""
_NOISE = "vardrop_noise"
"""Name of the submodule that holds the variances while the network trains."""
_LEFT = f"{GATE}vardrop"
"""What is put to a tensor's name for the buffer that keeps ``log alpha`` after the training."""
_PRODUCTS = frozenset(
    (F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
)
"""Functions of ``(input, weight, bias, ...)`` that are linear in the weight."""


@dataclass(frozen=True)
class VarDrop(Method):
    """Trains with Gaussian noise on every weight, whose variance is learned, and removes what the noise drowns.

    Formula: each weight is drawn from ``N(theta, sigma^2)``, with ``log sigma^2`` a parameter of its own and
    ``log alpha = log sigma^2 - log theta^2``, clamped to [-8, 8]. ``L = mean loss + t * KL / N`` with ``KL = sum over
    weights of k1 - k1 sigmoid(k2 + k3 log alpha) + log(1 + 1 / alpha) / 2``, ``k1 = 0.63576``, ``k2 = 1.87320``,
    ``k3 = 1.48695``, ``N`` training examples and ``t`` rising from 0 to 1. Products of linear and convolutional layers
    draw their outputs instead of the weights, which has less variance: ``y ~ N(W x, (alpha theta^2) x^2)``, each output
    of each example for itself; wherever else a weight is used, it is drawn. When the network is evaluated, and for good
    in the end, weights with ``log alpha >= threshold`` are 0. ``s = -log alpha``, without units: ``(units,)`` for each
    weight tensor; where the network was not trained so, with the variance of the start: the order of magnitudes,
    which takes no budget. Without one all ``log alpha < threshold`` stay, those that no training has ranked, and at
    least one weight of each tensor; with one, the highest scores do. Biases and frozen weights are neither noisy nor
    pruned.

    Cost: each product of the training is computed twice, for mean and variance, and each weight has a second parameter
    with its own state in the optimiser: twice the memory of the weights, and over twice the time.

    Use it: for the sparsest networks, where there is time to train. Use Adam, as the paper does: the pull on a variance
    is of size ``1 / N``, which steps in proportion to the gradient hardly feel. Start from a trained network where
    the training from scratch fails. The variances are kept in a file beside the weights' (`topiarist.save`); of a state
    dict alone only the zeros speak.

    Raises:
        TopiaristError: a field is out of range, no weight trains, the numbers of training examples and steps are not
            known, the noise is not attached, or a budget takes weights that were not trained with it.

    Paper: Molchanov, Ashukha, Vetrov: "Variational Dropout Sparsifies Deep Neural Networks", ICML 2017.

    Attributes:
        threshold: of ``log alpha``; 3 stands for a dropout rate above 0.95.
        start: ``log sigma^2`` that all weights start with.
        warmup: between which fractions of the steps the divergence gains its weight, in a straight line: the paper's
            epochs 5 to 20 of 200. ``(0, 0)`` gives all of it from the start.
        examples: ``N``, of the training set; `topiarist.train.fit` knows it, loops of your own give it.
        steps: of the optimiser in the whole training, for the warm-up; likewise.
    """

    granularity = "weight"
    target = "automatic"
    needs = frozenset({"weights", "training"})
    allocation = "global"
    formula = (
        r"L = \mathrm{loss} + \frac{t}{N} \sum \left[ k_1 - k_1 \sigma(k_2 + k_3 \log \alpha) "
        r"+ \tfrac{1}{2} \log(1 + \alpha^{-1}) \right], \qquad s = -\log \alpha"
    )
    paper = "Molchanov, Ashukha, Vetrov: Variational Dropout Sparsifies Deep Neural Networks, ICML 2017"

    threshold: float = 3.0
    start: float = -10.0
    warmup: tuple[float, float] = (0.025, 0.1)
    examples: int | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "warmup", tuple(self.warmup))
        for name, value in (("threshold", self.threshold), ("start", self.start)):
            if not math.isfinite(value):
                raise TopiaristError(f"{name} must be a finite number, but got {value!r}")
        if not -30 <= self.start <= 5:
            raise TopiaristError(
                f"start must be a log variance from -30 to 5, beyond which all is noise or none, but got {self.start!r}"
            )
        if len(self.warmup) != 2 or not 0 <= self.warmup[0] <= self.warmup[1] <= 1:
            raise TopiaristError(f"warmup must be two rising fractions of the training, but got {self.warmup!r}")
        if self.steps is not None and self.steps < 1:
            raise TopiaristError(f"steps must be those of the whole training, or left out, but got {self.steps!r}")
        checked_examples(self.examples)

    def in_training(self, examples: int, steps: int) -> VarDrop:
        """Knows ``N`` and the number of steps, unless they were given."""
        return replace(self, examples=self.examples or examples, steps=self.steps or max(steps, 1))

    def gates(self, model: nn.Module, graph: Graph) -> AbstractContextManager[nn.Module]:
        """A variance for each weight; in the end weights that are noise alone become 0."""
        free = trained(model)
        names = [name for group in self.units(graph).groups if (name := group.slices[0].tensor) in free]
        if not names:
            raise TopiaristError(
                "vardrop found no weight that trains in this network: thaw frozen ones, take off parametrizations"
            )
        return _attached_to(model, _Noise(model, names, self.start, self.threshold))

    def penalty(self, model: nn.Module, graph: Graph) -> Tensor:
        """``t * KL / N``."""
        noise = _noise(model)
        total = torch.stack([divergence(each).sum() for each in noise.log_alphas()]).sum()
        return self._warmth(noise.done) / checked_examples(self.examples, self.name) * total

    def proximal(self, model: nn.Module, graph: Graph, lr: float) -> None:
        """Counts the steps."""
        _noise(model).done.add_(1)

    def score(self, graph: Graph, stats: Stats) -> Scores:
        """``s = -log alpha``."""
        parts = {group.name: group.slices[0] for group in self.units(graph).groups}
        noisy = marked(graph, stats, _LEFT)
        return {name: -self._log_alpha(part, stats) for name, part in parts.items() if part.tensor in noisy}

    def select(self, graph: Graph, stats: Stats, budget: Budget | None) -> Keep | None:
        """What noise does not drown, where there is no budget; one weight of each tensor always stays."""
        graph = self.units(graph)
        scores = self.score(graph, stats)
        fresh = {name: _left(graph[name].slices[0], stats) is None for name in scores}
        unranked = {name: (each > -_PURE) & fresh[name] for name, each in scores.items()}
        if budget is not None:
            check_ranked(self, graph, scores, unranked, budget)
            return None
        keep = dict(graph.full())
        for name, each in scores.items():
            keep[name] = (each > -_PURE) & ((each > -self.threshold) | unranked[name])
            keep[name][each.argmax()] = True
        return keep

    def _warmth(self, done: Tensor) -> Tensor | float:
        """``t`` after so many steps."""
        low, high = self.warmup
        if high == 0:
            return 1.0
        if self.steps is None:
            raise TopiaristError(f"{self.name} warms up over the training: say how many steps it has, steps=...")
        return ((done / self.steps - low) / max(high - low, 1e-12)).clamp(0, 1)

    def _log_alpha(self, part: Slice, stats: Stats) -> Tensor:
        """Float64 ``(units,)``: what the training left, or that of the first variance."""
        weight = stats.tensor(part.tensor).double().cpu()
        left = _left(part, stats)
        if left is None:
            left = log_alpha(weight, torch.full_like(weight, self.start))
        return torch.where(weight == 0, _PURE, left.double().cpu()).flatten()[part.positions[:, 0]]


def divergence(log_alpha: Tensor) -> Tensor:
    """The paper's approximation of ``KL(N(theta, alpha theta^2) || log-uniform)``; 0 where ``alpha`` is infinite."""
    return K1 * torch.sigmoid(-(K2 + K3 * log_alpha)) + 0.5 * F.softplus(-log_alpha)


def log_alpha(theta: Tensor, log_sigma2: Tensor) -> Tensor:
    """``log sigma^2 - log theta^2``."""
    return log_sigma2 - (theta.square() + _SMALL).log()


def normal_like(tensor: Tensor) -> Tensor:
    """Standard normal values in the layout of a tensor, filled along the memory.

    Processors draw into channels-last memory one value at a time otherwise, which takes eight times as long.
    """
    drawn = torch.empty_like(tensor)  # dense in any layout
    drawn.as_strided((drawn.numel(),), (1,)).normal_()
    return drawn


def _left(part: Slice, stats: Stats) -> Tensor | None:
    """``log alpha`` of a weight tensor that was trained with noise."""
    left = stats.tensors.get(part.tensor + _LEFT)
    return left if left is not None and left.shape == stats.tensor(part.tensor).shape else None


def _noise(model: nn.Module) -> _Noise:
    noise = getattr(model, _NOISE, None)
    if not isinstance(noise, _Noise):
        raise TopiaristError("vardrop trains with noise: use topiarist.train.fit, or train within attach()")
    return noise


class _Noise(nn.Module):
    """The variances of weights.

    Attributes:
        log_sigma2: one tensor for each weight tensor, of its shape.
        done: steps that the optimiser has taken.
    """

    done: Tensor

    def __init__(self, model: nn.Module, names: Iterable[str], start: float, threshold: float) -> None:
        super().__init__()
        # In a tuple, so that the model's modules do not become modules of the noise.
        self._owners = tuple((model.get_submodule(name.rpartition(".")[0]), name) for name in names)
        self._threshold = threshold
        weights = self._weights()
        self._index = {id(weight): index for index, weight in enumerate(weights)}
        self.log_sigma2 = nn.ParameterList(nn.Parameter(torch.full_like(weight, start)) for weight in weights)
        self.register_buffer("done", torch.zeros((), dtype=torch.int64, device=weights[0].device))

    def forward(self, x: Any) -> Any:
        """Hands on what it gets, for models that call all of their submodules in turn."""
        return x

    def _weights(self) -> list[nn.Parameter]:
        return [parameter_of(owner, name) for owner, name in self._owners]

    def log_alphas(self) -> list[Tensor]:
        """Of all weights, clamped."""
        pairs = zip(self._weights(), self.log_sigma2, strict=True)
        return [log_alpha(*pair).clamp(-_MOST, _MOST) for pair in pairs]

    def knows(self, tensor: object) -> bool:
        """Whether it is one of the weights."""
        return id(tensor) in self._index

    def sigma(self, theta: Tensor) -> Tensor:
        """``sqrt(alpha) |theta|`` of one of the weights: without noise where it is held at 0."""
        log_sigma2 = self.log_sigma2[self._index[id(theta)]]
        return (0.5 * log_alpha(theta, log_sigma2).clamp(-_MOST, _MOST)).exp() * theta.abs()

    def seen(self, theta: Tensor) -> Tensor:
        """One of the weights as the model sees it: drawn in training, without pure noise in evaluation."""
        if self.training:
            return theta + self.sigma(theta) * normal_like(theta)
        pure = log_alpha(theta, self.log_sigma2[self._index[id(theta)]]) >= self._threshold
        return theta.masked_fill(pure, 0)

    @torch.no_grad()
    def fold(self) -> None:
        """Zeros for good, and ``log alpha`` left beside each weight, outside the state dict."""
        for (owner, name), theta, log_sigma2 in zip(self._owners, self._weights(), self.log_sigma2, strict=True):
            left = log_alpha(theta, log_sigma2)
            theta.masked_fill_(left >= self._threshold, 0)
            register_gate(owner, name.rpartition(".")[2] + _LEFT, left)


class _Drawing(TorchFunctionMode):
    """What torch computes with the weights while the model runs: the local reparameterisation.

    A weight is known by being itself, so that it does not matter which module uses it, or whether any does.
    """

    def __init__(self, noise: _Noise) -> None:
        super().__init__()
        self.noise = noise

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {**dict(zip(("input", "weight", "bias"), args, strict=False)), **(kwargs or {})}
        if self.noise.training and func in _PRODUCTS and self.noise.knows(given.get("weight")):
            return self.drawn(func, given, args[3:])
        args, kwargs = tree_map_only(
            nn.Parameter, lambda p: self.noise.seen(p) if self.noise.knows(p) else p, (args, kwargs or {})
        )
        return func(*args, **kwargs)

    def drawn(self, func: Callable[..., Tensor], given: dict[str, Any], more: tuple[Any, ...]) -> Tensor:
        """``N(W x + b, (alpha theta^2) x^2)``."""
        x, theta, bias = (given.pop(name, None) for name in ("input", "weight", "bias"))
        mean = func(x, theta, bias, *more, **given)
        variance = func(x.square(), self.noise.sigma(theta).square(), None, *more, **given)
        return mean + (variance + _SMALL).sqrt() * normal_like(mean)


@contextmanager
def _attached_to(model: nn.Module, noise: _Noise) -> Iterator[_Noise]:
    """The model runs with noise as long as the context lasts, and then without what was noise alone."""
    running, mode = ExitStack(), _Drawing(noise)

    def enter(*_: Any) -> None:
        running.enter_context(mode)

    def leave_it(*_: Any) -> None:
        running.close()  # does nothing where another hook failed before the model ran

    with submodule(model, _NOISE, noise):
        handles = model.register_forward_pre_hook(enter), model.register_forward_hook(leave_it, always_call=True)
        try:
            yield noise
        finally:
            for handle in handles:
                handle.remove()
            running.close()
            noise.fold()
