"""The proof table: cut ≡ mask on every network of a list, at three ratios, against a reference of its own.

    python benchmarks/proof_table.py [NAME …] [--out benchmarks/proof_table]

For each network: weights are made non-degenerate, every group keeps 67 %, 50 % and 33 % of its units, and the cut is
compared in float64 with a reference that zeroes the parameters by the graph's slices and normalises over the survivors,
written here independently of `topiarist.mask`. Forward and backward run, also at another batch size; the MACs of the
closed form are confirmed by `FlopCounterMode`. Writes one JSON line a network, and a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

import topiarist
from topiarist.budget import cost
from topiarist.graph import fast_path_off, tensors_in
from topiarist.models import load_model
from topiarist.surgery import copied

NETWORKS = Path(__file__).with_name("networks.txt")
RATIOS = (0.67, 0.5, 0.33)


def non_degenerate(model: nn.Module, example: torch.Tensor) -> nn.Module:
    """Norm weights U(0.5, 1.5); near-zero scales U(0.3, 0.9); other constant vectors N(0, 0.1); then BN statistics."""
    generator = torch.Generator().manual_seed(0)

    def uniform(tensor: torch.Tensor, low: float, high: float) -> None:
        tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))

    with torch.no_grad():
        for module in model.modules():
            norm = "norm" in type(module).__name__.lower() or hasattr(module, "running_var")
            for name, p in module.named_parameters(recurse=False):
                constant = p.numel() > 1 and float(p.std()) < 1e-3
                if norm and name == "weight":
                    uniform(p, 0.5, 1.5)
                elif constant and (
                    "gamma" in name or "scale" in name or name.startswith("ls") or float(p.abs().mean()) > 1e-7
                ):
                    uniform(p, 0.3, 0.9)
                elif constant:
                    p.copy_(0.1 * torch.randn(p.shape, generator=generator))
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        momenta = [m.momentum for m in norms]
        for module in norms:
            module.momentum = 1.0
        model.train()
        try:
            model(torch.cat([example, example.flip(-1), 0.5 * example, example.flip(-2)]))
        finally:
            model.eval()
            for module, momentum in zip(norms, momenta, strict=True):
                module.momentum = momentum
    return model


class SurvivorNorms(TorchFunctionMode):
    """Normalises over survivors: their places are those of the slices of the affine weights."""

    def __init__(self, alive: dict[int, torch.Tensor]) -> None:
        super().__init__()
        self.alive = alive

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.batch_norm and kwargs.get("training") and args[0].shape[0] == 1:  # weight standardisation
            kept = torch.nonzero((args[0] != 0).any(dim=1)[0]).flatten()
            out = func(args[0][:, :, kept], *args[1:], **kwargs)
            return torch.zeros_like(args[0]).index_copy(2, kept, out)
        if func in (F.layer_norm, F.group_norm, getattr(F, "rms_norm", None)):
            x, size, weight, *rest = args if len(args) > 2 else (*args, kwargs.pop("weight", None))
            bias = rest.pop(0) if rest else kwargs.pop("bias", None)
            alive = self.alive.get(id(weight))
            if alive is not None and not bool(alive.all()):
                axis = 1 if func is F.group_norm else -1
                kept = torch.nonzero(alive).flatten()
                small = x.index_select(axis, kept)
                w, b = (None if t is None else t[kept] for t in (weight, bias))
                if func is F.group_norm:
                    size = len(torch.unique(kept // (x.shape[1] // size)))
                else:
                    size = [len(kept)]
                out = func(small, size, w, *([b] if func is not getattr(F, "rms_norm", None) else []), *rest, **kwargs)
                return torch.zeros_like(x).index_copy(axis % x.ndim, kept, out)
            args = (x, size, weight, *([bias] if func is not getattr(F, "rms_norm", None) else []), *rest)
        return func(*args, **kwargs)


def reference(model: nn.Module, graph, keep, example: torch.Tensor):
    """Output of the network with every slice zeroed; norms with affine weights see survivors."""
    zeroed = copied(model)
    tensors = dict(zeroed.named_parameters()) | dict(zeroed.named_buffers())
    alive: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        for group in graph.groups:
            for part in group.slices:
                gone = part.positions[~keep[group.name]].flatten()
                tensor = tensors[part.tensor]
                tensor.index_fill_(part.axis, gone, 0)
                if tensor.ndim == 1:
                    alive.setdefault(id(tensor), torch.ones(len(tensor), dtype=torch.bool))[gone] = False
        with SurvivorNorms(alive):
            return zeroed(example)


def keep_share(graph, share: float, seed: int = 0):
    """Every group keeps the share of its units, chosen at random."""
    random = np.random.default_rng(seed)
    keep = {}
    for group in graph.groups:
        mask = torch.zeros(group.units, dtype=torch.bool)
        mask[random.permutation(group.units)[: max(1, round(share * group.units))]] = True
        keep[group.name] = mask
    return keep


def difference(a, b) -> float:
    worst = 0.0
    for x, y in zip(tensors_in(a), tensors_in(b), strict=True):
        if x.shape != y.shape:
            return float("inf")
        worst = max(worst, float((x - y).abs().max() / y.abs().max()))
    return worst


def flops(model: nn.Module, example: torch.Tensor) -> int:
    with torch.no_grad(), fast_path_off(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(example)
    return counter.get_total_flops()


def modules_with(graph, keep, *, guards: bool) -> int:
    """How many modules have corrected sizes, or branches that raise since no example took them."""
    corrections = graph.solution.corrections(graph.dead(keep))
    return sum(any((c.kind == "guard") == guards for c in made) for made in corrections.values())


def row(name: str) -> dict:
    torch.manual_seed(0)
    model = load_model(name).eval()
    side = 299 if "inception_v3" in name else getattr(model, "default_cfg", {}).get("input_size", (3, 224, 224))[-1]
    example = torch.randn(1, 3, side, side)
    model = non_degenerate(model, example).double().requires_grad_(False)
    example = example.double()
    begin = time.perf_counter()
    graph = topiarist.trace(model, example)
    traced = time.perf_counter() - begin
    with torch.no_grad():
        original = model(example)
    result = {"network": name, "groups": len(graph.groups), "trace_s": round(traced, 2), "unknown": list(graph.unknown)}
    result["pinned"] = Counter(p.reason.partition(" (")[0] for p in graph.pinned)
    dense = flops(model, example)
    closed = cost(graph)
    result["macs_confirmed"] = closed.macs * 2 == dense
    for share in RATIOS:
        keep = keep_share(graph, share)
        begin = time.perf_counter()
        small = topiarist.cut(model, graph, keep)
        cutting = time.perf_counter() - begin
        with torch.no_grad():
            out = small(example)
            expected = reference(model, graph, keep, example)
        finite = all(bool(torch.isfinite(t).all()) for t in tensors_in(out))
        with sdpa_kernel(SDPBackend.MATH):
            begin = time.perf_counter()
            proof = topiarist.prove(model, graph, keep, example)
            proving = time.perf_counter() - begin
        macs = cost(graph, keep)
        counted = flops(small, example)
        result[f"{share}"] = {
            "diff": difference(out, expected),
            "proof": proof.max_rel_diff,
            "change": difference(expected, original),
            "finite": finite,
            "macs": counted / dense,
            "closed": macs.macs * 2 == counted,
            "params": sum(p.numel() for p in small.parameters()) == macs.params,
            "corrected": modules_with(graph, keep, guards=False),
            "guarded": modules_with(graph, keep, guards=True),
            "cut_s": round(cutting, 2),
            "proof_s": round(proving, 2),
        }
        if share == 0.5:
            small.float().requires_grad_(True)
            other = torch.randn(2, *example.shape[1:])
            outputs = [t for t in tensors_in(small(other)) if t.is_floating_point()]
            sum(t.sum() for t in outputs).backward()
            result["backward"] = all(t.shape[0] == 2 for t in outputs)
    return result


def verdict(found: dict) -> str:
    """Whether a row shows all that it should; else what it does not."""
    if "error" in found:
        return found["error"]
    wrong = []
    for share in RATIOS:
        r = found[f"{share}"]
        if not max(r["diff"], r["proof"]) <= 1e-10:
            wrong.append(f"{share}: differs by {max(r['diff'], r['proof']):.0e}")
        if not (r["finite"] and r["change"] > 1e-8):
            wrong.append(f"{share}: blind")
        if not (r["closed"] and r["params"] and found["macs_confirmed"]):
            wrong.append(f"{share}: costs differ")
    return "; ".join(wrong + ([] if found["backward"] else ["backward"])) or "proved"


def markdown(rows: list[dict]) -> str:
    good = [r for r in rows if "error" not in r]
    halves = [r["0.5"]["macs"] for r in good]
    proved = sum(verdict(r) == "proved" for r in rows)
    lines = [
        "# The proof table",
        "",
        f"{proved} of {len(rows)} networks proved at all three ratios. Keeping 50 % of every group leaves less than "
        f"half of the MACs on {sum(h < 0.5 for h in halves)}, less than 35 % on {sum(h < 0.35 for h in halves)}. "
        f"Largest difference of cut and mask, in float64: "
        f"{max(max(r[str(s)]['diff'], r[str(s)]['proof']) for r in good for s in RATIOS):.1e}. Every network also ran "
        "forward and backward at another batch size, and its MACs by the closed form equal those that torch counts. "
        "Corrected modules have sizes or scales put right at their place in the code; guarded ones have a branch that "
        "no example took and that raises after a cut. "
        f"One thread of {platform.machine()}, torch {torch.__version__}, topiarist {topiarist.__version__}; random "
        "weights of seed 0. Rerun: `python benchmarks/proof_table.py --out benchmarks/proof_table`.",
        "",
        "| network | groups | pinned | corrected | guarded | MACs at 67 / 50 / 33 % | max rel diff "
        "| trace s | cut s | proof s | |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        if "error" in r:
            lines.append(f"| {r['network']} | | | | | | | | | | {verdict(r)} |")
            continue
        macs = " / ".join(f"{r[str(s)]['macs']:.2f}" for s in RATIOS)
        diff = max(max(r[str(s)]["diff"], r[str(s)]["proof"]) for s in RATIOS)
        pinned = sum(n for why, n in r["pinned"].items() if "own axis" not in why)
        cut_s, proof_s = (max(r[str(s)][key] for s in RATIOS) for key in ("cut_s", "proof_s"))
        lines.append(
            f"| {r['network']} | {r['groups']} | {pinned} | {r['0.5']['corrected']} | {r['0.5']['guarded']} "
            f"| {macs} | {diff:.0e} | {r['trace_s']} | {cut_s} | {proof_s} | {verdict(r)} |"
        )
    reasons = Counter()
    for r in good:
        reasons.update({why: n for why, n in r["pinned"].items() if "own axis" not in why})
    lines += [
        "",
        "Pinned counts axes of parameters and buffers; axes of kernels are left out. Reasons over all networks:",
        "",
    ]
    return "\n".join(lines + [f"- {why}: {n}" for why, n in reasons.most_common()]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="networks; the whole list without")
    parser.add_argument("--out", type=Path, help="FILE.jsonl, which is resumed, and FILE.md")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    names = options.names or [line.strip() for line in NETWORKS.read_text().splitlines() if ":" in line[:14]]
    file = options.out and options.out.with_suffix(".jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file and file.exists() else []
    for name in names:
        if any(r["network"] == name for r in rows):
            continue
        begin = time.perf_counter()
        try:
            found = row(name)
        except Exception as error:  # a failing network is a row of the table
            found = {"network": name, "error": f"{type(error).__name__}: {str(error)[:300]}"}
        found["wall_s"] = round(time.perf_counter() - begin, 1)
        rows.append(found)
        print(name, verdict(found), flush=True)
        if file:
            with file.open("a") as log:
                log.write(json.dumps(found, default=float) + "\n")
        else:
            print(json.dumps(found, default=float), flush=True)
    if options.out:
        options.out.with_suffix(".md").write_text(markdown(rows))


if __name__ == "__main__":
    main()
