"""Recipes: the papers' schedules, and what the arms of a comparison may spend."""

from __future__ import annotations

from dataclasses import replace

import pytest

from topiarist.errors import TopiaristError
from topiarist.train import Recipe, constant, cosine, linear, scratch_b, scratch_e, step


def test_the_paper_s_rates() -> None:
    paper = Recipe.paper()
    assert (paper.epochs, paper.batch_size, paper.momentum, paper.weight_decay) == (160, 64, 0.9, 1e-4)
    rates = [paper.rate(epoch) for epoch in (0, 79, 80, 119, 120, 159)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    finetune = Recipe.finetune()
    assert (finetune.epochs, {finetune.rate(epoch) for epoch in range(40)}) == (40, {0.001})


def test_schedules_are_functions_of_progress() -> None:
    assert [step(p, (0.5, 0.75), 0.1) for p in (0.0, 0.4999, 0.5, 0.75)] == pytest.approx([1, 1, 0.1, 0.01])
    assert [cosine(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([1, 0.5, 0])
    assert constant(0.9) == 1
    assert [linear(p, (0.5, 0.75)) for p in (0.0, 0.5, 0.75, 1.0)] == pytest.approx([1, 1, 0.5, 0])
    assert [linear(p) for p in (0.0, 0.25, 1.0)] == pytest.approx([1, 0.75, 0])
    assert linear(0.5, (1.0,)) == 1
    assert [Recipe(epochs=30, milestones=(1 / 3, 2 / 3)).rate(epoch) for epoch in (9, 10, 19, 20)] == pytest.approx(
        [0.1, 0.01, 0.01, 0.001]
    )


@pytest.mark.parametrize(
    ("ratio", "epochs"), [(1.519, 243), (1.1157, 178), (1.3791, 220), (1.1883, 190), (1.6273, 260)]
)
def test_scratch_b_gives_the_epochs_of_the_paper_s_networks(ratio: float, epochs: int) -> None:
    stretched = scratch_b(Recipe.paper(), ratio)
    assert stretched == replace(Recipe.paper(), epochs=epochs)
    first_low = next(epoch for epoch in range(epochs) if stretched.rate(epoch) < 0.1)
    assert first_low == -(-epochs // 2)


def test_scratch_arms_spend_what_they_say() -> None:
    recipe = Recipe(epochs=100)
    assert scratch_e(recipe) == recipe
    assert scratch_b(recipe, 5.0, cap=2.0).epochs == 200
    assert scratch_b(recipe, 1.5, cap=2.0).epochs == 150
    assert scratch_b(recipe, 1.15).epochs == 115  # 100 * 1.15 is 114.99… in floating point
    for ratio, cap in ((0.5, None), (2.0, 0.5), (float("nan"), None), (float("inf"), None)):
        with pytest.raises(TopiaristError, match="scratch-B"):
            scratch_b(recipe, ratio, cap)


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": -1},
        {"epochs": 2.5},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"momentum": 1.0},
        {"weight_decay": -1e-4},
        {"nesterov": True, "momentum": 0.0},
        {"batch_size": 0},
        {"schedule": "quadratic"},
        {"optimizer": "lbfgs"},
        {"nesterov": True, "optimizer": "adam"},
        {"milestones": (0.5, 75)},
        {"gamma": 0.0},
    ],
    ids=str,
)
def test_a_recipe_refuses_what_cannot_be(change: dict[str, object]) -> None:
    with pytest.raises(TopiaristError, match=next(iter(change))):
        replace(Recipe(), **change)
