"""Proof: on the example inputs the cut network computes what the masked one does, in double precision.

In single precision the noise of a network is about 3e-7, and swapping two kept channels can move an output by less; so
both run in float64 and must agree to 1e-10, and masking must have changed the output, or the proof is blind. What is
selected by data hides differences, so what enters the selection is compared as well (`decisions`). Pruned individual
weights are not removed, so there the cut is the mask, and the tensors are checked instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

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
    check_plain,
    checked_keep,
    converted,
    counting,
    fast_path_off,
    map_floats,
    map_tensors,
    named_tensors,
    tensors_in,
    unwrapped,
)
from topiarist.surgery.casts import NoCasts, in_precision
from topiarist.surgery.cutting import cut, mask, masked, zeroed_positions
from topiarist.surgery.decisions import (
    DOUBLE,
    SINGLE,
    Answer,
    Precision,
    answer,
    difference,
    difference_before_decisions,
)
from topiarist.surgery.paths import EXAMPLE, Path, paths
from topiarist.surgery.plans import copied

AGREE = "cut and mask agree"
BLIND = "the mask changed nothing, so the proof is blind; give trained weights or another example input"
NOT_FINITE = "the network's outputs are not finite; look for NaN in its weights and inputs, or a division by zero"


@dataclass(frozen=True)
class Proof:
    """How far the cut network is from the masked one, and the masked one from the original.

    Attributes:
        max_rel_diff: max |cut − mask| / max |mask|, over all outputs, in `precision`; infinite where integers, truth
            values or shapes differ, or something is not finite; of pruned individual weights 0 where the tensors are
            right, infinite where they are not.
        change: max |mask − original| / max |original|: what the mask did, infinite where it changed integers, truth
            values or shapes; also before the steps that select by data, where an output is whole numbers or empty;
            where the removed weights were zero before, what noise in their place does; NaN where the original's outputs
            are not finite.
        ok: the difference is within tolerance, the outputs are finite, in the network's own precision too, and the mask
            had an effect.
        reason: what is wrong, in a sentence; empty where `ok`.
        checked: what was checked.
        paths: on which ways through the network's code cut and mask were compared.
        failed: the one of them on which they differ; empty where they agree.
        precision: in which they were compared.
    """

    max_rel_diff: float
    change: float
    ok: bool
    reason: str = ""
    checked: str = AGREE
    paths: tuple[str, ...] = (EXAMPLE,)
    failed: str = ""
    precision: Precision = DOUBLE

    @property
    def agrees(self) -> bool:
        """Returns whether cut and mask differ by no more than rounding."""
        return self.max_rel_diff <= self.precision.tolerance

    @property
    def blind(self) -> bool:
        """Returns whether nothing is wrong but that the mask changed nothing that could be seen."""
        return not self.ok and self.reason == BLIND


def prove(
    model: nn.Module, graph: Graph, keep: Keep, example_inputs: Inputs, *, more_inputs: Sequence[Inputs] = ()
) -> Proof:
    """Compares cut and mask on example inputs, in float64; of individual weights the tensors.

    A network that does not run in float64 is compared in float32, to 1e-4. Both are compared in evaluation, with twice
    the batch, on each further example, and in training mode: batch norms with the statistics of twice the batch,
    dropout off. Each run begins with the same random numbers. Where they differ by no more than float32 rounds, and
    the network casts to a lower precision by itself, they are compared without these casts.

    Compared are the outputs, those that count by `Graph.outputs`, and what enters each step that selects by data: a
    comparison, an argmax, a sort, an NMS. Such a step may be decided by rounding. Where both networks give it the same
    numbers, to the tolerance, the cut one gets the masked one's selection, so that the outputs can be compared.

    Args:
        model: the traced model; it stays as it is.
        graph: its graph.
        keep: what is kept.
        example_inputs: as for `trace`.
        more_inputs: as for `trace`.

    Raises:
        TopiaristError: the weights are not finite, or the model fails on the inputs.
    """
    keep, model = checked_keep(graph, keep), unwrapped(model)
    check_plain((example_inputs, *more_inputs), "the example input is")
    with torch.no_grad(), fast_path_off():
        try:
            proof = _proved_in(DOUBLE, model, graph, keep, example_inputs, more_inputs)
        except TopiaristError:
            if precision_of(model, example_inputs) is DOUBLE:
                raise
            proof = _proved_in(SINGLE, model, graph, keep, example_inputs, more_inputs)
        if DOUBLE.tolerance < proof.max_rel_diff <= SINGLE.tolerance and proof.precision is DOUBLE:
            proof = _without_casts(proof, model, graph, keep, example_inputs, more_inputs)
        overflow = _overflow(model, graph, keep, example_inputs) if proof.ok or proof.blind else ""
    return replace(proof, ok=False, reason=overflow) if overflow else proof


def _without_casts(
    proof: Proof, model: nn.Module, graph: Graph, keep: Keep, example_inputs: Inputs, more: Sequence[Inputs]
) -> Proof:
    """Returns a proof in which the network's own casts to a lower precision round nothing, where it runs so."""
    try:
        with NoCasts():
            raised = _proved_in(DOUBLE, model, graph, keep, example_inputs, more)
    except TopiaristError:
        return proof
    checked = f"{raised.checked}; what the network casts to a lower precision was computed in float64"
    return replace(raised, checked=checked) if raised.agrees else proof


def precision_of(model: nn.Module, example_inputs: Inputs) -> Precision:
    """Returns the precision in which a network can be proved: float64, if it runs in it, or if it runs in neither."""

    def runs(precision: Precision) -> bool:
        return _accepts(in_precision(model, precision).eval(), converted(example_inputs, precision.dtype))

    return SINGLE if not runs(DOUBLE) and runs(SINGLE) else DOUBLE


def _proved_in(
    precision: Precision, model: nn.Module, graph: Graph, keep: Keep, example_inputs: Inputs, more: Sequence[Inputs]
) -> Proof:
    network, ways = in_precision(model, precision).eval(), paths(example_inputs, more, precision)
    with counting(network, graph.outputs):
        if graph.kind == "weight":
            return _proof_of_weights(model, network, graph, keep, ways[0])
        return _proof_of_cut(network, graph, keep, ways)


def _proof_of_weights(model: nn.Module, copy: nn.Module, graph: Graph, keep: Keep, path: Path) -> Proof:
    original = _answer(copy, path)
    with masked(copy, graph, keep):
        pruned = _answer(copy, path, original)
    reason = _wrong_weights(model, graph, keep) or _not_finite(original, pruned)
    diff, change = math.inf if reason else 0.0, _change(pruned, original)
    checked = "the pruned weights are zero, all others unchanged"
    return Proof(diff, change, not reason, reason, checked, precision=path.precision)


def _proof_of_cut(double: nn.Module, graph: Graph, keep: Keep, ways: Sequence[Path]) -> Proof:
    expected, smaller = mask(double, graph, keep), cut(double, graph, keep)
    removed = any(not keep[group.name].all() and graph.reads(group) for group in graph.groups)
    proof = _proof_on(ways[0], double, expected, smaller, removed=removed)
    if proof.blind:
        proof = _seen_by_noise(proof, ways[0], double, expected, smaller, _with_noise(double, graph, keep))
    for path in ways[1:]:
        if proof.ok or proof.blind:
            on_path = _also_on(path, proof, double, expected, smaller)
            if on_path.failed and path.training:
                on_path = _also_on(path.with_larger_batch(), proof, double, expected, smaller)
            proof = on_path
    return proof


def _also_on(path: Path, proof: Proof, double: nn.Module, expected: nn.Module, smaller: nn.Module) -> Proof:
    """Returns the proof, extended to a further path; a path of ours that the network does not take is left out."""
    with path.entered(double, expected, smaller):
        path.seed()
        try:
            reference = _answer(expected, path)
        except TopiaristError as error:
            if path.given:
                raise
            if not _accepts(double, path.inputs):
                return proof
            return _failed(replace(proof, max_rel_diff=math.inf), str(error), path)
        path.seed()
        further = _compared_with(smaller, path, reference, reference, removed=False)
        if math.isnan(further.change) and not path.given and not _accepts(double, path.inputs):
            return proof
    proof = replace(proof, max_rel_diff=max(proof.max_rel_diff, further.max_rel_diff))
    if further.ok:
        return replace(proof, paths=(*proof.paths, path.name))
    return _failed(proof, further.reason, path)


def _failed(proof: Proof, reason: str, path: Path) -> Proof:
    """Returns the proof, refuted on a path."""
    paths = (*proof.paths, path.name)
    return replace(proof, ok=False, reason=f"{reason} ({path.name})", paths=paths, failed=path.name)


def _seen_by_noise(
    proof: Proof, path: Path, double: nn.Module, expected: nn.Module, smaller: nn.Module, noisy: nn.Module
) -> Proof:
    """Returns a proof on noise that sees what was removed, where the example does not; else the one on the example.

    Args:
        proof: on the example.
        path: the example.
        double: the original network.
        expected: the masked one.
        smaller: the cut one.
        noisy: the original one, with noise in what was removed.
    """
    # The example shows no unit that was removed: they are off there, or were zero before. Noise in the input, and
    # noise in place of the zeros, tell whether the network sees them, and whether it depends on anything at all.
    others = _others(path.inputs)
    if any(_changes(expected, path, other) for other in others):
        for original, x in [(double, x) for x in others] + [(noisy, x) for x in (path.inputs, *others)]:
            try:
                tried = _proof_on(replace(path, inputs=x), original, expected, smaller, removed=True)
            except TopiaristError:  # the model does not accept this noise
                continue
            if not tried.blind and tried.reason != NOT_FINITE:
                return replace(tried, checked=f"{tried.checked}; on noise, since the example shows nothing")
    return proof


def _proof_on(path: Path, original: nn.Module, expected: nn.Module, smaller: nn.Module, *, removed: bool) -> Proof:
    """Runs the original, the masked and the cut network on one path, and compares."""
    with path.entered(original, expected, smaller):
        path.seed()
        full = _answer(original, path)
        path.seed()
        reference = _answer(expected, path, full)  # beside it, so that rounding is no effect of the mask
        path.seed()
        return _compared_with(smaller, path, reference, full, removed=removed)


def _compared_with(smaller: nn.Module, path: Path, reference: Answer, full: Answer, *, removed: bool) -> Proof:
    """Runs the cut network, and compares it with what the masked and the original one answered."""
    try:
        found = answer(smaller, path.inputs, reference, path.precision.tolerance)
    except Exception as error:  # whatever the user's code raises on a wrong shape, and a branch that only the cut takes
        reason = f"the cut network fails: {one_line(error)}"
        return Proof(math.inf, _change(reference, full), False, reason, precision=path.precision)
    return compared(found, reference, full, removed=removed, precision=path.precision)


def compared(
    smaller: Answer, expected: Answer, original: Answer, *, removed: bool, precision: Precision = DOUBLE
) -> Proof:
    """Compares what the cut, the masked and the original network answered to one input.

    Args:
        smaller: of the cut network, run beside the masked one.
        expected: of the masked network.
        original: of the original network.
        removed: whether anything was removed.
        precision: in which they ran.
    """
    diff, change, checked = difference(smaller.outputs, expected.outputs), _change(expected, original), AGREE
    before = difference_before_decisions(smaller, expected)
    if smaller.shared(expected):
        checked += ", and so do the inputs of the steps that select by data"
    if smaller.followed:
        checked += "; where rounding decides what is selected, both were given the same selection"
    reason = _not_finite(original, expected, smaller)
    if reason:
        diff = math.inf
    elif diff == math.inf:
        reason = "cut and mask differ in the shapes of their outputs, or in integers or truth values"
    elif not max(diff, before) <= precision.tolerance:
        place = "" if diff > precision.tolerance else " in what enters a step that selects by data"
        reason = f"cut and mask differ by {max(diff, before):.1e}{place}"
    elif removed and change < precision.change:
        reason = BLIND
    return Proof(max(diff, before), change, not reason, reason, checked, precision=precision)


def _change(pruned: Answer, original: Answer) -> float:
    """Returns how far a masked network is from the original one, as `Proof.change`."""
    if _not_finite(original):
        return math.nan
    before = difference_before_decisions(pruned, original) if pruned.coarse else 0.0
    return max(difference(pruned.outputs, original.outputs), before)


def _changes(model: nn.Module, path: Path, other: Inputs) -> bool:
    """Returns whether a model answers differently to other inputs; not where it does not accept them."""
    try:
        before = answer(model, path.inputs)
        after = answer(model, other, before, path.precision.tolerance)
        return _change(after, before) >= path.precision.change
    except Exception:  # whatever the user's code raises, as for integers that are offsets
        return False


def _accepts(model: nn.Module, inputs: Inputs) -> bool:
    """Returns whether a model runs on inputs, with finite outputs."""
    try:
        return not _not_finite(answer(model, inputs))
    except Exception:  # whatever the user's code raises
        return False


def _others(inputs: Inputs) -> list[Any]:
    """Returns the inputs with noise, and these negated; where all are integers, moved on by one place."""
    if not any(tensor.is_floating_point() for tensor in tensors_in(inputs)):
        return [map_tensors(inputs, lambda tensor: tensor.roll(1))]
    noisy = map_floats(inputs, lambda x: x + torch.rand(x.shape, generator=_generator()).to(x))
    return [noisy, map_floats(noisy, torch.neg)]


def _answer(model: nn.Module, path: Path, beside: Answer | None = None) -> Answer:
    """Runs a model that must not fail."""
    try:
        return answer(model, path.inputs, beside, path.precision.tolerance)
    except TopiaristError:
        raise
    except Exception as error:
        raise TopiaristError(
            f"the model fails on the example input: {one_line(error)}; give an input that the model accepts"
        ) from error


def _overflow(model: nn.Module, graph: Graph, keep: Keep, example_inputs: Inputs) -> str:
    """Returns what is wrong where the cut network, finite in float64, is not finite in its own precision."""
    dtypes = {tensor.dtype for tensor in named_tensors(model).values() if tensor.is_floating_point()}
    if dtypes <= {torch.float64}:
        return ""
    inputs = converted(example_inputs, *dtypes) if len(dtypes) == 1 else example_inputs
    try:
        smaller = cut(model, graph, keep).eval()
        with counting(smaller, graph.outputs):
            outputs = tensors_in(call_model(smaller, inputs))
    except Exception:  # the device lacks an operator in this precision, or the input is of another one
        return ""
    for output in outputs:
        if not bool(torch.isfinite(output).all()):
            precision = str(output.dtype).removeprefix("torch.")
            return f"the pruned network's outputs overflow in {precision}, its own precision; rescale its weights"
    return ""


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


def _not_finite(*answers: Answer) -> str:
    finite = all(bool(torch.isfinite(tensor).all()) for found in answers for tensor in tensors_in(found.outputs))
    return "" if finite else NOT_FINITE


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
