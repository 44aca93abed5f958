"""Training and pruning shared by several processes equal those of one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from topiarist import Run
from topiarist.data import load_data
from topiarist.errors import TopiaristError
from topiarist.pruning import prune
from topiarist.train import Recipe, Speed, fit

_RANK = """
import sys, torch
from torch import nn
from topiarist.data import load_data
from topiarist.train import Recipe, Speed, fit
torch.set_num_threads(1)

def run(devices):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
    recipe = Recipe(epochs=2, batch_size=63)
    history = fit(model, load_data("digits").subset(195), recipe, speed=Speed(accelerator="cpu", devices=devices))
    return [*model.state_dict().values(), torch.tensor(history.epochs[-1].loss)]

for one, two in zip(run(1), run(2), strict=True):
    torch.testing.assert_close(one, two)
assert torch.distributed.get_world_size() == 2

from topiarist import Run, make_model, methods, prune, trace
from topiarist.pruning import Batches
from topiarist.measure import collect

data = load_data("digits").subset(195)
torch.manual_seed(1)
model = make_model("zoo:digitsnet?width=0.25")()
for method in ("taylor", "apoz", "fisher", "pfa"):  # gradients, activations, curvature, covariance
    wish = None if method == "pfa" else 0.5
    one, two = (prune(model, data.example(), method, wish, data, run=Run(distributed=each)) for each in (False, True))
    assert not all(bool(kept.all()) for kept in one.keep.values()), method
    for name, kept in one.keep.items():
        assert torch.equal(kept, two.keep[name]), (method, name)
        both = kept.clone().byte()  # and the other process says the same
        torch.distributed.all_reduce(both)
        assert torch.equal(both, 2 * kept.byte()), (method, name)

graph, seen = trace(model, data.example()), []
measuring = [methods.make(name) for name in methods.names()]
measuring = [method for method in measuring if method.needs - {"weights", "training", "evaluations"}]
assert {"taylor", "apoz", "fisher", "pfa", "obd", "obs", "wanda"} <= {method.name for method in measuring}
model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
for size, mine in ((30, (105, 90)), (195, (195, 195))):  # seven batches; a single one, which the second only shows
    for method in measuring:
        batches, units = Batches(data, size, 0), method.units(graph)
        one = collect(model, units, batches, method.needs)
        seen.clear()
        two = collect(model, units, batches, method.needs, distributed=True)
        assert sum(seen) == mine[torch.distributed.get_rank()], (method, seen)
        assert one.sums.keys() == two.sums.keys(), method
        for key, total in one.sums.items():
            torch.testing.assert_close(two.sums[key], total, rtol=1e-12, atol=1e-12 * float(total.abs().max()))
torch.distributed.destroy_process_group()
"""


def test_nobody_to_share_with() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 10))
    data = load_data("digits")
    with pytest.raises(TopiaristError, match="torchrun"):
        prune(model, data.example(), "taylor", 0.5, data, run=Run(distributed=True))


def test_several_devices_are_not_used_by_starting_the_script_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(TopiaristError, match="start the script with `torchrun --nproc-per-node 2 SCRIPT`"):
        fit(model, load_data("digits"), Recipe(epochs=1), speed=Speed(accelerator="cpu", devices=2))


@pytest.mark.nightly
def test_two_processes_equal_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {  # what torchrun sets
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1] / "src"),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", _RANK],
            cwd=tmp_path,
            env={**shared, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        for rank in ranks:
            told = rank.communicate(timeout=120)[1]
            assert rank.returncode == 0, told
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
