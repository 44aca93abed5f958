"""Files of weights, shapes and data that are damaged or hostile: noticed, and refused before they cost anything."""

from __future__ import annotations

import copy
import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from topiarist import Architecture, TopiaristError, compress, cut, load, save, trace
from topiarist.architecture import WEIGHTS_FILE, digest, pack_mask, write_tensors
from topiarist.cli.weights import put_weights, read_weights
from topiarist.data import load_data
from topiarist.files import GATE, register_gate


def make() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()


X = torch.ones(1, 3, 8, 8)
GRAPH = trace(make(), X)
KEEP = {"0": torch.arange(8) < 5}
SHAPE = Architecture.of(GRAPH, KEEP)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = cut(make(), GRAPH, KEEP)
    register_gate(model[0], f"weight{GATE}l0", torch.ones(5))
    save(model, SHAPE, tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", [WEIGHTS_FILE, "model.gates.safetensors"])
@pytest.mark.by_day(2)
def test_every_changed_bit_is_noticed(name: str, folder: Path) -> None:
    load(make, folder)
    whole = (folder / name).read_bytes()
    for bit in [*range(0, 8 * 120, 5), *range(8 * 120, 8 * len(whole), 397)]:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        (folder / name).write_bytes(damaged)
        with pytest.raises(TopiaristError, match=re.escape(name)):
            load(make, folder)


def test_a_file_without_a_checksum_loads_with_one_warning_until_it_is_written_again(folder: Path) -> None:
    file = folder / WEIGHTS_FILE
    save_file(load_file(file), file)
    with pytest.warns(UserWarning, match=r"has no checksum.*write_tensors") as warned:
        model = load(make, folder)
    assert len(warned) == 1
    write_tensors(model, file)
    load(make, folder)


def test_changed_bits_in_files_of_torch_are_noticed(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    torch.save(make().state_dict(), file)
    whole = file.read_bytes()
    place = whole.index(make()[0].weight.detach().numpy().tobytes())
    for byte in range(place, place + 100, 7):
        file.write_bytes(whole[:byte] + bytes([whole[byte] ^ 1]) + whole[byte + 1 :])
        with pytest.raises(TopiaristError, match="no weights file"):
            read_weights(file)


def test_a_file_of_an_old_torch_has_no_checksum_and_loads_with_one_warning(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    state = make().state_dict()
    torch.save(state, file, _use_new_zipfile_serialization=False)
    with pytest.warns(UserWarning, match=r"weights\.pt has no checksum.*torch\.save") as warned:
        found = read_weights(file)
    assert len(warned) == 1
    assert all(torch.equal(found[name], state[name]) for name in state)
    torch.save(found, file)
    read_weights(file)  # every warning is an error here


ODD: dict[str, Callable[[Tensor], object]] = {
    "sparse": lambda weight: weight.flatten(1).to_sparse_csr(),
    "nested": lambda weight: torch.nested.nested_tensor([weight[0], weight[1]]),
    "quantised": lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
    "meta": lambda weight: weight.to("meta"),
    "bytes of memory": lambda weight: torch.ones(1).expand(1 << 20, 1 << 20),
    "only code can restore": lambda weight: bytearray(5),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ODD)
def test_weights_that_are_no_dense_tensors_get_a_sentence(kind: str, tmp_path: Path) -> None:
    torch.save({**make().state_dict(), "0.weight": ODD[kind](make()[0].weight.detach())}, tmp_path / "weights.pt")
    with pytest.raises(TopiaristError, match=kind):
        put_weights(make(), tmp_path / "weights.pt")


def large_architecture() -> Architecture:
    """589 bytes that stand for 4 GiB."""
    slices = [["w", 0, "output", [[0, 1 << 28, 1]]]]
    group = {"name": "w", "units": 1, "stage": "", "kept": pack_mask(torch.ones(1, dtype=torch.bool)), "slices": slices}
    value = {"format": "topiarist.architecture", "version": 1, "groups": [group], "shapes": {"w": [1 << 28]}}
    value |= {"sizes": [], "corrections": {}, "selectors": []}
    return Architecture.from_json({**value, "sha256": digest(value)})


def large_container() -> dict[str, Tensor]:
    """A few bytes that stand for 3 GiB of zeros, in three tensors."""
    names = b"".join(bytes([1, letter, 1, 3, 1]) + b"\x80\x80\x80\x40\1" for letter in b"abc")
    header = bytes([3]) + names
    data = b"TPCF\2" + bytes([len(header), 0]) + header + bytes(3)
    return compress.unpack(data + zlib.crc32(data).to_bytes(4, "little"))


def slow_container() -> dict[str, Tensor]:
    """A mask of many rows of one column, each of which takes as long as a row of a matrix."""
    blob = bytes([1, 1, 5, 1, 1])
    header = bytes([1, 1, 97, 5, 4, 2]) + b"\x80\x80\x80\x02\1" + bytes([len(blob)])
    data = b"TPCF\2" + bytes([len(header), 0]) + header + blob
    return compress.unpack(data + zlib.crc32(data).to_bytes(4, "little"))


@pytest.mark.parametrize("read", [large_architecture, large_container, slow_container])
def test_small_files_that_stand_for_much_are_refused(read: Callable[[], object]) -> None:
    with pytest.raises(TopiaristError, match=r"TOPIARIST_READ_BYTES|max_bytes"):
        read()


def test_data_is_counted_before_it_is_inflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = np.zeros((100, 40, 40)), np.zeros(100, dtype=np.int64)
    np.savez_compressed(tmp_path / "a.npz", train_x=images, train_y=labels, test_x=images, test_y=labels)
    load_data(f"npz:{tmp_path / 'a.npz'}")
    monkeypatch.setenv("TOPIARIST_READ_BYTES", "1000000")
    with pytest.raises(TopiaristError, match="3,842,") as refused:
        load_data(f"npz:{tmp_path / 'a.npz'}")
    monkeypatch.setenv("TOPIARIST_READ_BYTES", re.findall(r"TOPIARIST_READ_BYTES=(\d+)", str(refused.value))[0])
    load_data(f"npz:{tmp_path / 'a.npz'}")
    monkeypatch.setenv("TOPIARIST_READ_BYTES", "much")
    with pytest.raises(TopiaristError, match="must be a number of bytes"):
        load_data(f"npz:{tmp_path / 'a.npz'}")


@pytest.mark.parametrize("missing", range(7))
def test_an_architecture_that_cannot_run_is_refused_when_it_is_applied(missing: int) -> None:
    value = copy.deepcopy(SHAPE.to_json())
    tensor = value["groups"][0]["slices"].pop(missing)[0]
    forged = Architecture.from_json(json.loads(json.dumps({**value, "sha256": digest(value)})))
    inputs = X if tensor == "3.weight" else None  # that two layers do not fit each other is seen when they run
    with pytest.raises(TopiaristError, match="cannot run"):
        forged.apply(make(), inputs)
    SHAPE.apply(make(), X)
