"""Files of weights: ``model.safetensors`` as Topiarist writes it, and state dicts of `torch.save`.

Defended: a file that differs in any bit is refused, or gives the very weights that were stored (a byte that says
nothing). Forged files with a right checksum give tensors or a sentence; so do state dicts of tensors that are sparse,
nested, quantised, without values, or larger than the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

import torch
from harness import attack, flipped, forge, mutated
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from topiarist import Architecture, load, save, trace
from topiarist.cli.weights import put_weights, read_weights
from topiarist.files import read_safetensors, write_safetensors


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


MODEL, GRAPH = network(), trace(network(), torch.ones(1, 3))
WEIGHTS = MODEL.state_dict()


def odd(random: Random) -> object:
    """Returns what no file of weights should hold."""
    kinds: tuple[Callable[[], object], ...] = (
        torch.eye(4, 3).to_sparse_csr,
        torch.eye(4, 3).to_sparse,
        lambda: torch.nested.nested_tensor([torch.ones(3), torch.ones(2)]),
        lambda: torch.quantize_per_tensor(torch.eye(4, 3), 0.1, 0, torch.qint8),
        lambda: torch.empty(4, 3, device="meta"),
        lambda: torch.ones(1).expand(1 << 20, 1 << 20),
        lambda: torch.ones(4, 3, dtype=torch.complex64),
        lambda: torch.full((4, 3), torch.inf),
        lambda: "these are no weights",
        lambda: None,
    )
    return random.choice(kinds)()


def stored(folder: Path) -> bytes:
    save(MODEL, Architecture.of(GRAPH, GRAPH.full()), folder)
    return (folder / "model.safetensors").read_bytes()


def damaged_file(random: Random, folder: Path) -> None:
    """Raises where a file with a changed bit is believed, unless all of its weights are those that were stored."""
    whole = stored(folder) if not (folder / "whole").exists() else (folder / "whole").read_bytes()
    (folder / "whole").write_bytes(whole)
    file = folder / "model.safetensors"
    if random.random() < 0.5:
        file.write_bytes(flipped(whole, random))
        _same(read_safetensors(file, load_file, "write it again"))
        raise AssertionError("a changed bit was not noticed")
    file.write_bytes(mutated(whole, random))
    if random.random() < 0.05:
        _same(load(network, folder).state_dict())
    else:
        _same(read_safetensors(file, load_file, "write it again"))


def forged_file(random: Random, folder: Path) -> None:
    """Forges the header of a file, and seals it."""
    save_file(WEIGHTS, folder / "plain.safetensors")
    data = (folder / "plain.safetensors").read_bytes()
    length = 8 + int.from_bytes(data[:8], "little")

    def write(name: str, metadata: Mapping[str, str]) -> None:
        header = json.loads(data[8:length])
        forge(header, random)
        text = json.dumps({"__metadata__": metadata, **header}, separators=(",", ":")).encode()
        Path(name).write_bytes(len(text).to_bytes(8, "little") + text + data[length:])

    write_safetensors(folder / "forged.safetensors", write)
    put_weights(network(), folder / "forged.safetensors")


def state_dict(random: Random, folder: Path) -> None:
    """Damages a file of `torch.save`, or puts an odd tensor into it."""
    file = folder / "weights.pt"
    if random.random() < 0.2:
        values = {**WEIGHTS, random.choice(list(WEIGHTS)): odd(random)}
        torch.save(values, file, _use_new_zipfile_serialization=random.random() < 0.5)
        put_weights(network(), file)
        return
    torch.save(dict(WEIGHTS), file)
    file.write_bytes(mutated(file.read_bytes(), random))
    _same(read_weights(file))


def _same(tensors: Mapping[str, Tensor]) -> None:
    assert tensors.keys() == WEIGHTS.keys()
    assert all(torch.equal(value, WEIGHTS[name]) for name, value in tensors.items())


def attempt(random: Random, folder: Path) -> None:
    random.choices((damaged_file, forged_file, state_dict), (8, 1, 1))[0](random, folder)


if __name__ == "__main__":
    attack(attempt, 10_000)
