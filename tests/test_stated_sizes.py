"""Numbers of a configuration are solved from the sizes of a network: laws on networks written by hand."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from topiarist.integrations.huggingface.solving import (
    Networks,
    UnsayableError,
    Values,
    paths_of,
    solutions,
    unset_fields,
)

START = {"width": 24, "heads": 4, "shared": 2, "inner": 60, "layers": 2, "first": 7}


class Layer(nn.Module):
    """A fused projection of queries, keys and values, whose length is a sum of products, and a feed-forward part."""

    def __init__(self, width: int, heads: int, shared: int, inner: int, size: int) -> None:
        super().__init__()
        self.head_size = size
        self.fused = nn.Linear(width, (heads + 2 * shared) * size, device="meta")
        self.out = nn.Linear(heads * size, width, bias=False, device="meta")
        self.up, self.down = (nn.Linear(*sizes, device="meta") for sizes in ((width, inner), (inner, width)))


def build(values: Values) -> nn.Module:
    """The network of a configuration; a head is as wide as the width says, unless its size is given."""
    stated = START | {str(path[0]): value for path, value in values.items()}
    if stated["width"] % stated["heads"] or stated["heads"] % stated["shared"]:
        raise ValueError("these do not go together")
    size = stated.get("head_size", stated["width"] // stated["heads"])
    sizes = (stated["width"], stated["heads"], stated["shared"], stated["inner"], size)
    layers = [Layer(*sizes) for _ in range(stated["layers"])]
    return nn.Sequential(nn.Linear(stated["first"], stated["width"], device="meta"), *layers)


def solved(wanted: nn.Module, more: Values | None = None) -> list[Values]:
    return list(solutions(paths_of(START), Networks(build), wanted, more))


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@given(st.integers(1, 24), st.integers(1, 4), st.integers(1, 2), st.integers(1, 60))
def test_every_solution_has_the_shapes_and_the_true_one_is_among_them(
    width: int, heads: int, shared: int, inner: int
) -> None:
    assume(width % heads == 0 and heads % shared == 0)
    true = {"width": width, "heads": heads, "shared": shared, "inner": inner}
    wanted = build({(name,): value for name, value in true.items()})
    found = solved(wanted)
    every = [paths_of(START) | dict(values) for values in found]
    assert paths_of(START | true) in every
    assert all(shapes(build(values)) == shapes(wanted) for values in found)


def test_nothing_is_changed_where_nothing_was_cut() -> None:
    assert solved(build({}))[0] == {}


def test_layers_of_unequal_widths_are_named() -> None:
    wanted = build({})
    wanted[2].up = nn.Linear(24, 50, device="meta")
    wanted[2].down = nn.Linear(50, 24, device="meta")
    with pytest.raises(UnsayableError, match=r"axis 0 of 1\.up\.weight is 60 and axis 0 of 2\.up\.weight is 50"):
        solved(wanted)


def test_sizes_that_no_number_states_and_tensors_of_one_network_only() -> None:
    class Own(nn.Sequential):
        pass

    def other(values: Values) -> nn.Module:
        return Own(build(values), nn.Linear(5, 5, device="meta"))

    with pytest.raises(UnsayableError, match=r"no number of the configuration states axis 0 of 1\.weight"):
        list(solutions(paths_of(START), Networks(other), Own(build({}), nn.Linear(5, 3, device="meta"))))
    with pytest.raises(UnsayableError, match="only one of the two networks has"):
        solved(build({("layers",): 3}))


def test_a_number_that_the_configuration_leaves_out_is_found() -> None:
    """Heads are removed and the width stays: that can be stated only by the size of a head."""
    wanted = build({("heads",): 2, ("shared",): 1, ("head_size",): 6})
    with pytest.raises(UnsayableError, match="where the same numbers state both"):
        solved(wanted)
    unset = unset_fields({**START, "activation": None}, Networks(build), wanted)
    assert unset == {("head_size",): 6}
    found = solved(wanted, unset)
    assert {("heads",): 2, ("shared",): 1, ("head_size",): 6} in found
    assert all(shapes(build(values)) == shapes(wanted) for values in found)


def test_numbers_in_lists_and_nested_mappings() -> None:
    plain = {"a": 3, "b": [4, {"c": 5}], "d": {"e": 0, "f": True, "g": "6", "h": 7.0}, "i": None}
    assert paths_of(plain) == {("a",): 3, ("b", 0): 4, ("b", 1, "c"): 5}
