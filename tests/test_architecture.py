"""The shape as a value: it round-trips, rebuilds and restores networks, and no damaged file does harm."""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import topiarist
from networks import CASES, Net, call, conv, distance, images, line, qkv_parts, random_keep, shaken, tokens
from topiarist import Architecture, TopiaristError, cut, load, save, trace
from topiarist.budget import cost


class Everything(nn.Module):
    """Literal sizes and a scale (corrections), attributes, a tuple, `nn.MultiheadAttention`, norms and buffers."""

    def __init__(self) -> None:
        super().__init__()
        for name, part in qkv_parts(proj=nn.Linear(12, 8)).items():
            setattr(self, name, part)
        self.sizes, self.norm, self.after = (3, 5), nn.BatchNorm1d(8), nn.Linear(8, 12)
        self.attention, self.head = nn.MultiheadAttention(12, 3, batch_first=True), nn.Linear(12, 4)

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        x = ((q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        a, b = self.norm(self.proj(x).transpose(1, 2)).transpose(1, 2).split(self.sizes, -1)
        x = self.after(torch.cat([F.relu(b), a], -1))
        return self.head(self.attention(x, x, x, need_weights=False)[0])


def make():
    torch.manual_seed(0)
    return shaken(Everything())


def pruned(seed=1):
    model, x = make(), tokens(2)
    graph = trace(model, x)
    keep = random_keep(graph, seed)
    return model, graph, keep, cut(model, graph, keep), Architecture.of(graph, keep)


X = tokens(2)
MODEL, GRAPH, KEEP, SMALLER, SHAPE = pruned()
JSON = json.loads(json.dumps(SHAPE.to_json()))


def test_the_example_has_all_that_an_architecture_stores():
    assert JSON["sizes"]
    kinds = {correction["kind"] for made in JSON["corrections"].values() for correction in made}
    assert {"sizes", "number"} <= kinds
    assert sum(kept < units for kept, units in SHAPE.widths.values()) > 3


def test_json_round_trip():
    again = Architecture.from_json(JSON)
    assert json.loads(json.dumps(again.to_json())) == JSON
    assert again.widths == SHAPE.widths == {name: (int(k.sum()), k.numel()) for name, k in KEEP.items()}
    for ours, theirs in zip(SHAPE.groups, again.groups, strict=True):
        assert (ours.name, ours.units, ours.stage) == (theirs.name, theirs.units, theirs.stage)
        for a, b in zip(ours.slices, theirs.slices, strict=True):
            assert (a.tensor, a.axis, a.role) == (b.tensor, b.axis, b.role)
            assert torch.equal(a.positions, b.positions)


def test_it_re_applies_without_tracing():
    applied = Architecture.from_json(JSON).apply(make())
    assert torch.equal(applied(X), SMALLER(X))
    assert distance(applied(tokens(3, 7)), SMALLER(tokens(3, 7))) <= 1e-6


@pytest.mark.parametrize("name", ["grouped", "channel shuffle", "literal attention", "tied weights", "encoder layer"])
def test_it_restores_every_kind_of_network(name, tmp_path):
    case = CASES[name]
    model = case.model()
    graph = trace(model, case.inputs)
    keep = random_keep(graph, 1)
    smaller = cut(model, graph, keep)
    save(smaller, Architecture.of(graph, keep), tmp_path)
    restored = load(case.make, tmp_path).eval()
    assert torch.equal(call(restored, case.inputs), call(smaller, case.inputs))
    assert distance(call(restored, case.other), call(smaller, case.other)) <= 1e-6
    built = Architecture.of(graph, keep).build(case.make)
    assert {k: v.shape for k, v in built.state_dict().items()} == {k: v.shape for k, v in smaller.state_dict().items()}


def test_built_networks_have_weights_of_their_own():
    torch.manual_seed(1)
    first, second = SHAPE.build(Everything), SHAPE.build(Everything)
    assert sum(p.numel() for p in first.parameters()) == cost(GRAPH, KEEP).params
    assert distance(first.eval()(X), second.eval()(X)) > 1e-3
    first(X).sum().backward()


def test_networks_that_draw_their_own_weights_draw_them_for_the_new_shape():
    class Own(nn.Sequential):
        def reset_parameters(self) -> None:
            for layer in self:
                nn.init.constant_(layer.weight, 1 / layer.weight[0].numel())
                nn.init.zeros_(layer.bias)

    model = Own(conv(3, 8, 1), conv(8, 4, 1))
    graph = trace(model, images(1))
    built = Architecture.of(graph, {"0": torch.arange(8) < 3}).build(lambda: Own(conv(3, 8, 1), conv(8, 4, 1)))
    assert torch.allclose(built[1].weight, torch.tensor(1 / 3))


def test_saved_networks_are_restored_exactly(tmp_path):
    SMALLER_TRAINED = copy.deepcopy(SMALLER).train()
    optimizer = torch.optim.SGD(SMALLER_TRAINED.parameters(), lr=0.1)
    SMALLER_TRAINED(X).square().mean().backward()
    optimizer.step()
    save(SMALLER_TRAINED, SHAPE, tmp_path / "new" / "folder")
    for path in (tmp_path / "new" / "folder", tmp_path / "new" / "folder" / "model.safetensors"):
        restored = load(make, path)
        assert torch.equal(restored.eval()(X), SMALLER_TRAINED.eval()(X))
        for key, tensor in SMALLER_TRAINED.state_dict().items():
            assert torch.equal(tensor, restored.state_dict()[key]), key
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == ["architecture.json", "model.safetensors"]


def test_attributes_that_become_zero(tmp_path):
    def padded():
        return Net(lambda n, x: n.b(F.pad(n.a(x), (0, 0, 0, 0, 0, n.more))), a=conv(3, 5), b=conv(8, 4), more=3)

    graph = trace(model := shaken(padded()), images(1))
    for seed in range(20):
        keep = random_keep(graph, seed)
        save(smaller := cut(model, graph, keep), Architecture.of(graph, keep), tmp_path)
        assert torch.equal(load(padded, tmp_path).eval()(images(1)), smaller(images(1)))


def test_single_weights():
    graph = GRAPH.weights()
    keep = random_keep(graph, 2)
    shape = Architecture.of(graph, keep)
    again = Architecture.from_json(json.loads(json.dumps(shape.to_json())))
    assert torch.equal(again.apply(make())(X), cut(MODEL, graph, keep)(X))
    with torch.no_grad():
        assert torch.equal(again.build(make).qkv.weight == 0, cut(MODEL, graph, keep).qkv.weight == 0)


# what does not fit


def test_models_of_another_shape_are_refused():
    for other in (CASES["chain"].make(), nn.Linear(3, 3), Net(lambda n, x: x, **qkv_parts())):
        with pytest.raises(TopiaristError, match="not the network that was traced"):
            SHAPE.apply(other)
        with pytest.raises(TopiaristError, match="not the network that was traced"):
            SHAPE.build(lambda other=other: other)
    with pytest.raises(TopiaristError, match="not the network that was traced"):
        SHAPE.apply(SMALLER)


@pytest.mark.parametrize("value", [
    None, 3, [], {}, "text", {"format": "other"}, *({**JSON, "version": v} for v in (4, 1, "1")),
    {k: v for k, v in JSON.items() if k != "groups"}, {**JSON, "groups": {}}, {**JSON, "groups": 3},
    {**JSON, "groups": [JSON["groups"][0]] * 2}, {**JSON, "shapes": []}, {**JSON, "corrections": None},
])  # fmt: skip
def test_what_is_no_architecture(value):
    with pytest.raises(TopiaristError):
        Architecture.from_json(value)


@pytest.mark.parametrize("count", [2**37, 2**45])
@pytest.mark.parametrize("axis", [0, None])
def test_sizes_beyond_all_memory_are_refused_before_they_are_allocated(count, axis):
    part = ["w", axis, "output", None if axis is None else [[0, count, 1]]]
    for units in (count, 2):
        group = {"name": "w", "units": units, "stage": "", "kept": JSON["groups"][0]["kept"], "slices": [part]}
        with pytest.raises(TopiaristError):
            Architecture.from_json({**JSON, "shapes": {"w": [count]}, "groups": [group]})


def paths(value, here=()):
    yield here
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from paths(value[key], (*here, key))


PATHS = list(paths(JSON))[1:]
HOSTILE = [
    None, True, -1, 0, 1, 7, 2**31, 10**15, 10**30, 1.5, float("nan"), float("inf"), "", "x", "__class__", "forward",
    [], {}, [[0, 10**15, 1]], [[0, 3, 10**12]], [[-3, 4, 1]], [0, 0, 0], {"sizes": {}, "numbers": {}}, {"1": [[3, 0]]},
]  # fmt: skip


@settings(max_examples=300)
@given(st.sampled_from(PATHS), st.sampled_from([*HOSTILE, "delete", "double"]))
def test_a_mutated_architecture_gives_an_error_or_a_model(path, new):
    value = copy.deepcopy(JSON)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    if new == "delete":
        del inner[path[-1]]
    elif new == "double":
        inner[path[-1]] = [inner[path[-1]], inner[path[-1]]]
    else:
        inner[path[-1]] = new
    try:
        model = Architecture.from_json(value).apply(MODEL)
    except TopiaristError as error:
        told = str(error)
    else:
        told = ""
        assert type(model) is Everything
        assert all(callable(module.forward) and isinstance(module.training, bool) for module in model.modules())
    assert "\n" not in told
    assert len(told) < 500


@settings(max_examples=100)
@given(data=st.data())
def test_mutated_text_gives_an_error_or_a_model(tmp_path_factory, data):
    text = bytearray(json.dumps(JSON).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.getbasetemp() / "architecture.json"
    file.write_bytes(text[: data.draw(st.integers(0, len(text)))] if data.draw(st.booleans()) else text)
    try:
        Architecture.load(file).apply(MODEL)
    except TopiaristError:
        return


@pytest.mark.parametrize("text", ["", "[" * 100_000, "{", '{"format": ' * 5000, "\x00", "nan", "1e999"])
def test_text_that_is_no_architecture(tmp_path, text):
    file = tmp_path / "architecture.json"
    file.write_text(text)
    with pytest.raises(TopiaristError):
        Architecture.load(file)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save(SMALLER, SHAPE, folder)
    return folder, (folder / "model.safetensors").read_bytes()


@settings(max_examples=100)
@given(data=st.data())
@pytest.mark.nightly
def test_mutated_weights_give_an_error_or_a_model(saved, data):
    folder, content = saved
    whole = bytearray(content)
    header = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.one_of(st.integers(0, 9), st.integers(0, header), st.integers(0, len(whole) - 1)))
        whole[place] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(whole))) if data.draw(st.booleans()) else len(whole)
    (folder / "model.safetensors").write_bytes(whole[:end])
    told = ""
    try:
        load(make, folder)
    except TopiaristError as error:
        told = str(error)
    assert "\n" not in told


def test_files_that_are_missing_foreign_or_in_the_way(tmp_path):
    with pytest.raises(TopiaristError, match="architecture"):
        load(make, tmp_path)
    save(SMALLER, SHAPE, tmp_path)
    weights = tmp_path / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-100])
    with pytest.raises(TopiaristError, match="damaged"):
        load(make, tmp_path)
    weights.unlink()
    with pytest.raises(TopiaristError, match=r"model\.safetensors"):
        load(make, tmp_path)
    weights.mkdir()
    with pytest.raises(TopiaristError, match=r"model\.safetensors"):
        load(make, tmp_path)
    weights.rmdir()
    case = CASES["chain"]
    graph = trace(other := case.model(), case.inputs)
    save(other, Architecture.of(graph, {}), tmp_path / "other")
    weights.write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    with pytest.raises(TopiaristError, match="does not belong"):
        load(make, tmp_path)
    with pytest.raises(TopiaristError, match="not the network that was traced"):
        load(case.make, tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TopiaristError, match="cannot write"):
        save(SMALLER, SHAPE, tmp_path / "file" / "folder")


def test_public_names():
    assert (topiarist.Architecture, topiarist.load, topiarist.save) == (Architecture, load, save)
    assert line(nn.Identity())()(X) is X


SIZES = """
import json, torch, topiarist

class Sizes(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(6))
        for k in range(5):
            setattr(self, f"width{k}", 8)

    def forward(self, x):
        for k in range(5):
            x = self.layers[k](x).relu().view(len(x), getattr(self, f"width{k}"))
        return self.layers[5](x)

torch.manual_seed(0)
done = topiarist.prune(Sizes(), torch.randn(2, 8), "l1", topiarist.Budget(ratio=0.5))
print(json.dumps(done.architecture.to_json()))
"""


def test_files_do_not_depend_on_the_order_of_hashes():
    texts = set()
    for seed in ("1", "2"):
        there = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", SIZES], env=there, capture_output=True, text=True, check=True)
        texts.add(done.stdout)
    assert len(texts) == 1
    assert "width4" in texts.pop()
