"""One method chooses and another gives what is left new values: `prune(repair=…)`."""

import json

import pytest
import torch
from torch import nn

import topiarist
from topiarist import Data, TopiaristError, methods, prune
from topiarist.cli import main


@pytest.fixture(scope="module")
def digits():
    return topiarist.load_data("digits").subset(256)


def net(seed=0):
    torch.manual_seed(seed)
    return topiarist.load_model("zoo:digitsnet", width=0.5).eval()


def shown(data):
    return next(iter(data.batches("train", 64)))[0]


@pytest.mark.parametrize("repair", ["lasso", "thinet"])
@pytest.mark.parametrize("method", ["l1", "random", "fpgm"])
@pytest.mark.by_day(2)
def test_the_same_units_go_and_the_outputs_move_less(method, repair, digits):
    model, x = net(), shown(digits)
    plain = prune(model, digits.example(), method, 0.5, digits)
    mended = prune(model, digits.example(), topiarist.Pruning.of(method, 0.5, repair=repair), data=digits)
    assert all(torch.equal(plain.keep[name], mended.keep[name]) for name in plain.keep)
    assert mended.repair == methods.make(repair)
    assert f"repaired by {repair}" in str(mended)
    with torch.no_grad():
        plain_error, mended_error = ((pruned.model.eval()(x) - model(x)).pow(2).mean() for pruned in (plain, mended))
    assert mended_error < plain_error


def test_a_cut_of_doubled_channels_is_mended_without_a_trace():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].weight[4:] = 3 * model[0].weight[:4]  # so that L1 cuts the first four: a third of the others
        model[0].bias[4:] = 3 * model[0].bias[:4]
    x = torch.rand(200, 6)
    data = Data("twins", x[:, :, None, None], torch.arange(200) % 3, x[:9, :, None, None], torch.arange(9) % 3, 3,
                (0.0,) * 6, (1.0,) * 6)  # fmt: skip
    flat = nn.Sequential(nn.Flatten(), model)
    repair = methods.make("lasso", ridge=1e-9)
    pruned = prune(flat, data.example(), topiarist.Pruning.of("l1", {"ratio": 0.5}, repair=repair), data=data)
    assert pruned.keep["1.0"].tolist() == [False] * 4 + [True] * 4
    with torch.no_grad():
        assert (pruned.model(x[..., None, None]) - flat(x[..., None, None])).abs().max() < 1e-4
        cut = prune(flat, data.example(), "l1", {"ratio": 0.5}, data).model
        assert (cut(x[..., None, None]) - flat(x[..., None, None])).abs().max() > 0.1


@pytest.mark.nightly
def test_a_method_that_repairs_itself_may_be_named_again(digits):
    one = prune(net(), digits.example(), "thinet", 0.5, digits)
    two = prune(net(), digits.example(), topiarist.Pruning.of("thinet", 0.5, repair="thinet"), data=digits)
    assert one.repair == two.repair == methods.make("thinet")
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))
    assert prune(net(), digits.example(), "l1", 0.5).repair is None


def test_who_cannot_repair_is_told(digits):
    for repair, method, told in (
        ("l1", "fpgm", "l1 does not repair: choose lasso or thinet"),
        ("lasso", "magnitude", "lasso repairs structured pruning only, and magnitude is unstructured"),
        ("lassoo", "l1", "lasso"),
    ):
        with pytest.raises(TopiaristError, match=told):
            prune(net(), digits.example(), topiarist.Pruning.of(method, 0.5, repair=repair), data=digits)
    with pytest.raises(TopiaristError, match="data"):
        prune(net(), digits.example(), topiarist.Pruning.of("l1", 0.5, repair="lasso"))


def test_the_command_line_repairs_too(tmp_path, capsys):
    weights = tmp_path / "net.pt"
    torch.save(net().state_dict(), weights)
    asked = ["prune", "zoo:digitsnet?width=0.5", "--method", "l1", "--repair", "lasso", "--budget.macs", "0.5",
             "--weights", str(weights), "--data", "digits?train=200", "--epochs", "0", "--json"]  # fmt: skip
    assert main([*asked, "--out", str(tmp_path / "out")]) == 0
    assert json.loads(capsys.readouterr().out)["pruning"]["repair"]["name"] == "lasso"
    assert main([*asked[:-1], "--out", str(tmp_path / "other"), "--repair", "l1"]) == 2
    assert "l1 does not repair: choose lasso or thinet" in capsys.readouterr().err
