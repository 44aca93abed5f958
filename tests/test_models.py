"""Models by name: every form of a name, options, remedies for what is missing or wrong."""

import importlib
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import topiarist
from topiarist.errors import TopiaristError
from topiarist.models import ModelFactory, fitting_options, import_torchvision, load_model, make_model, split_options


@pytest.fixture(scope="module")
def vision():
    """Imports torchvision and timm once; a build that does not match torch's may say so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_torchvision()
        importlib.import_module("timm")


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A working directory of its own, in which nothing that is imported stays imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        del sys.modules[name]


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def refusal(spec: str, **options) -> str:
    with pytest.raises(TopiaristError) as caught:
        load_model(spec, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert text[-1] != "."
    return text


def test_options_in_the_name():
    assert split_options("zoo:vgg11") == ("zoo:vgg11", {})
    name, options = split_options("m?width=0.25&n=10&flag=true&none=none&pair=[8, 16]&text=a:b&empty=")
    assert name == "m"
    assert options == {
        "width": 0.25,
        "n": 10,
        "flag": True,
        "none": None,
        "pair": [8, 16],
        "text": "a:b",
        "empty": "",
    }
    with pytest.raises(TopiaristError, match="write options as"):
        split_options("m?width")
    with pytest.raises(TopiaristError, match="write options as"):
        split_options("m?a b=1")


def test_zoo_names_take_inline_options_and_keywords_win():
    model = load_model("zoo:vgg11?width=0.25&in_channels=1&classes=26", classes=7)
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 7)


def test_make_model_gives_fresh_weights_of_one_architecture():
    make = make_model("zoo:lenet5?width=0.5", classes=3)
    first, second = make(), make()
    assert [p.shape for p in first.parameters()] == [p.shape for p in second.parameters()]
    assert not torch.equal(first.fc1.weight, second.fc1.weight)


def test_factories_travel_as_pickles():
    make = make_model("zoo:lenet300", width=0.1)
    again = pickle.loads(pickle.dumps(make))
    assert again == make == ModelFactory("zoo:lenet300", {"width": 0.1})
    assert parameters(again()) == parameters(make())


def test_make_model_refuses_at_once():
    with pytest.raises(TopiaristError, match="did you mean resnet56"):
        make_model("zoo:resnet-56")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet56", "did you mean zoo:resnet56?"),
        ("zoo:", "name models as zoo:NAME"),
        (":x", "name models as zoo:NAME"),
        ("", "name models as zoo:NAME"),
        ("zoo:resnet57", "did you mean resnet56"),
        ("zoo:lenet5?input_size=8", "at least 16x16"),
        ("zoo:lenet5?colour=1", "has no option 'colour'"),
        ("zooo:resnet56", "name models as zoo:NAME"),
        ("no_such_package.module:build", "name models as zoo:NAME"),
        ("topiarist.no_such_module:build", "name models as zoo:NAME"),
        ("topiarist.models.zoo:resnet57", "did you mean"),
        ("topiarist.models.zoo:names", "gave a tuple"),
        ("topiarist.models.zoo:__doc__", "is a str"),
        (".relative:build", "cannot be imported"),
        ("collections:OrderedDict?a=1", "gave a OrderedDict"),
        ("topiarist.models.zoo.vgg:vgg11?colour=1", "could not be built"),
    ],
)
def test_bad_names_are_told_in_a_sentence(spec, message):
    assert message in refusal(spec)


def test_any_factory_in_reach_of_the_working_directory(workspace):
    (workspace / "my_nets.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self, in_channels=3, classes=5, image_size=8):\n"
        "        super().__init__(in_channels, classes)\n"
        "ready = Net()\n"
        "def broken(): raise ValueError('first line\\nsecond line')\n"
        "class Shelf:\n"
        "    make = Net\n"
    )
    assert load_model("my_nets:Net", classes=4).out_features == 4
    assert load_model("my_nets:Shelf.make?in_channels=2").in_features == 2
    assert "first line)" in refusal("my_nets:broken")
    assert "returns a fresh model" in refusal("my_nets:ready")
    assert "did you mean Net?" in refusal("my_nets:Nets")
    assert fitting_options("my_nets:Net", (1, 28, 28), 10) == {"in_channels": 1, "classes": 10}


def test_modules_that_fail_name_the_reason(workspace):
    (workspace / "half_written.py").write_text("def build(:\n")
    (workspace / "needy.py").write_text("import a_package_that_nobody_has\n")
    assert "half_written cannot be imported" in refusal("half_written:build")
    assert "needs the package a_package_that_nobody_has" in refusal("needy:build")


def test_missing_packages_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert "pip install 'topiarist[vision]'" in refusal("torchvision:resnet18")
    assert "pip install 'topiarist[vision]'" in refusal("timm:resnet18")


@pytest.mark.parametrize(
    "spec",
    [
        "torchvision:squeezenet1_1",
        "torchvision:googlenet",
        "torchvision:inception_v3",
        "torchvision:segmentation.lraspp_mobilenet_v3_large",
        "torchvision:detection.backbone_utils.mobilenet_backbone",
        "torchvision:detection.backbone_utils.resnet_fpn_backbone?backbone_name=resnet18",
        "timm:mobilenetv3_small_050",
    ],
)
def test_vision_models_need_no_download_and_raise_no_warning(vision, spec):
    assert parameters(load_model(spec)) > 100_000


def test_vision_options(vision):
    assert load_model("torchvision:resnet18?num_classes=3").fc.out_features == 3
    assert load_model("timm:resnet18", num_classes=3, in_chans=1).conv1.in_channels == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("torchvision:resnet19", "did you mean"),
        ("torchvision:segmentation.fcn_resnet51", "has no 'segmentation.fcn_resnet51': did you mean"),
        ("torchvision:resnet18?colour=1", "could not be built"),
        ("torchvision:segmentation", "is not a model"),
        ("timm:resnet19", "did you mean"),
        ("timm:resnet18?num_classes=many", "could not be built"),
    ],
)
def test_bad_vision_names(vision, spec, message):
    assert message in refusal(spec)


def test_options_that_fit_a_data_set(vision):
    shape = (1, 28, 28)
    assert fitting_options("zoo:lenet5?classes=3", shape, 10) == {"in_channels": 1, "input_size": 28}
    assert fitting_options("zoo:lenet5", (3, 28, 20), 10)["input_size"] == (28, 20)
    assert fitting_options("torchvision:resnet18", shape, 10) == {"num_classes": 10}
    assert fitting_options("torchvision:detection.backbone_utils.mobilenet_backbone", shape, 10) == {}
    assert fitting_options("timm:resnet18", shape, 10) == {"num_classes": 10, "in_chans": 1}
    for spec in ("zoo:resnet20", "zoo:vgg11?width=0.1", "timm:resnet18"):
        model = load_model(spec, **fitting_options(spec, shape, 4)).eval()
        assert model(torch.randn(1, *shape)).shape == (1, 4)


MISMATCHED = """
import torch
@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold): return dets
@torch.library.register_fake("torchvision::qnms")
def qnms(dets, scores, iou_threshold): return dets
"""
ASK = """
import warnings
from topiarist.models import load_model
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for _ in range(2):
        print(load_model("torchvision:tiny").out_features)
print(len(said), said[0].message)
"""


@pytest.mark.nightly
def test_a_torchvision_of_another_build_is_helped_to_import(tmp_path):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(MISMATCHED)
    (package / "models.py").write_text("from torch import nn\ndef tiny(*, weights): return nn.Linear(1, 3)\n")
    source = Path(topiarist.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(source)])}
    done = subprocess.run(
        [sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == ["3", "3"]
    assert done.stdout.splitlines()[2].startswith("1 torchvision was built for another torch")
