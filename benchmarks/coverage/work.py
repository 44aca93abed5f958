"""What is measured of one network, each side in a process of its own."""

from __future__ import annotations

import re
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peer
import torch
from network import Network, outputs, run
from torch import nn

import topiarist
from topiarist.graph import fast_path_off, named_tensors

sys.path.append(str(Path(__file__).resolve().parents[1]))
from proof_table import RATIOS, difference, keep_share, reference
from versus_torch_pruning import MEMORY, limit_cpu, told

SECONDS = 60
"""CPU seconds of either side."""
Report = Callable[..., None]
STATUS = Path("/proc/self/status")


def ours(network: Network, report: Report) -> None:
    """Traces the network, and proves a cut at each ratio."""
    model, example, more = network.made()
    params = sum(p.numel() for p in model.parameters())
    report(params=params)
    before = _start_of_memory()
    with limited():
        begin = time.process_time()
        graph = topiarist.trace(model, example, more_inputs=more, seconds=3600)  # CPU time is limited instead
        report(groups=len(graph.groups), trace_s=_since(begin), unknown=sorted(graph.unknown))
        begin = time.process_time()
        for share in RATIOS:
            keep = keep_share(graph, share)
            proof = topiarist.prove(model, graph, keep, example, more_inputs=more)
            values = {"diff": proof.max_rel_diff, "change": proof.change, "ok": proof.ok, "reason": proof.reason[:200]}
            values["tolerance"] = proof.precision.tolerance
            report(**{f"{share}": {**values, "paths": list(proof.paths), "macs": _macs(graph, keep)}})
        report(proof_s=_since(begin), peak_gb=_peak(before))
    half = keep_share(graph, 0.5)
    report(whole=whole(graph, half))
    try:
        with limited(), torch.no_grad(), fast_path_off():
            expected = reference_of(model, graph, half, example)
            found = run(topiarist.cut(model, graph, half).eval(), example)
        report(reference=difference(found, expected))
    except Exception as error:  # it takes no part in the verdict
        report(reference_error=told(error))


def reference_of(model: nn.Module, graph: Any, keep: Any, example: Any) -> Any:
    """The proof table's reference, for any inputs: the model is called within a module, which puts a name in front."""
    groups = [
        SimpleNamespace(
            name=group.name,
            slices=[replace(part, tensor=f"model.{part.tensor}") for part in group.slices],
        )
        for group in graph.groups
    ]
    return reference(_Called(model), SimpleNamespace(groups=groups), keep, example)


class _Called(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any) -> Any:
        return run(self.model, inputs)


def _macs(graph: Any, keep: Any) -> float:
    return topiarist.cost(graph, keep).macs / max(1, topiarist.cost(graph).macs)


def whole(graph: Any, keep: Any) -> dict[str, Any]:
    """How many weights lose nothing on any axis, of how many, and why: the most frequent reasons."""
    kept, reasons = graph.kept(keep), {}
    for pin in graph.pinned:
        if pin.axis is not None and "own axis" not in pin.reason:
            reasons.setdefault(pin.tensor, pin.reason)
    weights = [name for name in graph.parameters if len(graph.shapes[name]) > 1]
    cut = {tensor for (tensor, axis), positions in kept.items() if not bool(positions.all())}
    found = [name for name in weights if name not in cut]
    counts = Counter(_short(reasons.get(name, "no reason noted")) for name in found)
    return {"weights": len(weights), "whole": len(found), "reasons": counts.most_common(3)}


def _short(reason: str) -> str:
    """A reason without its place."""
    return re.sub(r"\s+", " ", reason.partition(" (")[0])[:60].replace("|", "/")


def _since(begin: float) -> float:
    return round(time.process_time() - begin, 3)


def _start_of_memory() -> float:
    """Forgets the peak so far, where the system can (Linux); returns it in GB."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _high()


def _high() -> float:
    if STATUS.exists():
        return int(re.search(r"VmHWM:\s*(\d+)", STATUS.read_text())[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def _peak(before: float) -> float:
    return round(_high() - before, 3)


def theirs(network: Network, report: Report) -> None:
    """Prunes the network with Torch-Pruning, and compares what it gives with what it should."""
    model, example, more = network.made()
    peer.make_distinct(model)
    expected = outputs(model, example)
    original = {name: tensor.clone() for name, tensor in named_tensors(model).items()}
    dense = topiarist.surgery.copied(model)
    before = _start_of_memory()
    with limited():
        seconds = peer.prune(model, example, expected)
    report(seconds=seconds, peak_gb=_peak(before))
    fate = peer.fate(model, example, expected, sum(p.numel() for p in dense.parameters()))
    report(fate=fate)
    if fate != "runs":
        return
    report(right=peer.right(dense, original, model, example))
    report(macs=peer.flops(model, example) / max(1, peer.flops(dense, example)))
    report(again=peer.runs_again(model, more))


@contextmanager
def limited() -> Iterator[None]:
    limit_cpu(SECONDS)
    try:
        yield
    finally:
        limit_cpu(None)


SIDES: dict[str, Callable[[Network, Report], None]] = {"ours": ours, "peer": theirs}


def work(network: Network, side: str, report: Report) -> None:
    """Measures one side; every result is reported as it comes, the end of a failing one too."""
    used = int(re.search(r"VmSize:\s*(\d+)", STATUS.read_text())[1]) * 1024 if STATUS.exists() else 0
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    try:
        SIDES[side](network, report)
    except BaseException as error:  # a failing network is a row of the table
        memory = isinstance(error, MemoryError) or "allocate memory" in str(error)
        late = type(error).__name__ == "OutOfTimeError"
        report(error="out of memory" if memory else f"over {SECONDS} s" if late else told(error))
