"""Timing: the order of rounds, medians and their intervals, and batches of a size; no time is measured here."""

import itertools
from collections.abc import Callable
from math import comb

import pytest
import torch

from topiarist.errors import TopiaristError
from topiarist.graph import batch_of
from topiarist.measure import Median, Rounds, interleaved


class Fake:
    """Networks that take as long as they are told, and the clock that they move."""

    def __init__(self, **seconds: float) -> None:
        self.now, self.ran = 0.0, []
        self.runs = {name: self._run(name, each) for name, each in seconds.items()}

    def _run(self, name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.ran.append(name)
            self.now += seconds

        return run

    def clock(self) -> float:
        return self.now


def rounds_of(ran: list[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(ran[at : at + size]) for at in range(0, len(ran), size)]


def test_every_round_runs_each_network_once_in_an_order_of_its_own() -> None:
    fake = Fake(a=1.0, b=2.0, c=4.0)
    times = list(interleaved(fake.runs, Rounds(count=40, warmup=2), clock=fake.clock))
    orders = rounds_of(fake.ran, 3)
    assert len(orders) == 2 + 40
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert set(orders) == set(itertools.permutations("abc"))
    assert times == [{"a": 1.0, "b": 2.0, "c": 4.0}] * 40
    assert list(times[0]) == ["a", "b", "c"]


def test_the_order_follows_from_the_seed() -> None:
    ran = []
    for seed in (0, 0, 1):
        fake = Fake(a=1.0, b=1.0, c=1.0)
        list(interleaved(fake.runs, Rounds(count=10, seed=seed), clock=fake.clock))
        ran.append(fake.ran)
    assert ran[0] == ran[1] != ran[2]


def test_no_round_begins_when_the_time_is_over_and_one_is_always_measured() -> None:
    fake = Fake(a=1.0, b=2.0)
    assert len(list(interleaved(fake.runs, Rounds(seconds=10.0, warmup=5), clock=fake.clock))) == 4
    fake = Fake(a=100.0)
    assert len(list(interleaved(fake.runs, Rounds(seconds=1.0), clock=fake.clock))) == 1


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"count": 0}, "count of the rounds must be at least 1"),
        ({"warmup": -1}, "warmup of the rounds must be at least 0"),
        ({"seconds": 0}, "seconds of the rounds must be above 0"),
        ({"count": 1.5}, "count of the rounds must be a whole number"),
    ],
)
def test_rounds_that_cannot_be(fields: dict[str, object], told: str) -> None:
    with pytest.raises(TopiaristError, match=told):
        Rounds(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("n", "ends"),
    [(1, None), (5, None), (6, (1, 6)), (8, (1, 8)), (9, (2, 8)), (20, (6, 15)), (100, (40, 61))],
)
def test_intervals_of_a_median_are_those_of_the_tables(n: int, ends: tuple[int, int] | None) -> None:
    """The ranks that tables of the sign test give at 95 %."""
    found = Median.of(range(n, 0, -1))
    assert (found.low, found.high) == (ends or (None, None))
    assert (found.value, found.n) == ((n + 1) / 2, n)
    if ends is not None:
        covered = [1 - 2 * sum(comb(n, k) for k in range(rank)) / 2**n for rank in (ends[0], ends[0] + 1)]
        assert covered[0] >= 0.95 > covered[1]
        assert found.spread == (ends[1] - ends[0]) / 2


def test_many_samples_are_no_trouble() -> None:
    found = Median.of(range(10_001)).scaled(1e-3)
    assert found.value == 5.0
    assert found.low == pytest.approx(4.902, abs=0.002)
    assert found.high == pytest.approx(5.098, abs=0.002)


def test_a_batch_of_any_size_has_the_same_examples() -> None:
    inputs = {
        "x": torch.arange(6.0).reshape(2, 3),
        "mask": torch.tensor([True, False]),
        "scale": torch.ones(()),
        "k": 3,
    }
    inputs["positions"] = torch.arange(5)
    five = batch_of(inputs, 5)
    assert five["x"].shape == (5, 3)
    assert five["x"][:, 0].tolist() == [0, 3, 0, 3, 0]
    assert five["mask"].tolist() == [True, False, True, False, True]
    assert five["positions"] is inputs["positions"]
    assert five["k"] == 3
    assert torch.equal(batch_of(inputs, 1)["x"], inputs["x"][:1])
    assert batch_of(inputs, 2)["x"] is inputs["x"]
