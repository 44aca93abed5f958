"""Files for runtimes: they compute what torch does, say what was cut, and nothing else is ever written."""

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import topiarist
from exporting import Branching, Frozen, TwoRows, Unknown, words
from networks import shaken
from topiarist import Budget, TopiaristError, deploy
from topiarist.deploy import archive, export, make_target, target_of
from topiarist.graph import call_model, tensors_in
from topiarist.surgery import difference

IMAGE = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
EACH = [("onnx", "torchscript"), ("onnx", "dynamo"), ("openvino", "torchscript"), ("torch-export", "dynamo")]


@pytest.fixture(scope="module")
def pruned() -> nn.Module:
    torch.manual_seed(0)
    return topiarist.prune(shaken(topiarist.load_model("zoo:digitsnet")), IMAGE, "l1", Budget(macs=0.5)).model


def at(folder: Path, kind: str) -> Path:
    return folder / f"net{target_of(kind).suffix}"


def refusal(*args: Any, **options: Any) -> str:
    with pytest.raises(TopiaristError) as caught:
        export(*args, **options)
    return str(caught.value)


# ---- laws ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "exporter"), EACH)
@pytest.mark.by_day(3)
def test_a_file_computes_what_torch_does_at_any_batch_and_size(
    kind: str, exporter: str, pruned: nn.Module, tmp_path: Path
) -> None:
    state = {name: value.clone() for name, value in pruned.state_dict().items()}
    modes = [module.training for module in pruned.modules()]
    done = export(pruned, IMAGE, at(tmp_path, kind), kind, exporter=exporter, dynamic_size=True, metadata={"a": [1]})
    session = target_of(kind).load(done.path)
    for shape in ((1, 1, 8, 8), (2, 1, 8, 8), (7, 1, 24, 40)):
        x = torch.randn(shape)
        with torch.no_grad():
            assert difference(session(x), pruned(x)) <= 1e-5
    assert (done.exporter, done.batch, done.image_size, done.target) == (exporter, None, None, kind)
    assert done.difference <= 1e-5
    assert len(done.shapes) == 4
    assert done.bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    told = json.loads(target_of(kind).metadata(done.path))
    assert told["a"] == [1]
    assert told["topiarist"] == topiarist.__version__
    assert told["params"] == sum(p.numel() for p in pruned.parameters())
    assert [module.training for module in pruned.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in pruned.state_dict().items())


@pytest.mark.parametrize(("kind", "exporter"), EACH)
@pytest.mark.by_day(2)
def test_keywords_masks_and_nested_outputs_arrive(kind: str, exporter: str, tmp_path: Path) -> None:
    model, inputs = words()
    done = export(model, inputs, at(tmp_path, kind), kind, exporter=exporter)
    assert done.batch is None
    session = make_target(target_of(kind).name, threads=2).load(done.path)
    other = {"mask": torch.ones(5, 6, dtype=torch.bool), "ids": torch.randint(0, 20, (5, 6))}
    with torch.no_grad():
        assert difference(session(other), tensors_in(call_model(model, other))) <= 1e-5


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "torch.export", "torch", "torch.compile"])
def test_a_prepared_network_computes_what_torch_does(name: str) -> None:
    model, inputs = words()
    target = make_target(name)
    if name == "torch.compile":
        target = type(target)(backend="aot_eager")
        assert target.of_layers == make_target("torch")
    with torch.no_grad():
        wanted = tensors_in(call_model(model, inputs))
    run = target.prepare(model, inputs).bind(inputs)
    assert difference(run(), wanted) <= 1e-5
    assert difference(run(), wanted) <= 1e-5
    assert target.version


def test_where_the_batch_cannot_be_free_it_is_fixed_and_said(tmp_path: Path) -> None:
    done = export(TwoRows(), torch.randn(2, 4), tmp_path / "a.onnx")
    assert (done.batch, done.image_size, done.exporter) == (2, None, "torchscript")
    assert done.shapes == (((2, 4),), ((2, 4),))
    assert done.to_json()["batch"] == 2


def test_a_batch_that_a_trace_froze_is_found(tmp_path: Path) -> None:
    model = Frozen()
    done = export(model, torch.randn(2, 4), tmp_path / "a.onnx", exporter="torchscript")
    assert done.batch == 2
    assert "outputs differ by" in done.refused["torchscript"]
    with pytest.raises(TopiaristError, match="of shape 2,4, but got 3,4"):
        target_of("onnx").load(done.path)(torch.randn(3, 4))


@pytest.mark.nightly
def test_a_second_exporter_is_tried_where_the_first_fails_or_differs(
    pruned: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    perturb(monkeypatch, "torchscript")
    done = export(pruned, IMAGE, tmp_path / "a.onnx")
    assert done.exporter == "dynamo"
    assert "outputs differ by" in done.refused["torchscript"]


def perturb(monkeypatch: pytest.MonkeyPatch, *exporters: str) -> None:
    """Lets exporters write a file of slightly different weights."""
    from topiarist.deploy.targets.onnxruntime import OnnxRuntime

    write = OnnxRuntime.write

    def wrong(target: Any, draft: Any, path: Path) -> None:
        weight = next(draft.module.parameters())
        kept = weight.detach().clone()
        if draft.exporter in exporters:
            weight.data.mul_(1.01)
        try:
            write(target, draft, path)
        finally:
            weight.data.copy_(kept)

    monkeypatch.setattr(OnnxRuntime, "write", wrong)


# ---- refusals -----------------------------------------------------------------------------------------------------


def test_a_file_that_differs_is_refused_and_nothing_is_left(
    pruned: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    perturb(monkeypatch, "torchscript")
    (tmp_path / "a.onnx").write_text("as it was")
    told = refusal(pruned, IMAGE, tmp_path / "a.onnx", exporter="torchscript")
    assert "torchscript: outputs differ by" in told
    assert "1x1x8x8" in told
    assert [file.name for file in tmp_path.iterdir()] == ["a.onnx"]
    assert (tmp_path / "a.onnx").read_text() == "as it was"


@pytest.mark.parametrize("kind", ["onnx", "openvino", "torch-export"])
def test_a_branch_on_values_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    told = refusal(Branching(), torch.randn(2, 4), at(tmp_path, kind), kind)
    assert "depends on values of the input in gate" in told
    assert "torch.where" in told
    assert ("frozen" in told) == (kind != "torch-export")
    assert not list(tmp_path.iterdir())


@pytest.mark.nightly
def test_an_operator_that_onnx_has_not_is_named_with_its_module_and_both_reasons(tmp_path: Path) -> None:
    told = refusal(Unknown(), torch.randn(2, 4), tmp_path / "a.onnx")
    assert "does not export to onnx (torchscript: " in told
    assert "; dynamo: " in told
    assert told.count("bessel_j0") == 2
    assert told.count(" in last") == 2
    assert told.endswith("export to openvino or torch-export")
    with pytest.raises(TopiaristError, match="bessel_j0"):
        make_target("onnxruntime").prepare(Unknown(), torch.randn(2, 4))
    assert export(Unknown(), torch.randn(2, 4), tmp_path / "a.pt2", "torch-export").batch is None


class Broken(nn.Module):
    """Gives NaN, or fails."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.fails = fails

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, 3) if self.fails else x / 0 - x / 0


BAD = {
    "unknown target": ({"target": "onxn"}, "did you mean onnx?"),
    "a runtime without files": ({"target": "torch"}, "choose from|did you mean torch-export"),
    "unknown exporter": ({"exporter": "dynmo"}, "did you mean dynamo"),
    "an exporter that does not write it": (
        {"path": "a.pt2", "target": "torch-export", "exporter": "torchscript"},
        "is written by dynamo",
    ),
    "suffix": ({"path": "a.onx"}, "end in .onnx"),
    "suffix of OpenVINO": ({"path": "a.bin", "target": "openvino"}, "end in .xml"),
    "no path": ({"path": None}, "is not a path"),
    "no folder": ({"path": "/proc/none/a.onnx"}, "cannot write"),
    "metadata": ({"metadata": {"a": object()}}, "metadata cannot be written"),
    "NaN": ({"model": Broken(False)}, "gives NaN"),
    "fails": ({"model": Broken(True)}, "fails on random inputs"),
    "no images": ({"dynamic_size": True}, "images of one size only"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_refused_in_one_sentence(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given, wanted = BAD[case]
    asked = {"model": nn.Linear(4, 4), "example_inputs": torch.randn(2, 4), "path": "a.onnx", **given}
    told = refusal(**asked)
    assert re.search(wanted, told)
    assert "\n" not in told
    assert not list(tmp_path.iterdir())


def test_weights_beyond_what_onnx_holds_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("topiarist.deploy.onnx.LARGEST", 10)
    assert "an ONNX file holds 2 GB" in refusal(nn.Linear(4, 4), torch.randn(2, 4), tmp_path / "a.onnx")


@pytest.mark.parametrize(("package", "kind"), [("onnx", "onnx"), ("onnxruntime", "onnx"), ("openvino", "openvino")])
def test_a_package_that_is_missing_is_named(
    package: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    told = refusal(nn.Linear(4, 4), torch.randn(2, 4), at(tmp_path, kind), kind)
    assert "pip install 'topiarist[export]'" in told


@pytest.mark.parametrize("kind", ["onnx", "openvino", "torch-export"])
@pytest.mark.parametrize("content", [b"", b"<hello/>", b"PK\3\4 no archive", b"\x80\x04 no pickle", None])
def test_a_damaged_or_foreign_file_is_refused(kind: str, content: bytes | None, tmp_path: Path) -> None:
    file = at(tmp_path, kind)
    if content is not None:
        file.write_bytes(content)
    for read in (target_of(kind).load, target_of(kind).metadata):
        with pytest.raises(TopiaristError, match="export the network again") as caught:
            read(file)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["onnx", "openvino", "torch-export"])
def test_a_truncated_file_is_refused(kind: str, tmp_path: Path) -> None:
    done = export(nn.Linear(40, 40), torch.randn(2, 40), at(tmp_path, kind), kind)
    data = done.path.with_suffix(".bin") if kind == "openvino" else done.path
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with pytest.raises(TopiaristError, match="export the network again"):
        target_of(kind).load(done.path)


@pytest.mark.parametrize("kind", ["onnx", "openvino", "torch-export"])
@pytest.mark.by_day(2)
def test_inputs_that_do_not_fit_a_file_are_refused(kind: str, tmp_path: Path) -> None:
    model, inputs = words()
    session = target_of(kind).load(export(model, inputs, at(tmp_path, kind), kind).path)
    ids, mask = inputs["ids"], inputs["mask"]
    for given, wanted in (
        ({"ids": ids}, "takes ids and mask, but got ids"),
        ({"ids": ids, "tokens": ids}, "but got ids and tokens"),
        (ids, "but got 1 tensor:"),
        ((ids, mask, mask), "but got 3 tensors"),
        ((ids.int(), mask), "takes ids as int64, but got int32"),
        ((ids[:, :3], mask), "takes ids of shape .*,6, but got 2,3"),
        ((ids[0], mask), "but got 6"),
    ):
        with pytest.raises(TopiaristError, match=wanted):
            session.bind(given)
    assert len(session((ids, mask))) == len(session([ids, mask])) == 2


@pytest.mark.parametrize("name", ["torch", "torch.compile"])
def test_a_runtime_without_files_says_so(name: str, tmp_path: Path) -> None:
    target = make_target(name)
    for act in (
        lambda: target.export(nn.Linear(4, 4), torch.randn(2, 4), tmp_path / "a"),
        lambda: target.load(tmp_path / "a"),
        lambda: target.metadata(tmp_path / "a"),
    ):
        with pytest.raises(TopiaristError, match="reads no files"):
            act()


def test_no_compiler_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder, exc

    def none() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(TopiaristError, match=r"install one, for example g\+\+"):
        make_target("torch.compile").prepare(nn.Linear(4, 4), torch.randn(2, 4))


def test_the_registry_knows_the_formats() -> None:
    assert deploy.format_names() == ["onnx", "openvino", "torch-export"]
    assert {"onnxruntime", "openvino", "torch", "torch.compile", "torch.export"} <= set(deploy.target_names())
    with pytest.raises(TopiaristError, match=r"did you mean .*torch\.compile"):
        make_target("torch-compile")


# ---- files that nobody vouches for --------------------------------------------------------------------------------


class Evil:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


EVIL = "__import__('pathlib').Path('ran').touch()"
TAMPERED = {
    "pickled inputs": ("data/sample_inputs/model.pt", lambda old: pickled(), "a pickle"),
    "pickled weights": (
        "data/weights/model_weights_config.json",
        lambda old: old.replace(b'"use_pickle": false', b'"use_pickle": true', 1),
        "a pickle",
    ),
    "a library": ("data/aotinductor/model/a.so", lambda old: b"\x7fELF", "the part"),
    "a function": (
        "models/model.json",
        lambda old: old.replace(b"torch.ops.aten.linear.default", b"torch.os.system", 1),
        "a call of torch.os.system",
    ),
    "an expression": (
        "models/model.json",
        lambda old: re.sub(rb'"expr_str": "[^"]*"', f'"expr_str": "{EVIL}"'.encode(), old),
        "the expression __import__",
    ),
    "a guard": (
        "models/model.json",
        lambda old: re.sub(rb'"guards_code": \[[^\]]*\]', f'"guards_code": ["{EVIL}"]'.encode(), old),
        "the expression __import__",
    ),
}


def pickled() -> bytes:
    buffer = io.BytesIO()
    torch.save(((Evil(),), {}), buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("program") / "a.pt2"
    return export(nn.Linear(4, 4), torch.randn(2, 4), file, "torch-export").path


@pytest.mark.parametrize("case", TAMPERED)
def test_no_code_in_a_file_is_run(case: str, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part, change, wanted = TAMPERED[case]
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(program) as old, zipfile.ZipFile("bad.pt2", "w") as new:
        contents = {name: old.read(name) for name in old.namelist()}
        root = next(iter(contents)).partition("/")[0]
        changed = change(contents.get(f"{root}/{part}", b""))
        assert changed != contents.get(f"{root}/{part}")
        for name, content in {**contents, f"{root}/{part}": changed}.items():
            new.writestr(name, content)
    with pytest.raises(TopiaristError, match="could run code") as caught:
        make_target("torch.export").load(Path("bad.pt2"))
    assert wanted in str(caught.value)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Mul(Integer(9), Symbol('s87', positive=True, integer=True))", True),
        ("((9*L['tensors'][1].size()[0]) % L['tensors'][0].size()[0]) == 0", True),
        ("(1 + s0 // 2) < s1 and s1 != oo", True),
        ("exec", False),
        ("S('x')", False),
        ("Symbol('a b')", False),
        ("L['a'].__class__", False),
        ("L['a'].size().tofile('x')", False),
        ("[s0 for s0 in L]", False),
        ("(lambda: 1)()", False),
        ("L['a']('x')", False),
        ("Add(s0)(s1)", False),
        ("s0(", False),
    ],
)
def test_only_arithmetic_on_sizes_is_evaluated(text: str, plain: bool) -> None:
    assert archive._arithmetic(text) == plain


def test_threads_are_heeded(tmp_path: Path) -> None:
    example = torch.randn(2, 4)
    onnx: Any = make_target("onnxruntime", threads=2).prepare(nn.Linear(4, 4), example)
    assert onnx.session.get_session_options().intra_op_num_threads == 2
    openvino: Any = make_target("openvino", threads=2).prepare(nn.Linear(4, 4), example)
    assert openvino.compiled.get_property("INFERENCE_NUM_THREADS") == 2
    assert "float32" in str(openvino.compiled.get_property("INFERENCE_PRECISION_HINT"))
