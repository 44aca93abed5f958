"""Check: trial cuts of a network, until all of them can be proved; what cannot be proved is pinned."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from topiarist.errors import TopiaristError
from topiarist.graph import (
    Graph,
    Inputs,
    ModuleStack,
    call_model,
    check_plain,
    converted,
    counting,
    fast_path_off,
    regroup,
    tensors_in,
)
from topiarist.surgery.cutting import cut, mask
from topiarist.surgery.decisions import DOUBLE, Precision, difference
from topiarist.surgery.paths import EXAMPLE, Path, paths
from topiarist.surgery.plans import copied
from topiarist.surgery.proof import Proof, precision_of, prove


def check(
    model: nn.Module,
    graph: Graph,
    example_inputs: Inputs,
    *,
    more_inputs: Sequence[Inputs] = (),
    seconds: float = 120.0,
) -> Graph:
    """Tries random cuts and pins what cannot be proved, with the module and the reason, until every one passes.

    Args:
        model: the traced model.
        graph: its graph.
        example_inputs: as for `trace`.
        more_inputs: as for `trace`.
        seconds: time limit.

    Returns:
        A graph whose trial cuts are proved; the given one where nothing had to be pinned.

    Raises:
        TopiaristError: the network is random, the time limit is reached, or no group alone is to blame for a failure.
    """
    deadline = time.monotonic() + seconds
    if graph.kind == "weight" or (graph.kind == "block" and not graph.groups):
        return graph
    check_plain((example_inputs, *more_inputs), "the example input is")
    dtype = precision_of(model, example_inputs).dtype
    model = non_degenerate(copied(model).to(dtype).eval())
    inputs, more = (converted(given, dtype) for given in (example_inputs, list(more_inputs)))
    with counting(model, graph.outputs):
        if graph.kind == "block":
            return _with_proved_blocks(model, graph, inputs, deadline)
        return _with_proved_cuts(model, graph, inputs, more, deadline)


def _with_proved_cuts(model: nn.Module, graph: Graph, inputs: Inputs, more: Sequence[Inputs], deadline: float) -> Graph:
    """Returns the graph with pins on what random cuts show that cannot be proved."""
    for seed in (0, 1):
        while True:
            keep = random_keep(graph, seed)
            proof = prove(model, graph, keep, inputs, more_inputs=more)
            if proof.agrees:
                break
            _check_time(deadline)
            _check_repeatable(model, inputs, proof.precision)
            units, ways = _units(graph), paths(inputs, more, proof.precision)
            graph = _pinned_where_it_fails(model, graph, keep, ways, proof, deadline)
            if _units(graph) == units:
                graph = _without_unprovable_groups(model, graph, seed, (inputs, more), proof, deadline)
    return graph


def _units(graph: Graph) -> int:
    return sum(group.units for group in graph.groups)


def _check_repeatable(model: nn.Module, inputs: Inputs, precision: Precision = DOUBLE) -> None:
    """Raises where a network computes something else each time: then no difference is the cut's."""
    with torch.no_grad(), fast_path_off():
        first, second = (call_model(copied(model), inputs) for _ in range(2))
    if difference(first, second) > precision.tolerance:
        raise TopiaristError(
            "the network's outputs differ between two runs in evaluation, so that no cut can be proved; make it "
            "deterministic: dropout with training=self.training, noise as an input"
        )


def _check_time(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise TopiaristError("the trial cuts took longer than the time limit; pass check(..., seconds=) a longer one")


def _with_proved_blocks(model: nn.Module, graph: Graph, inputs: Inputs, deadline: float) -> Graph:
    """Returns the graph with only those blocks whose removal is proved."""
    (group,) = graph.groups
    odd = torch.arange(group.units) % 2 == 1
    if group.units == 1 or all(prove(model, graph, {group.name: half}, inputs).ok for half in (odd, ~odd)):
        return graph
    _check_repeatable(model, inputs)
    irremovable, proved = dict(graph.irremovable), []
    for unit, block in enumerate(group.blocks):
        _check_time(deadline)
        proof = prove(model, graph, {group.name: torch.arange(group.units) != unit}, inputs)
        if proof.ok:
            proved.append(block)
        else:
            irremovable[block.name] = f"its removal cannot be proved: {proof.reason}"
    groups = (replace(group, units=len(proved), blocks=tuple(proved)),) if proved else ()
    return replace(graph, groups=groups, irremovable=irremovable)


def random_keep(graph: Graph, seed: int) -> dict[str, Tensor]:
    """Returns a keep of about half of each group's units, at random."""
    random = np.random.default_rng(seed)
    keep = {}
    for group in graph.groups:
        kept = torch.zeros(group.units, dtype=torch.bool)
        kept[torch.from_numpy(random.permutation(group.units)[: max(1, round(group.units / 2))])] = True
        keep[group.name] = kept
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


def _pinned_where_it_fails(
    model: nn.Module, graph: Graph, keep: dict[str, Tensor], ways: Sequence[Path], proof: Proof, deadline: float
) -> Graph:
    """Returns the graph with pins on what the first module carries where cut and mask differ, if it carries any."""
    solution, record = graph.solution, graph.solution.record
    module = _first_difference(model, graph, keep, ways, proof.failed or EXAMPLE)
    dead = graph.dead(keep)
    own = [labels for name, _, labels in record.sources if name.rpartition(".")[0] == module]
    carried = [labels for labels in [*record.held.get(module, ()), *own] if solution.kept(labels, dead) is not None]
    inside = f"{module}." if module else ""
    carried = carried or [labels for name, _, labels in record.sources if name.startswith(inside)]
    if not graph.groups:
        raise TopiaristError(f"the network cannot be compared with its own copy ({proof.reason}); it cannot be pruned")
    reason = f"cannot be proved in {module or 'the model'} ({record.types[module].__name__}): {proof.reason}"
    return regroup(solution.pinning(carried, reason), graph.parameters, deadline)


def _without_unprovable_groups(
    model: nn.Module, graph: Graph, seed: int, examples: tuple[Inputs, Sequence[Inputs]], proof: Proof, deadline: float
) -> Graph:
    """Returns the graph with pins on the groups whose cut alone is not proved: where a module tells no more."""
    solution, sources, keep = graph.solution, graph.solution.record.sources, random_keep(graph, seed)
    for group in graph.groups:
        _check_time(deadline)
        alone = prove(model, graph, {group.name: keep[group.name]}, examples[0], more_inputs=examples[1])
        if not alone.agrees:
            part = group.slices[0]
            labels = next(s.labels for s in sources if (s.tensor, s.axis) == (part.tensor, part.axis))
            pinned = labels[part.positions.flatten().numpy()]
            solution = solution.pinning([pinned], f"cannot be proved: {alone.reason}")
    if solution is graph.solution:
        raise TopiaristError(
            f"the cut cannot be proved ({proof.reason}), though that of each group alone is; exclude some of them "
            "from the budget"
        )
    return regroup(solution, graph.parameters, deadline)


def _first_difference(
    model: nn.Module, graph: Graph, keep: dict[str, Tensor], ways: Sequence[Path], failed: str
) -> str:
    """Returns the name of the first module whose output is not what the keep leaves of the masked one's."""
    solution, dead = graph.solution, graph.dead(keep)
    at = next(k for k, path in enumerate(ways) if path.name == failed)
    carried = solution.record.outputs if at < 2 else solution.record.aside[at - 2]
    expected: dict[tuple[str, int], list[Tensor]] = {}
    differing: list[str] = []

    def remember(name: str, call: int, output: object) -> None:
        if (name, call) not in carried:
            return
        expected[name, call] = []
        for tensor, traced in zip(tensors_in(output), carried[name, call], strict=False):
            for axis, vector in enumerate(traced.vectors):
                kept = solution.kept(vector, dead)
                tensor = tensor if kept is None else tensor.index_select(axis, kept)
            expected[name, call].append(tensor)

    def compare(name: str, call: int, output: object) -> None:
        if (name, call) in expected and difference(tensors_in(output), expected[name, call]) > ways[
            at
        ].precision.change:
            differing.append(name)

    reference, smaller = mask(model, graph, keep), cut(model, graph, keep)
    with torch.no_grad(), fast_path_off(), ways[at].entered(reference, smaller):
        ways[at].seed()
        with ModuleStack(reference, on_exit=remember):
            call_model(reference, ways[at].inputs)
        ways[at].seed()
        with ModuleStack(smaller, on_exit=compare) as stack:
            try:
                call_model(smaller, ways[at].inputs)
            except Exception:
                differing.append(stack.top)
    return differing[0] if differing else ""
