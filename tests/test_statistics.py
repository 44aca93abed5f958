"""Means, spreads and paired intervals, by hand; and what a verdict may say."""

import math

import pytest

from topiarist.studies import Difference, paired, summarise, verdict


def test_summary_by_hand():
    assert summarise([1.0, 2.0, 6.0]).mean == 3.0
    assert summarise([1.0, 2.0, 6.0]).std == pytest.approx(math.sqrt(7.0))  # (4 + 1 + 9) / 2
    assert summarise([5.0]).std is None
    assert str(summarise([5.0])) == "5.00"
    with pytest.raises(ValueError, match="no values"):
        summarise([])


def test_paired_interval_by_hand():
    # differences 1.0, 1.1, 1.2: mean 1.1, standard deviation 0.1; t(2, 0.975) = 4.302653
    difference = paired({0: 91.0, 1: 92.1, 2: 93.2}, {2: 92.0, 1: 91.0, 0: 90.0})
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert difference.mean == pytest.approx(1.1)
    assert difference.low == pytest.approx(1.1 - half, abs=1e-6)
    assert difference.high == pytest.approx(1.1 + half, abs=1e-6)
    assert difference.n == 3
    assert difference.significant


def test_paired_uses_the_seeds_that_both_have():
    assert paired({0: 1.0, 1: 3.0, 7: 50.0}, {0: 0.0, 1: 2.5, 8: 0.0}).n == 2
    with pytest.raises(ValueError, match="no seed"):
        paired({0: 1.0}, {1: 1.0})


def test_pairing_sees_what_the_spread_between_seeds_hides():
    a, b = {0: 80.0, 1: 90.0, 2: 99.0}, {0: 79.0, 1: 88.9, 2: 97.9}
    assert paired(a, b).significant
    assert not paired(a, {0: b[1], 1: b[2], 2: b[0]}).significant


@pytest.mark.parametrize(
    ("difference", "told"),
    [
        (Difference(0.8, 0.2, 1.4, 3), "A outperforms B by 0.80 points (95 % CI 0.20 to 1.40, n = 3 seeds)"),
        (Difference(-0.8, -1.4, -0.2, 5), "B outperforms A by 0.80 points (95 % CI 0.20 to 1.40, n = 5 seeds)"),
        (
            Difference(0.5, -0.2, 1.2, 3),
            "no significant difference between A and B (95 % CI −0.20 to +1.20 points, n = 3 seeds)",
        ),
        (
            Difference(0.2, 0.2, 0.2, 3),
            "no significant difference between A and B: all 3 seeds differ by +0.20 points, which gives no interval",
        ),
        (
            Difference(0.0, 0.0, 0.0, 3),
            "no significant difference between A and B: the same accuracy at each of 3 seeds",
        ),
        (
            Difference(0.2, None, None, 1),
            "no significant difference between A and B: one seed gives no interval (+0.20 points)",
        ),
    ],
)
def test_verdict(difference, told):
    assert verdict("A", "B", difference) == told
    assert difference.significant == ("outperforms" in told)


def test_an_interval_that_ends_at_zero_is_not_significant():
    assert not Difference(0.5, 0.0, 1.0, 3).significant


def test_equal_differences_are_not_significant():
    difference = paired({0: 90.4, 1: 91.2, 2: 95.2}, {0: 90.2, 1: 91.0, 2: 95.0})
    assert difference.low == difference.high
    assert not difference.significant
