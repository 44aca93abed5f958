"""Rules of single operators: what they unite, pin and pass, and that every cut they allow is its mask."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from networks import TOLERANCE, Net, conv, distance, images, random_keep, shaken, tokens
from topiarist import cut, mask, trace
from topiarist.surgery import TOLERANCE as PROVED
from topiarist.surgery import prove

FIRST = torch.tensor([0, 2])
"""Places, of five."""
SOME = torch.tensor([True, False, True, True, False])
MASK = torch.tensor([[True, False, True, True, False], [False, True, False, True, False]])


def order(y):
    """For each entry of the batch, its places by their mean: an index that the data gives."""
    return y.mean(-1, keepdim=True).argsort(1)


def written(y, index, value):
    y = y.clone()
    y[index] = value
    return y


def spread(y, width, source=None):
    """Puts places where an index says, with that index expanded to the width."""
    return torch.zeros_like(y).scatter_add(1, order(y).expand(-1, -1, width), y if source is None else source)


TOKENS = {
    "gather": (lambda y: y.gather(1, order(y).expand(-1, -1, y.shape[-1])), 8),
    "gather some": (lambda y: y.gather(1, order(y)[:, :2].expand(-1, -1, y.shape[-1])).repeat(1, 3, 1)[:, :5], 8),
    "gather features": (lambda y: y.gather(-1, torch.zeros(*y.shape[:2], 8, dtype=torch.long)), 0),
    "take along": (lambda y: torch.take_along_dim(y, order(y), 1), 8),
    "scatter add": (lambda y: spread(y, y.shape[-1]), 8),
    "scatter add of what is not zero": (lambda y: spread(y, y.shape[-1], y.exp()), 8),
    "scatter": (lambda y: y.scatter(1, order(y)[:, :1].expand(-1, -1, y.shape[-1]), 0.5), 8),
    "scatter in place": (lambda y: y.sigmoid().scatter_(1, order(y).expand_as(y), y), 8),
    "scatter reduce": (
        lambda y: torch.ones_like(y).scatter_reduce(1, order(y).expand_as(y), y, "amax", include_self=False), 8),
    "index add": (lambda y: y.index_add(1, FIRST, y[:, :2].sigmoid(), alpha=0.5), 8),
    "index add to zeros": (
        lambda y: y.new_zeros(len(y), 5, y.shape[-1]).index_add_(1, torch.tensor([0, 0, 2, 2, 4]), y), 8),
    "index copy": (lambda y: y.index_copy(1, FIRST, y[:, 2:4]), 8),
    "index fill": (lambda y: y.index_fill(1, FIRST, 0.5), 8),
    "index reduce": (lambda y: y.index_reduce(1, FIRST, y[:, 2:4], "amax"), 8),
    "write places": (lambda y: written(y, (slice(None), FIRST), y[:, 3:]), 8),
    "write a number": (lambda y: written(y, (slice(None), FIRST), 0.5), 8),
    "write where positive": (lambda y: written(y, y > 0, 0.5), 8),
    "write rows by a mask": (lambda y: written(y, MASK, y[1, 0]), 8),
    "places by a mask": (lambda y: y[:, SOME].repeat(1, 2, 1)[:, :5], 8),
    "entries by a mask": (lambda y: y[MASK].mean(0) + y, 8),
    "rows by where": (lambda y: y[torch.where(MASK)].sum(0) + y, 8),
    "masked select": (lambda y: y.masked_select(y > 0).sum() + y, 0),
    "masked scatter of rows": (lambda y: y.masked_scatter(MASK.unsqueeze(-1).expand_as(y), y[:, :3].sigmoid()), 8),
    "masked scatter": (lambda y: y.masked_scatter(y > 0, y.exp()), 0),
    "gate": (lambda y: F.glu(y.repeat_interleave(2, -1)), 4),
    "gate of places": (lambda y: F.glu(y[:, :4], 1).repeat(1, 3, 1)[:, :5], 8),
    "Fourier": (lambda y: torch.fft.irfft(torch.fft.rfft(y, dim=1), n=5, dim=1), 8),
    "Fourier of features": (lambda y: torch.fft.fft(y).real, 0),
    "Fourier filter": (lambda y: torch.fft.fft(y, dim=1).abs() * torch.fft.fft(y, dim=1).angle().cos(), 8),
    "complex": (lambda y: torch.view_as_real(torch.complex(y, y.sigmoid())).sum(-1), 8),
    "complex pairs": (lambda y: torch.view_as_real(torch.view_as_complex(y.unflatten(-1, (-1, 2))) * 1j).flatten(2), 4),
    "distances": (lambda y: torch.cdist(y, y.flip(1)).sum(-1, keepdim=True) * y, 8),
    "distances of what is not zero": (lambda y: torch.cdist(y.exp(), y).sum(-1, keepdim=True) * y, 0),
    "far more distances": (lambda y: torch.cdist(y.repeat(1, 6, 1) * 5, y).mean((1, 2), keepdim=True) * y, 8),
    "pairs": (lambda y: F.pdist(y.flatten(0, 1)).mean() * y, 8),
    "running product": (lambda y: y.cumprod(1), 8),
    "running sum of features": (lambda y: y.cumsum(-1), 0),
    "running log": (lambda y: y.logcumsumexp(1), 8),
    "running largest": (lambda y: y.cummax(1)[0] + y.cummin(1).values, 8),
    "area": (lambda y: torch.cumulative_trapezoid(y, dim=1).repeat(1, 2, 1)[:, :5], 8),
    "median": (lambda y: y - y.median(1, keepdim=True)[0], 8),
    "quantile": (lambda y: y - y.quantile(0.3, 1, keepdim=True), 8),
    "rank": (lambda y: y - y.kthvalue(2, 1, keepdim=True)[0] - y.mode(1, keepdim=True)[0], 8),
    "smallest and largest": (lambda y: y - sum(torch.aminmax(y, dim=1, keepdim=True)), 8),
    "smallest of features": (lambda y: y - torch.aminmax(y, dim=-1, keepdim=True)[0], 8),
    "mean of what is a number": (lambda y: y - y.nanmean(-1, keepdim=True), 8),
    "count": (lambda y: y * y.relu().count_nonzero(-1).unsqueeze(-1), 8),
    "buckets": (lambda y: y * torch.bucketize(y, torch.tensor([-1.0, 0.0, 1.0]).to(y)), 8),
    "cross product": (lambda y: torch.linalg.cross(y[:, :3], y[:, 2:], dim=1).repeat(1, 2, 1)[:, :5], 8),
    "lower triangle": (lambda y: y.unsqueeze(-1).unsqueeze(-1).expand(-1, -1, -1, 3, 3).tril().sum((-1, -2)), 8),
    "diagonal": (lambda y: torch.diag_embed(y.mT, dim1=-2, dim2=-1).diagonal(0, -2, -1).mT, 8),
    "turned": (lambda y: y.unflatten(0, (-1, 1)).rot90(2, (1, 2)).flatten(0, 1), 8),
    "last": (lambda y: y[..., -1:] * y + y[..., -1].unsqueeze(-1), 7),
    "first": (lambda y: y * y[..., 0].unsqueeze(-1), 7),
    "third": (lambda y: y * y[..., 2].unsqueeze(-1), 5),
    "last but one": (lambda y: y * y[..., -2].unsqueeze(-1), 6),
    "position of a size": (lambda y: y * y[..., y.shape[-1] // 2].unsqueeze(-1), 0),
}  # fmt: skip
"""What is done with five places of eight features, and how many of these can be pruned then."""


@pytest.mark.parametrize("name", TOKENS)
@pytest.mark.filterwarnings("ignore:index_reduce")
def test_cut_is_mask_behind_an_operator(name):
    function, units = TOKENS[name]
    torch.manual_seed(0)
    model = Net(lambda net, x: net.b(function(net.a(x))), a=nn.Linear(12, 8), b=nn.Linear(8, 3))
    check(shaken(model), tokens(2), {"a": units} if units else {})


def check(model, x, groups):
    """The groups are as said, nothing is unknown, and cut and mask agree in evaluation and in training."""
    graph = trace(model, x)
    assert not graph.unknown
    assert {group.name: group.units for group in graph.groups} == groups
    double, given = model.double(), x.double() if x.is_floating_point() else x
    for seed, most in ((0, 99), (1, 99), (2, 1)) if graph.groups else ():
        keep = random_keep(graph, seed, most)
        masked, smaller = mask(double, graph, keep), cut(double, graph, keep)
        with torch.no_grad():
            assert distance(smaller(given), masked(given)) <= TOLERANCE, (seed, most)
        assert prove(double, graph, keep, given).max_rel_diff <= PROVED


def behind(function, **parts):
    parts = {"a": conv(3, 8), "b": conv(4, 3), **parts}
    return shaken(Net(lambda net, x: net.b(function(net.a(x))), **parts))


def test_halves_of_a_gate_lose_the_same_channels():
    check(behind(lambda y: F.glu(y, 1)), images(2), {"a": 4})


def test_channels_pass_an_index_of_places():
    index = torch.randint(36, (1, 1, 7), generator=torch.Generator().manual_seed(0))
    model = behind(lambda y: y.flatten(2).gather(2, index.expand(len(y), y.shape[1], 7)).unsqueeze(-1), b=conv(8, 3))
    check(model, images(2), {"a": 8})


class Bag(nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.words, self.fc = nn.EmbeddingBag(11, 8, mode=mode), nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.words(x))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_words_lose_features(mode):
    check(shaken(Bag(mode)), torch.randint(11, (4, 5), generator=torch.Generator().manual_seed(0)), {"words": 8})


@pytest.mark.parametrize(
    "norm", [parametrizations.spectral_norm, torch.nn.utils.spectral_norm], ids=["parametrization", "hook"]
)
@pytest.mark.filterwarnings("ignore")
def test_spectral_norm_counts_what_is_kept(norm):
    """Dead rows add nothing to u · W v; in training the power iteration runs over the kept ones."""
    torch.manual_seed(0)
    layers = norm(nn.Linear(6, 8)), nn.ReLU(), norm(nn.Linear(8, 5)), nn.ReLU(), nn.Linear(5, 3)
    model = nn.Sequential(*layers).eval()
    graph = trace(model, torch.randn(2, 6))
    assert [group.units for group in graph.groups] == [8, 5]
    for seed in range(3):
        keep = random_keep(graph, seed)
        masked, smaller = (make(model, graph, keep).double() for make in (mask, cut))
        for training in (False, True, True, False):
            x = torch.randn(4, 6).double()
            assert distance(smaller.train(training)(x), masked.train(training)(x)) <= TOLERANCE


def test_a_largest_channel_is_one_of_the_kept_and_its_number_pins_where_it_is_used():
    def run(net, x):
        y = net.a(x)
        largest, number = y.max(1, keepdim=True)
        gate = torch.cat([largest, y.mean(1, keepdim=True)], 1)  # CBAM's attention over places
        y = y * net.gate(gate).sigmoid() * (y > 0).any(1, keepdim=True)
        return net.b(y * number if net.counts else y)

    def make(counts):
        model = Net(run, a=conv(3, 8), gate=conv(2, 1), b=conv(8, 3))
        model.counts = counts
        return shaken(model)

    check(make(False), images(2), {"a": 8})
    assert not trace(make(True), images(2)).groups


def deformed():
    """A stand-in for torchvision's kernel, which not every torch can load: the channels do the same."""
    if not hasattr(torch.ops.torchvision, "deform_conv2d"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        numbers = "int stride_h, int stride_w, int pad_h, int pad_w, int dilation_h, int dilation_w"
        library.define(
            "deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, "
            f"{numbers}, int groups, int offset_groups, bool use_mask) -> Tensor"
        )

        def run(x, weight, offset, mask, bias, *numbers):
            moved = x * (1 + offset.mean(1, keepdim=True)) * mask.mean(1, keepdim=True)
            return F.conv2d(moved, weight, bias, padding=1)

        library.impl("deform_conv2d", run, "CompositeExplicitAutograd")
        deformed.library = library
    return torch.ops.torchvision.deform_conv2d


def test_a_deformable_convolution_passes_channels():
    operator = deformed()

    def run(net, x):
        y = net.a(x)
        places = net.offset(y), net.mask(y).sigmoid()
        y = operator(y, net.c.weight, places[0], places[1], net.c.bias, *[1] * 6, 1, 1, True)
        return net.b(y)

    model = Net(run, a=conv(3, 8), offset=conv(8, 18), mask=conv(8, 9), c=conv(8, 4), b=conv(4, 3))
    check(shaken(model), images(2), {"a": 8, "c": 4})


def test_a_deformable_convolution_without_bias_makes_zeros_of_the_size_of_its_weight():
    operator = deformed()

    def run(net, x):
        y = net.a(x)
        offset, ones = net.offset(y), torch.ones(len(x), 1, 1, 1, dtype=y.dtype)
        zeros = torch.zeros(net.c.weight.shape[0], dtype=y.dtype)
        return net.b(operator(y, net.c.weight, offset, ones, zeros, *[1] * 6, 1, 1, False).relu())

    model = Net(run, a=conv(3, 8), offset=conv(8, 18), c=conv(8, 4), b=conv(4, 3))
    check(shaken(model), images(2), {"a": 8, "c": 4})


def test_what_processes_share_keeps_its_channels():
    import torch.distributed as dist
    from torch.distributed import _functional_collectives as shared

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:

        def run(net, x):
            y = shared.all_reduce(net.a(x), "sum", dist.group.WORLD)
            return net.b(shared.wait_tensor(y))

        check(shaken(Net(run, a=nn.Linear(12, 8), b=nn.Linear(8, 3))), tokens(2), {"a": 8})
    finally:
        dist.destroy_process_group()


def test_places_that_a_map_is_read_at_belong_to_its_examples():
    """Deformable attention: every head reads its own channels at its own places, as one example of a larger batch."""

    def run(net, x):
        batch, places = len(x), x.flatten(2).mT
        values = net.v(x).reshape(batch * net.heads, -1, 6, 6)
        read = net.places(places).view(batch, 36, net.heads, net.points, 2).transpose(1, 2).flatten(0, 1).tanh()
        weights = net.weights(places).view(batch, 36, net.heads, net.points).softmax(-1)
        weights = weights.transpose(1, 2).reshape(batch * net.heads, 1, 36, net.points)
        out = (F.grid_sample(values, read, align_corners=False) * weights).sum(-1)
        return net.out(out.view(batch, net.heads * net.width, 36).mT)

    layers = {"v": conv(3, 20), "places": nn.Linear(3, 48), "weights": nn.Linear(3, 24), "out": nn.Linear(20, 2)}
    model = shaken(Net(run, heads=4, points=6, width=5, **layers))
    assert {"places.weight", "weights.weight"} <= {part.tensor for part in trace(model, images(2)).groups[0].slices}
    check(model, images(2), {"v:rows": 4, "v:columns": 5})


DATA = {
    "in another module": lambda net, h, i: net.inner(h, i.item()),
    "plus one": lambda net, h, i: h[..., int(i) + 1],
    "by a comparison": lambda net, h, i: h[..., 5 if i > 1 else 1],
    "by how many there are": lambda net, h, i: h[..., len(torch.nonzero(torch.arange(6) < i))],
    "up to": lambda net, h, i: h[..., : int(i) + 1].mean(-1),
    "from": lambda net, h, i: h[..., int(i) :].mean(-1),
    "narrow": lambda net, h, i: h.narrow(-1, int(i), 1).mean(-1),
}


@pytest.mark.parametrize("way", DATA)
def test_positions_that_data_selects_stay(way):
    """The example selects the third; another input may select any other one."""
    model = Net(
        lambda net, x: net.b(DATA[way](net, net.a(x), x.new_tensor(2).long()).unsqueeze(-1).expand(-1, -1, 4)),
        a=nn.Linear(12, 8), b=nn.Linear(4, 3), inner=Net(lambda net, h, k: h[..., k]),
    )  # fmt: skip
    graph = trace(shaken(model), tokens(2))
    assert not [group for group in graph.groups if any(part.tensor == "a.weight" for part in group.slices)]


def test_positions_that_the_code_states_do_not_stay_for_what_data_gives_elsewhere():
    model = Net(
        lambda net, x: net.b(net.a(x)[..., :1] * x.sum().item() + net.a(x)), a=nn.Linear(12, 8), b=nn.Linear(8, 3)
    )
    check(shaken(model), tokens(2), {"a": 7})


@pytest.mark.parametrize("ask", [lambda i: i, int, lambda i: i.tolist()], ids=["tensor", "int", "list"])
def test_what_data_selects_stays_whole(ask):
    """One expert is asked; other inputs ask others, which the example leaves out."""

    def run(net, x):
        chosen = ask(x.sum().gt(0).long())
        return net.b(net.a(x) @ net.experts[chosen]) + net.bias(x)[..., chosen, None]

    experts = nn.Parameter(torch.randn(4, 8, 6, generator=torch.Generator().manual_seed(0)))
    model = shaken(Net(run, a=nn.Linear(12, 8), b=nn.Linear(6, 3), bias=nn.Linear(12, 4)))
    model.experts = experts
    graph = trace(model, tokens(2))
    assert {(p.tensor, p.axis) for p in graph.pinned} >= {("experts", 0)}
    assert {group.name: group.units for group in graph.groups} == {"a": 8, "experts": 6}
