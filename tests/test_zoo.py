"""The networks of the papers: sizes that the papers state, shapes, initialisation and the refusal of bad options."""

import inspect
import math

import pytest
import torch
from torch import nn

from topiarist.errors import TopiaristError
from topiarist.models import zoo
from topiarist.models.zoo.blocks import ZeroShortcut, scaled

# Parameters at full width, ten classes, the paper's input; the papers round most of them to "0.27M", "0.85M" ...
PARAMETERS = {
    "lenet300": 784 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10,  # 266,610
    "lenet5": 520 + 25_050 + 400_500 + 5_010,  # 431,080
    "mlp": 784 * 500 + 500 + 500 * 300 + 300 + 300 * 10 + 10 + 2 * 800,
    "digitsnet": 176 + 4_672 + 13_952 + 55_552 + 650,  # stem, three blocks, classifier
    "vgg11": 9_228_362,
    "vgg16": 14_987_722,  # 1.5e7 in Li et al.
    "vgg19": 20_035_018,  # 20.04M in Network Slimming
    "resnet20": 269_722,  # 0.27M
    "resnet56": 853_018,  # 0.85M
    "resnet110": 1_727_962,  # 1.7M
    "preresnet110": 1_146_842,
    "preresnet164": 1_703_258,  # 1.70M in Network Slimming
    "densenet40": 1_019_722,  # 1.02M in Network Slimming
    "densenet_bc100": 769_162,  # 0.8M
    "resnext29": 34_426_698,  # 34.4M
}
SMALLEST = {"lenet5": 28}  # the others take 8x8 images


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_every_network_has_a_known_size():
    assert set(zoo.names()) == set(PARAMETERS)


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_sizes_are_those_of_the_papers(name, parameters):
    with torch.device("meta"):
        model = zoo.build(name)
    assert count(model) == parameters


def test_lenets_have_the_sizes_everyone_quotes():
    assert PARAMETERS["lenet300"] == 266_610
    assert PARAMETERS["lenet5"] == 431_080


@pytest.mark.parametrize("name", zoo.names())
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32), pytest.param(1, 28, marks=pytest.mark.nightly)])
@pytest.mark.by_day(12)
def test_shapes_of_inputs_and_outputs(name, channels, size):
    if size < SMALLEST.get(name, 0):
        with pytest.raises(TopiaristError, match="at least 16x16"):
            zoo.build(name, in_channels=channels, input_size=size)
        return
    model = zoo.build(name, in_channels=channels, classes=7, width=0.125, input_size=size)
    out = model(torch.randn(2, channels, size, size))
    assert out.shape == (2, 7)
    assert out.isfinite().all()
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_images_need_not_be_square():
    for name in ("lenet300", "lenet5", "vgg11", "resnet20"):
        model = zoo.build(name, in_channels=1, width=0.25, input_size=(28, 20)).eval()
        assert model(torch.randn(2, 1, 28, 20)).shape == (2, 10)


def test_odd_maps_pass_the_shortcut():
    model = zoo.build("resnet20", width=0.25).eval()
    assert model(torch.randn(1, 3, 31, 29)).shape == (1, 10)


@pytest.mark.parametrize("name", zoo.names())
def test_the_seed_decides_the_weights(name):
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        model = zoo.build(name, width=0.125)
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    first = weights(0)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))


@pytest.mark.parametrize("name", zoo.names())
def test_width_scales_the_parameters_between_linearly_and_quadratically(name):
    with torch.device("meta"):
        full, half = count(zoo.build(name)), count(zoo.build(name, width=0.5))
    assert 0.2 * full < half < 0.6 * full


@pytest.mark.parametrize("name", zoo.names())
def test_every_builder_takes_the_same_options_and_documents_them(name):
    function = zoo.builder(name)
    parameters = list(inspect.signature(function).parameters)
    assert parameters[:4] == ["in_channels", "classes", "width", "input_size"]
    assert all(f"{parameter}: " in function.__doc__ for parameter in parameters)


@pytest.mark.parametrize(
    ("name", "gamma"),
    [("vgg19", 0.5), ("preresnet164", 0.5), ("densenet40", 0.5), ("mlp", 0.5), ("resnet56", 1.0), ("preresnet110", 1)],
)
def test_scales_of_batch_norms_start_as_in_the_papers(name, gamma):
    norms = [m for m in zoo.build(name, width=0.25).modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert norms
    for norm in norms:
        assert (norm.weight == gamma).all()
        assert (norm.bias == 0).all()


def test_convolutions_are_drawn_by_their_fan_out():
    torch.manual_seed(0)
    for name in ("vgg11", "resnet20", "preresnet164"):
        for module in zoo.build(name).modules():
            if isinstance(module, nn.Conv2d) and module.weight.numel() > 20_000:
                fan_out = math.prod(module.kernel_size) * module.out_channels
                assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.03)


def test_lenets_start_as_in_their_papers():
    torch.manual_seed(0)
    first = zoo.build("lenet300").layers[1]
    assert first.weight.std().item() == pytest.approx(math.sqrt(2 / (784 + 300)), rel=0.02)  # Glorot's normal
    caffe = zoo.build("lenet5").fc1
    assert caffe.weight.std().item() == pytest.approx(math.sqrt(1 / 800), rel=0.02)  # Caffe's "xavier": 1 / fan_in
    assert caffe.weight.abs().max() <= math.sqrt(3 / 800)
    assert (first.bias == 0).all()
    assert (caffe.bias == 0).all()


def test_vgg_averages_two_by_two_maps_on_cifar():
    model = zoo.build("vgg16", width=0.125).eval()
    assert model.features(torch.randn(1, 3, 32, 32)).shape[2:] == (2, 2)
    assert model.features(torch.randn(1, 3, 8, 8)).shape[2:] == (1, 1)


def test_zero_shortcut_averages_and_appends_zeros():
    x = torch.arange(8.0).view(1, 2, 2, 2)
    out = ZeroShortcut(stride=2, extra=3)(x)
    assert out.flatten().tolist() == [1.5, 5.5, 0, 0, 0]
    out = ZeroShortcut(stride=2, extra=0)(torch.arange(3.0).view(1, 1, 1, 3))
    assert out.flatten().tolist() == [0.5, 2.0]  # the odd pixel is averaged alone, not with padding


def test_blocks_add_their_input():
    model = zoo.build("resnet20", width=0.25).eval()
    block = model.layer2[0]
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 4, 8, 8)  # positive, so the last ReLU changes nothing
    assert torch.equal(block(x), block.shortcut(x))


def test_dense_layers_keep_their_input():
    layer = zoo.build("densenet_bc100", width=0.25).eval().stages[1][0]
    x = torch.randn(2, 6, 8, 8)
    out = layer(x)
    assert out.shape == (2, 6 + 3, 8, 8)
    assert torch.equal(out[:, :6], x)


def test_resnext_keeps_its_groups_at_every_width():
    for width in (0.05, 0.3):
        grouped = [m for m in zoo.build("resnext29", width=width).modules() if getattr(m, "groups", 1) > 1]
        assert len(grouped) == 9
        assert all(conv.groups == 8 for conv in grouped)
    with pytest.raises(TopiaristError, match="groups"):
        zoo.build("resnext29", groups=0)


def test_preresnet110_has_two_readings():
    with torch.device("meta"):
        basic = zoo.build("preresnet110", bottleneck=False)
    assert len(basic.layer1) == 18
    assert count(basic) == pytest.approx(1.73e6, rel=0.01)  # 1.7M in He et al.


def test_scaled_rounds_and_keeps_one():
    assert [scaled(16, width) for width in (1, 0.5, 0.3, 0.001)] == [16, 8, 5, 1]
    assert scaled(100, 0.5, multiple=8) == 48
    assert scaled(8, 0.01, multiple=8) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 0}, "classes is 0"),
        ({"classes": True}, "classes is True"),
        ({"in_channels": "three"}, "in_channels is 'three'"),
        ({"width": 0}, "width is 0"),
        ({"width": float("nan")}, "width is nan"),
        ({"width": "wide"}, "width is 'wide'"),
        ({"input_size": 2.5}, "input_size is 2.5"),
        ({"input_size": (8, 8, 8)}, "input_size is"),
        ({"input_size": 0}, "input_size is 0"),
        ({"input_size": 3}, "at least 4x4"),
        ({"depth": 3}, "has no option 'depth': it takes in_channels"),
    ],
)
def test_bad_options_are_told_in_a_sentence(options, message):
    with pytest.raises(TopiaristError, match=message) as caught:
        zoo.build("resnet20", **options)
    assert not str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_unknown_names_get_the_closest_ones():
    with pytest.raises(TopiaristError, match=r"did you mean .*resnet56"):
        zoo.build("resnet65")
    with pytest.raises(TopiaristError, match="choose from lenet300"):
        zoo.build("zzz")
