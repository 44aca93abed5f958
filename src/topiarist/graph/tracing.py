"""What can be removed together: run a network once, follow its labels, solve them into groups of units."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from topiarist.errors import TopiaristError
from topiarist.files import one_line
from topiarist.graph.blocks import Descent
from topiarist.graph.calls import ALONE, ModuleStack, modes_restored, run, tensors_in
from topiarist.graph.dropins import RECURRENT, swapped_in
from topiarist.graph.graph import Graph
from topiarist.graph.grouping import emptiable, group
from topiarist.graph.groups import Group
from topiarist.graph.labels import Origin
from topiarist.graph.lines import Rectangles, solve_lines
from topiarist.graph.listener import Listener
from topiarist.graph.norms import Norms
from topiarist.graph.rules import contract, movement, pointwise  # noqa: F401  (they register their rules)
from topiarist.graph.selector import exposed
from topiarist.graph.sizes import Equation, Size, remembering
from topiarist.graph.solution import Solution
from topiarist.graph.tracer import Tracer

LABELS = 20_000_000
"""Labels that a trace may give out: some 160 MB, thirty times what the largest network of the proof table needs."""


def trace(
    model: nn.Module,
    example_inputs: Any,
    *,
    rectangles: Rectangles = "both",
    seconds: float = 120.0,
    labels: int = LABELS,
) -> Graph:
    """Finds what can be removed from a network, by running it once on example inputs.

    The model runs in eval mode without gradients, and is left as it was.

    Args:
        model: any `torch.nn.Module`.
        example_inputs: a tensor, a tuple of arguments, or a dict of keyword arguments.
        rectangles: where heads × widths or convolution groups × widths meet, offer whole ``"rows"`` (heads, groups),
            whole ``"columns"`` (widths within them), or ``"both"`` as two groups.
        seconds: time limit of tracing and grouping together.
        labels: limit of the labels given out (8 bytes each): the memory that the trace may use.

    Returns:
        The graph of groups.

    Raises:
        TopiaristError: the model fails on the inputs, its weights are not finite, or a limit is reached.
    """
    if rectangles not in ("both", "rows", "columns"):
        raise TopiaristError(f"rectangles must be 'both', 'rows' or 'columns', not {rectangles!r}")
    deadline = time.monotonic() + seconds
    check_finite(model)
    for tensor in tensors_in(example_inputs):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise TopiaristError("the example input holds NaN or infinite values; give a finite one")
    with ALONE:
        tracer = _listen(model, example_inputs, labels, deadline)
        return regroup(model, Solution(tracer, rectangles), deadline)


def check_finite(model: nn.Module) -> None:
    """Raises where a model cannot be worked on: no module, scripted, without values, or with NaN or infinite ones."""
    if not isinstance(model, nn.Module):
        raise TopiaristError(f"the model must be a torch.nn.Module, not {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TopiaristError("a scripted model cannot be cut; give the torch.nn.Module that it was made from")
    if any(is_lazy(p) or p.is_meta for p in model.parameters()):
        raise TopiaristError("the model has no values yet (lazy or meta parameters); run it once, or load its weights")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not math.isfinite(float(tensor.detach().sum())):
            if bool(torch.isfinite(tensor).all()):
                continue  # a sum that overflows, of values that do not
            raise TopiaristError(f"{name} holds NaN or infinite values; train the model again, or load good weights")


def _listen(model: nn.Module, example_inputs: Any, labels: int, deadline: float) -> Tracer:
    """Runs the model under the tracer; once more in train mode where eval mode leaves parameters untouched."""
    fast = torch.backends.mha.get_fastpath_enabled()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with swapped_in(model), modes_restored(model), exposed():
            tracer = Tracer(model, labels, deadline)
            _pin_recurrent(tracer, model)
            _run(tracer, model, example_inputs)
            if not tracer.touched.issuperset(name for name, _ in model.named_parameters()):
                _run_training_branch(tracer, model, example_inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in buffers and not torch.equal(buffer, buffers[name]):
                    buffer.copy_(buffers[name])
    _leave_out_leftovers(tracer, model)
    for name, _, source in tracer.sources:
        if name not in tracer.touched:
            tracer.algebra.origins.append(Origin("", name.rpartition(".")[0], ""))
            tracer.algebra.pin(source, "no operator used it")
    return tracer


def _leave_out_leftovers(tracer: Tracer, model: nn.Module) -> None:
    """Buffers that no operator used and no file will hold are no part of the network: what gates left for a score."""
    spare = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules()
        for name in module._non_persistent_buffers_set
    } - tracer.touched
    tracer.sources = [source for source in tracer.sources if source[0] not in spare]
    tracer.shapes = {name: shape for name, shape in tracer.shapes.items() if name not in spare}


def _pin_recurrent(tracer: Tracer, model: nn.Module) -> None:
    recurrent = {name for name, module in model.named_modules() if isinstance(module, RECURRENT)}
    for name, _, source in tracer.sources:
        owner = name.rpartition(".")[0]
        if owner in recurrent:
            tracer.algebra.origins.append(Origin("", owner, ""))
            tracer.algebra.pin(source, "recurrent layer")


def _run(tracer: Tracer, model: nn.Module, example_inputs: Any) -> None:
    given = tensors_in(example_inputs)
    tracer.batch = given[0].shape[0] if given and given[0].ndim else 1
    tracer.stack = ModuleStack(model, tracer.entered, tracer.left)
    tracer.norms = Norms()
    tracer.descent = Descent(model)
    tracer.descent.begin(given)
    tracer.memory = remembering(model)
    listener = Listener(tracer)
    Size.on_number = listener.forgets
    try:
        with torch.inference_mode(False), torch.no_grad(), tracer.memory, tracer, listener:
            output = run(model, example_inputs)
    except (TopiaristError, KeyboardInterrupt):
        raise
    except Exception as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in given) or type(example_inputs).__name__
        told = one_line(error).replace("Size", "int")
        raise TopiaristError(
            f"the model fails on the example input ({shapes}): {told}; give an input that the model accepts"
        ) from error
    finally:
        Size.on_number = None
        tracer.stack.close()
    tracer.describe_sizes()
    if not tensors_in(output):
        raise TopiaristError(
            f"the model returns no tensor that can be found in its {type(output).__name__}; let it return tensors, "
            "tuples, lists, dicts or dataclasses of them"
        )
    tracer.descent.finish(tensors_in(output))
    tracer.norms.read(tensors_in(output))
    for tensor in tensors_in(output):
        for vector in tracer.vectors_of(tensor):
            tracer.algebra.pin(vector, "the network's output")


def _run_training_branch(tracer: Tracer, model: nn.Module, example_inputs: Any) -> None:
    """Lets labels travel through what only runs in training, such as auxiliary classifiers."""
    seen = len(tracer.contractions), dict(tracer.outputs), dict(tracer.inputs), dict(tracer.statistics)
    descent, norms = tracer.descent, tracer.norms
    model.train()
    try:
        _run(tracer, model, example_inputs)
    except TopiaristError:
        pass  # a branch that cannot run on these inputs leaves its parameters unused, hence pinned
    finally:
        model.eval()
        del tracer.contractions[seen[0] :]
        tracer.outputs, tracer.inputs, tracer.statistics = seen[1], seen[2], seen[3]
        tracer.descent, tracer.norms = descent, norms


def regroup(model: nn.Module, solution: Solution, deadline: float) -> Graph:
    """Solves a trace into a graph: groups the units, and pins sizes that neither attributes nor shims can satisfy.

    Args:
        model: the traced model.
        solution: its trace, with what is known to be pinned; the rest is solved anew.
        deadline: `time.monotonic` by which it must be done.
    """
    names = tuple(name for name, _ in model.named_parameters())
    while True:
        solution, groups = _grouped(solution, deadline)
        open_ = _violated(solution, groups)
        if not open_:
            return Graph(groups, solution.trace.shapes, names, tuple(solution.trace.unknown), solution)
        deceived = {e.module for e in open_ if solution.deceivable(e)}
        solution = replace(solution, deceived=solution.deceived | deceived)
        for e in () if deceived else open_:
            reason = f"a size computed at {e.line} in {e.module or 'the model'} cannot follow a cut"
            pins = tuple((vector, reason) for vector in solution.vectors_in(e))
            solution = replace(solution, pins=solution.pins + pins)


def _grouped(solution: Solution, deadline: float) -> tuple[Solution, tuple[Group, ...]]:
    trace = solution.trace
    traced = len(trace.algebra.unions)
    guarded = [source for _, _, source in trace.sources] + trace.parts
    while True:
        for vector, reason in solution.pins:
            trace.algebra.pin(vector, reason)
        classes, units = solve_lines(trace.algebra, guarded, solution.rectangles, deadline)
        del trace.algebra.unions[traced:]
        found = group(trace, classes, units)
        unsafe = emptiable(trace, classes, found)
        if unsafe is None:
            return replace(solution, classes=classes, membership=found.membership, first=found.first), found.groups
        part = unsafe[0].slices[0]
        labels = next(v for name, axis, v in trace.sources if (name, axis) == (part.tensor, part.axis))
        solution = replace(solution, pins=(*solution.pins, (labels[part.positions.flatten().numpy()], unsafe[1])))


def _violated(solution: Solution, groups: Sequence[Group]) -> list[Equation]:
    """The sizes that some keep leaves wrong: random and extreme keeps of all groups are tried, no model is run."""
    random = np.random.default_rng(0)
    found: dict[int, Equation] = {}
    for trial in range(12):
        keep = {}
        for team in groups:
            few = 1 if trial % 2 else int(random.integers(1, team.units))  # every other trial goes to the extremes
            count = few if trial < 2 or random.random() < 0.5 else team.units
            mask = torch.zeros(team.units, dtype=torch.bool)
            mask[torch.from_numpy(random.permutation(team.units)[:count])] = True
            keep[team.name] = mask
        dead = solution.dead(keep)
        for equation in (*solution.sizes(dead)[1], *solution.impossible(dead)):
            found[id(equation)] = equation
    return list(found.values())
