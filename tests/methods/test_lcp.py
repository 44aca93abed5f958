"""Layer-compensated pruning: the evolution, what it compares, what it never looks at, and what it refuses."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

import topiarist
from golden.lcp import best, tiny
from topiarist.budget import Budget, allocate
from topiarist.errors import TopiaristError
from topiarist.measure import collect, evaluate_batches
from topiarist.methods import lcp, make
from topiarist.pruning import choose
from topiarist.surgery import cut, mask

HALF = Budget(ratio=0.5)
QUICK = {"population": 8, "tournament": 3, "candidates": 30}


def measured(**options):
    model, x, y = tiny()
    graph = topiarist.trace(model, x[:1])
    return graph, collect(model, graph, [(x, y)], **options)


def widths(keep):
    return [int(kept.sum()) for kept in keep.values()]


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# ---- the evolution --------------------------------------------------------------------------------------------------


def evolved(fitness, **options):
    """What evolution finds, and each candidate's parent."""
    chance = torch.Generator().manual_seed(0)
    parents = []

    def draw(parent, number):
        parents.append(None if parent is None else int(parent[1]))
        value = 0.0 if parent is None else float(parent[0]) + float(torch.rand((), generator=chance))
        return torch.tensor([value, number])

    found = lcp.evolve(draw, lambda genes, number: (fitness(float(genes[0]), number), 0.0), chance=chance, **options)
    return found, parents


def test_parents_are_young_and_the_best_of_their_tournament():
    found, parents = evolved(lambda value, number: value, population=10, tournament=10, candidates=60)
    assert parents[:10] == [None] * 10
    assert all(number - 10 <= parent < number for number, parent in enumerate(parents[10:], 10))
    assert parents[11:] == list(range(10, 59))  # each child is better than all before, and a tournament of all sees it
    assert found[1] == 59


def test_the_oldest_dies_however_good_it_is_but_is_not_forgotten():
    found, parents = evolved(
        lambda value, number: 100.0 if number == 0 else value, population=5, tournament=5, candidates=40
    )
    assert parents[5] == 0
    assert 0 not in parents[6:]
    assert found[1] == 0


def test_a_child_differs_from_its_parent_in_a_tenth_of_the_groups():
    method, chance = make("lcp", form="affine"), torch.Generator().manual_seed(1)
    parent = torch.randn(2, 30, generator=chance, dtype=torch.float64)
    for number, scale in ((0, 1.0), (200, 1 - 200 / 500), (399, 1 - 399 / 500)):
        moves = torch.stack([method._draw(30, parent, number, chance) - parent for _ in range(400)])
        moved = moves != 0
        assert (moved.sum(2) == 3).all()
        assert torch.equal(moved[:, 0], moved[:, 1])
        for step, expected in zip(moves.unbind(1), (scale, 1.0), strict=True):  # those of shifts do not shrink
            assert float(step[step != 0].std()) == pytest.approx(expected, rel=0.1)
    assert (make("lcp")._draw(30, None, 5, chance)[0] == 0).all()  # the shift alone
    assert (method._draw(30, None, 0, chance) == 0).all()  # the identity


def test_scores_are_scaled_and_shifted():
    metric = {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([2.0, 2.0, 8.0])}
    genes = torch.tensor([[math.log(2), 0], [0.5, -1]])
    found = lcp.compensated(metric, genes)
    torch.testing.assert_close(found["a"], torch.tensor([2.5, 6.5]))
    torch.testing.assert_close(found["b"], metric["b"] - math.sqrt(8))


# ---- what it finds --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.by_day(1)
def test_the_best_shift_is_found_whatever_the_seed(seed):
    graph, stats = measured()
    x, y = next(iter(stats.batches))
    expected = best(graph, stats.model, x, y)
    alone = choose(make("lcp", candidates=1), graph, stats, HALF)
    assert widths(alone) != widths(expected)
    assert (
        evaluate_batches(mask(stats.model, graph, expected), [(x, y)]).accuracy
        > 40 + evaluate_batches(mask(stats.model, graph, alone), [(x, y)]).accuracy
    )
    assert same(choose(make("lcp", seed=seed), graph, stats, HALF), expected)


@pytest.mark.parametrize(("metric", "power"), [("l2", 2), ("l1", 1)])
def test_the_first_candidate_is_the_ranking_without_compensation(metric, power):
    graph, stats = measured()
    scores = {name: norm**power for name, norm in make("l1", p=power).score(graph, stats).items()}
    expected = allocate(graph, scores, HALF, "global")
    assert same(choose(make("lcp", metric=metric, candidates=1), graph, stats, HALF), expected)


def test_taylor_measures_for_itself():
    graph, stats = measured()
    full = collect(stats.model, graph, stats.batches, {"gradients"})
    expected = choose(make("taylor"), graph, full, HALF)
    assert same(choose(make("lcp", metric="taylor", candidates=1), graph, stats, HALF), expected)


@pytest.mark.parametrize("form", ["shift", "affine"])
def test_compensation_never_changes_the_order_within_a_group(form):
    graph, stats = measured()
    keep = choose(make("lcp", form=form, seed=4, **QUICK), graph, stats, HALF)
    for name, norms in make("l1", p=2).score(graph, stats).items():
        assert keep[name].all() or norms[keep[name]].min() > norms[~keep[name]].max()


def test_more_candidates_are_never_worse():
    graph, stats = measured()
    x, y = next(iter(stats.batches))
    for fitness, index, sign in (("accuracy", 0, 1), ("loss", 1, -1)):
        found = [
            sign * evaluate_batches(mask(stats.model, graph, choose(method, graph, stats, HALF)), [(x, y)])[index]
            for method in (make("lcp", candidates=n, fitness=fitness) for n in (1, 20, 64))
        ]
        assert found == sorted(found)
        assert found[0] < found[2]


@pytest.mark.parametrize("fitness", ["accuracy", "loss"])
def test_equal_candidates_are_told_apart_by_the_other_measure(monkeypatch, fitness):
    """The whole network is wrong on all examples, so that many candidates are equally bad."""
    model, x, y = tiny()
    x, y = x[:3], (y[:3] + 1) % 3
    graph = topiarist.trace(model, x[:1])
    stats, made = collect(model, graph, [(x, y)]), []
    with monkeypatch.context() as patch:
        patch.setattr(lcp, "evaluate_batches", lambda *args: made.append(evaluate_batches(*args)) or made[-1])
        keep = choose(make("lcp", fitness=fitness, **QUICK), graph, stats, HALF)
    found = evaluate_batches(cut(model, graph, keep), [(x, y)])
    orders = {"accuracy": lambda each: (each.accuracy, -each.loss), "loss": lambda each: (-each.loss, each.accuracy)}
    best_one = max(made, key=orders[fitness])
    assert len({each.loss for each in made if each.accuracy == best_one.accuracy}) > 1
    assert found.loss == pytest.approx(best_one.loss)
    assert found.accuracy == best_one.accuracy


def test_every_group_keeps_a_tenth_unless_the_budget_says_otherwise():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 2)).double()
    with torch.no_grad():
        model[0].weight *= 1e-4  # all of it would go first
    x = torch.randn(8, 3, dtype=torch.float64)
    graph = topiarist.trace(model, x[:1])
    stats = collect(model, graph, [(x, torch.arange(8) % 2)])
    for fields, budget, least in (({}, HALF, 4), ({"safeguard": 0.0}, HALF, 1), ({}, Budget(ratio=0.5, floor=7), 7)):
        keep = choose(make("lcp", candidates=1, **fields), graph, stats, budget)
        assert widths(keep) == [least, 40 - least]


def test_a_network_whose_cut_fails_is_judged_by_its_mask(monkeypatch):
    graph, stats = measured()
    expected = choose(make("lcp", **QUICK), graph, stats, HALF)

    def broken(*_):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(lcp, "cut", broken)
    before = {name: tensor.clone() for name, tensor in stats.model.state_dict().items()}
    assert same(choose(make("lcp", **QUICK), graph, stats, HALF), expected)
    assert all(torch.equal(before[name], tensor) for name, tensor in stats.model.state_dict().items())


def test_candidates_may_be_tuned_before_they_are_evaluated(monkeypatch):
    model, x, y = tiny()
    graph = topiarist.trace(model, x[:1])
    stats = collect(model, graph, [(x[:10], y[:10]), (x[10:20], y[10:20]), (x[20:], y[20:])])
    losses = {}
    for steps in (0, 40):
        evaluations = []
        with monkeypatch.context() as patch:
            record = lambda *args, made=evaluations: made.append(evaluate_batches(*args)) or made[-1]  # noqa: E731
            patch.setattr(lcp, "evaluate_batches", record)
            choose(make("lcp", candidates=1, examples=10, steps=steps, lr=0.05), graph, stats, HALF)
        losses[steps] = evaluations[0].loss
    keep = choose(make("lcp", candidates=1), graph, stats, HALF)
    assert losses[0] == pytest.approx(evaluate_batches(cut(model, graph, keep), [(x[:10], y[:10])]).loss)
    assert losses[40] < losses[0]
    assert torch.equal(model[0].weight, tiny()[0][0].weight)


# ---- the data -------------------------------------------------------------------------------------------------------


def test_the_first_examples_alone_count():
    model, x, y = tiny()
    graph = topiarist.trace(model, x[:1])
    other = torch.cat([y[:17], 2 - y[17:]])
    found = [
        choose(make("lcp", examples=17, **QUICK), graph, collect(model, graph, batches), HALF)
        for batches in ([(x, y)], [(x, other)], [(x[:10], y[:10]), (x[10:], other[10:])], [(x[:17], y[:17])])
    ]
    assert all(same(each, found[0]) for each in found)


@pytest.mark.nightly
def test_the_test_examples_are_never_used():
    data = topiarist.load_data("digits")
    model = topiarist.load_model("zoo:digitsnet?width=0.25")
    other = dataclasses.replace(data, test_x=1 - data.test_x, test_y=9 - data.test_y)
    method = make("lcp", examples=60, **QUICK)
    steps = []
    found = [
        topiarist.prune(
            model, data.example(), method, 0.5, each, run=topiarist.Run(on_step=lambda *step: steps.append(step))
        ).keep
        for each in (data, other)
    ]
    assert same(*found)
    assert steps == 2 * [("lcp: candidates", number + 1, 30) for number in range(30)]


# ---- what it refuses ------------------------------------------------------------------------------------------------


def test_what_is_missing_is_refused():
    model, x, y = tiny()
    graph = topiarist.trace(model, x[:1])
    for stats, fields, budget, message in (
        (collect(model, graph), {}, HALF, "pass batches of pairs"),
        (collect(model, graph, []), {}, HALF, "at least one batch"),
        (collect(model, graph, [x]), {}, HALF, "pairs"),
        (collect(model, graph, [(x, y)]), {}, None, "needs a budget"),
        (collect(model, graph, [(x, y)]), {"steps": 1}, HALF, "fewer examples"),
        (collect(model, graph, [(x, y)]), {}, Budget(ratio=0.01), "at least"),
    ):
        with pytest.raises(TopiaristError, match=message):
            choose(make("lcp", **fields), graph, stats, budget)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("form", "linear", "shift, affine"),
        ("metric", "l3", "l2, l1, taylor"),
        ("fitness", "speed", "accuracy, loss"),
        ("population", 0, "at least 1"),
        ("tournament", 0, "at least 1"),
        ("candidates", 0, "at least 1"),
        ("examples", 0, "at least 1"),
        ("steps", -1, "at least 0"),
        ("steps", 1.5, "whole number"),
        ("lr", 0, "above 0"),
        ("lr", float("inf"), "finite"),
        ("mutated", 1.1, "from 0 to 1"),
        ("safeguard", 1, "below 1"),
    ],
)
def test_fields_out_of_range_are_refused(field, value, message):
    with pytest.raises(TopiaristError, match=message):
        make("lcp", **{field: value})


def test_a_dry_run_refuses_the_same_and_tries_one_candidate():
    graph, stats = measured()
    method = make("lcp", metric="l1").dry_run()
    assert (method.candidates, method.metric) == (1, "l1")
    with pytest.raises(TopiaristError, match="needs a budget"):
        choose(method, graph, stats, None)
    assert make("l1").dry_run() == make("l1")
