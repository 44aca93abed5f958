"""The paper's format against what can be computed by hand."""

import heapq

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paper_format import paper_format
from topiarist.compress.ans import DamagedError


def test_the_papers_figure_2() -> None:
    """Weights at 1, 4 and 15, spans of 3 bits: 15 is more than 8 from 4, so a zero is stored at 12."""
    steps, real = paper_format.with_fillers(np.array([1, 4, 15]), 8)
    assert steps.tolist() == [2, 3, 8, 3]  # the first one counts from the place before the tensor
    assert real.tolist() == [True, True, False, True]
    assert (np.cumsum(steps) - 1).tolist() == [1, 4, 12, 15]


def test_what_the_figure_takes_is_counted_as_in_the_paper() -> None:
    value = torch.zeros(16)
    value[[1, 4, 15]] = torch.tensor([3.4, 0.9, 1.7])
    value = value.repeat(4)  # so that a codebook pays
    data, _ = paper_format.pack({"x": value}, index_bits=3)
    counts = paper_format.bits_of_a_weight(value, 3)
    assert torch.equal(paper_format.unpack(data)["x"], value)
    assert counts["stored"] == 16  # three weights and a filler, four times over
    assert counts["fillers"] == 4
    assert counts["code_bits"] == 2  # three values and zero
    assert counts["index_bits"] == 3
    assert counts["code_bits_huffman"] == 2  # four codes, equally frequent


def test_huffmans_tree_by_hand() -> None:
    """Counts 45, 13, 12, 16, 9, 5: merging 5 + 9, 12 + 13, 14 + 16, 25 + 30, 45 + 55 gives 1, 3, 3, 3, 4, 4 bits."""
    lengths = paper_format.lengths(np.array([45, 13, 12, 16, 9, 5]))
    assert lengths.tolist() == [1, 3, 3, 3, 4, 4]
    words = [f"{word:0{n}b}" for word, n in zip(paper_format.codes(lengths), lengths, strict=True)]
    assert words == ["0", "100", "101", "110", "1110", "1111"]
    assert paper_format.encode_words(np.array([0, 1, 5]), lengths) == bytes([0b01001111])


def cost(counts: list[int]) -> int:
    """Bits of Huffman's code: the sum of all merged counts."""
    heap, total = [c for c in counts if c], 0
    heapq.heapify(heap)
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return total


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=60))
def test_huffmans_code_is_optimal_and_whole(counts: list[int]) -> None:
    if sum(c > 0 for c in counts) < 2:
        counts = [1, 1]
    lengths = paper_format.lengths(np.array(counts))
    assert int(lengths @ np.array(counts)) == cost(counts)
    assert sum(2.0**-n for n in lengths[lengths > 0]) == 1


@given(st.lists(st.integers(0, 30), max_size=300))
def test_words_come_back(symbols: list[int]) -> None:
    found = np.array(symbols, dtype=np.int64)
    lengths = paper_format.lengths(np.bincount(found, minlength=31))
    data = paper_format.encode_words(found, lengths)
    assert paper_format.decode_words(data, len(found), lengths).tolist() == symbols
    if symbols:
        with pytest.raises(DamagedError):
            paper_format.decode_words(data, len(found) + 8, lengths)
        with pytest.raises(DamagedError):
            paper_format.decode_words(data + b"\0", len(found), lengths)


def test_fibonaccis_counts_give_the_longest_words() -> None:
    counts = [1, 1]
    while len(counts) < 20:
        counts.append(counts[-1] + counts[-2])
    symbols = np.repeat(np.arange(20), counts)
    lengths = paper_format.lengths(np.array(counts))
    assert lengths.max() == 19
    assert np.array_equal(
        paper_format.decode_words(paper_format.encode_words(symbols, lengths), len(symbols), lengths), symbols
    )


@given(st.lists(st.integers(1, 100), max_size=50), st.integers(1, 16))
def test_fillers_lead_to_the_same_places(steps: list[int], span: int) -> None:
    positions = np.cumsum(np.array(steps, dtype=np.int64)) - 1
    stored, real = paper_format.with_fillers(positions, span)
    assert np.array_equal((np.cumsum(stored) - 1)[real], positions)
    assert all(1 <= step <= span for step in stored.tolist())
    assert int((~real).sum()) == sum((step - 1) // span for step in steps)
