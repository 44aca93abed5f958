"""Rules that a user declares: shared, written, wrong, and proved."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from networks import Net, tokens
from topiarist import Budget, TopiaristError, check_rule, prune, rule, trace
from topiarist.graph.rules import RULES, own, rule_of

X = tokens(2, width=8)


@pytest.fixture(autouse=True)
def restored():
    """Rules are declared for a whole process."""
    rules, declared = dict(RULES), set(own.OWN)
    yield
    for known, before in ((RULES, rules), (own.OWN, declared)):
        known.clear()
        known.update(before)
    rule_of.cache_clear()


@torch.library.custom_op("own::swish", mutates_args=())
def swish(x: torch.Tensor) -> torch.Tensor:
    return x * x.sigmoid()


@torch.library.custom_op("own::soft", mutates_args=())
def soft(x: torch.Tensor) -> torch.Tensor:
    return x.softmax(-1)


@torch.library.custom_op("own::project", mutates_args=())
def project(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x @ weight.T


@torch.library.custom_op("own::shift", mutates_args={"x"})
def shift(x: torch.Tensor) -> None:
    x.add_(1)


def passing(zero=None):
    return lambda call: call.put(call.out, call.axes("x"), zero=call.zero("x") if zero is None else zero)


def pinning_last(call):
    *outer, last = call.axes("x")
    call.pin(last, "every position counts")
    call.put(call.out, [*outer, None])


def projecting(call):
    *outer, read = call.axes("x")
    rows, columns = call.axes("weight")
    columns = call.unify(read, columns)
    if not (call.zero("x") or call.zero("weight")):
        call.pin(columns, "sums what is not zero")
    call.layer("weight", output=0, input=1)
    call.put(call.out, [*outer, rows], zero=call.zero("weight"))


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.c = nn.Linear(8, 12), nn.Linear(6, 3)
        self.weight = nn.Parameter(torch.randn(6, 12))

    def forward(self, x):
        return self.c(torch.ops.own.project(torch.ops.own.swish(self.a(x)), self.weight))


def test_a_network_with_operators_of_its_own_is_pruned_and_proved():
    torch.manual_seed(0)
    model = Own().eval()
    assert trace(model, X).unknown == ("own.swish.default", "own.project.default")
    rule(swish, like="silu")
    rule("own::project")(projecting)
    assert check_rule(model, X).max_rel_diff < 1e-12
    result = prune(model, X, "l1", Budget(macs=0.5))
    assert result.proof.ok
    assert {group.name: group.units for group in result.graph.groups} == {"a": 12, "weight": 6}
    assert result.model.weight.shape < (6, 12)
    assert 0.4 < result.after.macs / result.before.macs <= 0.5
    assert result.before.macs == 5 * (8 * 12 + 12 * 6 + 6 * 3)


@pytest.mark.parametrize("operator", [swish, torch.ops.own.swish, torch.ops.own.swish.default, "own::swish"])
def test_an_operator_is_given_in_any_form(operator):
    rule(operator)(passing())
    assert check_rule(swish, X).ok


def test_functions_are_proved_without_a_network():
    rule(soft)(pinning_last)
    rule(project)(projecting)
    assert check_rule(soft, X).max_rel_diff < 1e-12
    assert check_rule(project, (X, torch.randn(6, 8))).max_rel_diff < 1e-12
    assert check_rule(lambda x, weight: soft(project(x, weight)), {"x": X, "weight": torch.randn(6, 8)})


def test_what_is_changed_in_place_is_no_longer_zero():
    def changed(x):
        x = x.clone()
        shift(x)
        return x

    rule(shift)(lambda call: call.put(call["x"], call.axes("x")))
    assert check_rule(changed, X).max_rel_diff < 1e-12
    rule(shift)(lambda call: call.put(call["x"], call.axes("x"), zero=True))
    with pytest.raises(TopiaristError, match="claims zeros"):
        check_rule(changed, X)


WRONG = {
    "passes what it should pin": (soft, passing(False), X, "the rule of own::soft is wrong: cut and mask differ"),
    "claims zeros": (
        soft, lambda call: call.put(call.out, [None, *call.axes("x")[1:2], None], zero=True), X, "claims zeros"),
    "unifies nothing": (
        project, lambda call: call.put(call.out, [*call.axes("x")[:-1], call.axes("weight")[0]]),
        (X, torch.randn(6, 8)), "the rule of own::project is wrong"),
    "pins all": (
        swish, lambda call: [call.pin(axis, "I am careful") for axis in call.axes("x")]
        and call.put(call.out, [None] * 3), X, "nothing in this network can be pruned.*I am careful"),
    "fails": (swish, lambda call: call.axes("z"), X, "the rule of own::swish fails .KeyError: 'z'"),
    "puts too few": (swish, lambda call: call.put(call.out, [None]), X, "the rule of own::swish fails"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_rule_is_named(name):
    operator, function, inputs, message = WRONG[name]
    rule(operator)(function)
    with pytest.raises(TopiaristError, match=message):
        check_rule(operator, inputs)


def test_a_missing_rule_is_named():
    with pytest.raises(TopiaristError, match=r"own.swish.default has no rule; declare one with topiarist.rule"):
        check_rule(swish, X)


def test_a_wrong_rule_gives_no_wrong_network():
    rule(soft)(passing(False))
    torch.manual_seed(0)
    model = Net(lambda net, x: net.b(soft(net.a(x))), a=nn.Linear(8, 8), b=nn.Linear(8, 3)).eval()
    with pytest.raises(TopiaristError, match="can be pruned, and the most frequent reason is: cannot be proved"):
        prune(model, X, "l1", Budget(ratio=0.5))


def test_the_later_rule_holds_and_torchs_own_are_replaced_on_purpose():
    rule(soft)(passing(False))
    rule(soft)(pinning_last)
    assert check_rule(soft, X).ok
    with pytest.raises(TopiaristError, match="relu has a rule already; replace it on purpose with override=True"):
        rule(torch.ops.aten.relu)(passing())
    rule("aten::relu", override=True)(lambda call: call.put(call.out, call.axes("self"), zero=call.zero("self")))
    assert check_rule(torch.relu, X).ok


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rule("swish"), "torch has no operator 'swish'; write .* 'namespace::swish'"),
        (lambda: rule(3), "3 is no operator of torch"),
        (lambda: rule(swish, like=soft), "own::soft has no rule to share"),
        (lambda: rule(swish, like="native_layer_norm"), "native_layer_norm mixes positions"),
    ],
)
def test_what_cannot_be_declared_is_refused(make, message):
    with pytest.raises(TopiaristError, match=message):
        make()
