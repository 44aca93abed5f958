"""Networks side by side on runtimes: what follows from given times, what is refused, and what an interrupt leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import topiarist
from topiarist import Bench, Budget, TopiaristError, bench
from topiarist.deploy import Network, Reading, Setting, make_target
from topiarist.deploy.benchmark import running
from topiarist.deploy.benchmark.memory import meter
from topiarist.deploy.benchmark.values import readings_of
from topiarist.measure import Median, Rounds

HERE = Setting("torch", 1, 4)
FEW = Rounds(count=6, warmup=1)
X = torch.randn(1, 1, 8, 8)


def net(width: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Conv2d(width, 2, 3), nn.Flatten())


def quick(networks: dict[str, Any], *words: Any, **options: Any) -> Bench:
    return bench(networks, X, *words, rounds=FEW, memory=False, **options)


def read(macs: tuple[int | None, int | None], *times: tuple[float, float]) -> tuple[Reading, Reading]:
    """The readings of two networks whose times are given."""
    networks = [Network(name, of) for name, of in zip("ab", macs, strict=True)]
    one, other = readings_of(networks, HERE, [{"a": a, "b": b} for a, b in times], {})
    return one, other


# ---------------------------------------------------------------- what follows from the times


def test_a_speedup_is_the_median_of_the_ratios_of_the_rounds() -> None:
    """Where the machine slows down from round to round, ratios stay what they are."""
    one, other = read((100, 50), *((0.004 * slow, 0.002 * slow) for slow in (1, 2, 3, 4, 5, 60)))
    assert one.latency == Median(14.0, 4.0, 240.0, 6)
    assert other.latency == Median(7.0, 2.0, 120.0, 6)
    assert other.speedup == Median(2.0, 2.0, 2.0, 6)
    assert other.efficiency == 1.0
    assert (one.speedup, one.efficiency) == (None, None)
    assert other.throughput == pytest.approx(4 / 0.007)
    assert not other.saves_no_time


def test_macs_that_save_no_time_are_seen() -> None:
    _, other = read((100, 25), *[(0.002, 0.002)] * 6)
    assert (other.efficiency, other.saves_no_time) == (0.25, True)
    slow = Bench((Network("a", 100), Network("b", 25)), read((100, 25), *[(0.002, 0.003)] * 6), False, {})
    assert "b has 25% of the MACs of a and is slower on torch" in str(slow)
    found = Bench((Network("a", 100), Network("b", 25)), (read((100, 25), *[(0.002, 0.002)] * 6)), False, {})
    assert "b has 25% of the MACs of a and is not measurably faster on torch, 1 thread, batch 4" in " ".join(
        str(found).split()
    )
    _, wavers = read((100, 50), *[(1.0, 0.5)] * 8, *[(1.0, 1.1)] * 4)
    assert wavers.speedup is not None
    assert wavers.speedup.value == 2.0
    assert wavers.saves_no_time  # the interval reaches below 1


@pytest.mark.parametrize("macs", [(100, 100), (100, 200), (None, 50), (100, None)])
def test_no_efficiency_without_fewer_macs(macs: tuple[int | None, int | None]) -> None:
    assert read(macs, (1.0, 1.0))[1].efficiency is None


def test_without_the_first_network_nothing_is_compared() -> None:
    networks = [Network("a", 10), Network("b", 5)]
    one, other = readings_of(networks, HERE, [{"b": 1.0}], {"a": {"reason": "it does not export"}})
    assert (one.latency, one.reason) == (None, "it does not export")
    assert (other.speedup, other.efficiency) == (None, None)


# ---------------------------------------------------------------- a bench as a whole


def test_networks_are_measured_in_every_setting_and_written_and_read() -> None:
    model = net()
    small = topiarist.prune(model, X, "l1", Budget(ratio=0.5)).model
    model.train()
    steps: list[tuple[str, int, int]] = []
    found = quick({"before": model, "after": small}, ["torch"], (1,), (1, 3), progress=lambda *step: steps.append(step))
    assert model.training
    assert [str(setting) for setting in found.settings] == ["torch, 1 thread, batch 1", "torch, 1 thread, batch 3"]
    assert [reading.network for reading in found.readings] == ["before", "after"] * 2
    for reading in found.readings:
        assert reading.latency is not None
        assert (reading.latency.n, reading.reason, reading.memory) == (6, "", None)
    assert found.networks == (Network("before", 4 * 9 * 36 + 8 * 9 * 16), Network("after", 2 * 9 * 36 + 4 * 9 * 16))
    assert [reading.bytes for reading in found.readings[:2]] == [4 * (40 + 74), 4 * (20 + 38)]
    assert steps[-1][1:] == (12, 12)
    assert Bench.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found
    assert all(name in str(found) for name in ("before", "after", "speed-up", "efficiency", "batch 3"))


def test_what_a_target_cannot_take_is_a_reading_with_its_reason(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    file = tmp_path / "net.onnx"
    make_target("onnxruntime").export(net(), X, file)
    found = quick({"module": net(), "file": file}, ["torch", "onnxruntime"], (1,), (1, 2))
    by = {(each.network, each.setting.target, each.setting.batch): each for each in found.readings}
    assert "reads no files" in by["file", "torch", 1].reason
    assert by["file", "onnxruntime", 1].bytes == file.stat().st_size
    assert by["file", "onnxruntime", 2].reason  # it was exported for a batch of 1
    assert all(by["module", target, batch].latency for target in ("torch", "onnxruntime") for batch in (1, 2))
    assert found.networks[1].macs is None
    assert "file was not measured on torch" in str(found)


def test_an_interrupt_leaves_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(what: str, done: int, total: int) -> None:
        if done == 6 + 2:
            raise KeyboardInterrupt

    found = quick({"a": net()}, ["torch"], (1,), (1, 2, 4), progress=stopped)
    assert found.interrupted
    assert [reading.latency.n for reading in found.readings if reading.latency] == [6, 2]
    assert "was interrupted" in str(found)
    assert Bench.from_json(found.to_json()) == found


def test_macs_that_are_known_better_are_taken() -> None:
    found = quick({"a": net(), "b": net()}, macs={"b": 7})
    assert [network.macs for network in found.networks] == [2448, 7]


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork")
@pytest.mark.nightly
def test_memory_counts_the_weights_and_what_a_run_takes(tmp_path: Path) -> None:
    with meter(True) as memories:
        large = nn.Linear(4000, 4000)
        peak = memories.peak(large, make_target("torch"), torch.zeros(1, 4000), tmp_path / "a")
        assert peak is not None
        assert 64e6 < peak < 200e6
        assert memories.peak(Local(), make_target("torch"), X, tmp_path / "b") is None
        again = memories.peak(large, make_target("torch"), torch.zeros(1, 4000), tmp_path / "a")
        assert again is not None  # one that failed does not stop the others
    with meter(False) as memories:
        assert memories.peak(large, make_target("torch"), X, tmp_path) is None


class Local(nn.Module):
    """What no other process can unpickle."""

    def __reduce__(self) -> Any:
        return raising, ()


def raising() -> None:
    raise ValueError


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (({},), "there is no network to measure"),
        (({"a": 3},), "a must be a module or the path of an ONNX file, but got 3"),
        (({"a": "no.onnx"},), "there is no file no.onnx"),
        (({"a": net()}, ["torhc"]), "no target 'torhc': did you mean torch"),
        (({"a": net()}, "torch"), "targets must be a list"),
        (({"a": net()}, []), "targets must be a list with at least one entry"),
        (({"a": net()}, ["torch"], [0]), "threads must be a whole number from 1 to"),
        (({"a": net()}, ["torch"], [1], [0]), "a batch must be a whole number of at least 1"),
        (({"a": net(), "b": nn.Linear(3, 3)},), "b fails on the input 1×1×8×8 .*take the same inputs"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(words: tuple[Any, ...], told: str) -> None:
    with pytest.raises(TopiaristError, match=told):
        quick(*words)


def test_files_that_are_no_networks_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    damaged, empty, other = (tmp_path / f"{name}.onnx" for name in ("damaged", "empty", "other"))
    damaged.write_text("no such thing")
    empty.write_bytes(b"")
    make_target("onnxruntime").export(net(), torch.randn(1, 1, 9, 9), other)
    for file, told in ((damaged, "damaged"), (empty, "holds no network"), (other, "takes 1×1×9×9, but the input is")):
        with pytest.raises(TopiaristError, match=told):
            quick({"a": file})


def test_a_missing_package_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(TopiaristError, match=r"onnxruntime is not installed: run `pip install 'topiarist\[export\]'`"):
        quick({"a": net()}, ["onnxruntime"])


@pytest.mark.parametrize("value", [None, {}, {"networks": 3}, {"networks": [{"nam": 1}], "readings": []}])
def test_values_that_are_no_bench(value: Any) -> None:
    with pytest.raises(TopiaristError, match="no bench"):
        Bench.from_json(value)


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running.tempfile, "tempdir", str(tmp_path))
    quick({"a": net()})
    assert not list(tmp_path.iterdir())
