"""Channel selectors for networks whose batch norms read what others read too: pre-activation and dense ones.

There a norm's channels are those of a residual stream or of a concatenation, and cannot go because one norm has no use
for them. A selector behind the norm lets the layer that reads it do without them (Liu et al., "Learning Efficient
Convolutional Networks through Network Slimming", ICCV 2017); the norm itself keeps all channels.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from topiarist.budget import matching
from topiarist.errors import TopiaristError
from topiarist.graph import SELECTOR, ChannelSelector, Graph, check_finite, declare_selectors, is_norm, trace, unwrapped
from topiarist.surgery.plans import copied

__all__ = ["ChannelSelector", "add_selectors"]


def add_selectors(
    model: nn.Module, norms: str | Collection[str] = "auto", example_inputs: Any = None, *, graph: Graph | None = None
) -> nn.Module:
    """Declares channel selectors, so that what reads a norm can lose inputs which others still need.

    Nothing is computed otherwise until a cut; each selector adds one tensor, ``NORM.selector.indices``, to the state
    dict. An `Architecture` remembers its selectors: the pruned network is loaded into the plain one.

    Args:
        model: any `torch.nn.Module`; it stays as it is.
        norms: glob patterns on the names of batch norms that a selector shall follow; ``"auto"``: all norms read by
            weights alone, which are not the only ones to read the channels: the norms of pre-activation blocks and
            dense layers, none in plain and post-activation networks.
        example_inputs: what ``"auto"`` traces the network on.
        graph: the model's graph, where it was traced before.

    Returns:
        A copy with selectors.

    Raises:
        TopiaristError: a pattern matches no batch norm, there is none to select for, or the inputs are missing.
    """
    model = unwrapped(model)
    check_finite(model)
    known = [name for name, module in model.named_modules() if is_norm(module)]
    if not known:
        raise TopiaristError("channel selectors follow batch norms, and this network has none; leave selectors out")
    chosen = copied(model)
    if norms == "auto":
        if example_inputs is None:
            raise TopiaristError("example_inputs are missing; pass them, since the network must run to choose norms")
        declare_selectors(chosen, known)
        chosen_norms = _useful(trace(model, example_inputs) if graph is None else graph, trace(chosen, example_inputs))
        if not chosen_norms:
            raise TopiaristError("no norm of this network reads channels that others need too; leave selectors out")
        chosen = copied(model)
    else:
        patterns = (norms,) if isinstance(norms, str) else tuple(norms)
        if not patterns:
            raise TopiaristError("no norm is named for a selector to follow; give glob patterns, or 'auto'")
        chosen_norms = list(dict.fromkeys(name for pattern in patterns for name in matching(pattern, known)))
    declare_selectors(chosen, chosen_norms)
    return chosen


def _useful(plain: Graph, trial: Graph) -> list[str]:
    """Returns the norms whose selectors free something: only weights read them, and others their inputs.

    Args:
        plain: graph of the network as it is.
        trial: graph of the network with a selector behind every norm.
    """
    readers: dict[str, set[str]] = {}  # scale → weights that read its channels, wherever they read them
    for group in plain.groups:
        for scale in group.by_role("scale"):
            readers.setdefault(scale.tensor, set()).update(part.tensor for part in group.by_role("input"))
    selected: dict[str, set[str]] = {}  # norm → weights that read what its selector passes on
    joined: set[str] = set()  # norms whose outputs meet something else than weights
    for group in trial.groups:
        norms = [part.tensor.removesuffix(f".{SELECTOR}.indices") for part in group.by_role("index")]
        reading = group.by_role("input")
        if len(norms) > 1 or len(norms) + len(reading) < len(group.slices):
            joined.update(norms)
        for norm in norms:
            selected.setdefault(norm, set()).update(part.tensor for part in reading)
    return [
        norm for norm, read in selected.items() if norm not in joined and read != readers.get(f"{norm}.weight", set())
    ]
