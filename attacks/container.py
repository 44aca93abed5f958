"""Compressed networks, ``.tpcf``: damaged bytes, and forged ones with a right checksum.

Defended: what is read without forging equals what was written; the sizes in a header, the memory and the time of
decoding are counted before they are spent; the shape in it is checked as that of ``architecture.json``.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from random import Random

import torch
from harness import attack, mutated
from torch import nn

from topiarist import Architecture, compress, cut, trace

SIZES = (0, 1, 127, 2**14, 2**21, 2**27, 2**28, 2**35)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 20))


MODEL = network()
GRAPH = trace(MODEL, torch.ones(1, 30)).weights()
GENERATOR = torch.Generator().manual_seed(0)
KEEP = {group.name: torch.rand(group.units, generator=GENERATOR) < 0.2 for group in GRAPH.groups}
SPARSE = compress.share(cut(MODEL, GRAPH, KEEP), 3).model
STATE = {**SPARSE.state_dict(), "ones": torch.ones(5000), "row": (torch.rand(60, 50, generator=GENERATOR) < 0.1) * 1.0}
FILES = (
    compress.pack(SPARSE.state_dict(), architecture=Architecture.of(GRAPH, KEEP))[0],
    compress.pack(STATE)[0],
)


def varint(number: int) -> bytes:
    groups = []
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])


def forged(data: bytes, random: Random) -> bytes:
    """Returns a file in whose header numbers are others, with the checksum that belongs to it."""
    made = mutated(data[:-4], random) if random.random() < 0.5 else data[:-4]
    place = random.randrange(5, max(6, len(made)))
    if random.random() < 0.7:
        made = made[:place] + varint(random.choice(SIZES)) + made[place + random.randint(0, 3) :]
    return made + zlib.crc32(made).to_bytes(4, "little")


def bomb(random: Random) -> bytes:
    """Returns a small file whose header announces large tensors, each in a few bytes."""
    header = bytearray(varint(count := random.randint(1, 20)))
    blobs = b""
    for number in range(count):
        blob = random.choice((b"\0", varint(1) + b"\0" + bytes(4), random.randbytes(12), b"\1\0\0\0\0\0\1"))
        shape = [random.choice(SIZES) for _ in range(random.randint(1, 3))]
        header += varint(2) + f"a{number % 10}".encode() + bytes([random.randrange(17), random.randrange(7)])
        header += b"".join(map(varint, (len(shape), *shape, len(blob))))
        blobs += blob
    made = b"TPCF\2" + varint(len(header)) + b"\0" + bytes(header) + blobs
    return made + zlib.crc32(made).to_bytes(4, "little")


def attempt(random: Random, folder: Path) -> None:
    file, data = folder / "network.tpcf", random.choice(FILES)
    kind = random.choice(("damaged", "forged", "bomb"))
    made = bomb(random) if kind == "bomb" else (mutated if kind == "damaged" else forged)(data, random)
    file.write_bytes(made)
    if data is FILES[0] and random.random() < 0.2:
        compress.load_model(network, file)
    tensors, _ = compress.load_both(file)
    if kind == "damaged":
        assert compress.pack(tensors)[0] == compress.pack(compress.unpack(data))[0]
    summed = [value for value in tensors.values() if value.is_floating_point() and value.element_size() > 1]
    assert sum(float(value.nansum()) for value in summed) is not None


if __name__ == "__main__":
    attack(attempt, 2_000)
