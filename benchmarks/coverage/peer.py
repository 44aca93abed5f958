"""Drives Torch-Pruning, and finds out whether its result is what its removals should give.

Its weights are made distinct first. So each kept row of a pruned tensor can be found in the original one by its value,
and the positions that were removed are known. Then the original network with these positions zeroed must compute what
the pruned one does.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from network import answers, outputs, run
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import topiarist
from topiarist.graph import fast_path_off, named_tensors

sys.path.append(str(Path(__file__).resolve().parents[1]))
from proof_table import SurvivorNorms, difference
from versus_torch_pruning import RATIO, follow_peer, parameters, peer_settings, prepare_for_peer, prune_peer, told

TOLERANCE = 1e-6
QUERIES, OTHERS = (
    ("query", "q_proj", "q_lin", "q", "query_proj"),
    ("key", "value", "k_proj", "v_proj", "k_lin", "v_lin"),
)
OTHERS += ("k", "v", "key_proj", "value_proj")
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head")


def make_distinct(model: nn.Module) -> None:
    """Adds noise far below what a network notices, so that no two values of a tensor are equal."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in named_tensors(model).values():
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.add_(1e-7 * noise.to(tensor))


def prune(model: nn.Module, example: Any, expected: list[Tensor]) -> float:
    """Prunes in place; returns CPU seconds."""
    model.requires_grad_(True)
    prepare_for_peer(model)
    settings = peer_settings(model, [t for t in expected if t.ndim > 1])
    widths = {t.shape[-1] for t in expected if t.ndim > 1}
    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features in widths]
    settings["ignored_layers"] = [*settings["ignored_layers"], *heads[-1:]]
    settings["num_heads"] |= _attention(model)
    if rotary := _rotary(model):  # as in the peer's example for language models: heads are removed, their width stays
        settings |= {"prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": 1 - RATIO}
    begin = time.process_time()
    prune_peer(model, example, settings)
    seconds = time.process_time() - begin
    model.requires_grad_(False)
    follow_peer(model)
    for module in rotary:
        heads = {name: getattr(module, name).out_features // module.head_dim for name in ("q_proj", "k_proj")}
        sizes = {"num_heads": heads["q_proj"], "num_key_value_heads": heads["k_proj"]}
        sizes["num_key_value_groups"] = heads["q_proj"] // max(1, heads["k_proj"])
        module.__dict__.update({name: sizes[name] for name in sizes.keys() & module.__dict__.keys()})
    _follow_attention(model, rotary)
    return round(seconds, 3)


def _attention(model: nn.Module) -> dict[nn.Module, int]:
    """The heads of attention layers of transformers, as in the peer's examples for BERT, ViT and Llama."""
    heads = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        count = next(
            (h for name in HEADS if isinstance(h := getattr(module, name, getattr(config, name, None)), int)), 0
        )
        shared = getattr(config, "num_key_value_heads", None) or count
        for names, number in ((QUERIES, count), (OTHERS, shared)):
            layers = [getattr(module, name, None) for name in names]
            heads |= {layer: number for layer in layers if isinstance(layer, nn.Linear) and number}
    return heads


def _rotary(model: nn.Module) -> list[Any]:
    """Attention layers with grouped queries, whose positions are rotations of the head's width."""
    return [m for m in model.modules() if hasattr(m, "num_key_value_groups") and hasattr(m, "k_proj")]


def _follow_attention(model: nn.Module, done: list[Any]) -> None:
    """Sizes of the other attention layers of transformers, set as in the peer's examples."""
    for module in model.modules():
        if module in done:
            continue
        config = getattr(module, "config", None)
        query = next((m for name in QUERIES if isinstance(m := getattr(module, name, None), nn.Linear)), None)
        count = next(
            (h for name in HEADS if isinstance(h := getattr(module, name, getattr(config, name, None)), int)), 0
        )
        if query is None or not count:
            continue
        width = query.out_features
        sizes = {"head_dim": width // count, "attention_head_size": width // count, "all_head_size": width}
        sizes |= {"embed_dim": width, "inner_dim": width, "key_value_proj_dim": width // count, "hidden_size": width}
        module.__dict__.update({name: sizes[name] for name in sizes.keys() & module.__dict__.keys()})


def fate(model: nn.Module, example: Any, expected: list[Tensor], params: int) -> str:
    """Whether the pruned network runs and is smaller: "runs", or what is wrong."""
    try:
        found = outputs(model, example)
    except Exception as error:
        return f"result fails: {told(error)}"
    if [t.shape for t in found] != [t.shape for t in expected]:
        return "outputs of other shapes"
    if not all(bool(torch.isfinite(t).all()) for t in found):
        return "outputs not finite"
    return "runs" if parameters(model) < params else "nothing removed"


def runs_again(model: nn.Module, more: list[Any]) -> bool:
    """Whether the pruned network runs on the further examples."""
    try:
        return all(bool(torch.isfinite(t).all()) for inputs in more for t in outputs(model, inputs))
    except Exception:
        return False


def flops(model: nn.Module, example: Any) -> int:
    with torch.no_grad(), fast_path_off(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run(model, example)
    return counter.get_total_flops()


def right(dense: nn.Module, original: dict[str, Tensor], model: nn.Module, example: Any) -> str:
    """Compares the pruned network with the original one whose removed positions are masked.

    First they are zeroed, with torch's norms over what is kept. If that differs, and Topiarist's graph knows these
    positions as units, its mask is asked as well, which knows other means too. One agreement is enough.
    """
    kept = positions(original, model)
    if kept is None:
        return "not comparable"
    with torch.no_grad(), fast_path_off():
        found = answers(model, example)
        differs = difference(found, zeroed(dense, kept, example))
        if differs > TOLERANCE and (masked := as_masked(dense, kept, example)) is not None:
            differs = min(differs, difference(found, masked))
    return "equal" if differs <= TOLERANCE else f"differs by {differs:.0e}"


Kept = dict[tuple[str, int], Tensor]
"""(tensor, axis) → which positions are kept, for every axis that was shortened."""


def positions(original: dict[str, Tensor], model: nn.Module) -> Kept | None:
    """Finds what a pruned network kept of each tensor; None where values are no selection of the original ones."""
    kept: Kept = {}
    for name, small in named_tensors(model).items():
        large = original.get(name)
        if large is None or large.ndim != small.ndim or not small.numel():
            return None
        if large.shape == small.shape:
            if not torch.equal(large, small):
                return None
            continue
        values, order = large.detach().flatten().sort()
        chosen = []
        for axis in range(small.ndim):
            line = small.detach().transpose(0, axis).flatten(1)[:, 0] if small.ndim > 1 else small.detach()
            at = torch.searchsorted(values, line.contiguous()).clamp(max=len(values) - 1)
            if not torch.equal(values[at], line):
                return None
            chosen.append(torch.unravel_index(order[at], large.shape)[axis])
        selected = large
        for axis, index in enumerate(chosen):
            selected = selected.index_select(axis, index)
            if len(index) < large.shape[axis]:
                kept[name, axis] = torch.zeros(large.shape[axis], dtype=torch.bool).index_fill(0, index, True)
        if not torch.equal(selected, small):
            return None
    return kept


def zeroed(dense: nn.Module, kept: Kept, example: Any) -> Any:
    """Output of the network with every removed position zeroed; norms with affine weights see what is kept."""
    model = topiarist.surgery.copied(dense)
    tensors, alive = named_tensors(model), {}
    for (name, axis), keep in kept.items():
        tensors[name].index_fill_(axis, torch.nonzero(~keep).flatten(), 0)
        if tensors[name].ndim == 1:
            alive[id(tensors[name])] = keep
    with SurvivorNorms(alive):
        return answers(model, example)


def as_masked(dense: nn.Module, kept: Kept, example: Any) -> Any:
    """Output of Topiarist's mask of the same positions; None where they are no units of its graph."""
    try:
        graph = topiarist.trace(dense, example, seconds=3600)
        keep = {}
        for group in graph.groups:
            parts = [
                kept[part.tensor, part.axis][part.positions].all(1)
                for part in group.slices
                if (part.tensor, part.axis) in kept
            ]
            keep[group.name] = parts[0] if parts else torch.ones(group.units, dtype=torch.bool)
        cut = {place: positions for place, positions in graph.kept(keep).items() if not bool(positions.all())}
        if cut.keys() != kept.keys() or not all(torch.equal(cut[place], kept[place]) for place in cut):
            return None
        return answers(topiarist.mask(dense, graph, keep), example)
    except topiarist.TopiaristError:
        return None
