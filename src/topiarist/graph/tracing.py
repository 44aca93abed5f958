"""What can be removed together: run a network once, follow its labels, solve them into groups of units."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from topiarist.errors import TopiaristError
from topiarist.files import one_line, shown
from topiarist.graph.calls import ALONE, fast_path_off, garbage_kept, modes_restored
from topiarist.graph.code.branches import untaken
from topiarist.graph.dropins import with_dropins
from topiarist.graph.graph import Graph
from topiarist.graph.grouping import emptiable, group_units, only_numbering
from topiarist.graph.groups import Group
from topiarist.graph.inputs import (
    Inputs,
    arguments_of,
    call_model,
    check_plain,
    constants,
    form_of,
    modules_of,
    named_tensors,
    random_state_kept,
    seed_all,
    tensors_in,
    twice_the_batch,
)
from topiarist.graph.lines import Rectangles, solve_lines
from topiarist.graph.listener import Listener
from topiarist.graph.modes import same_in_both
from topiarist.graph.operators import OperatorMode
from topiarist.graph.outputs import Outputs, as_outputs, counting
from topiarist.graph.record import Record
from topiarist.graph.selector import selectors_exposed
from topiarist.graph.sizes import Equation, Size
from topiarist.graph.solution import Solution
from topiarist.graph.stand_ins import StandIns, ValuesNeededError
from topiarist.graph.tracer import Tracer
from topiarist.graph.wrappers import refuse_frozen, unwrapped

LABELS = 20_000_000
"""Labels that a trace may give out: some 160 MB, thirty times what the largest network of the proof table needs."""


def trace(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    more_inputs: Sequence[Inputs] = (),
    outputs: Outputs | None = None,
    rectangles: Rectangles = "both",
    seconds: float = 120.0,
    labels: int = LABELS,
) -> Graph:
    """Finds what can be removed from a network by running it on example inputs.

    The model runs without gradients: in eval mode, also on each of the further inputs, and in train mode with twice
    the batch, where its code asks for the mode. It is left as it was.

    Args:
        model: any `torch.nn.Module`. Of one that is compiled, parallel or averaged (`torch.compile`, `DataParallel`,
            `DistributedDataParallel`, `AveragedModel`) the network within, by its own names.
        example_inputs: a tensor, a tuple of arguments, or a dict of keyword arguments.
        more_inputs: further examples of the same kinds, which take other ways through the code: optional arguments, a
            cache, other sizes. A cut is right on every way that an example shows.
        outputs: what counts of what the model returns: a name (``"logits"``, the key of a dict or the field of a
            dataclass), a place, several of them, or a function from what it returns to tensors. All else may change
            its shape, and no proof compares it. The graph remembers it. All counts where it is left out, and in
            training mode where the model returns nothing of that name there.
        rectangles: where heads × widths or convolution groups × widths meet, offer ``"rows"`` (heads, groups),
            ``"columns"`` (widths within them), or ``"both"`` as two groups.
        seconds: time limit of tracing and grouping together.
        labels: limit of the labels given out (8 bytes each): the memory that the trace may use.

    Returns:
        The graph of groups.

    Raises:
        TopiaristError: the model fails on the inputs, its weights are not finite, it has no such output, or a limit
            is reached.
    """
    if rectangles not in ("both", "rows", "columns"):
        raise TopiaristError(f"rectangles must be 'both', 'rows' or 'columns', not {shown(rectangles)}")
    outputs = as_outputs(outputs)
    deadline = time.monotonic() + seconds
    model = unwrapped(model)
    check_finite(model)
    check_plain((example_inputs, *more_inputs), "the example input is")
    for tensor in tensors_in((example_inputs, *more_inputs)):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise TopiaristError("the example input holds NaN or infinite values; give a finite one")
    with ALONE, garbage_kept():
        with counting(model, outputs):
            try:
                record = _listen(model, example_inputs, more_inputs, labels, deadline, StandIns)
            except ValuesNeededError:
                record = _listen(model, example_inputs, more_inputs, labels, deadline, lambda: None)
        record.counts = outputs
        names = tuple(name for name, _ in model.named_parameters())
        return regroup(Solution(record, rectangles), names, deadline)


def check_finite(model: nn.Module) -> None:
    """Raises where a model cannot be worked on: no module, frozen, without values, or with NaN or infinite ones."""
    refuse_frozen(model)
    if any(is_lazy(p) or p.is_meta for p in model.parameters()):
        raise TopiaristError("the model has no values yet (lazy or meta parameters); run it once, or load its weights")
    for name, tensor in named_tensors(model).items():
        check_plain(tensor, f"{name} of the model is")
        if not tensor.is_floating_point() or math.isfinite(float(tensor.detach().sum())):
            continue
        if not bool(torch.isfinite(tensor).all()):  # the sum alone may overflow
            raise TopiaristError(f"{name} holds NaN or infinite values; train the model again, or load good weights")


def _listen(
    model: nn.Module,
    example_inputs: Inputs,
    more_inputs: Sequence[Inputs],
    labels: int,
    deadline: float,
    stand_ins: Callable[[], StandIns | None],
) -> Record:
    """Runs the model under the tracer: in eval mode, on further examples, and in train mode if it is another one there.

    Raises:
        ValuesNeededError: a run failed with stand-ins for the results of heavy operators.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with with_dropins(model), modes_restored(model), selectors_exposed(), fast_path_off():
            tracer = Tracer(model, labels)
            _run(tracer, model, example_inputs, deadline, stand_ins())
            record = tracer.record
            record.numbering = {n for n, b in buffers.items() if not (b.is_floating_point() or b.is_complex())}
            record.normed = tracer.norms.normed()
            for inputs in more_inputs:
                with _aside(record):
                    _run(tracer, model, inputs, deadline, stand_ins())
            if same_in_both(tracer, model):
                record.aside.append(record.outputs)
                record.read[True] |= record.read[False]
            else:
                _run_in_training(tracer, model, example_inputs, deadline, stand_ins())
            record.branches = untaken(tracer.taken, model, tracer.ran | _used(record))
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in buffers and not torch.equal(buffer, buffers[name]):
                    buffer.copy_(buffers[name])
    _leave_out_unused(record, model)
    for source in record.sources:
        if source.tensor not in record.touched:
            record.algebra.add_origin("", source.tensor.rpartition(".")[0])
            record.algebra.pin(source.labels, "no operator used it")
    _pin_left_out(record)
    return record


def _pin_left_out(record: Record) -> None:
    """Pins positions of parameters and buffers that the run passed by: a longer sequence may need them."""
    algebra = record.algebra
    tied = np.zeros(algebra.count, dtype=bool)
    for a, b, _ in algebra.unions:
        tied[a] = tied[b] = True
    for line in algebra.lines:
        for labels in (line.merged, *line.factors):
            tied[labels] = True
    for tensor, labels in record.left_out:
        algebra.add_origin("", tensor.rpartition(".")[0])
        algebra.pin(labels[~tied[labels]], "the example input leaves it out")


def _leave_out_unused(record: Record, model: nn.Module) -> None:
    """Leaves out what no operator used and no file will hold: constants, and buffers that gates keep for a score."""
    unheld = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in modules_of(model).items()
        for name in module._non_persistent_buffers_set
    }
    unused = (unheld | constants(model).keys()) - record.touched
    record.sources = [source for source in record.sources if source.tensor not in unused]
    record.shapes = {name: shape for name, shape in record.shapes.items() if name not in unused}


def _run(tracer: Tracer, model: nn.Module, example_inputs: Inputs, deadline: float, stand_ins: StandIns | None) -> None:
    given = tensors_in(example_inputs)
    tracer.begin(model, given)
    tracer.record.runs.append(form_of(model.forward, *arguments_of(example_inputs), training=model.training))
    listener = Listener(tracer, stand_ins)
    Size.on_number, Size.on_equal = listener.became_number, listener.were_equal
    try:
        with (
            tracer.stack,
            torch.inference_mode(False),
            torch.no_grad(),
            tracer.memory,
            OperatorMode(tracer, deadline, stand_ins),
            listener,
            tracer.taken,
        ):
            output = call_model(model, example_inputs)
    except (KeyboardInterrupt, ValuesNeededError):
        raise
    except Exception as error:
        if stand_ins is not None and stand_ins.made and time.monotonic() < deadline:
            raise ValuesNeededError from error
        if isinstance(error, TopiaristError):
            raise
        if (operator := re.search(r"HigherOrderOperator (\w+)", str(error))) is not None:
            raise TopiaristError(
                f"the model runs {operator[1]}, which takes a function and cannot be followed; write it with operators "
                "on tensors, or load a transformer with attn_implementation='eager'"
            ) from error
        shapes = ", ".join(str(tuple(t.shape)) for t in given) or type(example_inputs).__name__
        reason = one_line(error).replace("Size", "int")
        raise TopiaristError(
            f"the model fails on the example input ({shapes}): {reason}; give an input that the model accepts"
        ) from error
    finally:
        Size.on_number = Size.on_equal = None
    if not tensors_in(output):
        raise TopiaristError(
            f"the model returns nothing that holds a tensor ({type(output).__name__}); let it return tensors, "
            "tuples, lists, dicts or dataclasses of them"
        )
    tracer.finish(tensors_in(output), training=model.training)


def _run_in_training(
    tracer: Tracer, model: nn.Module, example_inputs: Inputs, deadline: float, stand_ins: StandIns | None
) -> None:
    """Lets labels travel through what runs in training, such as auxiliary classifiers and other branches.

    With twice the batch, since a batch norm needs more than one value a channel.
    """
    model.train()
    try:
        with _aside(tracer.record), random_state_kept():
            seed_all(0)
            _run(tracer, model, twice_the_batch(example_inputs), deadline, stand_ins)
    except TopiaristError:
        pass  # a branch that cannot run on these inputs leaves its parameters unused, hence pinned
    finally:
        model.eval()


def _used(record: Record) -> set[str]:
    """Returns the names of the modules whose own tensors some operator used."""
    return {name.rpartition(".")[0] for name in record.touched}


@contextmanager
def _aside(record: Record) -> Iterator[None]:
    """Context of a run beside the first one, whose products, outputs and batch are those that count."""
    products, outputs, batch = len(record.contractions), record.outputs, record.batch
    record.outputs = {}
    try:
        yield
    finally:
        del record.contractions[products:]
        record.aside.append(record.outputs)
        record.outputs, record.batch = outputs, batch


def regroup(solution: Solution, parameters: tuple[str, ...], deadline: float) -> Graph:
    """Solves a record into a graph: groups the units, and pins sizes that neither attributes nor corrections put right.

    Args:
        solution: the record, with what is known to be pinned; the rest is solved anew.
        parameters: names of the network's parameters.
        deadline: `time.monotonic` by which it must be done.
    """
    while True:
        solution, groups = _grouped(solution, deadline)
        violated, disagreeing = _violated(solution, groups)
        if not violated and not disagreeing:
            record = solution.record
            return Graph(groups, record.shapes, parameters, tuple(record.unknown), solution)
        for e in violated:
            solution = solution.pinning(solution.vectors_in(e), f"a size computed {_where(e)} cannot follow a cut")
        for equations in disagreeing:
            solution = _agreed(solution, equations)


def _where(e: Equation) -> str:
    return f"at {e.line} in {e.module or 'the model'}"


def _agreed(solution: Solution, equations: Sequence[Equation]) -> Solution:
    """Ties what one place in the code states a size for several times; pins it where that has not helped."""
    reason = f"the code {_where(equations[0])} states one size for them"
    vectors = [solution.record.vectors[e.wanted] for e in equations if e.wanted is not None]
    alike = len(vectors) == len(equations) and len({len(vector) for vector in vectors}) == 1
    if alike and not all(np.array_equal(solution.classes.of[v], solution.classes.of[vectors[0]]) for v in vectors):
        return solution.tying(vectors, reason)
    return solution.pinning([vector for e in equations for vector in solution.vectors_in(e)], reason)


def _grouped(solution: Solution, deadline: float) -> tuple[Solution, tuple[Group, ...]]:
    record = solution.record
    guarded = [source.labels for source in record.sources] + record.parts
    while True:
        classes, closures = solve_lines(record.algebra, guarded, solution.rectangles, solution.added, deadline)
        units = group_units(record, classes, closures)
        unsafe = only_numbering(record, units) or emptiable(record, classes, units)
        if unsafe is None:
            return replace(solution, classes=classes, membership=units.membership, first=units.first), units.groups
        part = unsafe[0].slices[0]
        labels = next(s.labels for s in record.sources if (s.tensor, s.axis) == (part.tensor, part.axis))
        solution = solution.pinning([labels[part.positions.flatten().numpy()]], unsafe[1])


def _violated(solution: Solution, groups: Sequence[Group]) -> tuple[list[Equation], list[list[Equation]]]:
    """Returns the sizes that some keep leaves wrong, and those of one place in the code that disagree.

    Random and extreme keeps are tried, no model is run.
    """
    random = np.random.default_rng(0)
    violated: dict[int, Equation] = {}
    disagreeing: dict[int, list[Equation]] = {}
    for trial in range(12):
        removed = np.ones(solution.membership.shape[1], dtype=np.int64)
        for group in groups:
            few = 1 if trial % 2 else int(random.integers(1, group.units))  # every other trial is extreme
            count = few if trial < 2 or random.random() < 0.5 else group.units
            removed[solution.first[group.name] + random.permutation(group.units)[:count]] = 0
        unsatisfied, apart = solution.contradictions(solution.dead_without(removed))
        violated.update({id(equation): equation for equation in unsatisfied})
        disagreeing.update({id(equations[0]): equations for equations in apart})
    return list(violated.values()), list(disagreeing.values())
