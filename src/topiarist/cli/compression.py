"""The way of ``topiarist compress``: read, share, train the centroids, write; and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import safetensors
from safetensors.torch import save_file
from torch import Tensor, nn

from topiarist.architecture import SHAPE_FILE, WEIGHTS_FILE, Architecture
from topiarist.cli import show
from topiarist.cli.inputs import Source
from topiarist.cli.weights import put_weights, read_weights
from topiarist.errors import TopiaristError
from topiarist.files import atomically, writable
from topiarist.train import Recipe

if TYPE_CHECKING:
    from topiarist.compress import Report


@dataclass(frozen=True)
class Wish:
    """What is to be compressed and how; the fields are the command's options."""

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
        """The tensors, in a folder or alone."""
        return self.weights / WEIGHTS_FILE if self.weights.is_dir() else self.weights

    @property
    def shape_file(self) -> Path | None:
        """The shape that lies beside the tensors."""
        beside = self.file.parent / SHAPE_FILE
        return beside if self.file.name == WEIGHTS_FILE and beside.exists() else None

    def check(self) -> None:
        """Raises where the file cannot be written, or is what is to be read."""
        _not_onto(self.file, self.out)
        _not_onto(self.shape_file or self.file, self.out)
        writable(self.out)


def run(wish: Wish, source: Source | None, *, quiet: bool) -> tuple[Report, dict[str, Any]]:
    """Do it.

    Args:
        wish: what is to be done.
        source: the network before pruning and its data, where centroids are to be trained.
        quiet: show no progress.

    Returns:
        What the file takes, and plain values for JSON; accuracies are per cent of the test examples.
    """
    from topiarist import compress

    shape = None if wish.shape_file is None else Architecture.load(wish.shape_file)
    options: dict[str, Any] = {"half": wish.half, "architecture": None if wish.bare else shape}
    network, accuracy, checkpoint = _shared(wish, shape, source, options, quiet)
    report = compress.save(network, wish.out, **options)
    if source is not None and source.data is not None and wish.half:
        _as_stored(network, wish.out)
        accuracy["stored"] = _accuracy(network, source)
    if checkpoint is not None:  # kept to here, so that what was trained is not lost with the file
        checkpoint.unlink(missing_ok=True)
    return report, {"file": str(wish.out), "accuracy": accuracy, **report.to_json()}


def _shared(
    wish: Wish, shape: Architecture | None, source: Source | None, options: Mapping[str, Any], quiet: bool
) -> tuple[nn.Module | dict[str, Tensor], dict[str, float | None], Path | None]:
    """The network with shared weights, its accuracies on the way, and the checkpoint of its training."""
    from topiarist import compress
    from topiarist.train import fit

    bits = None if wish.bits == "paper" else wish.bits
    if source is None or source.data is None:
        state = read_weights(wish.file)
        if shape is not None:
            shape.check(state)
        made = state if wish.bits is None else compress.share_state(state, bits, wish.init, seed=wish.seed)
        return made, {}, None
    model = source.model() if shape is None else shape.apply(source.model())
    put_weights(model, wish.file)
    accuracy: dict[str, float | None] = {"before": _accuracy(model, source)}
    if wish.bits is None:
        return model, accuracy, None
    shared = compress.share(model, bits, wish.init, seed=wish.seed)
    accuracy["shared"] = _accuracy(shared.model, source)
    if not wish.finetune.epochs:
        return shared.model, accuracy, None
    compress.pack(
        shared.model.state_dict(), **options
    )  # a rehearsal: what no file can hold is found before the training
    checkpoint = _beside(wish.out, shared.model)
    with shared.tied() as tied, show.training("centroids", quiet) as told:
        fit(tied, source.data, wish.finetune, seed=wish.seed, checkpoint=checkpoint, progress=told)
    accuracy["finetuned"] = _accuracy(shared.model, source)
    return shared.model, accuracy, checkpoint


def _beside(out: Path, model: nn.Module) -> Path:
    """The checkpoint of a training, named by the network that it starts from: that of another one is not taken up."""
    from topiarist.compress import bits_of

    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode() + bits_of(value).tobytes())
    return out.with_name(f"{out.name}.{digest.hexdigest()[:8]}.ckpt")


def _not_onto(file: Path, out: Path) -> None:
    """Raises where a result would be written over what it is made from."""
    if file.exists() and out.exists() and out.samefile(file):
        raise TopiaristError(f"{out} is what is to be read: give another --out.")


def _accuracy(model: nn.Module | dict[str, Tensor], source: Source) -> float | None:
    from topiarist.measure import evaluate

    return evaluate(model, source.data) if isinstance(model, nn.Module) and source.data is not None else None


def _as_stored(network: nn.Module | dict[str, Tensor], file: Path) -> None:
    """Give a model the values that were stored, which were rounded."""
    from topiarist import compress

    if isinstance(network, nn.Module):
        network.load_state_dict(compress.load(file))


def _forget_result(folder: Path) -> None:
    """Drops the ``result.json`` of a command, which tells of the network that was overwritten; nobody else's."""
    file = folder / "result.json"
    with suppress(OSError, ValueError, RecursionError):
        told = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(told, dict) and {"model", "data", "accuracy"} <= told.keys():
            file.unlink()


def restore(file: Path, max_bytes: int | None, out: Path) -> dict[str, Any]:
    """Write the tensors of a compressed network as safetensors, and its shape as JSON; plain values for JSON.

    Raises:
        TopiaristError: the file is damaged or too large, or holds types that safetensors does not know; or the folder
            cannot be written, or is full.
    """
    from topiarist import compress
    from topiarist.compress import load_both

    _not_onto(file, out / WEIGHTS_FILE)
    limit = compress.MAX_BYTES if max_bytes is None else max_bytes
    state, shape = load_both(file, max_bytes=limit)
    once = {id(value): name for name, value in reversed(list(state.items()))}  # tied tensors are written once
    tensors = {name: value for name, value in state.items() if once[id(value)] == name}

    def write(temporary: Path) -> None:
        try:
            save_file(tensors, temporary)
        except KeyError as error:
            raise TopiaristError(
                f"{file} holds {error}, which safetensors does not know: read it with compress.load"
            ) from error
        except safetensors.SafetensorError as error:  # a full disk, as a rule
            raise OSError(str(error)) from error

    atomically(out / WEIGHTS_FILE, write)
    _forget_result(out)
    if shape is None:
        (out / SHAPE_FILE).unlink(missing_ok=True)  # that of another network
    else:
        shape.save(out / SHAPE_FILE)
    size = sum(value.numel() * value.element_size() for value in tensors.values())
    return {"out": str(out), "tensors": len(state), "bytes": size, "architecture": shape is not None}
