"""How well a network does on some examples: what is asked again and again while a method tries keeps out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import nn

from topiarist.errors import TopiaristError
from topiarist.graph import call_model, tensors_in
from topiarist.measure.collection import class_scores, cross_entropy, eval_mode, mapped, moved, parted

__all__ = ["Verdict", "first_examples", "judge"]


class Verdict(NamedTuple):
    """How well a network does.

    Attributes:
        accuracy: share of examples whose highest score is the right class, in per cent.
        loss: mean cross entropy, in nats; infinite where it is not finite.
    """

    accuracy: float
    loss: float


@torch.no_grad()
def judge(model: nn.Module, batches: Iterable[Any]) -> Verdict:
    """Runs a classifier over the data, in eval mode.

    Args:
        model: yields class scores ``(N, classes, ...)``, alone or as ``logits``.
        batches: pairs ``(inputs, target)`` as for `topiarist.measure.collect`.

    Raises:
        TopiaristError: there is no example, or no target.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    loss, hits, seen = 0.0, 0.0, 0
    with eval_mode(model):
        for batch in batches:
            inputs, target = parted(batch)
            if target is None:
                raise TopiaristError("a network is judged by its targets: pass batches as pairs (inputs, target)")
            output, target = call_model(model, moved(inputs, device)), moved(target, device)
            loss += float(cross_entropy(output, target)) * len(target)
            hits += int((class_scores(output).argmax(1) == target).sum()) * len(target) / target.numel()
            seen += len(target)
    if not seen:
        raise TopiaristError("there is no example to judge the network by: pass at least one batch")
    return Verdict(100.0 * hits / seen, loss / seen if math.isfinite(loss) else math.inf)


def first_examples(batches: Iterable[Any], count: int) -> Iterator[Any]:
    """The batches that hold the first ``count`` examples, the last of them cut to size."""
    for batch in batches:
        size = len(tensors_in(parted(batch)[0])[0])
        yield batch if size <= count else mapped(batch, itemgetter(slice(count)))
        count -= size
        if count <= 0:
            return
