"""The codec of compressed networks: how near the entropy, how fast, and what mutated files can do to it.

    python benchmarks/codec.py [--mutations 100000] [--repeats 9]

Random tensors of Laplacian weights, the largest kept, shared among clusters by k-means; sizes and densities of a
LeNet-300-100 and a LeNet-5 among them. The same symbols, a byte each, go through zlib, lzma and, where it is installed,
zstandard. One thread. Writes ``codec.md`` and ``codec.json`` beside this script.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import lzma
import math
import os
import platform
import statistics
import sys
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

from topiarist import TopiaristError, __version__, compress
from topiarist.compress.binary import varint

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "lenets"))
import paper_format  # noqa: E402  (beside the benchmark whose column it fills)

CODECS = {"default": compress, "paper": paper_format}
LIMIT = 1 << 24
MILLION = (1000, 1000)
LENET_300 = {"fc1": ((300, 784), 0.08, 63), "fc2": ((100, 300), 0.09, 63), "fc3": ((10, 100), 0.26, 63)}
LENET_5 = {
    "conv1": ((20, 1, 5, 5), 0.66, 255),
    "conv2": ((50, 20, 5, 5), 0.12, 255),
    "fc1": ((500, 800), 0.08, 31),
    "fc2": ((10, 500), 0.19, 31),
}
CASES = {
    "a million, 90 % zeros, 32 clusters": {"weight": (MILLION, 0.1, 32)},
    "a million, 99 % zeros, 32 clusters": {"weight": (MILLION, 0.01, 32)},
    "a million, no zeros, 32 clusters": {"weight": (MILLION, 1.0, 32)},
    "LeNet-300-100, Han's densities, 6 bits": LENET_300,
    "LeNet-5, Han's densities, 8 and 5 bits": LENET_5,
}


def tensor(shape: tuple[int, ...], density: float, clusters: int, seed: int) -> torch.Tensor:
    """The largest of Laplacian weights, shared; few clusters of the linear start stay empty."""
    weights = np.random.default_rng(seed).laplace(size=math.prod(shape))
    weights[np.abs(weights) < np.quantile(np.abs(weights), 1 - density)] = 0
    places = np.flatnonzero(weights)
    found = compress.cluster(weights[places], clusters)
    weights[places] = found.centroids[found.labels]
    return torch.from_numpy(weights.reshape(shape)).float()


def timed(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median wall and CPU seconds."""
    wall, cpu = [], []
    for _ in range(repeats):
        a, b = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - a)
        cpu.append(time.process_time() - b)
    return statistics.median(wall), statistics.median(cpu)


def rates(pack: Callable[[], bytes], unpack: Callable[[bytes], object], weights: int, repeats: int) -> dict[str, float]:
    data = pack()
    encode, decode = timed(pack, repeats), timed(lambda: unpack(data), repeats)
    names = ("encode", "encode_cpu", "decode", "decode_cpu")
    return {"bytes": len(data), **dict(zip(names, (weights / s / 1e6 for s in (*encode, *decode)), strict=True))}


def measure(case: dict, repeats: int) -> dict:
    state = {name: tensor(*how, seed) for seed, (name, how) in enumerate(case.items())}
    weights = sum(t.numel() for t in state.values())
    rows: dict[str, dict] = {}
    for name, codec in CODECS.items():
        _, report = codec.pack(state)
        again = repeats if codec is compress else min(repeats, 3)
        found = rates(lambda codec=codec: codec.pack(state)[0], codec.unpack, weights, again)
        back = codec.unpack(codec.pack(state)[0])
        assert all(torch.equal(back[name], value) for name, value in state.items())
        books = sum(row.codebook for row in report.rows)
        rest = report.bytes - report.payload - books - report.overhead
        parts = {"payload": report.payload, "codebooks": books, "overhead": report.overhead, "models": rest}
        rows[name] = found | parts | {"codings": [row.coding for row in report.rows]}
    symbols = [np.unique(t.numpy(), return_inverse=True)[1].astype(np.uint8).tobytes() for t in state.values()]
    plain = b"".join(symbols)
    for name, pack, unpack in others():
        rows[name] = rates(lambda pack=pack: pack(plain), unpack, weights, min(repeats, 3))
        rows[name]["payload"] = rows[name]["bytes"]
    return {"weights": weights, "bound": report.bound, "rows": rows}


def others() -> list[tuple[str, Callable[[bytes], bytes], Callable[[bytes], bytes]]]:
    found = [
        ("zlib, level 9", lambda data: zlib.compress(data, 9), zlib.decompress),
        ("lzma, preset 9", lambda data: lzma.compress(data, preset=9), lzma.decompress),
    ]
    if importlib.util.find_spec("zstandard"):
        import zstandard

        packer, unpacker = zstandard.ZstdCompressor(level=19), zstandard.ZstdDecompressor()
        found.append(("zstandard, level 19", packer.compress, unpacker.decompress))
    return found


# ---- mutated files --------------------------------------------------------------------------------------------------


def sealed(data: bytes) -> bytes:
    return data[:-4] + zlib.crc32(data[:-4]).to_bytes(4, "little")


def mutated(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Bits flipped, an octet replaced, a part cut out, repeated, cut off, or spliced in from another file."""
    found = bytearray(data)
    a, b = sorted(rng.integers(0, len(data), 2).tolist())
    match rng.integers(6):
        case 0:
            for at in rng.integers(0, len(data), rng.integers(1, 9)):
                found[at] ^= 1 << int(rng.integers(8))
        case 1:
            found[a] = (0, 127, 128, 255)[rng.integers(4)]
        case 2:
            del found[a:b]
        case 3:
            found[a:a] = found[a:b]
        case 4:
            del found[a:]
        case _:
            found[a:b] = other[a:b]
    return bytes(found)


def hostile(data: bytes, rng: np.random.Generator) -> bytes:
    """A header that lies about types, codings and sizes up to 2^40, before octets that a true file had."""

    def number() -> int:
        return int(2 ** rng.uniform(0, 40)) - 1

    count = int(rng.integers(1, 5))
    header = varint(count if rng.random() < 0.9 else number())
    for i in range(count):
        shape = [number() if rng.random() < 0.4 else int(rng.integers(0, 99)) for _ in range(rng.integers(0, 5))]
        length = number() if rng.random() < 0.2 else int(rng.integers(0, len(data) // count))
        header += b"\1" + bytes([97 + i, rng.integers(20), rng.integers(9)])
        header += b"".join(map(varint, (len(shape), *shape, length)))
    start = int(rng.integers(len(data)))
    body = varint(len(header)) + varint(0 if rng.random() < 0.8 else number()) + header + data[start:] + data[:start]
    return sealed(data[:5] + body)


def small_state(seed: int) -> dict[str, torch.Tensor]:
    """Few weights, so that many files can be tried; every coding is among them."""
    rng = np.random.default_rng(seed)
    columns = tensor((60, 40), 0.9, 15, seed)
    columns[:, rng.random(40) < 0.8] = 0
    lines = torch.zeros(5000)
    lines[::50] = 1.5
    one = tensor((40, 30), 0.3, 15, seed)
    plain = torch.from_numpy(rng.normal(size=30))
    return {"a": one, "b": lines, "c": columns, "d": columns.T.contiguous(), "e": plain, "f": one, "g": torch.tensor(3)}


def fresh_peak() -> int:
    """Forget the process's peak of memory, and look at it again: bytes (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def attack(count: int, kind: str, mode: str) -> dict:
    """So many files of a kind, in a process of its own, whose peak memory is looked at."""
    whole = small_state(0)
    codec = CODECS[mode]
    data, other = codec.pack(whole)[0], codec.pack(small_state(1))[0]
    rng = np.random.default_rng(0)
    told = {"refused": 0, "right": 0, "other values": 0}
    longest = 0
    for _ in range(50):
        codec.unpack(data, max_bytes=LIMIT)
    before = fresh_peak()
    for _ in range(count):
        if kind == "hostile header":
            file = hostile(data, rng)
        else:
            file = mutated(data, other, rng)
            file = sealed(file) if kind == "checksum forged" else file
        try:
            back = codec.unpack(file, max_bytes=LIMIT)
        except TopiaristError as error:
            told["refused"] += 1
            longest = max(longest, len(str(error)))
            continue
        same = back.keys() == whole.keys() and all(torch.equal(back[name], value) for name, value in whole.items())
        assert sum(t.numel() * t.element_size() for t in back.values()) <= LIMIT
        told["right" if same else "other values"] += 1
    grown = peak() - before
    return {"kind": kind, "mode": mode, "files": count, **told, "longest_sentence": longest, "grown": grown}


def attacks(count: int) -> list[dict]:
    plan = [(kind, mode) for kind in ("as it is", "checksum forged", "hostile header") for mode in CODECS]
    rows = []
    for kind, mode in plan:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            rows.append(pool.submit(attack, math.ceil(count / len(plan)), kind, mode).result())
            print(rows[-1], file=sys.stderr)
    return rows


# ---- report ---------------------------------------------------------------------------------------------------------


def table(result: dict) -> str:
    system = f"One thread of {platform.machine()}, topiarist {__version__}, torch {torch.__version__}"
    lines = [
        "# The codec: bytes against entropy, speed, and mutated files",
        "",
        "Laplacian weights, the largest kept, shared by k-means. The entropy is that of the symbols of each tensor, "
        "zeros included, one by one. The payload is what the symbols take; codebooks, models (the counts that the "
        "coder needs; in the paper's mode the lengths of Huffman's words) and header (with the checksum) come on top, "
        "and all of it is in the file. Rates count all weights, zeros too: millions a second, median of wall time, in "
        "brackets of CPU time; other work may have run beside. The other compressors take the symbols as a byte "
        f"each. {system}. Rerun: `python benchmarks/codec.py`.",
    ]
    for title, case in result["cases"].items():
        lines += ["", f"## {title[0].upper()}{title[1:]}", ""]
        lines += [f"{case['weights']:,} weights, entropy {case['bound']:,.0f} bytes.", ""]
        lines += ["| | file | payload / entropy | payload | codebooks | models | header | encode | decode | codings |"]
        lines += ["|---|---|---|---|---|---|---|---|---|---|"]
        for name, row in case["rows"].items():
            parts = [f"{row[k]:,.0f}" if k in row else "" for k in ("payload", "codebooks", "models", "overhead")]
            speeds = [f"{row[k]:.1f} ({row[k + '_cpu']:.1f})" for k in ("encode", "decode")]
            ratio = f"{row['payload'] / case['bound']:.4f}"
            cells = [name, f"{row['bytes']:,}", ratio, *parts, *speeds, ", ".join(row.get("codings", []))]
            lines.append(f"| {' | '.join(cells)} |")
    files = sum(row["files"] for row in result["attacks"])
    lines += [
        "",
        "## Mutated files",
        "",
        f"{files:,} files: bits flipped, octets replaced, parts cut out, repeated, cut off or spliced in from another "
        "file, as they are or with the checksum that belongs to the mutated file; and headers that lie about types, "
        f"codings and sizes up to 2^40. Memory is limited to {LIMIT >> 20} MiB a file (`max_bytes`); the last column "
        "says how far the process's memory rose above what it held before, at its peak over all of them. A file whose "
        "checksum was forged may decode to other values, as any file may that someone else wrote; it can do nothing "
        "else. No other exception was raised.",
        "",
        "| mutation | mode | files | refused | right content | other values | longest sentence | memory rose by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["attacks"]:
        counts = [f"{row[k]:,}" for k in ("files", "refused", "right", "other values", "longest_sentence")]
        grown = f"{row['grown'] / 2**20:.1f} MiB"
        lines.append(f"| {' | '.join([row['kind'], row['mode'], *counts, grown])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mutations", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = {}
    for name, case in CASES.items():
        cases[name] = measure(case, options.repeats)
        print(name, json.dumps(cases[name], indent=1), file=sys.stderr)
    result = {"cases": cases, "attacks": attacks(options.mutations)}
    (HERE / "codec.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (HERE / "codec.md").write_text(table(result), encoding="utf-8")


if __name__ == "__main__":
    main()
