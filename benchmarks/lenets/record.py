"""The smallest file: thinned by variational dropout, shrunk, shared, and coded near the entropy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from bench import SMALL, Bench, Result
from plan import Bits, named
from torch import nn

import topiarist
from topiarist import Recipe, compress, prune, shrink, trace
from topiarist.methods import make


def record(bench: Bench, start: Path | None = None) -> Result:
    """Bytes of the whole file and error, for each number of bits that is tried."""
    told = bench.cell.settings
    model, found = _thinned(bench) if start is None else loaded(bench, start)
    model = tuned(bench, model, bench.recipe("tune"))
    found |= {"tuned": bench.error(model), "nonzero": sum(int(p.count_nonzero()) for p in model.parameters())}
    found["tries"] = {named(bits): _file(bench, model, bits) for bits in told["bits"]}
    return found


def loaded(bench: Bench, start: Path) -> tuple[nn.Module, Result]:
    """What was kept in another cell."""
    model = topiarist.load(topiarist.make_model(f"zoo:{bench.cell.network}"), start / SMALL)
    return model, {"thinned": bench.error(model)}


def _thinned(bench: Bench) -> tuple[nn.Module, Result]:
    """A trained network cut by lasso, then thinned by variational dropout."""
    told, example = bench.cell.settings, bench.data.example()
    model = bench.model()
    bench.fit(model, bench.recipe("dense"), "dense")
    if told["widths"]:
        model = bench.cut(model, told["widths"])
    found: Result = {"cut": bench.error(model)}
    noise = make("vardrop", examples=round(len(bench.data.train_y) / told["pressure"]))
    bench.fit(model, bench.recipe("noisy"), "noisy", method=noise, graph=trace(model, example))
    model = shrink(prune(model, example, noise).model, example).model
    return model, found | {"thinned": bench.error(model)}


def tuned(bench: Bench, model: nn.Module, recipe: Recipe) -> nn.Module:
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
    shape = bench.shape(shared.model)
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
