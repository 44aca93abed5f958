"""Batch norms that see one layer's output as it comes, so that the length of its filters makes no difference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from topiarist.graph.by_tensor import ByTensor


class Normed(NamedTuple):
    """The tensors of a layer, whose weight has its outputs first, and of the batch norm right behind it, by name.

    Where all of a filter and its bias are multiplied by ``c > 0``, the norm puts out the same for a running mean times
    ``c`` and a variance times ``c^2``, but for its ``eps``.
    """

    weight: str
    bias: str | None
    scale: str
    mean: str
    variance: str
    eps: float


@dataclass(eq=False)
class _Output:
    """Of a layer: the names of its weight and bias, and how many operators read it."""

    weight: str
    bias: str | None
    readers: int = 0


class Norms:
    """Follows the outputs of layers through one run, and keeps those that a batch norm alone reads."""

    def __init__(self) -> None:
        self._outputs = ByTensor[_Output]()
        self._seen: list[tuple[_Output, Normed]] = []
        self._uses: Counter[str] = Counter()

    def read(self, tensors: Iterable[Tensor], names: Iterable[str] = ()) -> None:
        """Notes that an operator, or the caller, reads tensors, among them the model's own of these names."""
        for tensor in tensors:
            if (output := self._outputs.get(tensor)) is not None:
                output.readers += 1
        self._uses.update(names)

    def layer(self, output: Tensor, weight: str, bias: str | None) -> None:
        """Notes the product of an entire weight of the model, and perhaps a bias."""
        self._outputs[output] = _Output(weight, bias)

    def norm(self, x: Tensor, scale: str | None, mean: str | None, variance: str | None, eps: float) -> None:
        """Notes a batch norm."""
        layer = self._outputs.get(x)
        if layer and scale and mean and variance:
            self._seen.append((layer, Normed(layer.weight, layer.bias, scale, mean, variance, eps)))

    def normed(self) -> tuple[Normed, ...]:
        """Returns the pairs of which nothing else reads the output in between, or any of the tensors."""
        alone = [normed for layer, normed in self._seen if layer.readers == 1]
        return tuple(normed for normed in alone if all(self._uses[name] == 1 for name in normed[:-1] if name))
