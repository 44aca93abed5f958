"""Batch norms that see one layer's output as it comes, so that the length of its filters makes no difference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


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


class Norms:
    """Follows the outputs of layers through one run, and keeps those that a batch norm alone reads."""

    def __init__(self) -> None:
        self._layers: Any = WeakTensorKeyDictionary()
        self._readers: Any = WeakTensorKeyDictionary()
        self._seen: list[tuple[Tensor, Normed]] = []
        self._called: Counter[str | None] = Counter()

    def read(self, tensors: Sequence[Tensor]) -> None:
        """An operator, or whoever runs the network, reads tensors."""
        for tensor in tensors:
            if tensor in self._layers:
                self._readers[tensor] = self._readers.get(tensor, 0) + 1

    def layer(self, output: Tensor, weight: str, bias: str | None) -> None:
        """The product of a whole weight of the model, and perhaps a bias."""
        self._called[weight] += 1
        self._layers[output] = weight, bias

    def norm(self, x: Tensor, scale: str | None, mean: str | None, variance: str | None, eps: float) -> None:
        """A batch norm."""
        self._called[variance] += 1
        weight, bias = self._layers.get(x, (None, None))
        if weight and scale and mean and variance:
            self._seen.append((x, Normed(weight, bias, scale, mean, variance, eps)))

    def found(self) -> tuple[Normed, ...]:
        """The pairs of which each half was called once, and had no other half."""
        once = [normed for x, normed in self._seen if self._readers.get(x, 0) == 1]
        return tuple(n for n in once if self._called[n.weight] == 1 == self._called[n.variance])
