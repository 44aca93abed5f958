"""The work of ``topiarist compress``: read, share, train the centroids, write; and of ``topiarist decompress``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors.torch import save_file
from torch import Tensor, nn

from topiarist.architecture import SHAPE_FILE, WEIGHTS_FILE, Architecture
from topiarist.cli import show
from topiarist.cli.inputs import Source
from topiarist.cli.weights import put_weights, read_weights
from topiarist.errors import TopiaristError
from topiarist.files import read_json, writable, write_safetensors
from topiarist.train import Recipe

if TYPE_CHECKING:
    from topiarist.compress import Report


@dataclass(frozen=True)
class Plan:
    """Describes what is compressed and how; the fields are the command's options."""

    weights: Path
    bits: int | dict[str, int] | Literal["paper"] | None
    init: Literal["linear", "density", "random"]
    half: bool
    bare: bool
    finetune: Recipe
    seed: int
    out: Path

    @property
    def file(self) -> Path:
        """Returns the file of the tensors, in a folder or alone."""
        return self.weights / WEIGHTS_FILE if self.weights.is_dir() else self.weights

    @property
    def shape_file(self) -> Path | None:
        """Returns the file of the shape beside the tensors, if there is one."""
        beside = self.file.parent / SHAPE_FILE
        return beside if self.file.name == WEIGHTS_FILE and beside.exists() else None

    def check(self) -> None:
        """Raises where the file cannot be written, or is the input."""
        _not_onto(self.file, self.out)
        _not_onto(self.shape_file or self.file, self.out)
        writable(self.out)


def run(plan: Plan, source: Source | None, *, quiet: bool) -> tuple[Report, dict[str, Any]]:
    """Compresses a network, and writes the file.

    Args:
        plan: what is compressed and how.
        source: the network before pruning and its data, where centroids are trained.
        quiet: show no progress.

    Returns:
        The bytes of the file by tensor, and plain values for JSON; accuracies are per cent of the test examples.
    """
    from topiarist import compress

    shape = None if plan.shape_file is None else Architecture.load(plan.shape_file)
    options: dict[str, Any] = {"half": plan.half, "architecture": None if plan.bare else shape}
    network, accuracy, checkpoint = _shared(plan, shape, source, options, quiet)
    report = compress.save(network, plan.out, **options)
    if source is not None and source.data is not None and plan.half:
        _as_stored(network, plan.out)
        accuracy["stored"] = _accuracy(network, source)
    if checkpoint is not None:  # kept to here, so that the training is not lost if the file cannot be written
        checkpoint.unlink(missing_ok=True)
    return report, {"file": str(plan.out), "accuracy": accuracy, **report.to_json()}


def _shared(
    plan: Plan, shape: Architecture | None, source: Source | None, options: Mapping[str, Any], quiet: bool
) -> tuple[nn.Module | dict[str, Tensor], dict[str, float | None], Path | None]:
    """Returns the network with shared weights, its accuracies so far, and the checkpoint of its training."""
    from topiarist import compress
    from topiarist.train import fit

    bits = None if plan.bits == "paper" else plan.bits
    if source is None or source.data is None:
        state = read_weights(plan.file)
        if shape is not None:
            shape.check(state)
        made = state if plan.bits is None else compress.share_state(state, bits, plan.init, seed=plan.seed)
        return made, {}, None
    model = source.model() if shape is None else shape.apply(source.model(), source.data.example())
    put_weights(model, plan.file)
    accuracy: dict[str, float | None] = {"before": _accuracy(model, source)}
    if plan.bits is None:
        return model, accuracy, None
    shared = compress.share(model, bits, plan.init, seed=plan.seed)
    accuracy["shared"] = _accuracy(shared.model, source)
    if not plan.finetune.epochs:
        return shared.model, accuracy, None
    compress.pack(shared.model.state_dict(), **options)  # refuses before the training what no file can hold
    checkpoint = _beside(plan.out, shared.model)
    with shared.tied() as tied, show.training("centroids", quiet) as progress:
        fit(tied, source.data, plan.finetune, seed=plan.seed, checkpoint=checkpoint, progress=progress)
    accuracy["finetuned"] = _accuracy(shared.model, source)
    return shared.model, accuracy, checkpoint


def _beside(out: Path, model: nn.Module) -> Path:
    """Returns the checkpoint of a training, named by the initial network, so that no other training continues it."""
    from topiarist.compress import bits_of

    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode() + bits_of(value).tobytes())
    return out.with_name(f"{out.name}.{digest.hexdigest()[:8]}.ckpt")


def _not_onto(file: Path, out: Path) -> None:
    """Raises where a result would be written over what it is made from."""
    if file.exists() and out.exists() and out.samefile(file):
        raise TopiaristError(f"{out} is the input: give another --out")


def _accuracy(model: nn.Module | dict[str, Tensor], source: Source) -> float | None:
    from topiarist.measure import evaluate

    return evaluate(model, source.data) if isinstance(model, nn.Module) and source.data is not None else None


def _as_stored(network: nn.Module | dict[str, Tensor], file: Path) -> None:
    """Gives a model the values that were stored, which were rounded."""
    from topiarist import compress

    if isinstance(network, nn.Module):
        network.load_state_dict(compress.load(file))


def _forget_result(folder: Path) -> None:
    """Removes the ``result.json`` of a command, which describes the network that was overwritten; no other file."""
    file = folder / "result.json"
    with suppress(OSError, TopiaristError):
        result = read_json(file, "the result", "remove it")
        if isinstance(result, dict) and {"model", "data", "accuracy"} <= result.keys():
            file.unlink()


def restore(file: Path, max_bytes: int | None, out: Path) -> dict[str, Any]:
    """Writes the tensors of a compressed network as safetensors, and its shape as JSON; returns plain values.

    Raises:
        TopiaristError: the file is damaged or too large, or holds types that safetensors does not know; or the folder
            cannot be written, or is full.
    """
    from topiarist.compress import load_both

    _not_onto(file, out / WEIGHTS_FILE)
    state, shape = load_both(file, max_bytes=max_bytes)
    once = {id(value): name for name, value in reversed(list(state.items()))}  # tied tensors are written once
    tensors = {name: value for name, value in state.items() if once[id(value)] == name}

    try:
        write_safetensors(out / WEIGHTS_FILE, partial(save_file, tensors))
    except KeyError as error:
        raise TopiaristError(
            f"{file} holds {error}, which safetensors does not know: read it with compress.load"
        ) from error
    _forget_result(out)
    if shape is None:
        (out / SHAPE_FILE).unlink(missing_ok=True)  # that of another network
    else:
        shape.save(out / SHAPE_FILE)
    size = sum(value.numel() * value.element_size() for value in tensors.values())
    return {"out": str(out), "tensors": len(state), "bytes": size, "architecture": shape is not None}
