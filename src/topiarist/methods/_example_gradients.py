"""Gradients of a network's outputs by every weight, example by example.

Optimal Brain Damage squares these gradients, Optimal Brain Surgeon multiplies them with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from topiarist.graph import Graph
from topiarist.measure import Layer, Watch, class_scores, is_plain, on_calls, windows_of
from topiarist.methods._gates import holders_of

_NUMBERS = 2**24
"""Numbers that may be in memory at once while gradients are multiplied."""

_NOISE = 1e-3
"""Gradients that differ by less, against their size, are the same in single precision."""

Calls = Mapping[str, list[tuple[Tensor, Tensor]]]
"""Name of a weight → input and output of each call of its layer."""


def patches(layer: Layer, x: Tensor) -> Tensor:
    """Returns what a layer multiplies with its weight: ``(rows, groups, locations, inputs)``.

    The entries under a convolution's kernel are among the inputs.
    """
    cells, windows = windows_of(layer, x)
    read = cells[:, :, windows.to(x.device)].movedim(2, 1)  # (rows, locations, channels, entries)
    return read.unflatten(2, (getattr(layer, "groups", 1), -1)).flatten(3).movedim(2, 1)


def curvature_factors(z: Tensor) -> Iterator[Tensor]:
    """Splits the curvature of the cross entropy by the class scores: ``diag(p) - p p^T = sum over c of s_c s_c^T``.

    ``s_c = sqrt(p_c) (e_c - p)`` for each class ``c``, and at each location where an example has several, over which
    the loss is a mean.

    Args:
        z: ``(N, classes, ...)`` class scores.

    Yields:
        One factor after the other for all examples, in the shape of ``z``.
    """
    p = z.detach().flatten(2).softmax(1) if z.ndim > 2 else z.detach()[:, :, None].softmax(1)
    root = (p / p.shape[2]).sqrt()
    for c in range(p.shape[1]):
        e_c = torch.zeros_like(p)
        e_c[:, c] = 1
        s = root[:, c, None] * (e_c - p)
        for location in range(p.shape[2]):
            one = torch.zeros_like(s)
            one[:, :, location] = s[:, :, location]
            yield one.view(z.shape)


def on_example_gradients(
    model: nn.Module, graph: Graph, run: Watch, show: Callable[[ExampleGradients, Tensor], None]
) -> Iterator[RemovableHandle]:
    """Calls ``show`` for each batch with the gradients of its class scores, and that of its loss by the scores.

    Args:
        model: the traced model.
        graph: its groups; the weights are those of ``graph.weights()``.
        run: the run over the data.
        show: gets the gradients and ``(N, classes, ...)``, in each row the gradient of that example's loss.
    """
    tensors = tensors_of(model)
    weights = {group.name: tensors[group.name] for group in graph.weights().groups}
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def remember(name: str, _: Layer, x: Tensor, output: Tensor) -> Tensor:
        calls.setdefault(name, []).append((x, output))
        return output.clone()  # what comes next may work in place

    def finish(_: str, __: nn.Module, ___: object, output: object) -> None:
        z, made = class_scores(output), dict(calls)
        calls.clear()
        if z.requires_grad:
            run.gradient(z, lambda gradient: show(ExampleGradients.of(model, z, weights, made), gradient))

    yield _Unfrozen(weights.values())
    yield from on_calls(plain_layers(model, weights).items(), remember)
    yield from on_calls([("", model)], finish)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Returns every parameter and buffer under each of its names."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def plain_layers(model: nn.Module, weights: Iterable[str]) -> dict[str, Layer]:
    """Returns the name of a weight → the linear layer or convolution that it is the weight of, where there is one."""
    parts = {name: name.rpartition(".") for name in weights}
    layers = {name: model.get_submodule(holder) for name, (holder, _, leaf) in parts.items() if leaf == "weight"}
    return {name: layer for name, layer in layers.items() if is_plain(layer)}


def layers_of_weights(model: nn.Module, weights: Iterable[str]) -> dict[str, list[Layer]]:
    """Returns the name of a weight → all layers whose weight it is, where nothing else holds it as well."""
    tensors, holders = tensors_of(model), holders_of(model)
    layers_of: dict[str, list[Layer]] = {}
    for name in weights:
        held = holders[id(tensors[name])]
        layers = [module for module, leaf in held if leaf == "weight" and is_plain(module)]
        if len(layers) == len(held) and len({getattr(layer, "groups", 1) for layer in layers}) == 1:
            layers_of[name] = layers
    return layers_of


@dataclass(frozen=True, eq=False)
class LayerRecord:
    """Holds what one layer did in one batch: all that makes the gradients by its weight.

    Attributes:
        x: ``(N, groups, locations, inputs)`` what it multiplied with the weight, of all its calls.
        outputs: of each call.
        layer: the layer.
    """

    x: Tensor
    outputs: list[Tensor]
    layer: Layer

    @staticmethod
    def of(layer: Layer, calls: list[tuple[Tensor, Tensor]], examples: int) -> LayerRecord | None:
        """Returns ``None`` where the rows of what the layer reads are no examples, nor several to an example."""
        read = [patches(layer, x) for x, _ in calls]
        if any(len(x) % examples or not len(x) for x in read):
            return None
        x = torch.cat([_by_example(x, examples) for x in read], 2)
        return LayerRecord(x, [output for _, output in calls], layer)

    def output_gradients(self, gradients: Iterable[Tensor]) -> Tensor:
        """Returns the gradients by the outputs of all calls as ``(N, groups, locations, outputs)``."""
        parts = []
        for gradient in gradients:
            if isinstance(self.layer, nn.Linear):
                rows = gradient.reshape(-1, 1, 1, gradient.shape[-1])
            else:
                batched = gradient if gradient.ndim == len(self.layer.kernel_size) + 2 else gradient[None]
                rows = batched.flatten(2).unflatten(1, (self.layer.groups, -1)).mT
            parts.append(_by_example(rows, len(self.x)))
        return torch.cat(parts, 2)

    def weight_gradients(self, g: Tensor, part: slice = slice(None)) -> Tensor:
        """Returns ``dz/dw_oi = sum over locations of g_po x_pi``, ``(N, outputs, inputs)``, for some examples."""
        return torch.einsum("ngpo,ngpi->ngoi", g[part], self.x[part]).flatten(1, 2)

    def squares(self, g: Tensor) -> Tensor:
        """Returns the squared gradients summed over the examples, float64 ``(outputs, inputs)``."""
        if self.x.shape[2] == 1:
            # One location: the square of the product is the product of the squares.
            return torch.einsum("ngpo,ngpi->goi", g.double().square(), self.x.double().square()).flatten(0, 1)
        step = max(1, _NUMBERS // self.layer.weight.numel())
        parts = [self.weight_gradients(g, slice(at, at + step)) for at in range(0, len(g), step)]
        return torch.stack([part.double().square().sum(0) for part in parts]).sum(0)


@dataclass(frozen=True, eq=False)
class ExampleGradients:
    """Computes ``J_n^T s_n`` for the examples ``n`` of a batch, with ``J_n`` the gradients of their class scores.

    Layers whose inputs and outputs determine the gradient take one backward pass for all examples; weights that are
    used in any other way take one for each example, whatever the network does with them.

    Attributes:
        z: ``(N, classes, ...)`` the class scores, with their graph.
        weights: name → tensor.
        records: of the weights for which a layer's inputs and outputs are enough.
    """

    z: Tensor
    weights: Mapping[str, Tensor]
    records: Mapping[str, LayerRecord] = field(default_factory=dict)

    @staticmethod
    def of(model: nn.Module, z: Tensor, weights: Mapping[str, Tensor], calls: Calls) -> ExampleGradients:
        """Checks on the first example whether what the layers did gives the gradients of their weights."""
        layers = plain_layers(model, calls)
        made = {name: LayerRecord.of(layers[name], seen, len(z)) for name, seen in calls.items()}
        records = {name: record for name, record in made.items() if record is not None}
        probe = torch.zeros_like(z)
        probe[0] = torch.linspace(1, 2, z[0].numel()).to(z).view(z.shape[1:])
        true = dict(zip(records, _gradients(z, [weights[name] for name in records], probe), strict=True))
        own = {name: records[name].weight_gradients(g, slice(1))[0] for name, g in _at_layers(z, records, probe)}
        same = {name for name, values in own.items() if _close(values.flatten(), true[name].flatten())}
        return ExampleGradients(z, weights, {name: record for name, record in records.items() if name in same})

    def squares(self, s: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yields weight name → float64 ``(weights,)``: ``(J_n^T s_n)^2`` summed over examples, perhaps in parts."""
        for name, g in _at_layers(self.z, self.records, s):
            yield name, self.records[name].squares(g).flatten()
        for _, gradients in self._one_by_one(s):
            yield from ((name, gradient.double().square().flatten()) for name, gradient in gradients.items())

    def rows(self, s: Tensor) -> Tensor:
        """Returns ``J_n^T s_n``, float64 ``(N, weights)``, the weights of all tensors in turn."""
        rows = {name: self.z.new_zeros(len(self.z), w.numel()).double() for name, w in self.weights.items()}
        for name, g in _at_layers(self.z, self.records, s):
            rows[name] += self.records[name].weight_gradients(g).flatten(1)
        for n, gradients in self._one_by_one(s):
            for name, gradient in gradients.items():
                rows[name][n] = gradient.flatten()
        return torch.cat(list(rows.values()), 1)

    def _one_by_one(self, s: Tensor) -> Iterator[tuple[int, dict[str, Tensor]]]:
        others = {name: weight for name, weight in self.weights.items() if name not in self.records}
        for n in range(len(s)) if others else ():
            only = torch.zeros_like(s)
            only[n] = s[n]
            yield n, dict(zip(others, _gradients(self.z, list(others.values()), only), strict=True))


class _Unfrozen(RemovableHandle):
    """Lets frozen weights have gradients until it is removed."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self.frozen = [weight.requires_grad_() for weight in weights if not weight.requires_grad]

    def remove(self) -> None:
        for weight in self.frozen:
            weight.requires_grad_(False)


def _by_example(rows: Tensor, examples: int) -> Tensor:
    """Returns ``(rows, groups, locations, values)`` as ``(N, groups, locations, values)``, several rows an example."""
    return rows.unflatten(0, (examples, -1)).movedim(1, 2).flatten(2, 3)


def _gradients(z: Tensor, tensors: list[Tensor], s: Tensor) -> tuple[Tensor, ...]:
    if not tensors:
        return ()
    return torch.autograd.grad(z, tensors, s, retain_graph=True, allow_unused=True, materialize_grads=True)


def _at_layers(z: Tensor, records: Mapping[str, LayerRecord], s: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yields weight name → ``(N, groups, locations, outputs)``: the gradients by its layer's outputs."""
    gradients = iter(_gradients(z, [output for record in records.values() for output in record.outputs], s))
    for name, record in records.items():
        yield name, record.output_gradients([next(gradients) for _ in record.outputs])


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).norm() <= _NOISE * b.norm())
