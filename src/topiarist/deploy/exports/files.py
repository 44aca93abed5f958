"""Files for a runtime, each compared with torch before it is kept."""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from topiarist.deploy.exports.attempts import DEPENDS, Job, RefusedError, Shapes, tried
from topiarist.deploy.exports.trials import Size, size_of
from topiarist.deploy.interface import EXPORTERS, as_exported
from topiarist.deploy.target import Target
from topiarist.deploy.targets import get_target, target_names
from topiarist.errors import TopiaristError
from topiarist.files import as_path, atomically, one_line, shown, suggestion, writable
from topiarist.graph import Inputs, check_plain, map_tensors, named_tensors, unwrapped
from topiarist.measure import device_of
from topiarist.surgery import copied


@dataclass(frozen=True)
class Exported:
    """Describes a file that was written and agrees with torch.

    Attributes:
        path: the file.
        target: the kind of file: ``onnx``, ``openvino`` or ``torch-export``.
        runtime: name and version of the runtime that it was compared with.
        exporter: of torch that wrote it, ``torchscript`` or ``dynamo``.
        batch: how many examples it takes; ``None`` where that is free.
        image_size: height and width of the images that it takes; ``None`` where these are free, or there are none.
        difference: of the outputs, relative to the largest number in each; the largest over all `shapes`.
        shapes: of the inputs at which it was compared.
        bytes: of the file, or of its two files.
        refused: exporter → why it wrote no such file, for those tried before.
    """

    path: Path
    target: str
    runtime: str
    exporter: str
    batch: int | None
    image_size: Size | None
    difference: float
    shapes: tuple[Shapes, ...]
    bytes: int
    refused: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns plain values for `json`."""
        return {**asdict(self), "path": str(self.path)}


def format_names() -> list[str]:
    """Returns the kinds of files that `export` writes, in alphabetical order."""
    return sorted(filter(None, (get_target(name).format for name in target_names())))


def target_of(kind: str) -> Target:
    """Returns the runtime, with one thread, that reads a kind of file.

    Raises:
        TopiaristError: there is no such kind; close names are given.
    """
    for name in target_names():
        if kind and get_target(name).format == kind:
            return get_target(name)()
    raise TopiaristError(f"there is no target {shown(kind)} to export to: {suggestion(kind, format_names())}")


def export(
    model: nn.Module,
    example_inputs: Inputs,
    path: str | Path,
    target: str = "onnx",
    *,
    exporter: str | None = None,
    dynamic_size: bool = False,
    metadata: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Exported:
    """Writes a network as a file for a runtime, once the file computes what torch does in eval mode.

    The batch is free wherever the network allows it. The file is compared with torch on random inputs, at the example's
    batch and at another one, and at another image size where that is free. It is kept if no output differs by more than
    1e-4 of the largest number in it. Nothing is left behind otherwise.

    Args:
        model: the network; it stays as it is.
        example_inputs: a tensor, a tuple of arguments, or a dict of keyword arguments.
        path: the file: ``.onnx``, ``.xml`` (with a ``.bin`` beside it) or ``.pt2``.
        target: ``onnx``, ``openvino`` or ``torch-export``.
        exporter: of torch, ``torchscript`` or ``dynamo``; by default the first whose file agrees.
        dynamic_size: leave height and width of images free as well.
        metadata: plain values that the file says about itself, beside the versions and the number of parameters.
        seed: of the random inputs.

    Raises:
        TopiaristError: there is no such target or exporter, a package is missing, the file cannot be written, or no
            exporter writes a file that agrees; then its reasons are given.
    """
    runtime, file = target_of(target), as_path(path)
    exporters = _exporters(runtime, exporter)
    if file.suffix != runtime.suffix:
        raise TopiaristError(f"{target} files end in {runtime.suffix}, and {file} does not: rename it")
    runtime.imported()
    writable(file)
    model = unwrapped(model)
    check_plain(example_inputs, "the example input is")
    check_plain(named_tensors(model), "a weight of the network is")
    if device_of(model).type != "cpu":
        model = copied(model).cpu()
    with as_exported(model), tempfile.TemporaryDirectory() as folder:
        job = Job(model, map_tensors(example_inputs, lambda t: t.detach().cpu()), runtime, dynamic_size, seed)
        draft = Path(folder) / f"model{runtime.suffix}"
        found = _first_that_agrees(job, exporters, draft, _metadata(model, metadata or {}))
        parts = sorted(draft.parent.glob("model.*"), key=lambda part: part == draft)  # the file itself comes last
        size = sum(part.stat().st_size for part in parts)
        for part in parts:
            atomically(file.with_suffix(part.suffix), partial(shutil.copyfile, part))
    return Exported(path=file, bytes=size, **found)


def _exporters(runtime: Target, chosen: str | None) -> tuple[str, ...]:
    if chosen is None:
        return runtime.exporters
    if chosen not in EXPORTERS:
        raise TopiaristError(f"there is no exporter {shown(chosen)}: {suggestion(chosen, EXPORTERS)}")
    if chosen not in runtime.exporters:
        raise TopiaristError(f"{runtime.format} is written by {' or '.join(runtime.exporters)}: leave {chosen} out")
    return (chosen,)


def _metadata(model: nn.Module, given: Mapping[str, Any]) -> str:
    """Returns what a file says about itself; what is given wins."""
    own = {
        "topiarist": version("topiarist"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "params": sum(parameter.numel() for parameter in model.parameters()),
    }
    try:
        return json.dumps({**own, **given}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TopiaristError(
            f"the metadata cannot be written ({one_line(error)}): give plain, finite values"
        ) from error


def _first_that_agrees(job: Job, exporters: tuple[str, ...], path: Path, metadata: str) -> dict[str, Any]:
    """Writes a file by the first exporter that can; where none can leave the batch free, it is fixed.

    Raises:
        TopiaristError: none can; with the reason of each.
    """
    refused: dict[str, str] = {}
    for free in (True, False) if job.other is not None else (False,):
        reasons: dict[str, str] = {}
        for exporter in exporters:
            for left in path.parent.iterdir():
                left.unlink()
            try:
                worst, shapes = tried(job, exporter, free, path, metadata)
            except RefusedError as refusal:
                reasons[exporter] = str(refusal)
                continue
            return {
                "target": job.runtime.format,
                "runtime": f"{job.runtime.name} {job.runtime.version}",
                "exporter": exporter,
                "batch": None if free else job.batch,
                "image_size": None if job.size is not None else size_of(job.inputs),
                "difference": worst,
                "shapes": shapes,
                "refused": {**refused, **reasons},
            }
        refused = reasons
    raise TopiaristError(
        f"the network does not export to {job.runtime.format} "
        f"({'; '.join(f'{exporter}: {reason}' for exporter, reason in refused.items())}): {_remedy(job, refused)}"
    )


def _remedy(job: Job, refused: Mapping[str, str]) -> str:
    if len(refused) < len(job.runtime.exporters):
        return "leave the choice of the exporter to topiarist"
    if all(DEPENDS in reason for reason in refused.values()):
        return "let it compute both ways and choose by torch.where"
    others = [name for name in format_names() if name != job.runtime.format]
    return f"change it, or export to {' or '.join(others)}"
