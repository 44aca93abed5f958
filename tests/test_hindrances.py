"""Networks that cannot be pruned at all: the reason is theirs, with what would help."""

import pytest
import torch
from torch import nn
from torch.ao import quantization
from torch.ao.quantization import quantize_fx
from torch.nn.attention.flex_attention import flex_attention

from networks import Net, images, shaken, tokens
from topiarist import Budget, TopiaristError, prune, rule, trace


def cnn():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten()]
    return shaken(nn.Sequential(*layers, nn.Linear(32, 4)))


X = images(2)


def prepared(prepare, setting):
    model = cnn().train(prepare is quantization.prepare_qat)
    model = nn.Sequential(quantization.QuantStub(), model, quantization.DeQuantStub())
    model.train(prepare is quantization.prepare_qat).qconfig = setting("fbgemm")
    made = prepare(model)
    made(X)
    return made.eval()


def prepared_to_quantise():
    return prepared(quantization.prepare, quantization.get_default_qconfig)


def prepared_graph():
    return quantize_fx.prepare_fx(cnn(), quantization.get_default_qconfig_mapping(), X)


FROZEN = {
    "exported": (lambda: torch.export.export(cnn(), (X,)), "exported program.*torch.nn.Module.*export the pruned"),
    "exported module": (lambda: torch.export.export(cnn(), (X,)).module(), "exported program.*export the pruned"),
    "scripted": (lambda: torch.jit.script(cnn()), "scripted.*torch.nn.Module"),
    "traced by jit": (lambda: torch.jit.trace(cnn(), X), "scripted.*torch.nn.Module"),
    "scripted within": (lambda: nn.Sequential(torch.jit.script(cnn()[:3]), cnn()[3:]), "module '0' is scripted"),
    "prepared to train": (
        lambda: prepared(quantization.prepare_qat, quantization.get_default_qat_qconfig),
        "prepared for quantisation.*prepare the pruned",
    ),
    "prepared": (prepared_to_quantise, "prepared for quantisation.*prepare the pruned"),
    "prepared graph": (prepared_graph, "prepared for quantisation.*prepare the pruned"),
    "quantised": (lambda: quantization.convert(prepared_to_quantise()), "quantised.*quantise the pruned"),
    "quantised for its inputs": (
        lambda: quantization.quantize_dynamic(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), {nn.Linear}),
        "0 is quantised.*quantise the pruned",
    ),
}


@pytest.mark.parametrize("form", FROZEN)
@pytest.mark.filterwarnings("ignore")
def test_a_frozen_form_is_refused_with_its_own_reason(form):
    make, told = FROZEN[form]
    model = make()
    for door in (lambda: trace(model, X), lambda: prune(model, X, "l1", 0.5)):
        with pytest.raises(TopiaristError, match=told):
            door()


def test_a_symbolic_graph_is_pruned_as_its_module_is():
    graph, module = torch.fx.symbolic_trace(cnn()), cnn()
    assert [group.units for group in trace(graph, X).groups] == [group.units for group in trace(module, X).groups]
    assert prune(graph, X, "l1", Budget(ratio=0.5)).proof.ok


def test_stubs_alone_do_not_prepare_a_network():
    model = nn.Sequential(quantization.QuantStub(), cnn(), quantization.DeQuantStub()).eval()
    assert prune(model, X, "l1", Budget(ratio=0.5)).proof.ok


@torch.library.custom_op("hindrances::wavy", mutates_args=())
def wavy(x: torch.Tensor) -> torch.Tensor:
    return x * x.sigmoid()


@torch.library.custom_op("hindrances::declared", mutates_args=())
def declared(x: torch.Tensor) -> torch.Tensor:
    return x * x.sigmoid()


@torch.library.custom_op("hindrances::flash_attn", mutates_args=())
def flash(x: torch.Tensor) -> torch.Tensor:
    return x.softmax(-1)


def between(operator):
    torch.manual_seed(0)
    return shaken(Net(lambda net, x: net.b(operator(net.a(x))), a=nn.Linear(12, 8), b=nn.Linear(8, 3)))


def refusal(model, x, *request):
    with pytest.raises(TopiaristError, match="nothing in this network can be pruned") as told:
        prune(model, x, *(request or ("l1", 0.5)))
    return str(told.value)


def test_an_operator_without_a_rule_is_named_with_what_would_help():
    told = refusal(between(wavy), tokens(1))
    assert "hindrances.wavy" in told
    assert "test_hindrances.py" in told
    assert "topiarist.rule" in told


def test_a_rule_can_be_declared():
    assert not trace(between(declared), tokens(1)).groups
    rule(declared, like="silu")
    result = prune(between(declared), tokens(1), "l1", Budget(ratio=0.5))
    assert result.proof.ok
    assert result.model.a.out_features == 4


def test_attention_without_a_rule_asks_for_the_plain_one():
    assert "attn_implementation='eager'" in refusal(between(flash), tokens(1))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.nightly
def test_an_operator_that_takes_a_function_is_named():
    def attend(x):
        heads = x.unflatten(-1, (1, 8)).transpose(1, 2)
        return flex_attention(heads, heads, heads).transpose(1, 2).flatten(2)

    with pytest.raises(TopiaristError, match=r"flex_attention.*attn_implementation='eager'"):
        trace(between(attend), tokens(1))


def test_the_most_frequent_reason_is_named():
    told = refusal(between(lambda x: x.cumsum(-1)), tokens(1))
    assert "cumsum over the axis depends on every position" in told
    assert "topiarist inspect" in told


def test_a_place_is_a_line_of_the_model_not_of_who_runs_it():
    model = nn.Sequential(nn.Linear(12, 8), nn.Softmax(-1), nn.Linear(8, 3))
    for pin in trace(model, tokens(1)).pinned:
        assert "test_hindrances.py" not in pin.reason
        assert "tracing.py" not in pin.reason
    told = refusal(model, tokens(1))
    assert "softmax over the axis depends on every position (in 1)" in told
