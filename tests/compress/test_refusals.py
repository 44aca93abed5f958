"""What the codec is handed: views, ties and links keep their meaning, and what is not a network costs a sentence."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import topiarist
from paper_format import paper_format
from topiarist import TopiaristError, compress


class Twice(nn.Module):
    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        if tied:
            self.b.weight = self.a.weight


@pytest.mark.parametrize("codec", [compress, paper_format])
def test_views_of_a_conjugate_are_stored_as_what_they_show(codec: ModuleType, tmp_path: Path) -> None:
    torch.manual_seed(0)  # two values that are almost equal would share a code
    c = torch.randn(6, 5, dtype=torch.complex64)
    conjugate = c.conj()
    state = {"c": c, "conj": conjugate, "imag": c.imag, "neg": conjugate.imag, "again": conjugate}
    back = codec.unpack(codec.pack(state)[0])
    assert all(torch.equal(back[name], value) for name, value in state.items())
    assert back["again"] is back["conj"]
    compress.save({"w": conjugate}, tmp_path / "x")
    assert torch.equal(compress.load(tmp_path / "x")["w"], conjugate)
    precise = c.to(torch.complex128).conj().imag
    assert torch.allclose(compress.share_state({"w": precise}, 12)["w"], precise)


def test_tensors_that_a_mapping_makes_on_the_way_are_not_taken_for_one(tmp_path: Path) -> None:
    class Made(dict[str, torch.Tensor]):
        def items(self):  # type: ignore[no-untyped-def]
            return ((name, torch.full((50, 50), float(name))) for name in "123456")

    compress.save(Made(), tmp_path / "x", half=True)
    assert all(torch.equal(value, Made().get(name, value)) for name, value in compress.load(tmp_path / "x").items())
    assert [int(value[0, 0]) for value in compress.load(tmp_path / "x").values()] == [1, 2, 3, 4, 5, 6]


def test_untied_weights_do_not_go_into_a_tied_model(tmp_path: Path) -> None:
    compress.save(untied := Twice(tied=False), tmp_path / "x")
    with pytest.raises(TopiaristError, match=r"a\.weight and b\.weight differ and are one tensor in the model"):
        compress.load_model(lambda: Twice(tied=True), tmp_path / "x")
    untied.b.weight = nn.Parameter(untied.a.weight.detach().clone())  # equal values are no matter
    compress.save(untied, tmp_path / "x")
    assert torch.equal(compress.load_model(lambda: Twice(tied=True), tmp_path / "x").b.weight, untied.a.weight)
    compress.save(Twice(tied=True), tmp_path / "x")
    compress.load_model(lambda: Twice(tied=False), tmp_path / "x")


def test_ties_in_a_state_dict_outlive_sharing() -> None:
    state = compress.share_state(Twice(tied=True).state_dict(), {"a.weight": 2})
    assert state["a.weight"] is state["b.weight"]
    assert len(state["a.weight"].unique()) == 3


def test_statistics_are_no_parameters() -> None:
    state = nn.Sequential(nn.Conv2d(2, 9, 3), nn.BatchNorm2d(9)).state_dict()
    state["1.running_mean"].normal_()
    shared = compress.share_state(state, {"*": 1})
    assert torch.equal(shared["1.running_mean"], state["1.running_mean"])
    assert len(shared["0.bias"].unique()) == 1


def test_frozen_parameters_stay_while_centroids_train() -> None:
    shared = compress.share(Twice(tied=False), 2)
    frozen, free = shared.model.a.weight.requires_grad_(False), shared.model.b.weight
    before = frozen.clone(), free.clone()
    with shared.tied() as model:
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        model.b(model.a(torch.randn(5, 8))).square().sum().backward()
        optimizer.step()
    assert torch.equal(frozen, before[0])
    assert not torch.equal(free, before[1])
    assert len(free.unique()) <= 3


def test_a_link_stays_and_what_is_no_file_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "file")
    compress.save({"w": torch.ones(3)}, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert compress.load(tmp_path / "deep" / "file")["w"].sum() == 3
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    for name in ("pipe", "deep", "round"):
        with pytest.raises(TopiaristError, match="cannot write"):
            compress.save({"w": torch.ones(3)}, tmp_path / name)
        with pytest.raises(TopiaristError, match="cannot read"):
            compress.load(tmp_path / name)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert (tmp_path / "round").is_symlink()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["deep", "link", "pipe", "round"]


def test_an_architecture_of_another_network_is_not_stored(tmp_path: Path) -> None:
    make = topiarist.make_model("zoo:lenet300")
    done = topiarist.prune(model := make(), torch.zeros(1, 1, 28, 28), "l1", topiarist.Budget(ratio=0.3))
    for state, told in ((model, r"layers\.1\.weight is \(90, 784\) and not"), ({"x": torch.ones(3)}, "has no x")):
        with pytest.raises(TopiaristError, match=f"of another network, .*{told}"):
            compress.save(state, tmp_path / "x", architecture=done.architecture)  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()


W = {"w": torch.randn(9, 9)}


def save(model: object = W, **options: object) -> Callable[[Path], object]:
    return lambda path: compress.save(model, path, **options)  # type: ignore[arg-type]


def share(*bits: object, **options: object) -> Callable[[Path], object]:
    return lambda _: compress.share(Twice(tied=False), *bits, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        (save(None), "NoneType is not a network"),
        (save([torch.ones(3)]), "list is not a network"),
        (save(torch.ones(3)), "Tensor is not a network"),
        (save({3: torch.ones(3)}), "3 is not a name"),
        (save({"a\ud800": torch.ones(3)}), "is not a name"),
        (save({"w": 3}), "not a tensor"),
        (save({"w": torch.eye(3).to_sparse()}), "to_dense"),
        (save({"w": torch.empty(3, device="meta")}), "not a dense tensor"),
        (save({"w": torch.zeros(3, dtype=torch.float8_e4m3fnuz)}), "float8_e4m3fnuz"),
        (save(nn.LazyLinear(3)), "no values yet"),
        (save(architecture={"a": 1}), "not an architecture"),
        (lambda _: compress.save(W, None), "is not a path"),  # type: ignore[arg-type]
        (lambda _: compress.save(W, "a\0b"), "is not a path"),
        (lambda _: compress.load(None), "is not a path"),  # type: ignore[arg-type]
        (lambda _: compress.load("a\0b"), "is not a path"),
        (lambda path: compress.load(path, max_bytes="5"), "max_bytes"),  # type: ignore[arg-type]
        (lambda _: compress.unpack(None), "not a compressed network"),  # type: ignore[arg-type]
        (lambda path: compress.load_model(lambda: None, path), "returned a NoneType"),  # type: ignore[arg-type,return-value]
        (lambda _: compress.share(W), "share_state"),  # type: ignore[arg-type]
        (lambda _: compress.share(None), "takes a network"),  # type: ignore[arg-type]
        (lambda _: compress.share_state(Twice(tied=True)), "takes a state dict"),  # type: ignore[arg-type]
        (lambda _: compress.share_state({"w": 3}), "not a tensor"),  # type: ignore[dict-item]
        (lambda _: compress.share_state({"w": torch.eye(3).to_sparse()}), "to_dense"),
        (lambda _: compress.share_state({"w": torch.eye(3).to(torch.float8_e5m2)}), "too narrow"),
        (share(steps=-1), "steps cannot be -1"),
        (share(steps=1.5), "steps cannot be 1.5"),
        (share(init="random", seed=-1), "seed cannot be -1"),
        (share(init="random", seed="a"), "seed cannot be 'a'"),
        (share({3: 3}), "given for 3"),
        (share({}), "no weights would be shared"),
        (share({"c*": 4}), r"'c\*', which matches no parameter: name some such as a\.weight, b\.weight"),
        (share({"*": 4, "a*": 3}), r"'a\*' never apply, for '\*' matches a\.weight before it"),
    ],
)
def test_what_is_no_network_costs_a_sentence(wish: Callable[[Path], object], told: str, tmp_path: Path) -> None:
    with pytest.raises(TopiaristError, match=told) as found:
        wish(tmp_path / "x")
    assert "\n" not in str(found.value)
    assert not list(tmp_path.iterdir())


def test_types_that_differ_are_told_as_types(tmp_path: Path) -> None:
    compress.save(nn.Linear(4, 3), tmp_path / "x")
    with pytest.raises(TopiaristError, match=r"its weight is torch\.float32 and not torch\.float16"):
        compress.load_model(lambda: nn.Linear(4, 3).half(), tmp_path / "x")
