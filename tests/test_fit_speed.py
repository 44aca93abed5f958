"""What makes training faster changes nothing but rounding: the order in memory, and compiled steps."""

import shutil
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import topiarist
from topiarist import Recipe
from topiarist.data import Data
from topiarist.errors import TopiaristError
from topiarist.train import Speed, machine

NETWORK = "zoo:digitsnet?width=0.25"
RECIPE = Recipe(epochs=2, lr=0.02, batch_size=48)


@pytest.fixture(scope="module")
def data() -> Data:
    return topiarist.load_data("digits?train=96")


class Precise(nn.Module):
    """A network in double precision, where rounding is small, for images in single precision."""

    def __init__(self) -> None:
        super().__init__()
        self.network = topiarist.load_model(NETWORK).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.double())


def trained(data: Data, method: str | None = None, keep: float | None = None, **options: Any) -> dict[str, Tensor]:
    """The state of a network after a short training."""
    torch.manual_seed(0)
    model: nn.Module = Precise()
    graph = topiarist.trace(model, data.example())
    role: dict[str, Any] = {"method": method, "graph": graph} if method else {}
    if keep is not None:
        done = topiarist.prune(model, data.example(), "magnitude", {"ratio": keep}, graph=graph)
        model, role = done.model, {"graph": done.graph, "keep": done.keep}
    topiarist.fit(model, data, RECIPE, speed=Speed(evaluate_every=0, accelerator="cpu", **options), **role)
    assert all(tensor.is_contiguous() for tensor in model.state_dict().values())
    return model.state_dict()


def alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("method", [None, "slimming", "group_lasso", "sss", "l0", "sfp"])
@pytest.mark.by_day(3)
def test_channels_last_changes_nothing_but_rounding(data: Data, method: str | None) -> None:
    alike(trained(data, method), trained(data, method, channels_last=True))


def test_channels_last_keeps_removed_weights_at_zero(data: Data) -> None:
    plain, fast = (trained(data, keep=0.2, channels_last=option) for option in (False, True))
    alike(plain, fast)
    for name, tensor in plain.items():
        assert torch.equal(tensor == 0, fast[name] == 0)


def test_images_and_weights_lie_channels_last_while_training(data: Data) -> None:
    orders = []
    model = topiarist.load_model(NETWORK, in_channels=3)
    wide = Data.of(
        "wide", *(data.train_x.repeat(1, 3, 1, 1), data.train_y, data.test_x.repeat(1, 3, 1, 1), data.test_y)
    )

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training:
            order = torch.channels_last
            orders.append(
                (inputs[0].is_contiguous(memory_format=order), model.conv1.weight.is_contiguous(memory_format=order))
            )

    handle = model.conv1.register_forward_pre_hook(look)
    topiarist.fit(model, wide, RECIPE, speed=Speed(evaluate_every=0, accelerator="cpu", channels_last=True))
    handle.remove()
    assert orders
    assert all(pair == (True, True) for pair in orders)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.nightly)])
def test_compiled_steps_change_nothing_but_rounding(data: Data, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler for the CPU")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    states = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))  # one that compiles soon
        topiarist.fit(model, data, RECIPE, speed=Speed(evaluate_every=0, accelerator="cpu", compiled=compiled))
        states.append(model.state_dict())
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-4, atol=1e-5)


def test_compiling_is_asked_for(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def compiled(model: nn.Module, **options: Any) -> nn.Module:
        asked.append(options)
        return model

    monkeypatch.setattr(torch, "compile", compiled)
    alike(trained(data), trained(data, compiled=True))
    assert asked == [{"dynamic": False, "mode": None}]


@pytest.mark.parametrize(
    "wrong",
    [
        {"channels_last": "yes"},
        {"channels_last": None},
        {"compiled": 1},
        {"precision": "16-true"},
        {"precision": "64-true"},
        {"precision": 64},
        {"precision": "seventeen"},
        {"precision": []},
        {"devices": 1.5},
        {"accelerator": None},
        {"evaluate_every": -1},
    ],
)
def test_speeds_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(TopiaristError, match=next(iter(wrong))):
        Speed(**wrong)


def test_what_cannot_be_compiled_says_so(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(model: nn.Module, **_: Any) -> nn.Module:
        def refuse(*_: Any) -> None:
            raise torch._dynamo.exc.InternalTorchDynamoError("no compiler\nat all")

        model.register_forward_pre_hook(refuse)
        return model

    monkeypatch.setattr(torch, "compile", compiled)
    with pytest.raises(TopiaristError, match=r"cannot be compiled here \(no compiler\): leave compiled out"):
        topiarist.fit(topiarist.load_model(NETWORK), data, RECIPE, speed=Speed(compiled=True))


def test_data_stays_where_it_is_without_a_gpu(data: Data) -> None:
    assert machine.resident(data, torch.device("cpu")) is data
