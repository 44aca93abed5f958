"""Laws of the codec: what was written comes back to the last bit, and it takes little more than its entropy."""

import math
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paper_format import paper_format
from topiarist import TopiaristError, compress

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
OTHERS = [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool, torch.complex64, torch.complex128]
SHAPES = [(), (0,), (1,), (7,), (64,), (3, 0, 2), (40, 30), (300, 80), (8, 3, 5, 5), (2, 3, 4, 5, 6)]


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal in type, shape and every bit, those of NaN and -0 too."""
    octets = [x.contiguous().reshape(-1).view(torch.uint8) if x.numel() else x for x in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*octets)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Tensors of any type, sparsity, structure of the zeros, and number of distinct values."""
    shape = draw(st.sampled_from(SHAPES))
    dtype = draw(st.sampled_from(FLOATS + OTHERS))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    book = rng.normal(size=draw(st.sampled_from([1, 2, 15, 300, 100_000]))) * draw(st.sampled_from([1, 1e3, 1e-6]))
    values = rng.choice(book, size=shape)
    density = draw(st.sampled_from([0, 0.01, 0.1, 0.7, 1]))
    mask = rng.random(shape) < density
    if len(shape) > 1 and draw(st.booleans()):
        mask &= rng.random(shape[1:]) < 0.2  # whole columns are zero
    if len(shape) > 1 and draw(st.booleans()):
        mask &= (rng.random(shape[0]) < 0.2).reshape(-1, *[1] * (len(shape) - 1))  # whole rows
    found = torch.from_numpy(np.asarray(values * mask))
    if dtype.is_floating_point and draw(st.booleans()) and found.numel() > 3:
        found.view(-1)[:3] = torch.tensor([float("nan"), -0.0, float("-inf")])
    return found.to(dtype)


@given(st.lists(tensors(), max_size=4), st.sampled_from([compress, paper_format]))
def test_what_was_written_comes_back(values: list[torch.Tensor], codec: ModuleType) -> None:
    state = {f"layer{i}.weight": value for i, value in enumerate(values)}
    data, report = codec.pack(state)
    back = codec.unpack(data)
    assert list(back) == list(state)
    assert all(same(back[name], value) for name, value in state.items())
    assert report.bytes == len(data)


@given(tensors(), st.integers(1, 12))
def test_the_papers_format_keeps_everything_at_any_width(value: torch.Tensor, bits: int) -> None:
    data, _ = paper_format.pack({"x": value}, index_bits=bits)
    assert same(paper_format.unpack(data)["x"], value)


def laplacian(shape: tuple[int, ...], density: float, codes: int, seed: int = 0) -> torch.Tensor:
    """The largest of Laplacian weights, shared."""
    rng = np.random.default_rng(seed)
    weights = rng.laplace(size=math.prod(shape))
    weights[np.abs(weights) < np.quantile(np.abs(weights), 1 - density)] = 0
    places = np.flatnonzero(weights)
    found = compress.cluster(weights[places], codes)
    weights[places] = found.centroids[found.labels]
    return torch.from_numpy(weights.reshape(shape)).float()


@pytest.mark.parametrize(("shape", "density"), [((300, 784), 0.08), ((100, 300), 0.09), ((50, 20, 5, 5), 0.12)])
def test_the_symbols_take_hardly_more_than_their_entropy(shape: tuple[int, ...], density: float) -> None:
    value = laplacian(shape, density, 31)
    _, report = compress.pack({"x": value})
    symbols = torch.unique(value, return_counts=True)[1].double()
    bound = float(-(symbols * (symbols / value.numel()).log2()).sum()) / 8
    assert report.bound == pytest.approx(bound, rel=1e-12)
    assert report.rows[0].coding in ("dense", "gaps")
    assert bound * 0.999 < report.payload < bound * 1.01
    # the model (counts of values and gaps), lengths and checksum are the rest
    assert report.bytes < report.payload + report.rows[0].codebook + 100


def test_a_mask_with_empty_columns_takes_less_than_symbols_by_themselves_can() -> None:
    """Rows tell later rows which columns are in use."""
    value = laplacian((300, 784), 0.5, 31)
    value[:, torch.rand(784, generator=torch.Generator().manual_seed(0)) < 0.8] = 0
    _, report = compress.pack({"x": value})
    _, across = compress.pack({"x": value.T.contiguous()})
    assert report.rows[0].coding == "rows"
    assert across.rows[0].coding == "columns"
    assert report.bytes < 0.85 * report.bound
    assert abs(report.bytes - across.bytes) < 16


def test_a_sparse_tensor_without_a_codebook_stores_its_nonzero_values_alone() -> None:
    value = torch.zeros(1000, 50)
    value.view(-1)[::37] = torch.randn(1352, generator=torch.Generator().manual_seed(0))
    data, report = compress.pack({"x": value})
    assert report.rows[0].coding == "gaps"
    assert len(data) < 1352 * 4 + 100  # every gap is the same: positions cost nothing
    assert same(compress.unpack(data)["x"], value)


def test_what_16_bits_hold_takes_16_bits() -> None:
    value = torch.randn(5000, generator=torch.Generator().manual_seed(0)).half().float()
    data, _ = compress.pack({"x": value})
    assert len(data) < 10_050
    assert same(compress.unpack(data)["x"], value)


def test_half_rounds_codebooks_and_biases_to_16_bits() -> None:
    state = {"weight": laplacian((50, 60), 0.1, 15), "bias": torch.randn(50), "seen": torch.tensor(7)}
    small, whole = compress.pack(state, half=True)[0], compress.pack(state)[0]
    back = compress.unpack(small)
    assert len(small) < len(whole) - 100
    assert all(same(back[name], state[name].half().float()) for name in ("weight", "bias"))
    assert same(back["seen"], state["seen"])
    with pytest.raises(TopiaristError, match="leave half out"):
        compress.pack({"x": torch.tensor([1e6])}, half=True)


def test_tied_tensors_are_stored_once() -> None:
    one = torch.randn(100, 20)
    data, report = compress.pack({"a": one, "b": one.clone(), "c": one, "d": one.T})
    back = compress.unpack(data)
    assert back["c"] is back["a"]
    assert [row.coding for row in report.rows] == ["plain", "plain", "alias", "plain"]
    assert report.dense == 3 * 4 * 2000
    assert same(back["d"], one.T)


@pytest.mark.parametrize("seed", range(3))
def test_a_lenet_has_a_short_header(seed: int) -> None:
    import topiarist

    torch.manual_seed(seed)
    _, report = compress.pack(topiarist.load_model("zoo:lenet5").state_dict())
    assert report.overhead < 200


def test_gaps_of_all_magnitudes_come_back() -> None:
    from topiarist.compress.ans import Reader, Writer
    from topiarist.compress.gaps import Gaps

    gaps = np.concatenate([np.arange(600), 2 ** np.arange(20), 2 ** np.arange(1, 21) - 1])
    positions = np.cumsum(gaps + 1) - 1
    writer = Writer()
    Gaps(positions).put(writer)
    stream, _ = writer.finish()
    assert np.array_equal(Gaps.take(Reader(stream), len(positions)), positions)


@pytest.mark.parametrize(
    "state", [{"x": torch.eye(3).to_sparse()}, {"x": torch.empty(3, device="meta")}, {"x": {"a": 1}}], ids=repr
)
def test_what_has_no_place_in_a_file_is_named(state: dict) -> None:
    with pytest.raises(TopiaristError, match="x is"):
        compress.pack(state)


@pytest.mark.parametrize("bits", [13, 0, "5", 2.5])
def test_widths_of_the_papers_format_that_cannot_be(bits: object) -> None:
    with pytest.raises(TopiaristError, match="from 1 to 12"):
        paper_format.pack({}, index_bits=bits)
