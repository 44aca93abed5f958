"""Proof: on the example inputs the cut network computes what the masked one does, in double precision.

In single precision the noise of a network is about 3e-7, and swapping two kept channels can move an output by less; so
both run in float64 and must agree to 1e-10, and masking must have changed the output, or the proof is blind. Pruned
individual weights are not removed, so there the cut is the mask, and the tensors are checked instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from topiarist.errors import TopiaristError
from topiarist.files import one_line
from topiarist.graph import (
    Graph,
    Inputs,
    Keep,
    broadcast_kept,
    call_model,
    checked_keep,
    converted,
    fast_path_off,
    map_floats,
    named_tensors,
    tensors_in,
    unwrapped,
)
from topiarist.surgery.cutting import copied, cut, mask, masked, zeroed_positions

TOLERANCE = 1e-10
"""Largest relative difference between cut and mask in float64."""
SMALLEST_CHANGE = 100 * TOLERANCE
"""A mask that changes the outputs by less shows nothing."""


@dataclass(frozen=True)
class Proof:
    """How far the cut network is from the masked one, and the masked one from the original.

    Attributes:
        max_rel_diff: max |cut − mask| / max |mask|, over all outputs, in float64; of pruned individual weights 0 where
            the tensors are right, infinite where they are not.
        change: max |mask − original| / max |original|: what the mask did; where the removed weights were zero before,
            what noise in their place does.
        ok: the difference is within tolerance, the outputs are finite and the mask had an effect.
        reason: what is wrong, in a sentence; empty where `ok`.
        checked: what was checked.
    """

    max_rel_diff: float
    change: float
    ok: bool
    reason: str = ""
    checked: str = "cut and mask agree"


def difference(left: object, right: object) -> float:
    """Returns max |left − right| / max |right| over the tensors of two outputs; infinite where shapes differ."""
    a, b = tensors_in(left), tensors_in(right)
    if len(a) != len(b):
        return math.inf
    largest = 0.0
    for x, y in zip(a, b, strict=True):
        if x.shape != y.shape:
            return math.inf
        if x.numel() and (x.is_floating_point() or x.is_complex()):
            relative = float((x - y).abs().max() / y.abs().max().clamp_min(1e-300))
            largest = max(largest, relative if math.isfinite(relative) else math.inf)
    return largest


def prove(model: nn.Module, graph: Graph, keep: Keep, example_inputs: Inputs) -> Proof:
    """Compares cut and mask on example inputs, in float64; of individual weights the tensors.

    Args:
        model: the traced model; it stays as it is.
        graph: its graph.
        keep: what is kept.
        example_inputs: as for `trace`.

    Raises:
        TopiaristError: the weights are not finite, or the model fails on the inputs.
    """
    keep, model = checked_keep(graph, keep), unwrapped(model)
    double = copied(model).double().eval()
    inputs = converted(example_inputs, torch.float64)
    with torch.no_grad(), fast_path_off():
        original = _outputs(double, inputs)
        if graph.kind == "weight":
            with masked(double, graph, keep):
                pruned = _outputs(double, inputs)
            reason = _wrong_weights(model, graph, keep) or _not_finite(original, pruned)
            diff, change = math.inf if reason else 0.0, difference(pruned, original)
            return Proof(diff, change, not reason, reason, "the pruned weights are zero, all others unchanged")
        expected = _outputs(mask(double, graph, keep), inputs)
        try:
            smaller = call_model(cut(double, graph, keep), inputs)
        except TopiaristError:
            raise
        except Exception as error:  # whatever the user's code raises on a wrong shape
            return Proof(math.inf, difference(expected, original), False, f"the cut network fails: {one_line(error)}")
        removed = not all(kept.all() for kept in keep.values())
        proof = _cut_proof(smaller, expected, original, removed=removed)
        if removed and proof.max_rel_diff <= TOLERANCE and proof.change < SMALLEST_CHANGE:
            # What is removed was zero before. Neither cut nor mask sees what is in its place: noise there tells
            # whether the network does, and noise in the input whether it depends on anything at all.
            noisy = map_floats(inputs, lambda x: x + torch.rand(x.shape, generator=_generator()).to(x))
            if difference(call_model(mask(double, graph, keep), noisy), expected) >= SMALLEST_CHANGE:
                original = call_model(_with_noise(double, graph, keep), inputs)
                proof = _cut_proof(smaller, expected, original, removed=True)
    return proof


def _outputs(model: nn.Module, inputs: Inputs) -> object:
    """Calls a model that must not fail."""
    try:
        return call_model(model, inputs)
    except TopiaristError:
        raise
    except Exception as error:
        raise TopiaristError(
            f"the model fails on the example input: {one_line(error)}; give an input that the model accepts"
        ) from error


def _with_noise(model: nn.Module, graph: Graph, keep: Keep) -> nn.Module:
    """Returns a copy with noise in the parameters that a keep removes."""
    noisy = copied(model)
    generator = _generator()
    for (name, axis), kept in zeroed_positions(graph, keep).items():
        if name in graph.parameters:
            tensor = noisy.get_parameter(name)
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64).add(0.5).to(tensor)
            tensor.copy_(tensor.where(broadcast_kept(kept, axis, tensor.shape).to(tensor.device), noise))
    return noisy


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _cut_proof(smaller: object, expected: object, original: object, *, removed: bool) -> Proof:
    """Compares the outputs of the cut, the masked and the original network."""
    diff, change = difference(smaller, expected), difference(expected, original)
    reason = _not_finite(original, expected, smaller)
    if not reason and not diff <= TOLERANCE:
        reason = f"cut and mask differ by {diff:.1e}"
    elif not reason and removed and change < SMALLEST_CHANGE:
        reason = "the mask changed nothing, so the proof is blind; give trained weights or another example input"
    return Proof(diff, change, not reason, reason)


def _not_finite(*outputs: object) -> str:
    if all(bool(torch.isfinite(tensor).all()) for tensor in tensors_in(outputs) if tensor.is_floating_point()):
        return ""
    return "the network's outputs are not finite; look for NaN in its weights and inputs, or a division by zero"


def _wrong_weights(model: nn.Module, graph: Graph, keep: Keep) -> str:
    """Returns what is wrong with the tensors of a pruned copy: one that is not zero, or not as before bit by bit."""
    pruned, positions = named_tensors(cut(model, graph, keep)), graph.kept(keep)
    for name, before in named_tensors(model).items():
        after = pruned[name]
        kept = positions.get((name, None), torch.ones(before.numel(), dtype=torch.bool))
        kept = kept.view(before.shape).to(before.device)
        if bool(after[~kept].any()):
            return f"pruned weights of {name} are not zero"
        if not torch.equal(_bits(before[kept]), _bits(after[kept])):
            return f"{name} differs where nothing was pruned"
    return ""


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(torch.uint8)
