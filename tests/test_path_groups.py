"""Branches in the code cost no groups: what can be pruned of known networks, worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import topiarist
from networks import (
    CASES,
    Net,
    conv,
    distance,
    images,
    joined,
    qkv_parts,
    random_keep,
    separate,
    separate_parts,
    tokens,
)

X, LONGER = tokens(2), tokens(2, 8)
HEADS = {"q:rows": 3, "q:columns": 4, "v": 4}  # queries and keys share heads and widths, values their heads


def product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v


def trained(net: Any, x: Tensor) -> Tensor:
    """Another view, literal sizes and a scale, in training only."""
    b, n, c = x.shape
    q, k, v = (part.view(b, n, 3, 4).transpose(1, 2) for part in net.qkv(x).chunk(3, -1))
    if net.training:
        v = (v * v.shape[-1] ** -0.5).reshape(b, 3, n, 4)
    return net.proj(joined(product(q, k, v)))


def masked(net: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    q, k, v = separate(net, x)
    scores = q @ k.mT / math.sqrt(k.size(-1))
    if mask is not None:
        scores = scores.masked_fill(mask[:, None, None], -1e9)
    return net.proj(joined(scores.softmax(-1) @ v))


def remembered(net: Any, x: Tensor) -> Tensor:
    """A cache within one call."""
    past, seen = None, []
    for t in range(x.shape[1]):
        q, k, v = separate(net, x[:, t : t + 1])
        past = (k, v) if past is None else tuple(torch.cat(pair, 2) for pair in zip(past, (k, v), strict=True))
        seen.append(joined(product(q, *past)))
    return net.proj(torch.cat(seen, 1))


def returned(net: Any, x: Tensor, past: Any = None) -> tuple[Tensor, ...]:
    """A cache that the network returns: what it holds must stay."""
    q, k, v = separate(net, net.embed(x))
    if past is not None:
        k, v = (torch.cat(pair, 2) for pair in zip(past, (k, v), strict=True))
    return net.proj(joined(product(q, k, v))), k, v


def windows(net: Any, x: Tensor) -> Tensor:
    x = net.stem(x)
    b, n, c = x.shape
    if n % 4:
        x = F.pad(x, (0, 0, 0, 4 - n % 4))
    x = x.view(b, -1, 4, 12)
    x = (x + x.mean(2, keepdim=True)).view(b, -1, c)
    return net.head(x[:, :n])


def looped(net: Any, x: Tensor, steps: int = 1) -> Tensor:
    x = net.stem(x)
    for _ in range(steps):
        x = x + net.inner(x).relu()
    return net.head(x)


def early(net: Any, x: Tensor) -> Any:
    x = net.stem(x).relu()
    if net.training:
        return net.head(x), net.aux(x.mean(1))
    if x.shape[1] > 6:
        return net.head(x / x.size(-1) ** 0.5)
    return net.head(x)


def crossed(net: Any, x: Tensor, other: Tensor | None = None) -> Tensor:
    source = net.embed(x)
    q, _, _ = separate(net, source)
    _, k, v = separate(net, source if other is None else net.embed(other))
    return net.proj(joined(product(q, k, v)))


def padded(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    if x.shape[-1] % 2:
        x = F.pad(x, (0, 1, 0, 1))
    b, c, h, w = x.shape
    x = x.view(b, 8, h // 2, 2, w // 2, 2).amax((3, 5))
    return net.b(x.reshape(b, c, h // 2, w // 2))


def stem(**parts: Any) -> dict[str, Any]:
    return {"stem": nn.Linear(12, 12), "head": nn.Linear(12, 3), **parts}


LAST = torch.tensor([[False] * 4 + [True]] * 2)
PAST = {"x": X, "past": (torch.ones(2, 3, 2, 4), torch.ones(2, 3, 2, 4))}
Made = tuple[Callable[..., Any], Callable[[], dict[str, Any]], Any, Any, dict[str, int]]
KNOWN: dict[str, Made] = {
    "training": (trained, qkv_parts, X, X, {"qkv:rows": 3, "qkv:columns": 4}),
    "mask": (masked, separate_parts, X, {"x": X, "mask": LAST}, HEADS),
    "cache within": (remembered, separate_parts, X, LONGER, HEADS),
    "cache returned": (returned, lambda: separate_parts(embed=nn.Linear(12, 12)), X, PAST, {"embed": 12}),
    "windows": (windows, stem, LONGER, X, {"stem": 12}),
    "loop": (looped, lambda: stem(inner=nn.Linear(12, 12)), X, {"x": X, "steps": 3}, {"stem": 12}),
    "early return": (early, lambda: stem(aux=nn.Linear(12, 2)), X, LONGER, {"stem": 12}),
    "second input": (
        crossed, lambda: separate_parts(embed=nn.Linear(12, 12)), X, {"x": X, "other": LONGER}, {"embed": 12, **HEADS},
    ),
    "odd images": (padded, lambda: {"a": conv(3, 8), "b": conv(8, 4)}, images(2), images(2, size=7), {"a": 8}),
}  # fmt: skip


def made(name: str) -> tuple[nn.Module, Any, Any, dict[str, int]]:
    program, parts, example, more, groups = KNOWN[name]
    torch.manual_seed(0)
    return Net(program, **parts()).eval(), example, more, groups


@pytest.mark.parametrize("shown", [True, False], ids=["shown", "not shown"])
@pytest.mark.parametrize("name", KNOWN)
def test_branches_pin_nothing(name: str, shown: bool) -> None:
    model, example, more, groups = made(name)
    graph = topiarist.trace(model, example, more_inputs=[more] if shown else [])
    assert {group.name: group.units for group in graph.groups} == groups


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.by_day(4)
def test_trial_cuts_pin_nothing_either(name: str) -> None:
    model, example, more, groups = made(name)
    graph = topiarist.check(model, topiarist.trace(model, example, more_inputs=[more]), example, more_inputs=[more])
    assert {group.name: group.units for group in graph.groups} == groups


def test_a_returned_cache_is_fed_back() -> None:
    model, example, more, _ = made("cache returned")
    graph = topiarist.trace(
        model.double(), example.double(), more_inputs=[{"x": example.double(), "past": more["past"]}]
    )
    for seed in range(3):
        keep = random_keep(graph, seed)
        answers = []
        for network in (topiarist.cut(model, graph, keep), topiarist.mask(model, graph, keep)):
            past = None
            for step in range(4):
                y, *past = network(tokens(2, 1, seed=step).double(), past)
                answers.append(y)
        assert distance(answers[:4], answers[4:]) <= 1e-10


def test_the_library_s_own_cases_are_the_same_with_further_examples() -> None:
    """Sizes and batches that differ, shown too, cost nothing."""
    for name in ("attention", "literal attention", "sdpa", "einsum", "residual", "group norm", "channel shuffle"):
        case = CASES[name]
        graph = topiarist.trace(case.model(), case.inputs, more_inputs=[case.other])
        assert {group.name: group.units for group in graph.groups} == case.groups, name
