"""The slope of a network's outputs by every single weight, example by example.

Optimal Brain Damage squares these slopes, Optimal Brain Surgeon multiplies them with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from topiarist.graph import Graph
from topiarist.measure import Layer, Watch, class_scores, is_plain, on_calls, windows_of
from topiarist.methods._multipliers import holders_of

_ROOM = 2**24
"""Numbers that may be in memory at once while slopes are multiplied."""

_NOISE = 1e-3
"""Slopes that differ by less, against their size, are the same in single precision."""


def patches(layer: Layer, x: Tensor) -> Tensor:
    """What a layer multiplies with its weight: ``(rows, groups, places, inputs)``, kernel entries among the inputs."""
    cells, windows = windows_of(layer, x)
    found = cells[:, :, windows.to(x.device)].movedim(2, 1)  # (rows, places, channels, entries)
    return found.unflatten(2, (getattr(layer, "groups", 1), -1)).flatten(3).movedim(2, 1)


def factors(z: Tensor) -> Iterator[Tensor]:
    """The curvature of the cross entropy by the class scores, ``diag(p) - p p^T``, as a sum of ``s_c s_c^T``.

    ``s_c = sqrt(p_c) (e_c - p)`` for each class ``c``, and at each place where an example has several, over which the
    loss is a mean.

    Args:
        z: ``(N, classes, ...)`` class scores.

    Yields:
        One factor after the other for all examples, in the shape of ``z``.
    """
    p = z.detach().flatten(2).softmax(1) if z.ndim > 2 else z.detach()[:, :, None].softmax(1)
    root = (p / p.shape[2]).sqrt()
    for c in range(p.shape[1]):
        at_c = torch.zeros_like(p)
        at_c[:, c] = 1
        s = root[:, c, None] * (at_c - p)
        for place in range(p.shape[2]):
            one = torch.zeros_like(s)
            one[:, :, place] = s[:, :, place]
            yield one.view(z.shape)


def on_slopes(
    model: nn.Module, graph: Graph, run: Watch, see: Callable[[Slopes, Tensor], None]
) -> Iterator[RemovableHandle]:
    """Calls ``see`` for each batch with the slopes of its class scores and the gradient of its loss by them.

    Args:
        model: the traced model.
        graph: its groups; the weights are those of ``graph.weights()``.
        run: the run over the data.
        see: gets the slopes and ``(N, classes, ...)``, in each row the gradient of that example's loss.
    """
    tensors = tensors_of(model)
    weights = {group.name: tensors[group.name] for group in graph.weights().groups}
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def remember(name: str, _: Layer, x: Tensor, output: Tensor) -> Tensor:
        calls.setdefault(name, []).append((x, output))
        return output.clone()  # what comes next may work in place

    def finish(_: str, __: nn.Module, ___: object, output: object) -> None:
        z, now = class_scores(output), dict(calls)
        calls.clear()
        if z.requires_grad:
            run.gradient(z, lambda gradient: see(Slopes.of(model, z, weights, now), gradient))

    yield _Thawed(weights.values())
    yield from on_calls(plain_layers(model, weights).items(), remember)
    yield from on_calls([("", model)], finish)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer under each of its names."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def plain_layers(model: nn.Module, weights: Iterable[str]) -> dict[str, Layer]:
    """Name of a weight → the linear layer or convolution that it is the weight of, where there is one."""
    parts = {name: name.rpartition(".") for name in weights}
    layers = {name: model.get_submodule(holder) for name, (holder, _, leaf) in parts.items() if leaf == "weight"}
    return {name: layer for name, layer in layers.items() if is_plain(layer)}


def users(model: nn.Module, weights: Iterable[str]) -> dict[str, list[Layer]]:
    """Name of a weight → all layers whose weight it is, tied ones; none where something else holds it as well."""
    tensors, holders = tensors_of(model), holders_of(model)
    found: dict[str, list[Layer]] = {}
    for name in weights:
        held = holders[id(tensors[name])]
        layers = [module for module, leaf in held if leaf == "weight" and is_plain(module)]
        if len(layers) == len(held) and len({getattr(layer, "groups", 1) for layer in layers}) == 1:
            found[name] = layers
    return found


@dataclass(frozen=True, eq=False)
class Read:
    """What one layer did in one batch: all that makes the slopes by its weight.

    Attributes:
        x: ``(N, groups, places, inputs)`` what it multiplied with the weight, of all its calls.
        outputs: of each call.
        layer: the layer.
    """

    x: Tensor
    outputs: list[Tensor]
    layer: Layer

    @staticmethod
    def of(layer: Layer, calls: list[tuple[Tensor, Tensor]], examples: int) -> Read | None:
        """``None`` where the rows of what it reads are no examples, nor several to an example."""
        read = [patches(layer, x) for x, _ in calls]
        if any(len(x) % examples or not len(x) for x in read):
            return None
        return Read(torch.cat([_apart(x, examples) for x in read], 2), [output for _, output in calls], layer)

    def places(self, gradients: Iterable[Tensor]) -> Tensor:
        """``(N, groups, places, outputs)``: the gradients of the outputs of all calls."""
        found = []
        for gradient in gradients:
            if isinstance(self.layer, nn.Linear):
                rows = gradient.reshape(-1, 1, 1, gradient.shape[-1])
            else:
                batched = gradient if gradient.ndim == len(self.layer.kernel_size) + 2 else gradient[None]
                rows = batched.flatten(2).unflatten(1, (self.layer.groups, -1)).mT
            found.append(_apart(rows, len(self.x)))
        return torch.cat(found, 2)

    def slopes(self, g: Tensor, part: slice = slice(None)) -> Tensor:
        """``(N, outputs, inputs)``: ``dz/dw_oi = sum over places of g_po x_pi``, for some of the examples."""
        return torch.einsum("ngpo,ngpi->ngoi", g[part], self.x[part]).flatten(1, 2)

    def squares(self, g: Tensor) -> Tensor:
        """``(outputs, inputs)``: the slopes squared and summed over the examples, in float64."""
        if self.x.shape[2] == 1:
            # One place: the square of the product is the product of the squares.
            return torch.einsum("ngpo,ngpi->goi", g.double().square(), self.x.double().square()).flatten(0, 1)
        step = max(1, _ROOM // self.layer.weight.numel())
        parts = [self.slopes(g, slice(at, at + step)) for at in range(0, len(g), step)]
        return torch.stack([part.double().square().sum(0) for part in parts]).sum(0)


@dataclass(frozen=True, eq=False)
class Slopes:
    """``J_n^T s_n`` for the examples ``n`` of a batch: slopes of their class scores, along a direction for each.

    Layers whose inputs and outputs say it all take one backward pass for all examples; weights that are used in any
    other way take one for each example, whatever the network does with them.

    Attributes:
        z: ``(N, classes, ...)`` the class scores, with their graph.
        weights: name → tensor.
        reads: those weights that a layer's inputs and outputs are enough for.
    """

    z: Tensor
    weights: Mapping[str, Tensor]
    reads: Mapping[str, Read] = field(default_factory=dict)

    @staticmethod
    def of(model: nn.Module, z: Tensor, weights: Mapping[str, Tensor], calls: Mapping[str, Any]) -> Slopes:
        """Reads what the layers did, and checks on the first example whether it is all that their weights do."""
        layers = plain_layers(model, calls)
        found = {name: Read.of(layers[name], seen, len(z)) for name, seen in calls.items()}
        reads = {name: read for name, read in found.items() if read is not None}
        probe = torch.zeros_like(z)
        probe[0] = torch.linspace(1, 2, z[0].numel()).to(z).view(z.shape[1:])
        true = dict(zip(reads, _slopes(z, [weights[name] for name in reads], probe), strict=True))
        own = {name: reads[name].slopes(g, slice(1))[0] for name, g in _at_layers(z, reads, probe)}
        same = {name for name, values in own.items() if _close(values.flatten(), true[name].flatten())}
        return Slopes(z, weights, {name: read for name, read in reads.items() if name in same})

    def squares(self, s: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Weight name → float64 ``(weights,)``, the sum over the examples of ``(J_n^T s_n)^2``; may come in parts."""
        for name, g in _at_layers(self.z, self.reads, s):
            yield name, self.reads[name].squares(g).flatten()
        for _, slopes in self._one_by_one(s):
            yield from ((name, slope.double().square().flatten()) for name, slope in slopes.items())

    def rows(self, s: Tensor) -> Tensor:
        """Float64 ``(N, weights)``: ``J_n^T s_n``, the weights of all tensors in turn."""
        found = {name: self.z.new_zeros(len(self.z), w.numel()).double() for name, w in self.weights.items()}
        for name, g in _at_layers(self.z, self.reads, s):
            found[name] += self.reads[name].slopes(g).flatten(1)
        for n, slopes in self._one_by_one(s):
            for name, slope in slopes.items():
                found[name][n] = slope.flatten()
        return torch.cat(list(found.values()), 1)

    def _one_by_one(self, s: Tensor) -> Iterator[tuple[int, dict[str, Tensor]]]:
        others = {name: weight for name, weight in self.weights.items() if name not in self.reads}
        for n in range(len(s)) if others else ():
            only = torch.zeros_like(s)
            only[n] = s[n]
            yield n, dict(zip(others, _slopes(self.z, list(others.values()), only), strict=True))


class _Thawed(RemovableHandle):
    """Frozen weights ask for gradients until it is removed."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self.frozen = [weight.requires_grad_() for weight in weights if not weight.requires_grad]

    def remove(self) -> None:
        for weight in self.frozen:
            weight.requires_grad_(False)


def _apart(rows: Tensor, examples: int) -> Tensor:
    """``(rows, groups, places, values)`` → ``(N, groups, places, values)``, several rows of an example in turn."""
    return rows.unflatten(0, (examples, -1)).movedim(1, 2).flatten(2, 3)


def _slopes(z: Tensor, tensors: list[Tensor], s: Tensor) -> tuple[Tensor, ...]:
    if not tensors:
        return ()
    return torch.autograd.grad(z, tensors, s, retain_graph=True, allow_unused=True, materialize_grads=True)


def _at_layers(z: Tensor, reads: Mapping[str, Read], s: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Weight name → ``(N, groups, places, outputs)``: the slopes by what its layer gives."""
    gradients = iter(_slopes(z, [output for read in reads.values() for output in read.outputs], s))
    for name, read in reads.items():
        yield name, read.places([next(gradients) for _ in read.outputs])


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).norm() <= _NOISE * b.norm())
