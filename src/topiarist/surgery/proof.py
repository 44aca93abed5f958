"""Proof: on the example inputs the cut network computes what the masked one does, in double precision.

In single precision the noise of a network is about 3e-7, and swapping two kept channels can move an output by less; so
both run in float64 and must agree to 1e-10, and masking must have changed the output, or the proof is blind.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from topiarist.errors import TopiaristError
from topiarist.files import one_line
from topiarist.graph import Graph, Keep, ModuleStack, changed, checked_keep, converted, regroup, run, tensors_in
from topiarist.surgery.cutting import copied, cut, dead_places, mask
from topiarist.surgery.masked_operators import fast_path_off

TOLERANCE = 1e-10
"""Largest relative difference between cut and mask in float64."""


@dataclass(frozen=True)
class Proof:
    """How far the cut network is from the masked one, and the masked one from the original.

    Attributes:
        max_rel_diff: max |cut − mask| / max |mask|, over all outputs, in float64.
        change: max |mask − original| / max |original|: what the mask did; where what is removed was zero before,
            what it does to noise in its place.
        ok: the difference is within tolerance, the outputs are finite and the mask had an effect.
        reason: what is wrong, in a sentence; empty where `ok`.
    """

    max_rel_diff: float
    change: float
    ok: bool
    reason: str = ""


def difference(left: Any, right: Any) -> float:
    """Max |left − right| / max |right| over the tensors of two outputs; infinite where shapes differ."""
    a, b = tensors_in(left), tensors_in(right)
    if len(a) != len(b):
        return float("inf")
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if x.shape != y.shape:
            return float("inf")
        if x.numel() and (x.is_floating_point() or x.is_complex()):
            found = float((x - y).abs().max() / y.abs().max().clamp_min(1e-300))
            worst = max(worst, found if math.isfinite(found) else math.inf)
    return worst


def prove(model: nn.Module, graph: Graph, keep: Keep, example_inputs: Any) -> Proof:
    """Compares cut and mask on example inputs, in float64.

    Args:
        model: the traced model; it stays as it is.
        graph: its graph.
        keep: what stays.
        example_inputs: as for `trace`.

    Raises:
        TopiaristError: the weights are not finite, or the model fails on the inputs.
    """
    double = copied(model).double().eval()
    inputs = converted(example_inputs, torch.float64)
    with torch.no_grad(), fast_path_off():
        try:
            original = run(double, inputs)
            masked = run(mask(double, graph, keep), inputs)
        except TopiaristError:
            raise
        except Exception as error:
            raise TopiaristError(
                f"the model fails on the example input: {one_line(error)}; give an input that the model accepts"
            ) from error
        try:
            smaller = run(cut(double, graph, keep), inputs)
        except TopiaristError:
            raise
        except Exception as error:  # whatever the user's code raises on a wrong shape
            reason = f"the cut network fails: {one_line(error)}"
            return Proof(math.inf, difference(masked, original), False, reason)
        removed = not all(m.all() for m in keep.values())
        proof = judge(smaller, masked, original, removed=removed)
        if removed and proof.max_rel_diff <= TOLERANCE and proof.change < 100 * TOLERANCE:
            # What is removed was zero before. Neither cut nor mask sees what is in the dead places: noise in them tells
            # whether the network does, and noise in the input whether it looks at anything at all.
            noise = changed(inputs, lambda x: x + torch.rand(x.shape, generator=_chance()).to(x))
            if difference(run(mask(double, graph, keep), noise), masked) >= 100 * TOLERANCE:
                proof = judge(smaller, masked, run(_noisy(double, graph, keep), inputs), removed=True)
    return proof


def _noisy(model: nn.Module, graph: Graph, keep: Keep) -> nn.Module:
    """A copy with noise in the parameters of what a keep removes."""
    noisy = copied(model)
    generator = _chance()
    for name, axis, positions in dead_places(graph, checked_keep(graph, keep)):
        if name in graph.parameters:
            tensor = noisy.get_parameter(name)
            line = tensor.view(-1) if axis is None else tensor
            noise = torch.rand(line.shape, generator=generator, dtype=torch.float64).add(0.5).to(line)
            places = positions.to(line.device)
            line.index_copy_(axis or 0, places, noise.index_select(axis or 0, places))
    return noisy


def _chance() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def judge(smaller: Any, masked: Any, original: Any, *, removed: bool) -> Proof:
    """The proof of three outputs: of the cut, the masked and the original network."""
    diff, change = difference(smaller, masked), difference(masked, original)
    outputs = tensors_in([original, masked, smaller])
    finite = all(bool(torch.isfinite(t).all()) for t in outputs if t.is_floating_point())
    if not finite:
        reason = "the network's outputs are not finite; look for NaN in its weights and inputs, or a division by zero"
    elif not diff <= TOLERANCE:
        reason = f"cut and mask differ by {diff:.1e}"
    elif removed and change < 100 * TOLERANCE:
        reason = "the mask changed nothing, so the proof is blind; give trained weights or another example input"
    else:
        reason = ""
    return Proof(diff, change, not reason, reason)


def check(model: nn.Module, graph: Graph, example_inputs: Any, *, seconds: float = 120.0) -> Graph:
    """Rehearses random cuts and pins what cannot be proved, with the module and the reason, until every one passes.

    Args:
        model: the traced model.
        graph: its graph, which is mended: whoever holds it holds the proved one.
        example_inputs: as for `trace`.
        seconds: time limit.

    Returns:
        The same graph, in which the rehearsed cuts are proved.

    Raises:
        TopiaristError: the time limit is reached, or a failure carries nothing that could be pinned.
    """
    graph.become(_rehearsed(model, graph, example_inputs, seconds))
    return graph


def _rehearsed(model: nn.Module, graph: Graph, example_inputs: Any, seconds: float) -> Graph:
    deadline = time.monotonic() + seconds
    shaken = non_degenerate(copied(model).double().eval())
    inputs = converted(example_inputs, torch.float64)
    if graph.of_blocks:
        return _proved_blocks(shaken, graph, inputs, deadline)
    for seed in (0, 1):
        while True:
            keep = random_keep(graph, seed)
            proof = prove(shaken, graph, keep, inputs)
            if proof.max_rel_diff <= TOLERANCE:
                break
            _check_time(deadline)
            graph = _pin_culprit(shaken, graph, keep, inputs, proof, deadline)
    return graph


def _check_time(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise TopiaristError("the rehearsal took longer than its time limit; raise `seconds`")


def _proved_blocks(model: nn.Module, graph: Graph, inputs: Any, deadline: float) -> Graph:
    """The graph with those blocks alone whose removal is proved."""
    (group,) = graph.groups
    odd = torch.arange(group.units) % 2 == 1
    if group.units == 1 or all(prove(model, graph, {group.name: half}, inputs).ok for half in (odd, ~odd)):
        return graph
    stays, proved = dict(graph.stays), []
    for unit, block in enumerate(group.blocks):
        _check_time(deadline)
        proof = prove(model, graph, {group.name: torch.arange(group.units) != unit}, inputs)
        if proof.ok:
            proved.append(block)
        else:
            stays[block.name] = f"its removal cannot be proved: {proof.reason}"
    groups = (replace(group, units=len(proved), blocks=tuple(proved)),) if proved else ()
    return replace(graph, groups=groups, stays=stays)


def random_keep(graph: Graph, seed: int) -> dict[str, Tensor]:
    """About half of each group's units, at random."""
    random = np.random.default_rng(seed)
    keep = {}
    for group in graph.groups:
        mask = torch.zeros(group.units, dtype=torch.bool)
        mask[torch.from_numpy(random.permutation(group.units)[: max(1, round(group.units / 2))])] = True
        keep[group.name] = mask
    return keep


def non_degenerate(model: nn.Module, seed: int = 0) -> nn.Module:
    """Gives constant vectors random values, so that no part of the network is blind to its input.

    Norm weights and constant vectors are drawn from U(0.5, 1.5) where they are about one, from N(0, 0.1) where they are
    zero; the model is changed and returned.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.numel() > 1 and float(tensor.std()) < 1e-3:
                centre = tensor.double().mean().abs()
                noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                drawn = noise + 0.5 if centre > 1e-4 else 0.3 + 0.6 * noise if tensor.ndim == 1 else 0.2 * (noise - 0.5)
                tensor.copy_(drawn.to(tensor.dtype))
    return model


def _pin_culprit(model: nn.Module, graph: Graph, keep: Keep, inputs: Any, proof: Proof, deadline: float) -> Graph:
    """Finds the first module where cut and mask part, and pins what it carries."""
    solution = graph.solution
    module = _first_difference(model, graph, keep, inputs)
    dead = solution.dead(keep)
    carried = [v for v in solution.trace.held.get(module, ()) if solution.kept(v, dead) is not None]
    carried += [
        labels
        for name, _, labels in solution.trace.sources
        if name.rpartition(".")[0] == module and solution.kept(labels, dead) is not None
    ]
    inside = f"{module}." if module else ""
    carried = carried or [labels for name, _, labels in solution.trace.sources if name.startswith(inside)]
    if not carried or graph.groups == ():
        raise TopiaristError(
            f"the cut cannot be proved ({proof.reason}), and {module or 'the model'!r} carries nothing to pin; "
            "exclude its groups from the budget"
        )
    reason = f"cannot be proved in {module or 'the model'} ({solution.trace.types[module].__name__}): {proof.reason}"
    pins = (*solution.pins, *((labels, reason) for labels in carried))
    return regroup(model, replace(solution, pins=pins), deadline)


def _first_difference(model: nn.Module, graph: Graph, keep: Keep, inputs: Any) -> str:
    """Name of the first module whose output is not what survives of the reference's."""
    solution = graph.solution
    dead = solution.dead(keep)
    expected: dict[tuple[str, int], list[Tensor]] = {}

    def remember(name: str, call: int, output: Any) -> None:
        traced = solution.trace.outputs.get((name, call), [])
        parts = []
        for tensor, travelled in zip(tensors_in(output), traced, strict=False):
            for axis, vector in enumerate(travelled.vectors):
                kept = solution.kept(vector, dead)
                tensor = tensor if kept is None else tensor.index_select(axis, kept)
            parts.append(tensor)
        expected[name, call] = parts

    class FoundError(Exception):
        pass

    def compare(name: str, call: int, output: Any) -> None:
        if difference(tensors_in(output), expected.get((name, call), [])) > 1e-8:
            raise FoundError(name)

    with torch.no_grad(), fast_path_off():
        reference, smaller = mask(model, graph, keep), cut(model, graph, keep)
        stack = ModuleStack(reference, None, remember)
        run(reference, inputs)
        stack.close()
        stack = ModuleStack(smaller, None, compare)
        try:
            run(smaller, inputs)
        except FoundError as found:
            return str(found)
        except Exception:
            return stack.top
        finally:
            stack.close()
    return ""


__all__ = ["Proof", "check", "prove"]
