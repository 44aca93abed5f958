"""However long a value is that was given, a message shows one line of it."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

import topiarist
from topiarist import Budget, Data, Pruning, Recipe, TopiaristError, methods
from topiarist.architecture import write_tensors
from topiarist.compress import cluster, load_model, save, share
from topiarist.deploy import export
from topiarist.guided import WidthPattern
from topiarist.models import zoo
from topiarist.studies import Study
from topiarist.train import Speed

LONG = "x" * 100_000
LIMIT = 500
IMAGE = torch.zeros(4, 1, 8, 8)
LABELS = torch.tensor([0, 1, 0, 1])


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 2))


def data(**changes: object) -> Data:
    values = {"name": "tiny", "train_x": IMAGE, "train_y": LABELS, "test_x": IMAGE, "test_y": LABELS, **changes}
    return Data.of(**values)  # type: ignore[arg-type]


def graph() -> topiarist.Graph:
    return topiarist.trace(net(), IMAGE)


def prune(method: object, budget: object = None, **rest: object) -> object:
    return topiarist.prune(net(), IMAGE, method, budget, **rest)  # type: ignore[arg-type]


def study(**changes: object) -> object:
    values = {"title": "t", "network": "zoo:digitsnet", "data": "digits", "arms": ["finetune"], "seeds": [0]}
    return Study.of({**values, "prunings": [{"method": "l1", "budget": {"macs": 0.5}}], **changes})


CALLS: dict[str, Callable[[], object]] = {
    "a network": lambda: topiarist.load_model(LONG),
    "a network of the zoo": lambda: topiarist.load_model(f"zoo:{LONG}"),
    "a network of a module": lambda: topiarist.make_model(f"{LONG}:net"),
    "a factory of a module": lambda: topiarist.make_model(f"math:{LONG}"),
    "a value of a module": lambda: topiarist.make_model(f"math:pi?{LONG}"),
    "an option of a network": lambda: topiarist.load_model("zoo:digitsnet", **{LONG: 1}),
    "an option in a name": lambda: topiarist.load_model(f"zoo:digitsnet?{LONG}"),
    "an option's value": lambda: topiarist.load_model("zoo:digitsnet", width=LONG),
    "the size of an input": lambda: zoo.build("digitsnet", input_size=LONG),  # type: ignore[arg-type]
    "data": lambda: topiarist.load_data(LONG),
    "data of digits": lambda: topiarist.load_data(f"digits:{LONG}"),
    "data in a file": lambda: topiarist.load_data(f"npz:{LONG}"),
    "data in a folder": lambda: topiarist.load_data(f"folder:{LONG}"),
    "an option of data": lambda: topiarist.load_data("digits", **{LONG: 1}),
    "the size of data": lambda: topiarist.load_data("digits", train=LONG),
    "the name of data": lambda: data(name=LONG, train_y=LABELS.float()),
    "an augmentation": lambda: data(augment=LONG),
    "a method": lambda: prune(LONG),
    "a method made": lambda: methods.make(LONG),
    "a field of a method": lambda: methods.make("l1", **{LONG: 1}),
    "a field's value": lambda: methods.make("l1", p=LONG),
    "a preset": lambda: methods.make("l1", preset=LONG),
    "a choice": lambda: methods.make("group_lasso", kind=LONG),
    "no method": lambda: prune([LONG]),
    "no budget": lambda: prune("l1", LONG),
    "a list as a budget": lambda: prune("l1", [0.5] * 50_000),
    "a key of a budget": lambda: prune("l1", {LONG: 0.5}),
    "a fraction": lambda: Budget(macs=LONG),  # type: ignore[arg-type]
    "a ratio of a group": lambda: Budget(ratios={LONG: 2.0}),
    "a pattern of a budget": lambda: topiarist.allocate(graph(), {}, Budget(ratios={LONG: 0.5})),
    "an exclusion": lambda: prune("l1", {"macs": 0.5, "exclude": (LONG,)}),
    "a schedule": lambda: topiarist.Steps(2, schedule=LONG),
    "a count of steps": lambda: topiarist.Steps(LONG),  # type: ignore[arg-type]
    "a repair": lambda: Pruning.of("l1", 0.5, repair=LONG),
    "a field of a recipe": lambda: Recipe(schedule=LONG),  # type: ignore[arg-type]
    "an accelerator": lambda: topiarist.fit(net(), data(), Recipe(epochs=1), speed=Speed(accelerator=LONG)),
    "a group": lambda: graph()[LONG],
    "the reason of a tensor": lambda: graph().why(LONG),
    "a keep of a group": lambda: topiarist.cut(net(), graph(), {LONG: torch.ones(4, dtype=torch.bool)}),
    "no keep": lambda: topiarist.cut(net(), graph(), {"1": LONG}),  # type: ignore[dict-item]
    "scores of a group": lambda: topiarist.allocate(graph(), {LONG: torch.ones(4)}, Budget(macs=0.5)),
    "rectangles": lambda: topiarist.trace(net(), IMAGE, rectangles=LONG),  # type: ignore[arg-type]
    "selectors": lambda: topiarist.add_selectors(net(), LONG, IMAGE),
    "a statistic": lambda: topiarist.collect(net(), graph(), [], frozenset({LONG})),
    "a split": lambda: topiarist.evaluate(net(), data(), LONG),  # type: ignore[arg-type]
    "a folder": lambda: topiarist.load(net, LONG),
    "no function for a model": lambda: topiarist.load(LONG, "folder"),  # type: ignore[arg-type]
    "a folder to write": lambda: write_tensors(net(), LONG),
    "bits": lambda: share(net(), bits=LONG),  # type: ignore[arg-type]
    "bits of a parameter": lambda: share(net(), bits={LONG: 4}),
    "a start of centroids": lambda: cluster(torch.rand(9).numpy(), 2, LONG),  # type: ignore[arg-type]
    "a compressed file": lambda: load_model(net, LONG),
    "a compressed file to write": lambda: save(net().state_dict(), LONG),
    "a runtime": lambda: export(net(), IMAGE, "out.x", target=LONG),
    "an exporter": lambda: export(net(), IMAGE, "out.onnx", exporter=LONG),
    "a runtime to measure": lambda: topiarist.bench({"net": net()}, IMAGE, (LONG,)),
    "a network to measure": lambda: topiarist.bench({LONG: LONG}, IMAGE),
    "a stage of a pattern": lambda: WidthPattern({LONG: 2.0}),
    "a key of a study": lambda: study(**{LONG: 1}),
    "an arm of a study": lambda: study(arms=[LONG]),
    "a seed of a study": lambda: study(seeds=[LONG]),
    "a pruning of a study": lambda: study(prunings=[{"method": LONG}]),
    "no pruning of a study": lambda: study(prunings=[LONG]),
    "a scale of a study": lambda: study(scales={"mini": {}, "cpu": {}}, scale=LONG),
}


@pytest.mark.parametrize("given", CALLS)
def test_a_long_value_is_cut(given: str) -> None:
    with pytest.raises(TopiaristError) as refused:
        CALLS[given]()
    assert len(str(refused.value)) < LIMIT, str(refused.value)[:2000]
