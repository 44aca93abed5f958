"""The studies at the repository's root: every file at every scale can be run, and says what it takes."""

from functools import cache
from pathlib import Path

import pytest
import yaml

from topiarist import methods
from topiarist.budget import cost
from topiarist.data import load_data
from topiarist.errors import TopiaristError
from topiarist.graph import trace
from topiarist.models import fitting_options, make_model, split_options
from topiarist.studies import Cell, Study
from topiarist.studies.cells import unfold
from topiarist.studies.published import find
from topiarist.train import Recipe, scratch_b

FOLDER = Path(__file__).parents[1] / "studies"
FILES = sorted(FOLDER.glob("*.yaml"))
CASES = [(path, scale) for path in FILES for scale in yaml.safe_load(path.read_text())["scales"]]
NAMES = {
    *("l1_norm", "slimming", "unstructured", "soft_filter", "sparse_structure", "lottery"),
    *("guided_pruning", "guided_sparsification", "transfer"),
}
IMAGES = {
    "digits": ((1, 8, 8), 10, 1_297, 500),
    "npz:mnist.npz": ((1, 28, 28), 10, 60_000, 10_000),
    "npz:fashion_mnist.npz": ((1, 28, 28), 10, 60_000, 10_000),
    "npz:emnist_letters.npz": ((1, 28, 28), 26, 124_800, 20_800),
    "torchvision:CIFAR10": ((3, 32, 32), 10, 50_000, 10_000),
    "torchvision:CIFAR100": ((3, 32, 32), 100, 50_000, 10_000),
}
"""Data → shape of an image, classes, training and test images."""

SPEED = {"mini": 5e9, "cpu": 12e9}
"""Multiply-accumulates a second of one core: less where the maps are small."""
LIMIT = {"mini": 180, "cpu": 2 * 3600}
"""Seconds of one core that a scale may take."""
EACH = 0.5
"""Seconds that a cell takes besides."""


def test_the_ready_studies_are_there():
    assert {path.stem for path in FILES} == NAMES
    assert all({"mini", "cpu", "paper"} <= set(yaml.safe_load(path.read_text())["scales"]) for path in FILES)
    assert all(yaml.safe_load(path.read_text())["scale"] == "mini" for path in FILES)


@pytest.mark.parametrize(("path", "scale"), CASES, ids=[f"{path.stem}-{scale}" for path, scale in CASES])
@pytest.mark.by_day(4)
def test_what_a_study_names_is_there(path, scale):
    study = Study.load(path, scale)
    assert study.seeds[1:], "spreads take two seeds"
    assert bool(study.note) == (scale != "paper")
    for cell in unfold(study.cells()):
        shape, classes, *_ = images(cell.data)
        make_model(cell.network, **fitting_options(cell.network, shape, classes))
        if cell.method != "none":
            methods.get(cell.method)
    for network in study.networks:
        make_model(network)()
    if scale == "mini":  # nothing to fetch
        assert all(load_data(data).train_x is not None for data in study.data)


@pytest.mark.parametrize(("path", "scale"), CASES, ids=[f"{path.stem}-{scale}" for path, scale in CASES])
@pytest.mark.by_day(4)
def test_every_published_number_stands_beside_a_row(path, scale):
    study = Study.load(path, scale)
    rows = list(study.rows())
    for entry in study.published:
        for arm in entry["arms"]:
            one = {**entry, "arms": {arm: entry["arms"][arm]}}
            beside = [row.arm for row in rows if find([one], row.network, row.data, row.pruning, row.arm)]
            assert beside == [arm], one


@pytest.mark.parametrize("scale", SPEED)
@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
@pytest.mark.by_day(6)
def test_a_scale_takes_no_longer_than_it_says(path, scale):
    assert sum(seconds(cell, scale) for cell in unfold(Study.load(path, scale).cells())) <= LIMIT[scale]


def seconds(cell: Cell, scale: str) -> float:
    """About as long as one core takes: three passes over the training images an epoch and one over the test images."""
    if cell.arm == "pattern":
        return EACH
    *_, train, test = images(cell.data)
    share = cell.budget.get("macs", cell.budget.get("ratio", 1.0)) if cell.method not in ("magnitude", "none") else 1.0
    epochs = 0.0
    if "recipe" in cell.settings:
        recipe = Recipe(**cell.settings["recipe"])
        stretched = scratch_b(recipe, 100.0, cell.settings["cap"]) if "cap" in cell.settings else recipe
        epochs = stretched.epochs
    elif "between" in cell.settings:
        epochs = cell.settings["between"]["epochs"] * (cell.settings["steps"] - 1)
    return EACH + (3 * epochs * train + test) * share * macs(cell.network, cell.data) / SPEED[scale]


def images(data: str) -> tuple[tuple[int, int, int], int, int, int]:
    """What is known of a data set, with the number of training images that its name asks for."""
    name, options = split_options(data)
    shape, classes, train, test = IMAGES[name]
    return shape, classes, options.get("train", train), test


@cache
def macs(network: str, data: str) -> int:
    import torch

    shape, classes, *_ = images(data)
    model = make_model(network, **fitting_options(network, shape, classes))()
    return cost(trace(model, torch.zeros(1, *shape))).macs


# ---------------------------------------------------------------- scales

SMALL = {
    "network": "zoo:digitsnet",
    "data": "digits",
    "prunings": [{"method": "l1", "budget": {"macs": 0.5}}],
    "title": "Small",
}


def test_a_scale_overrides_the_keys_of_its_study():
    settings = {**SMALL, "seeds": 5, "scale": "b", "scales": {"a": {"seeds": 1}, "b": {"seeds": 2, "note": "so"}}}
    assert Study.of(settings).seeds == (0, 1)
    assert Study.of(settings).note == "so"
    assert Study.of(settings, "a").seeds == (0,)
    assert "Scale a" in Study.of(settings, "a").note
    del settings["scale"]
    assert Study.of(settings).seeds == (0,)  # the first one
    assert Study.of({**settings, "scales": {"paper": {}}}, "paper").note == ""
    assert Study.of(SMALL).note == ""
    again = Study.of(Study.of(settings, "b").as_json())
    assert again == Study.of(settings, "b")


@pytest.mark.parametrize(
    ("change", "scale", "told"),
    [
        ({"scales": {"a": {}, "b": {}}}, "c", "no scale 'c'; this study has a, b"),
        ({"scales": {"a": {}}, "scale": "z"}, None, "no scale 'z'; this study has a"),
        ({}, "mini", "has no scales"),
        ({"scale": "mini"}, None, "has no scales"),
        ({"scales": ["mini"]}, "mini", "maps names to keys"),
        ({"scales": {"a": 3}}, "a", "maps names to keys"),
        ({"scales": {}}, None, "maps names to keys"),
        ({"scales": {"a": {"sedes": 3}}}, "a", "no key 'sedes'"),
        ({"scales": {"a": {}}}, "", "no scale ''"),
        ({"scales": {"a": {}}, "scale": ["a"]}, None, r"no scale \['a'\]"),
        ({"scales": {1: {}}}, None, "maps names to keys"),
    ],
)
def test_scales_that_cannot_be(change, scale, told):
    with pytest.raises(TopiaristError, match=told):
        Study.of({**SMALL, **change}, scale)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"accuracy": 3}, "a published entry has no 'accuracy'"),
        ({"arms": {"finetoon": 93.0}}, "arm 'finetoon'"),
        ({"arms": {"finetune": 930.0}}, "per cent"),
        ({"arms": {"finetune": "high"}}, "'finetune' of arms of a published entry must be a finite number"),
        ({"arms": {"finetune": [93.0, 0.1, 0.2]}}, "list of 2 values"),
        ({"arms": [93.0]}, "mapping"),
        ({"budget": 0.5}, "mapping"),
        ({"source": None}, "source of a published entry must be text"),
        ({"network": 5}, "network of a published entry must be text"),
        ({"network": "zoo:vgg11"}, "about no row"),
        ({"budget": {"macs": 0.4}}, "about no row"),
        ({"budget": {"macs": float("nan")}}, "macs"),
        ({"method": {"name": "l1", "p": 2}}, "about no row"),
        ({"method": "l2"}, "there is no method 'l2'"),
    ],
)
def test_published_entries_that_cannot_be(change, told):
    entry = {"network": "zoo:digitsnet", "data": "digits", "method": "l1", "source": "us", "arms": {"finetune": 93.0}}
    entry |= {"budget": {"macs": 0.5}}
    assert Study.of({**SMALL, "published": [entry]}).published == (entry,)
    with pytest.raises(TopiaristError, match=told):
        Study.of({**SMALL, "published": [{**entry, **change}]})
