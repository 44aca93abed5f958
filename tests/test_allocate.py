"""Budgets: the laws of both allocations over random groups, and every refusal."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import ceil, prod
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import topiarist
from topiarist.budget import Budget, allocate, cost
from topiarist.errors import TopiaristError
from topiarist.graph import Group, Slice
from topiarist.measure import collect
from topiarist.methods import make
from topiarist.pruning import choose


@dataclass
class Groups:
    """What `allocate` asks of a graph."""

    groups: tuple[Group, ...]
    solution = SimpleNamespace(record=SimpleNamespace(types={}))

    @property
    def shapes(self):
        return {part.tensor: (group.units,) for group in self.groups for part in group.slices}

    def scales(self, group):
        return ()

    def __getitem__(self, name):
        return next(group for group in self.groups if group.name == name)

    def full(self):
        return {group.name: torch.ones(group.units, dtype=torch.bool) for group in self.groups}


def groups(*sizes, weights=False):
    """Groups ``g0``, ``g1``, ... of these sizes."""
    axis = None if weights else 0
    slices = [Slice(f"g{i}.weight", axis, torch.arange(n)[:, None], "output") for i, n in enumerate(sizes)]
    return Groups(tuple(Group(f"g{i}", n, (slices[i],)) for i, n in enumerate(sizes)))


def chain(keep):
    """Cost of layers in a row: each multiplies its width with the next one's, the last with ten outputs."""
    widths = [int(kept.sum()) for kept in keep.values()]
    products = [a * b for a, b in zip(widths, [*widths[1:], 10], strict=True)]
    return SimpleNamespace(macs=sum(7 * p for p in products), params=sum(products) + sum(widths) + 10)


def drawn(graph, seed, coarse=False):
    """Scores by chance, with many ties if coarse."""
    random = torch.Generator().manual_seed(seed)
    scores = {group.name: torch.rand(group.units, generator=random) for group in graph.groups}
    return {name: (s * 3).round() for name, s in scores.items()} if coarse else scores


def counts(keep):
    return [int(kept.sum()) for kept in keep.values()]


SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=5)
ALLOCATION = st.sampled_from(["uniform", "global"])


@given(SIZES, st.integers(0, 9), st.booleans(), ALLOCATION, st.floats(0.05, 1), st.sampled_from(["macs", "params"]))
def test_budget_is_never_exceeded_and_met_within_one_unit(sizes, seed, coarse, allocation, fraction, amount):
    graph = groups(*sizes)
    scores = drawn(graph, seed, coarse)
    allowed = fraction * getattr(chain(graph.full()), amount) * (1 + 1e-12)
    try:
        keep = allocate(graph, scores, Budget(**{amount: fraction}), allocation, cost=chain)
    except TopiaristError:
        least = chain({name: torch.ones(1) for name in graph.full()})
        assert getattr(least, amount) > allowed
        return
    assert getattr(chain(keep), amount) <= allowed
    assert list(keep) == [group.name for group in graph.groups]
    back = []
    for name, kept in keep.items():
        assert kept.dtype == torch.bool
        assert kept.any()
        if not kept.all():
            gone, stays = scores[name][~kept], scores[name][kept]
            assert gone.max() <= stays.min()
            more = kept.clone()
            more[torch.nonzero(~kept)[0]] = True
            back.append(getattr(chain({**keep, name: more}), amount))
    assert not back or max(back) > allowed


@given(SIZES, st.integers(0, 9), st.floats(0.05, 1))
def test_global_allocation_removes_the_lowest_scores_of_the_network(sizes, seed, ratio):
    graph = groups(*sizes)
    scores = drawn(graph, seed)
    total = sum(sizes)
    if int(ratio * total) < len(sizes):
        return
    keep = allocate(graph, scores, Budget(ratio=ratio), "global")
    assert sum(counts(keep)) == int(ratio * total + 1e-9)
    gone = torch.cat([scores[name][~kept] for name, kept in keep.items()])
    # Where one unit is left its score may be any: it stays because it is the last.
    stays = torch.cat([scores[name][kept] for name, kept in keep.items() if kept.sum() > 1] or [torch.ones(1)])
    assert not len(gone) or gone.max() <= stays.min()


@given(SIZES, st.integers(0, 9), st.integers(1, 20), st.sampled_from([1, 2, 4, 0.25, 0.5]))
def test_uniform_ratio_is_the_ratio_of_every_group(sizes, seed, twentieths, floor):
    ratio = twentieths / 20
    graph = groups(*sizes)
    lows = [min(n, max(1, ceil(floor * n - 1e-9) if floor < 1 else floor)) for n in sizes]
    if sum(lows) > ratio * sum(sizes):
        with pytest.raises(TopiaristError, match="leave at least"):
            allocate(graph, drawn(graph, seed), Budget(ratio=ratio, floor=floor))
        return
    kept = counts(allocate(graph, drawn(graph, seed), Budget(ratio=ratio, floor=floor)))
    wanted = [max(low, n * twentieths // 20) for low, n in zip(lows, sizes, strict=True)]
    assert sum(kept) <= ratio * sum(sizes) + 1e-9
    if sum(wanted) <= ratio * sum(sizes):
        assert kept == wanted
    else:
        # Floors hold some groups above the ratio, so that the others give more.
        assert all(low <= k <= w for low, k, w in zip(lows, kept, wanted, strict=True))


@given(SIZES, st.integers(0, 9), ALLOCATION, st.integers(2, 16), st.floats(0.1, 1))
def test_counts_are_multiples_wherever_a_group_is_cut(sizes, seed, allocation, multiple, fraction):
    graph = groups(*sizes)
    budget = Budget(macs=fraction, multiple=multiple)
    try:
        keep = allocate(graph, drawn(graph, seed, coarse=True), budget, allocation, cost=chain)
    except TopiaristError:
        return
    assert chain(keep).macs <= fraction * chain(graph.full()).macs * (1 + 1e-12)
    for kept, n in zip(counts(keep), sizes, strict=True):
        assert kept == n or kept % multiple == 0 or n < multiple


@given(SIZES, st.integers(0, 9), ALLOCATION, st.floats(0.3, 1), st.floats(0.3, 1), st.floats(0.5, 1))
def test_all_amounts_hold_together(sizes, seed, allocation, macs, params, ratio):
    graph = groups(*[n + 10 for n in sizes])
    scores = drawn(graph, seed)
    keep = allocate(graph, scores, Budget(macs=macs, params=params, ratio=ratio), allocation, cost=chain)
    full, spent = chain(graph.full()), chain(keep)
    assert spent.macs <= macs * full.macs * (1 + 1e-12)
    assert spent.params <= params * full.params * (1 + 1e-12)
    assert sum(counts(keep)) <= ratio * sum(n + 10 for n in sizes) * (1 + 1e-12)
    alone = [Budget(macs=macs), Budget(params=params), Budget(ratio=ratio)]
    singles = [counts(allocate(graph, scores, budget, allocation, cost=chain)) for budget in alone]
    assert counts(keep) == [min(kept) for kept in zip(*singles, strict=True)]


@settings(max_examples=20)
@given(st.permutations(range(30)), ALLOCATION)
def test_order_of_the_units_does_not_matter(order, allocation):
    graph = groups(30, 12)
    scores = drawn(graph, 0)
    keep = allocate(graph, scores, Budget(ratio=0.4), allocation)
    shuffled = allocate(graph, {**scores, "g0": scores["g0"][order]}, Budget(ratio=0.4), allocation)
    assert torch.equal(shuffled["g0"], keep["g0"][order])
    assert torch.equal(shuffled["g1"], keep["g1"])


def test_known_answers():
    graph = groups(4, 2)
    scores = {"g0": torch.tensor([4.0, 1.0, 3.0, 2.0]), "g1": torch.tensor([10.0, 9.0])}
    assert counts(allocate(graph, scores, Budget(ratio=0.5), "uniform")) == [2, 1]
    keep = allocate(graph, scores, Budget(ratio=0.5), "global")
    assert keep["g0"].tolist() == [True, False, False, False]
    assert counts(keep) == [1, 2]
    # The budget's own word on allocation wins.
    assert counts(allocate(graph, scores, Budget(ratio=0.5, allocation="uniform"), "global")) == [2, 1]


def test_decimal_fractions_are_taken_as_written():
    for tenths, n in [(3, 10), (7, 10), (29, 100), (57, 100)]:
        ratio = tenths / (10 if n == 10 else 100)
        graph = groups(n)
        for budget in (Budget(ratio=ratio), Budget(ratios={"*": ratio})):
            assert counts(allocate(graph, drawn(graph, 0), budget)) == [tenths]


def test_equal_scores_go_in_turn():
    graph = groups(40, 20, 10)
    keep = allocate(
        graph, {name: torch.ones_like(kept) for name, kept in graph.full().items()}, Budget(ratio=0.5), "global"
    )
    assert counts(keep) == [20, 10, 5]


def test_larger_groups_lose_their_first_unit_first():
    graph = groups(4, 40)
    assert counts(allocate(graph, drawn(graph, 0), Budget(macs=0.99), cost=chain)) == [4, 39]


def halves(keep):
    """Cost of two groups that take one half of it each."""
    shares = [100 * int(kept.sum()) / len(kept) for kept in keep.values()]
    return SimpleNamespace(macs=sum(shares), params=sum(shares))


@pytest.mark.parametrize(("macs", "kept"), [(0.95, [36, 2]), (0.88, [30, 2]), (0.6, [28, 1]), (0.3, [4, 1])])
def test_one_of_two_units_is_removed_when_others_have_lost_a_quarter(macs, kept):
    graph = groups(40, 2)
    assert counts(allocate(graph, drawn(graph, 0), Budget(macs=macs), cost=halves)) == kept


def test_a_global_ranking_that_keeps_one_unit_of_a_layer_says_so():
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    with torch.no_grad():
        net[1].weight.mul_(1e-3)
    arguments = net, torch.randn(2, 8), "l1"
    with pytest.warns(UserWarning, match=r"one unit of '1', .*floor=0\.1, or allocation='uniform'"):
        topiarist.prune(*arguments, Budget(macs=0.5, allocation="global"))
    topiarist.prune(*arguments, Budget(macs=0.5, allocation="global", floor=0.25))
    topiarist.prune(*arguments, Budget(macs=0.5))


def test_a_cost_may_depend_on_which_units_stay():
    graph, price = groups(10), torch.tensor([1.0, 1, 1, 1, 20, 1, 1, 1, 1, 1])

    def priced(keep):
        return SimpleNamespace(macs=int(price[keep["g0"]].sum()), params=0)

    keep = allocate(graph, {"g0": -torch.arange(10.0)}, Budget(macs=0.5), cost=priced)
    assert keep["g0"].tolist() == [True] * 4 + [False] * 6


def test_steps_of_several_units_rank_by_their_mean():
    graph = groups(6, 6)
    scores = {"g0": torch.tensor([-1, -1, 0, 6, 9, 9.0]), "g1": torch.tensor([-1, -1, 2, 2.5, 9, 9])}
    assert counts(allocate(graph, scores, Budget(ratio=0.5, multiple=2), "global")) == [4, 2]
    scores["g0"][3] = 3
    assert counts(allocate(graph, scores, Budget(ratio=0.5, multiple=2), "global")) == [2, 4]


def test_ratios_fix_groups_and_exclusions_keep_them_whole():
    graph = groups(16, 16, 16, 16)
    scores = drawn(graph, 1)
    budget = Budget(ratios={"g[01]": 0.9, "g1": 0.5}, exclude=("g3",))
    assert counts(allocate(graph, scores, budget, cost=chain)) == [14, 8, 16, 16]
    kept = counts(allocate(graph, scores, Budget(macs=0.5, ratios={"g0": 0.5}, exclude=("g3",)), cost=chain))
    assert kept[0] == 8
    assert kept[3] == 16
    assert kept[1] == kept[2] < 16


def test_groups_without_scores_stay_whole():
    graph = groups(8, 8)
    keep = allocate(graph, {"g1": torch.arange(8.0)}, Budget(ratio=0.5))
    assert counts(keep) == [8, 4]
    with pytest.raises(TopiaristError, match="does not score"):
        allocate(graph, {"g1": torch.arange(8.0)}, Budget(ratios={"*": 0.5}))


def test_infinite_scores_rank():
    graph = groups(6)
    scores = {"g0": torch.tensor([float("inf"), 1.0, float("-inf"), 2.0, 0.0, 3.0])}
    assert allocate(graph, scores, Budget(ratio=0.5))["g0"].tolist() == [True, False, False, True, False, True]
    keep = allocate(graph, scores, Budget(ratio=0.7, multiple=2), "global")
    assert keep["g0"].tolist() == [True, True, False, True, False, True]


@pytest.mark.parametrize("multiple", [1, 8])
def test_the_fraction_that_an_error_names_can_be_had(multiple):
    graph = groups(33, 17, 9)
    scores = drawn(graph, 0)
    options = {"floor": 0.3, "multiple": multiple, "exclude": ("g2",)}
    for amount in ("macs", "params", "ratio"):
        for allocation in ("uniform", "global"):
            with pytest.raises(TopiaristError, match="leave at least") as refused:
                allocate(graph, scores, Budget(**{amount: 0.01}, **options), allocation, cost=chain)
            lowest = float(re.search(r"at least ([\d.]+)", str(refused.value))[1])
            allocate(graph, scores, Budget(**{amount: lowest}, **options), allocation, cost=chain)
            with pytest.raises(TopiaristError):
                allocate(graph, scores, Budget(**{amount: lowest - 0.0002}, **options), allocation, cost=chain)


def test_a_group_cannot_go_below_floor_and_multiple_by_a_ratio_of_its_own():
    graph = groups(16, 3)
    scores = drawn(graph, 0)
    with pytest.raises(TopiaristError, match=r"'g0' cannot keep 0\.2 of its 16 units.*at least 0\.5"):
        allocate(graph, scores, Budget(ratios={"g0": 0.2}, multiple=8))
    with pytest.raises(TopiaristError, match=r"at least 0\.25"):
        allocate(graph, scores, Budget(ratios={"g0": 0.2}, floor=4))
    # One unit always stays.
    assert counts(allocate(graph, scores, Budget(ratios={"*": 0.1}))) == [1, 1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"macs": -0.1}, "from 0 to 1"),
        ({"params": 1.2}, "from 0 to 1"),
        ({"ratio": 50}, r"write 0\.5 to keep 50 %"),
        ({"ratio": float("nan")}, "finite number"),
        ({"macs": "half"}, "'half'"),
        ({"macs": True}, "True"),
        ({"ratios": {"conv*": 3}}, "'conv\\*'"),
        ({"ratios": {"conv*": None}}, r"'conv\*' of ratios of the budget must be a finite number"),
        ({"ratios": 0.5}, "must be a mapping"),
        ({"ratios": {3: 0.5}}, "must hold names"),
        ({"exclude": 3}, "must hold names"),
        ({"exclude": ("conv1", 3)}, "must hold names"),
        ({"floor": True}, "floor"),
        ({"floor": float("inf")}, "floor"),
        ({"multiple": True}, "multiple"),
        ({"floor": 0}, "floor"),
        ({"floor": 2.5}, "floor"),
        ({"multiple": 0}, "multiple"),
        ({"multiple": 1.5}, "multiple"),
        ({"allocation": "local"}, "'uniform' or 'global'"),
    ],
)
def test_budgets_check_themselves(wrong, message):
    with pytest.raises(TopiaristError, match=message):
        Budget(**wrong)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(), "names no amount"),
        (Budget(floor=2, exclude=("g0",)), "names no amount"),
        (Budget(macs=0), "leave at least"),
        (Budget(ratios={"conv": 0.5}), "'conv' matches no group, module or parameter: name some such as "),
        (Budget(macs=0.5, exclude=("g0", "g7")), "'g7' matches no group, module or parameter: did you mean g"),
        (Budget(ratio=0.5, exclude=("*",)), "the ratio applies to no group"),
        (Budget(macs=0.5, exclude=("*",)), "leave at least 1:"),
    ],
)
def test_impossible_budgets_are_refused(budget, message):
    graph = groups(8, 8)
    with pytest.raises(TopiaristError, match=message):
        allocate(graph, drawn(graph, 0), budget, cost=chain)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"g0": torch.tensor([1.0, float("nan")])}, "'g0' hold NaN"),
        ({"g0": torch.ones(3)}, r"shape \(3,\)"),
        ({"other": torch.ones(2)}, "'other'"),
        ({}, "no group has a score"),
    ],
)
def test_bad_scores_are_refused(scores, message):
    with pytest.raises(TopiaristError, match=message):
        allocate(groups(2), scores, Budget(ratio=0.5))


def test_weights_are_cut_at_one_threshold():
    sizes = (200, 3000, 50_000)
    graph = groups(*sizes, weights=True)
    scores = drawn(graph, 3)
    keep = allocate(graph, scores, Budget(ratio=0.1), "global")
    flat = torch.cat(list(scores.values()))
    threshold = flat.kthvalue(len(flat) - int(0.1 * len(flat))).values
    for name, kept in keep.items():
        assert torch.equal(kept, scores[name] > threshold)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 20, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(320, 5),
    )


@pytest.mark.parametrize("granularity", ["structure", "weight"])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_a_traced_network_meets_its_budget(granularity, allocation):
    model = network()
    graph = topiarist.trace(model, torch.randn(1, 3, 8, 8))
    graph = graph.weights() if granularity == "weight" else graph
    full = cost(graph)
    for amount in ("macs", "params"):
        keep = allocate(graph, drawn(graph, 0), Budget(**{amount: 0.4}), allocation)
        assert getattr(cost(graph, keep), amount) <= 0.4 * getattr(full, amount)
        assert getattr(cost(graph, keep), amount) > 0.3 * getattr(full, amount)
        assert prod(counts(keep)) > 0


def test_choose_asks_the_roles_in_turn():
    model = network()
    graph = topiarist.trace(model, torch.randn(1, 3, 8, 8))
    weights, stats = graph.weights(), collect(model, graph)
    by_score = choose(make("l1"), graph, stats, Budget(ratio=0.5))
    assert all(torch.equal(a, b) for a, b in zip(
        by_score.values(), allocate(graph, make("l1").score(graph, stats), Budget(ratio=0.5)).values(), strict=True
    ))  # fmt: skip
    by_itself = choose(make("magnitude", quality=1), weights, stats)
    assert 0.1 < sum(counts(by_itself)) / sum(group.units for group in weights.groups) < 0.6
    with pytest.raises(TopiaristError, match="needs a budget"):
        choose(make("l1"), graph, stats)
    with pytest.raises(TopiaristError, match="leave out"):
        choose(make("magnitude", quality=1), weights, stats, Budget(ratio=0.5))
