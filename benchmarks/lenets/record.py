"""The smallest file: cut by lasso, thinned by variational dropout, shrunk, shared, and coded near the entropy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from bench import Bench, Result
from plan import Bits, named
from torch import nn

import topiarist
from topiarist import Architecture, Recipe, compress, prune, shrink, trace
from topiarist.methods import make

LOOKED_AT = 2000  # training images for the least squares of the cut


def record(bench: Bench) -> Result:
    """Bytes of the whole file and error, for each number of bits that is tried."""
    told, example = bench.cell.settings, bench.data.example()
    model = bench.model()
    bench.fit(model, bench.recipe("dense"), "dense")
    if told["widths"]:
        model = prune(
            model,
            example,
            "lasso",
            {"ratios": told["widths"]},
            bench.data.subset(min(LOOKED_AT, len(bench.data.train_y))),
        ).model
    found: Result = {"cut": bench.error(model)}
    noise = make("vardrop", examples=round(len(bench.data.train_y) / told["pressure"]))
    bench.fit(model, bench.recipe("noisy"), "noisy", method=noise, graph=trace(model, example))
    model = shrink(prune(model, example, noise).model, example).model
    found["thinned"] = bench.error(model)
    model = _tuned(bench, model, bench.recipe("tune"))
    found |= {"tuned": bench.error(model), "nonzero": sum(int(p.count_nonzero()) for p in model.parameters())}
    found["tries"] = {named(bits): _file(bench, model, bits) for bits in told["bits"]}
    return found


def _tuned(bench: Bench, model: nn.Module, recipe: Recipe) -> nn.Module:
    """Trained on with its zeros, then shrunk once more."""
    graph = trace(model, bench.data.example()).weights()
    keep = {group.name: model.get_parameter(group.name).flatten() != 0 for group in graph.groups}
    bench.fit(model, recipe, "tune", graph=graph, keep=keep)
    return shrink(model, bench.data.example()).model


def _file(bench: Bench, model: nn.Module, bits: Bits) -> dict[str, Any]:
    """One file, and proof that the network comes back from it."""
    layers = {"*": bits} if isinstance(bits, int) else bits
    name = "-".join(map(str, layers.values()))
    shared = compress.share(model, bits=layers)
    with shared.tied():
        bench.fit(shared.model, bench.recipe("tied"), f"tied{name}")
    shape = _shape(bench, shared.model)
    bare, whole = bench.folder / f"bits{name}.tpcf", bench.folder / f"bits{name}-shape.tpcf"
    report = compress.save(shared.model, bare, half=True)
    compress.save(shared.model, whole, half=True, architecture=shape)
    make_model = topiarist.make_model(f"zoo:{bench.cell.network}")
    back = shape.build(make_model)
    back.load_state_dict(compress.load(bare))
    again = compress.load_model(make_model, whole)
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), again.parameters(), strict=True))
    dense = 4 * sum(p.numel() for p in make_model().parameters())
    return {
        "error": bench.error(back),
        "bytes": report.bytes,
        "ratio": dense / report.bytes,
        "with_shape": whole.stat().st_size,
        "payload": report.payload,
        "widths": [kept for kept, _ in shape.widths.values()],
    }


def _shape(bench: Bench, small: nn.Module) -> Architecture:
    """The small network's widths as a cut of the whole one; which units went makes no difference any more."""
    graph = trace(bench.model(), bench.data.example())
    widths: Mapping[str, int] = {group.name: group.units for group in trace(small, bench.data.example()).groups}
    keep = {group.name: torch.arange(group.units) < widths.get(group.name, 1) for group in graph.groups}
    return Architecture.of(graph, keep)
