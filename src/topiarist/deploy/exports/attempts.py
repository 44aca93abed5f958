"""One attempt at a file: what must hold of it, and why an exporter refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from topiarist.deploy.exports.reads import Watched, watched
from topiarist.deploy.exports.trials import examples_in, in_batch, is_image, other_size, size_of, trial
from topiarist.deploy.interface import Axes, Draft, Flat, input_names
from topiarist.deploy.target import Target
from topiarist.errors import TopiaristError
from topiarist.files import one_line
from topiarist.graph import Inputs, ModuleStack, call_model, tensors_in
from topiarist.surgery import difference

TOLERANCE = 1e-4
"""How far an output of a file may be from torch's, relative to the largest number in it."""

DEPENDS = "its code depends on values of the input"

Shapes = tuple[tuple[int, ...], ...]
"""Of the tensors in inputs."""


class Job:
    """What is exported, and the trials that its file must pass."""

    def __init__(self, model: nn.Module, inputs: Inputs, runtime: Target, dynamic_size: bool, seed: int) -> None:
        self.model, self.inputs, self.runtime, self.seed = model, inputs, runtime, seed
        self.batch, self.other, self.size = examples_in(inputs), None, None
        self._check_reference()
        if self.batch is not None:
            self.other = self._other_batch()
        if dynamic_size:
            self.size, why = other_size(inputs, lambda values: call_model(model, values))
            if self.size is None:
                raise TopiaristError(
                    f"the network takes images of one size only ({one_line(why or ValueError())}): leave the dynamic "
                    "size out"
                )
        self.seen: Watched = watched(model, trial(inputs, seed))

    def _check_reference(self) -> None:
        try:
            outputs = tensors_in(call_model(self.model, trial(self.inputs, self.seed)))
        except Exception as error:  # the network's own code
            raise TopiaristError(
                f"the network fails on random inputs of the example's shapes ({one_line(error)}): correct the example"
            ) from error
        if not outputs or any(bool(tensor.isnan().any()) for tensor in outputs):
            raise TopiaristError("the network gives NaN or no tensor, so no file can be compared with it: correct it")

    def _other_batch(self) -> int | None:
        """Returns another batch that the network takes, if it takes one."""
        assert self.batch is not None
        other = self.batch + 2
        try:
            call_model(self.model, trial(self.inputs, self.seed, other))
        except Exception:  # the network's own code
            return None
        return other

    def example(self, free: bool) -> Any:
        """Returns inputs to trace; a batch that is free has at least two examples, since one is special to torch."""
        return trial(self.inputs, self.seed + 1, max(2, self.batch or 0) if free else None)

    def axes(self, free: bool) -> tuple[Axes, ...]:
        """Returns the axes of each tensor whose sizes may change."""
        size = size_of(self.inputs)

        def of(tensor: Tensor) -> Axes:
            axes = {0: "batch"} if free and in_batch(tensor, self.batch) else {}
            images = self.size is not None and is_image(tensor) and tuple(tensor.shape[2:]) == size
            return {**axes, 2: "height", 3: "width"} if images else axes

        return tuple(of(tensor) for tensor in tensors_in(self.inputs))

    def trials(self, free: bool) -> Iterator[Any]:
        """Yields the inputs at which a file is compared."""
        sizes = [None] if self.size is None else [None, self.size]
        for at, size in enumerate(sizes):
            for batch in (None, self.other) if free else (None,):
                yield trial(self.inputs, self.seed + 2 + at, batch, size)
        if not free:
            yield trial(self.inputs, self.seed + 9)


class RefusedError(Exception):
    """Says why an exporter's file is not kept."""


def tried(job: Job, exporter: str, free: bool, path: Path, metadata: str) -> tuple[float, tuple[Shapes, ...]]:
    """Writes a file and compares it; returns the largest difference, and the shapes of the inputs.

    Raises:
        RefusedError: the exporter fails, or the file differs.
    """
    if exporter == "torchscript" and job.seen.readers:
        raise RefusedError(f"{DEPENDS}{_at(job.seen.readers[0])}, which would be frozen")
    inputs = job.example(free)
    module, names = Flat(job.model, inputs), input_names(job.model, inputs)
    draft = Draft(module, tuple(tensors_in(inputs)), names, job.axes(free), exporter, metadata)
    with ModuleStack(job.model) as stack:
        try:
            job.runtime.write(draft, path)
        except TopiaristError:
            raise
        except Exception as error:  # an exporter's failures have many classes
            raise RefusedError(_reason(error, stack.top, job.seen)) from error
    return _compared(job, free, path)


def _compared(job: Job, free: bool, path: Path) -> tuple[float, tuple[Shapes, ...]]:
    """Returns the largest difference of a file from torch, and the shapes of the inputs.

    Raises:
        RefusedError: it is too large, or the file does not run.
    """
    worst, shapes = 0.0, []
    try:
        session = job.runtime.load(path)
    except TopiaristError as error:
        raise RefusedError(one_line(error)) from error
    for values in job.trials(free):
        shapes.append(tuple(tuple(tensor.shape) for tensor in tensors_in(values)))
        try:
            gap = difference(session(values), call_model(job.model, values))
        except Exception as error:  # the runtime's, or the file takes no such batch
            raise RefusedError(f"the file does not run at {_written(shapes[-1])}, {one_line(error)}") from error
        if not gap <= TOLERANCE:
            raise RefusedError(f"outputs differ by {gap:.1g} of the largest at {_written(shapes[-1])}")
        worst = max(worst, gap)
    return worst, tuple(shapes)


def _written(shapes: Shapes) -> str:
    return " and ".join("x".join(map(str, shape)) or "one number" for shape in shapes)


def _at(module: str) -> str:
    return f" in {module}" if module else ""


def _reason(error: BaseException, module: str, seen: Watched) -> str:
    """Returns why an exporter failed: the first cause, and the module that it was in or whose operator it names."""
    while error.__cause__ is not None:
        error = error.__cause__
    reason = one_line(error).partition(". Please")[0]
    if "data-dependent" in reason.lower() or "DataDependent" in type(error).__name__:
        reason, module = DEPENDS, module or next(iter(seen.readers), "")
    operator = re.search(r"(?:(?:aten|prims)(?:::|\.)|operator )(\w+)", reason)
    if not module and operator:  # which may be called by a shorter name than torch's own
        module = next((user for name, user in seen.users.items() if name.endswith(operator[1])), "")
    return reason + _at(module)
