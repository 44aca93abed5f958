"""The file: networks come back from it, and whatever else is in it costs a sentence, not the machine's memory."""

import json
import tracemalloc
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

import topiarist
from paper_format import paper_format
from topiarist import TopiaristError, compress
from topiarist.compress.binary import varint

LIMIT = 1 << 22
CODECS = (compress, paper_format)


def state() -> dict[str, torch.Tensor]:
    """A tensor for each coding there is."""
    rng = np.random.default_rng(0)
    book = rng.normal(size=15)
    value = torch.from_numpy(rng.choice(book, size=(40, 30)) * (rng.random((40, 30)) < 0.3)).float()
    columns = torch.from_numpy(rng.choice(book, size=(60, 40)) * (rng.random(40) < 0.2)).float()
    lines = torch.zeros(5000)
    lines[::50] = 1.5
    return {
        "dense": value,
        "gaps": lines,
        "rows": columns,
        "columns": columns.T.contiguous(),
        "plain": torch.from_numpy(rng.normal(size=30)),
        "again": value,
        "count": torch.tensor(3),
    }


def sealed(data: bytes) -> bytes:
    """With the checksum that belongs to it."""
    return data[:-4] + zlib.crc32(data[:-4]).to_bytes(4, "little")


def mutated(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Bits flipped, octets replaced, a part cut out, repeated, cut off, or taken from another file."""
    found = bytearray(data)
    a, b = sorted(rng.integers(0, len(data), 2).tolist())
    kind = rng.integers(6)
    if kind == 0:
        for at in rng.integers(0, len(data), rng.integers(1, 9)):
            found[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        found[a] = (0, 127, 128, 255)[rng.integers(4)]
    elif kind == 2:
        del found[a:b]
    elif kind == 3:
        found[a:a] = found[a:b]
    elif kind == 4:
        del found[a:]
    else:
        found[a:b] = other[a:b]
    return bytes(found)


def test_every_coding_is_among_the_tensors() -> None:
    codings = {row.coding for codec in CODECS for row in codec.pack(state())[1].rows}
    assert codings == {"dense", "gaps", "rows", "columns", "plain", "alias", "paper"}


@pytest.mark.parametrize("codec", CODECS)
def test_a_mutated_file_gives_an_error_or_what_was_written(codec: ModuleType) -> None:
    whole = state()
    data, other = codec.pack(whole)[0], compress.pack({"x": torch.ones(999)})[0]
    rng = np.random.default_rng(0)
    told = []
    for _ in range(2000):
        try:
            back = codec.unpack(mutated(data, other, rng), max_bytes=LIMIT)
            assert all(torch.equal(back[name], value) for name, value in whole.items())
        except TopiaristError as error:
            told.append(str(error))
    assert len(told) > 1900
    assert all("\n" not in sentence and len(sentence) < 300 for sentence in told)


@pytest.mark.parametrize(("codec", "count"), [(compress, 1500), (paper_format, 300)])
@pytest.mark.nightly
def test_a_forged_checksum_helps_nobody(codec: ModuleType, count: int) -> None:
    """Only values within a tensor can change unseen; memory stays within its limit, and nothing else is raised."""
    data, other = codec.pack(state())[0], compress.pack({"x": torch.ones(999)})[0]
    rng = np.random.default_rng(1)
    refused = 0
    tracemalloc.start()
    for _ in range(count):
        try:
            back = codec.unpack(sealed(mutated(data, other, rng)), max_bytes=LIMIT)
            assert sum(t.numel() * t.element_size() for t in back.values()) <= LIMIT
        except TopiaristError:
            refused += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused > count / 2
    assert peak < LIMIT


def forged(header: bytes, blobs: bytes = b"") -> bytes:
    return sealed(b"TPCF\x01" + varint(len(header)) + varint(0) + header + blobs + bytes(4))


def entry(shape: tuple[int, ...], coding: int, blob: bytes, dtype: int = 0) -> bytes:
    head = b"\1" + b"\1x" + bytes([dtype, coding]) + b"".join(map(varint, (len(shape), *shape, len(blob))))
    return forged(head, blob)


@pytest.mark.parametrize(
    "data",
    [
        entry((1 << 20, 1 << 19), 0, b""),  # two terabytes of plain values
        entry((1 << 30,), 0, b"\0"),
        entry((1 << 27,), 2, b"\1\0" + bytes(4)),  # of one code
        entry((1 << 26,), 3, varint(1 << 26) + b"\1\0" + bytes(4)),
        entry((1 << 13, 1 << 13), 4, varint(1 << 20) + b"\1\0" + bytes(4)),
        entry((1 << 26,), 6, varint(1 << 26) + b"\1\0" + bytes(4)),
        entry((1 << 22,), 0, b"\x80" + varint(11) + zlib.compress(bytes(1 << 24), 9)[2:-4]),  # a bomb
        sealed(b"TPCF\x01" + varint(4) + varint(1 << 28) + bytes(8)),  # a header of 256 MiB
        forged(varint(1 << 20)),  # a million tensors
        forged(b"\1" + varint(1 << 40)),  # a name of a terabyte
        forged(b"\1\1x\0\0" + varint(1 << 30)),  # a billion axes
    ],
)
@pytest.mark.parametrize("codec", CODECS)
def test_sizes_are_refused_before_memory_is_touched(data: bytes, codec: ModuleType) -> None:
    tracemalloc.start()
    with pytest.raises(TopiaristError):
        codec.unpack(data, max_bytes=LIMIT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < LIMIT


def large(coding: str) -> torch.Tensor:
    """A tensor of 250,000 values for each coding."""
    rng = np.random.default_rng(0)
    book = rng.normal(size=15)
    if coding == "plain":
        return torch.from_numpy(rng.normal(size=250_000)).float()
    if coding in ("rows", "columns"):
        rows = torch.from_numpy(rng.choice(book, size=(500, 500)) * (rng.random(500) < 0.2)).half()
        return rows if coding == "rows" else rows.T.contiguous()
    share = {"dense": 1, "gaps": 0.9, "paper": 0.9}[coding]
    values = rng.choice(book, size=250_000)
    return torch.from_numpy(np.where(np.arange(250_000) % 10 < 10 * share, values, 0)).half()


@pytest.mark.parametrize("coding", ["plain", "dense", "gaps", "rows", "columns", "paper"])
def test_reading_stays_within_the_least_limit_that_it_accepts(coding: str) -> None:
    codec = paper_format if coding == "paper" else compress
    data, report = codec.pack({"x": large(coding)})
    assert report.rows[0].coding == coding
    low, high = len(data), 1 << 28
    while high - low > 1 << 12:
        middle = (low + high) // 2
        try:
            codec.unpack(data, max_bytes=middle)
            high = middle
        except TopiaristError:
            low = middle
    tracemalloc.start()
    codec.unpack(data, max_bytes=high)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < high


def test_a_limit_is_met_by_what_fits() -> None:
    data, _ = compress.pack({"x": torch.ones(1 << 20)})
    with pytest.raises(TopiaristError, match="max_bytes"):
        compress.unpack(data, max_bytes=1 << 22)
    assert compress.unpack(data, max_bytes=1 << 25)["x"].sum() == 1 << 20


@pytest.mark.parametrize("version", [0, 3, 255])
def test_an_unknown_version_is_refused_by_name(version: int) -> None:
    data = bytearray(compress.pack(state())[0])
    data[4] = version
    for damaged in (bytes(data), sealed(bytes(data))):
        with pytest.raises(TopiaristError, match=f"version {version}, this release reads 1 and 2: upgrade"):
            compress.unpack(damaged)


@pytest.mark.parametrize("data", [b"", b"TPC", b"TPCF", b"TPCF\x01", b"PK\x03\x04" + bytes(99), b"TPCF\x01" + bytes(9)])
def test_other_files_are_told_apart(data: bytes) -> None:
    with pytest.raises(TopiaristError, match="compressed network"):
        compress.unpack(data)


def test_a_cut_network_comes_back_from_one_file(tmp_path: Path) -> None:
    make, path = topiarist.make_model("zoo:lenet5"), tmp_path / "deep" / "small.tpcf"
    x = torch.randn(3, 1, 28, 28)
    done = topiarist.prune(make(), x[:1], "l1", topiarist.Budget(ratio=0.3))
    shared = compress.share(done.model, 5)
    report = compress.save(shared.model, path, architecture=done.architecture)
    assert report.bytes == path.stat().st_size
    assert report.original == 4 * sum(p.numel() for p in make().parameters())
    assert report.ratio > 10
    assert [file.name for file in path.parent.iterdir()] == ["small.tpcf"]  # no draft is left
    model = compress.load_model(make, path)
    assert torch.equal(model(x), shared.model(x))
    stored = compress.load_architecture(path)
    assert stored is not None
    assert stored.widths == done.architecture.widths


@pytest.fixture(scope="module")
def sparse() -> topiarist.Pruned:
    model = topiarist.load_model("zoo:lenet300", width=0.2)
    return topiarist.prune(model, torch.zeros(1, 1, 28, 28), "magnitude", topiarist.Budget(ratio=0.08))


@pytest.mark.parametrize("exceptions", [False, True])
def test_masks_of_single_weights_are_told_by_zeros_and_come_back(
    sparse: topiarist.Pruned, exceptions: bool, tmp_path: Path
) -> None:
    state = {name: value.clone() for name, value in sparse.model.state_dict().items()}
    if exceptions:
        state["layers.1.weight"][0] = 1.0  # they were pruned
        state["layers.3.weight"][:] = 0.0  # some of them were kept, and lie in half of 16 bits
        state["layers.5.weight"][:] *= 1e-9
    report = compress.save(state, tmp_path / "x", architecture=sparse.architecture, half=exceptions)
    bare = compress.save(state, tmp_path / "bare", half=exceptions)
    assert (report.overhead, bare.architecture) == (bare.overhead, 0)
    assert report.bytes - bare.bytes == report.architecture == (tmp_path / "x").stat().st_size - bare.bytes
    assert exceptions or report.architecture < 400
    assert f"{report.architecture:,} the architecture" in str(report)
    stored = compress.load_architecture(tmp_path / "x")
    assert stored is not None
    assert stored.to_json() == sparse.architecture.to_json()
    model = compress.load_model(topiarist.make_model("zoo:lenet300", width=0.2), tmp_path / "x")
    assert all(torch.equal(value, compress.load(tmp_path / "x")[name]) for name, value in model.state_dict().items())


def test_a_forged_mask_gives_an_error_or_a_mask(sparse: topiarist.Pruned, tmp_path: Path) -> None:
    data, report = compress.pack(sparse.model.state_dict(), architecture=sparse.architecture)
    rng, refused = np.random.default_rng(0), 0
    for _ in range(300):
        found = bytearray(data)
        for at in rng.integers(5, 5 + report.overhead + report.architecture, rng.integers(1, 4)):
            found[at] ^= 1 << int(rng.integers(8))
        (tmp_path / "x").write_bytes(sealed(bytes(found)))
        try:
            stored = compress.load_architecture(tmp_path / "x", max_bytes=1 << 24)
            assert stored is None or all(mask.any() for mask in stored.keep.values())
        except TopiaristError:
            refused += 1
    assert refused > 200
    (tmp_path / "x").write_bytes(data)
    most = sum(mask.numel() for mask in sparse.keep.values())
    with pytest.raises(TopiaristError, match="max_bytes"):
        compress.load_architecture(tmp_path / "x", max_bytes=16 * most)


def test_a_whole_network_comes_back_with_its_buffers_and_ties(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into = nn.Linear(30, 20, bias=False)
            self.norm = nn.BatchNorm1d(20)
            self.out = nn.Linear(30, 20, bias=False)
            self.out.weight = self.into.weight

    model = Tied()
    model.norm(torch.randn(9, 20))
    report = compress.save(model, tmp_path / "x")
    assert {row.coding for row in report.rows} == {"gaps", "plain", "alias"}  # its zeros as gaps
    back = compress.load_model(Tied, tmp_path / "x")
    assert back.out.weight is back.into.weight
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in back.state_dict().items())
    assert compress.load_architecture(tmp_path / "x") is None


def test_a_file_of_another_network_is_refused_before_its_tensors_are_read(tmp_path: Path) -> None:
    compress.save({"weight": torch.ones(1 << 20), "bias": torch.ones(3)}, tmp_path / "x")
    with pytest.raises(TopiaristError, match=r"weight is \(1048576,\) and not \(3, 4\)"):
        compress.load_model(lambda: nn.Linear(4, 3), tmp_path / "x")
    compress.save({"weight": torch.ones(3, 4)}, tmp_path / "x")
    with pytest.raises(TopiaristError, match="bias is missing"):
        compress.load_model(lambda: nn.Linear(4, 3), tmp_path / "x")
    with pytest.raises(TopiaristError, match="makes the model"):
        compress.load_model("zoo:lenet5", tmp_path / "x")  # type: ignore[arg-type]


def test_a_forged_architecture_is_refused() -> None:
    from topiarist.compress.container import File, write
    from topiarist.compress.shape import of_file

    told = [{"told": "eJwDAAAAAAE="}, {"told": 3, "name": "x"}, {"told": "?", "name": []}, "told", 3]
    texts = [json.dumps({"format": "topiarist.architecture", "version": 1, "groups": [entry]}) for entry in told]
    for text in ("[", "[1]", "[" * 5000, json.dumps({"format": "x"}), *texts):
        data, *_ = write({}, {"architecture": text})
        for tensors in ({"x": torch.ones(3)}, None):
            with pytest.raises(TopiaristError):
                of_file(File.read(data), tensors)


def test_places_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(TopiaristError, match="cannot read"):
        compress.load(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(TopiaristError, match="cannot write"):
        compress.save({}, tmp_path / "file" / "x")
    (tmp_path / "large").write_bytes(bytes(1000))
    with pytest.raises(TopiaristError, match="max_bytes"):
        compress.load(tmp_path / "large", max_bytes=500)
