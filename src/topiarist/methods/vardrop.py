"""Sparse variational dropout: every weight learns a dropout rate; the noisiest are pruned (Molchanov 2017)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from topiarist.budget import Budget
from topiarist.errors import TopiaristError
from topiarist.files import GATE, register_gate, shown
from topiarist.graph import Graph, Keep, Scores, Slice
from topiarist.measure import Args, Func, FunctionMode, Kwargs, Stats
from topiarist.methods._gates import check_trained, parameter_of, submodule, trainable, trained_with_gates
from topiarist.methods.base import Method, checked_examples

K1, K2, K3 = 0.63576, 1.87320, 1.48695
"""The paper's constants of the approximated divergence."""
_MOST = 8.0
"""How far from 0 ``log alpha`` is clamped, as in the authors' code: beyond, the noise follows the weight."""
_SMALL = 1e-8
"""Added to ``theta^2`` under the logarithm and to a variance under its root."""
_PURE = 100.0
"""``log alpha`` of a weight that is 0, to which no noise compares."""
_NOISE = "vardrop_noise"
"""Name of the submodule that holds the variances while the network trains."""
_LEFT = f"{GATE}vardrop"
"""Added to a tensor's name for the buffer that keeps ``log alpha`` after the training."""
_PRODUCTS = frozenset(
    (F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
)
"""Functions of ``(input, weight, bias, ...)`` that are linear in the weight."""


@dataclass(frozen=True)
class VarDrop(Method):
    """Sparse variational dropout: learns Gaussian noise on every weight and prunes the noisiest weights.

    Formula: each weight is drawn from ``N(theta, sigma^2)``, with ``log sigma^2`` a parameter of its own and ``log
    alpha = log sigma^2 - log theta^2``, clamped to [-8, 8]. ``L = mean loss + t * KL / N`` with ``KL = sum over weights
    of k1 - k1 sigmoid(k2 + k3 log alpha) + log(1 + 1 / alpha) / 2``, ``k1 = 0.63576``, ``k2 = 1.87320``, ``k3 =
    1.48695``, ``N`` training examples and ``t`` rising from 0 to 1. For linear and convolutional layers the outputs are
    drawn instead of the weights, which has less variance: ``y ~ N(W x, (alpha theta^2) x^2)``, each output of each
    example for itself; wherever else a weight is used, it is drawn. When the network is evaluated, and for good in the
    end, weights with ``log alpha >= threshold`` are 0; with ``clip_mean`` in training too, in the mean ``W x`` but not
    in the variance, as in the authors' code. ``s = -log alpha``, without units: ``(units,)`` for each weight tensor;
    where the network was not trained so, with the variance of the start: the order of magnitudes, which takes no
    budget. Without one all of ``log alpha < threshold`` are kept, all that were not trained so, and at least one weight
    of each tensor; with one, the highest scores. Biases and frozen weights have no noise and are not pruned.

    Cost: each product of the training is computed twice, for mean and variance, and each weight has a second parameter
    with its own state in the optimiser: twice the memory of the weights, and over twice the time.

    Use it: for the sparsest networks, where there is time to train. Use Adam, as the paper does: the gradient of a
    variance is of size ``1 / N``, which is too small for SGD. Start from a trained network where the training from
    scratch fails. The variances are saved in a file beside the weights (`topiarist.save`); a state dict alone has only
    the zeros.

    Raises:
        TopiaristError: a field is out of range, no weight is trainable, the numbers of training examples and steps are
            not known, the noise is not attached, or a budget prunes weights that were not trained with it.

    Paper: Molchanov, Ashukha, Vetrov: "Variational Dropout Sparsifies Deep Neural Networks", ICML 2017.

    Attributes:
        threshold: of ``log alpha``; 3 stands for a dropout rate above 0.95.
        start: ``log sigma^2`` that all weights start with.
        clip_mean: whether the training's mean leaves out weights above the threshold, which then learn from their
            noise alone.
        warmup: between which fractions of the steps the weight of the divergence rises linearly from 0 to 1: the
            paper's epochs 5 to 20 of 200. With ``(0, 0)`` it is 1 from the start.
        examples: ``N``, of the training set; `topiarist.train.fit` knows it, loops of your own give it.
        steps: of the optimiser in the training, for the warm-up; likewise.
    """

    family = "gates and noise"
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
    clip_mean: bool = False
    warmup: tuple[float, float] = (0.025, 0.1)
    examples: int | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "warmup", tuple(self.warmup))
        for name, value in (("threshold", self.threshold), ("start", self.start)):
            if not math.isfinite(value):
                raise TopiaristError(f"{name} must be a finite number, but got {shown(value)}")
        if not -30 <= self.start <= 5:
            raise TopiaristError(f"start must be a log variance from -30 to 5, but got {shown(self.start)}")
        if len(self.warmup) != 2 or not 0 <= self.warmup[0] <= self.warmup[1] <= 1:
            raise TopiaristError(f"warmup must be two rising fractions of the training, but got {shown(self.warmup)}")
        if self.steps is not None and self.steps < 1:
            raise TopiaristError(
                f"steps must be the number of training steps, or left out, but got {shown(self.steps)}"
            )
        checked_examples(self.examples)

    def in_training(self, examples: int, steps: int) -> VarDrop:
        """Sets ``N`` and the number of steps, unless they were given."""
        return replace(self, examples=self.examples or examples, steps=self.steps or max(steps, 1))

    def gates(self, model: nn.Module, graph: Graph) -> AbstractContextManager[nn.Module]:
        """Attaches a variance to each weight; in the end weights at or above the threshold become 0."""
        free = trainable(model)
        names = [name for group in self.units(graph).groups if (name := group.slices[0].tensor) in free]
        if not names:
            raise TopiaristError(
                "vardrop found no trainable weight in this network: unfreeze weights, or remove parametrizations"
            )
        return _attach(model, _Noise(model, names, self.start, self.threshold, self.clip_mean))

    def penalty(self, model: nn.Module, graph: Graph) -> Tensor:
        """Computes ``t * KL / N``."""
        noise = _attached(model)
        total = torch.stack([divergence(each).sum() for each in noise.log_alphas()]).sum()
        return self._warmup(noise.done) / checked_examples(self.examples, self.name) * total

    def proximal(self, model: nn.Module, graph: Graph, lr: float) -> None:
        """Counts the steps."""
        _attached(model).done.add_(1)

    def score(self, graph: Graph, stats: Stats) -> Scores:
        """Computes ``s = -log alpha``."""
        parts = {group.name: group.slices[0] for group in self.units(graph).groups}
        noisy = trained_with_gates(graph, stats, _LEFT)
        return {name: -self._log_alpha(part, stats) for name, part in parts.items() if part.tensor in noisy}

    def select(self, graph: Graph, stats: Stats, budget: Budget | None) -> Keep | None:
        """Keeps weights below the threshold, and at least one of each tensor, where there is no budget."""
        graph = self.units(graph)
        scores = self.score(graph, stats)
        plain = {name: _saved(graph[name].slices[0], stats) is None for name in scores}
        untrained = {name: (s > -_PURE) & plain[name] for name, s in scores.items()}
        if budget is not None:
            check_trained(self, graph, scores, untrained, budget)
            return None
        keep = dict(graph.full())
        for name, s in scores.items():
            keep[name] = (s > -_PURE) & ((s > -self.threshold) | untrained[name])
            keep[name][s.argmax()] = True
        return keep

    def _warmup(self, done: Tensor) -> Tensor | float:
        """Returns ``t`` after so many steps."""
        low, high = self.warmup
        if high == 0:
            return 1.0
        if self.steps is None:
            raise TopiaristError(f"{self.name} warms up over the training: say how many steps it has, steps=...")
        return ((done / self.steps - low) / max(high - low, 1e-12)).clamp(0, 1)

    def _log_alpha(self, part: Slice, stats: Stats) -> Tensor:
        """Returns ``log alpha`` as the training saved it, or with the variance of the start, float64 ``(units,)``."""
        weight = stats.tensor(part.tensor).double().cpu()
        saved = _saved(part, stats)
        if saved is None:
            saved = log_alpha(weight, torch.full_like(weight, self.start))
        return torch.where(weight == 0, _PURE, saved.double().cpu()).flatten()[part.positions[:, 0]]


def divergence(log_alpha: Tensor) -> Tensor:
    """Approximates ``KL(N(theta, alpha theta^2) || log-uniform)`` as the paper does; 0 where ``alpha`` is infinite."""
    return K1 * torch.sigmoid(-(K2 + K3 * log_alpha)) + 0.5 * F.softplus(-log_alpha)


def log_alpha(theta: Tensor, log_sigma2: Tensor) -> Tensor:
    """Returns ``log sigma^2 - log theta^2``."""
    return log_sigma2 - (theta.square() + _SMALL).log()


def normal_like(tensor: Tensor) -> Tensor:
    """Draws standard normal values in the layout of a tensor, along the memory.

    CPUs draw into channels-last memory one value at a time otherwise, which takes eight times as long.
    """
    drawn = torch.empty_like(tensor)  # dense in any layout
    drawn.as_strided((drawn.numel(),), (1,)).normal_()
    return drawn


def _saved(part: Slice, stats: Stats) -> Tensor | None:
    """Returns ``log alpha`` of a weight tensor that was trained with noise."""
    saved = stats.tensors.get(part.tensor + _LEFT)
    return saved if saved is not None and saved.shape == stats.tensor(part.tensor).shape else None


def _attached(model: nn.Module) -> _Noise:
    noise = getattr(model, _NOISE, None)
    if not isinstance(noise, _Noise):
        raise TopiaristError("vardrop needs its noise in training: use topiarist.train.fit, or train within attach()")
    return noise


class _Noise(nn.Module):
    """Holds the variances of weights.

    Attributes:
        log_sigma2: one tensor for each weight tensor, of its shape.
        done: steps that the optimiser has taken.
    """

    done: Tensor

    def __init__(self, model: nn.Module, names: Iterable[str], start: float, threshold: float, clip: bool) -> None:
        super().__init__()
        # In a tuple, so that the model's modules do not become modules of the noise.
        self._owners = tuple((model.get_submodule(name.rpartition(".")[0]), name) for name in names)
        self._threshold, self._clip = threshold, clip
        weights = self._weights()
        self._index = {id(weight): index for index, weight in enumerate(weights)}
        self.log_sigma2 = nn.ParameterList(nn.Parameter(torch.full_like(weight, start)) for weight in weights)
        self.register_buffer("done", torch.zeros((), dtype=torch.int64, device=weights[0].device))

    def forward(self, x: object) -> object:
        """Returns what it gets, for models that call all of their submodules in turn."""
        return x

    def _weights(self) -> list[nn.Parameter]:
        return [parameter_of(owner, name) for owner, name in self._owners]

    def log_alphas(self) -> list[Tensor]:
        """Returns ``log alpha`` of all weights, clamped."""
        pairs = zip(self._weights(), self.log_sigma2, strict=True)
        return [log_alpha(*pair).clamp(-_MOST, _MOST) for pair in pairs]

    def has(self, tensor: object) -> bool:
        """Returns whether a tensor is one of the weights."""
        return id(tensor) in self._index

    def sigma(self, theta: Tensor) -> Tensor:
        """Returns ``sqrt(alpha) |theta|`` of one of the weights: no noise where it is masked to 0."""
        log_sigma2 = self.log_sigma2[self._index[id(theta)]]
        return (0.5 * log_alpha(theta, log_sigma2).clamp(-_MOST, _MOST)).exp() * theta.abs()

    def effective(self, theta: Tensor) -> Tensor:
        """Returns one of the weights as the model uses it: drawn in training, 0 above the threshold in evaluation."""
        if self.training:
            return self.mean(theta) + self.sigma(theta) * normal_like(theta)
        return self._silenced(theta)

    def mean(self, theta: Tensor) -> Tensor:
        """Returns the mean of one of the weights in training."""
        return self._silenced(theta) if self._clip else theta

    def _silenced(self, theta: Tensor) -> Tensor:
        """Returns one of the weights with 0 where it is noisy."""
        noisy = log_alpha(theta, self.log_sigma2[self._index[id(theta)]]) >= self._threshold
        return theta.masked_fill(noisy, 0)

    @torch.no_grad()
    def fold(self) -> None:
        """Sets noisy weights to 0 for good, and saves ``log alpha`` beside each weight, outside the state dict."""
        for (owner, name), theta, log_sigma2 in zip(self._owners, self._weights(), self.log_sigma2, strict=True):
            final = log_alpha(theta, log_sigma2)
            theta.masked_fill_(final >= self._threshold, 0)
            register_gate(owner, name.rpartition(".")[2] + _LEFT, final)


class _Drawing(FunctionMode):
    """Replaces what torch computes with the weights while the model runs: the local reparameterisation.

    A weight is recognised by identity, so that it does not matter which module uses it, or whether any does.
    """

    def __init__(self, noise: _Noise) -> None:
        super().__init__()
        self.noise = noise

    def call(self, name: str, func: Func, args: Args, kwargs: Kwargs) -> Any:
        """Makes a call with the weights drawn, or with the outputs drawn where it is a product."""
        given = {**dict(zip(("input", "weight", "bias"), args, strict=False)), **kwargs}
        if self.noise.training and func in _PRODUCTS and self.noise.has(given.get("weight")):
            return self.drawn(func, given, args[3:])
        args, kwargs = tree_map_only(
            nn.Parameter, lambda p: self.noise.effective(p) if self.noise.has(p) else p, (tuple(args), dict(kwargs))
        )
        return func(*args, **kwargs)

    def drawn(self, func: Func, given: dict[str, Any], more: Args) -> Tensor:
        """Draws from ``N(W x + b, (alpha theta^2) x^2)``."""
        x, theta, bias = (given.pop(name, None) for name in ("input", "weight", "bias"))
        mean = func(x, self.noise.mean(theta), bias, *more, **given)
        variance = func(x.square(), self.noise.sigma(theta).square(), None, *more, **given)
        return mean + (variance + _SMALL).sqrt() * normal_like(mean)


@contextmanager
def _attach(model: nn.Module, noise: _Noise) -> Iterator[_Noise]:
    """Runs the model with noise as long as the context lasts, and then without its noisy weights."""
    running, mode = ExitStack(), _Drawing(noise)

    def enter(*_: object) -> None:
        running.enter_context(mode)

    def exit_(*_: object) -> None:
        running.close()  # does nothing where another hook failed before the model ran

    with submodule(model, _NOISE, noise):
        handles = model.register_forward_pre_hook(enter), model.register_forward_hook(exit_, always_call=True)
        try:
            yield noise
        finally:
            for handle in handles:
                handle.remove()
            running.close()
            noise.fold()
