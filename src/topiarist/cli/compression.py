"""The way of ``topiarist compress``: read, share, train the centroids, write; and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import safetensors
from safetensors.torch import save_file
from torch import Tensor, nn

from topiarist.architecture import SHAPE_FILE, WEIGHTS_FILE, Architecture, atomically
from topiarist.cli import show
from topiarist.cli.inputs import Source
from topiarist.cli.weights import put_weights, read_weights
from topiarist.errors import TopiaristError
from topiarist.training.recipe import Recipe

if TYPE_CHECKING:
    from topiarist.compress import Report


@dataclass(frozen=True)
class Wish:
    """What is to be compressed and how; the fields are the command's options."""

    weights: Path
    bits: int | dict[str, int] | Literal["paper"] | None
    init: Literal["linear", "density", "random"]
    half: bool
    mode: Literal["ans", "paper"]
    bare: bool
    finetune: Recipe
    seed: int
    out: Path

    @property
    def file(self) -> Path:
        """The tensors, in a folder or alone."""
        return self.weights / WEIGHTS_FILE if self.weights.is_dir() else self.weights

    @property
    def checkpoint(self) -> Path:
        """Where the training of the centroids is kept while it lasts."""
        return self.out.with_name(f"{self.out.name}.ckpt")

    def architecture(self) -> Architecture | None:
        """The shape that lies beside the tensors."""
        beside = self.file.parent / SHAPE_FILE
        return Architecture.load(beside) if self.file.name == WEIGHTS_FILE and beside.exists() else None


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

    shape = wish.architecture()
    network, accuracy = _shared(wish, shape, source, quiet)
    options: dict[str, Any] = {"mode": wish.mode, "half": wish.half}
    report = compress.save(network, wish.out, architecture=None if wish.bare else shape, **options)
    wish.checkpoint.unlink(missing_ok=True)  # kept until here, so that an interrupted run goes on where it was
    if source is not None and source.data is not None and wish.half:
        _as_stored(network, wish.out)
        accuracy["stored"] = _accuracy(network, source)
    return report, {"file": str(wish.out), "accuracy": accuracy, **report.to_json()}


def _shared(
    wish: Wish, shape: Architecture | None, source: Source | None, quiet: bool
) -> tuple[nn.Module | dict[str, Tensor], dict[str, float | None]]:
    """The network with shared weights, and its accuracies on the way."""
    from topiarist import compress
    from topiarist.train import fit

    bits = None if wish.bits == "paper" else wish.bits
    if source is None or source.data is None:
        state = read_weights(wish.file)
        return (state if wish.bits is None else compress.share_state(state, bits, wish.init, seed=wish.seed)), {}
    model = source.model() if shape is None else shape.apply(source.model())
    put_weights(model, wish.file)
    accuracy: dict[str, float | None] = {"before": _accuracy(model, source)}
    if wish.bits is None:
        return model, accuracy
    shared = compress.share(model, bits, wish.init, seed=wish.seed)
    accuracy["shared"] = _accuracy(shared.model, source)
    if wish.finetune.epochs:
        with shared.tied() as tied, show.training("centroids", quiet) as told:
            fit(tied, source.data, wish.finetune, seed=wish.seed, progress=told, checkpoint=wish.checkpoint)
        accuracy["finetuned"] = _accuracy(shared.model, source)
    return shared.model, accuracy


def _accuracy(model: nn.Module | dict[str, Tensor], source: Source) -> float | None:
    from topiarist.train import evaluate

    return evaluate(model, source.data) if isinstance(model, nn.Module) and source.data is not None else None


def _as_stored(network: nn.Module | dict[str, Tensor], file: Path) -> None:
    """Give a model the values that were stored, which were rounded."""
    from topiarist import compress

    if isinstance(network, nn.Module):
        network.load_state_dict(compress.load(file))


def restore(file: Path, max_bytes: int | None, out: Path) -> dict[str, Any]:
    """Write the tensors of a compressed network as safetensors, and its shape as JSON; plain values for JSON.

    Raises:
        TopiaristError: the file is damaged or too large, or holds types that safetensors does not know.
    """
    from topiarist import compress

    limit = compress.MAX_BYTES if max_bytes is None else max_bytes
    state = compress.load(file, max_bytes=limit)
    once = {id(value): name for name, value in reversed(list(state.items()))}  # tied tensors are written once
    tensors = {name: value for name, value in state.items() if once[id(value)] == name}

    def write(temporary: Path) -> None:
        try:
            save_file(tensors, temporary)
        except (safetensors.SafetensorError, KeyError) as error:
            raise TopiaristError(f"{file} cannot become safetensors ({error}): read it with compress.load") from error

    atomically(out / WEIGHTS_FILE, write)
    shape = compress.load_architecture(file, max_bytes=limit)
    if shape is not None:
        shape.save(out / SHAPE_FILE)
    size = sum(value.numel() * value.element_size() for value in tensors.values())
    return {"out": str(out), "tensors": len(state), "bytes": size, "architecture": shape is not None}
