"""Recurrent layers lose hidden units, all gates together, and tensors made of a size follow the axes they meet."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import topiarist
from topiarist import Architecture, Budget

LAYERS = (nn.LSTM, nn.GRU, nn.RNN)
CELLS = (nn.LSTMCell, nn.GRUCell, nn.RNNCell)


class Sequence(nn.Module):
    """Features, a recurrent layer and a head, of every step or of the last state."""

    def __init__(self, kind: type[nn.RNNBase], how: str = "steps", **options: object) -> None:
        super().__init__()
        directions = 2 if options.get("bidirectional") and how != "state" else 1
        self.how = how
        self.features, self.cell = nn.Linear(5, 6), kind(6, 8, batch_first=True, **options)
        self.head = nn.Linear(directions * (self.cell.proj_size or 8), 3)

    def forward(self, x: Tensor) -> Tensor:
        features = torch.sigmoid(self.features(x))  # what is pruned is not zero
        if self.how == "packed":
            lengths = torch.arange(x.shape[1], x.shape[1] - x.shape[0], -1)
            packed, _ = self.cell(pack_padded_sequence(features, lengths, batch_first=True))
            return self.head(pad_packed_sequence(packed, batch_first=True)[0])
        steps, state = self.cell(features)
        last = state[0] if isinstance(state, tuple) else state
        return self.head(last[-1] if self.how == "state" else steps)


class Decoder(nn.Module):
    """A decoder that begins with the state of an encoder."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.encoder, self.cell, self.head = kind(5, 8), kind(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x, self.encoder(x)[1])[0])


class Steps(nn.Module):
    """Two cells in a loop of the user's own."""

    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.features, self.cell, self.second, self.head = nn.Linear(5, 6), kind(6, 8), kind(8, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        first = second = None
        for step in range(x.shape[1]):
            first = self.cell(self.features(x[:, step]), first)
            second = self.second(first[0] if isinstance(first, tuple) else first, second)
        return self.head(second[0] if isinstance(second, tuple) else second)


class OwnGates(nn.Module):
    """A gated cell by hand: its state is made of a size, its gates are slices, its outputs fill a buffer."""

    def __init__(self, hidden: int = 8) -> None:
        super().__init__()
        self.hidden = hidden
        self.input, self.cell, self.head = nn.Linear(5, 3 * hidden), nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        k = self.hidden
        h = torch.full((x.shape[0], k), 0.0, dtype=x.dtype)
        out = x.new_empty(x.shape[0], x.shape[1], k)
        for step in range(x.shape[1]):
            a, b = self.input(x[:, step]), self.cell(h)
            reset, update = torch.sigmoid(a[:, :k] + b[:, :k]), torch.sigmoid(a[:, k : 2 * k] + b[:, k : 2 * k])
            h = (1 - update) * torch.tanh(a[:, 2 * k :] + reset * b[:, 2 * k :]) + update * h
            out[:, step] = h
        return self.head(out)


class Filled(nn.Module):
    """Tensors made of sizes: from an attribute, a constant, a keyword, seen as heads, and filled in parts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.heads, self.left = 8, 12, 4, nn.Linear(5, 8)
        self.right, self.cell, self.head = nn.Linear(5, 12), nn.Linear(20, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        both = x.new_zeros(*x.shape[:2], self.first + self.second)
        both[..., : self.first] = self.left(x).relu()
        both[..., self.first :] = torch.sigmoid(self.right(x))
        hidden = torch.zeros(x.shape[0], x.shape[1], 24, dtype=x.dtype) + self.cell(both)
        ones = torch.ones(size=(hidden.shape[-1],), dtype=x.dtype) - torch.sigmoid(hidden)
        seen = hidden.new_full((x.shape[0], x.shape[1], 24), 2.0).view(x.shape[0], x.shape[1], self.heads, -1)
        return self.head((ones.unflatten(-1, (self.heads, -1)) * seen).flatten(2))


NETWORKS = {
    **{f"{k.__name__}": (lambda k=k: Sequence(k)) for k in LAYERS},
    **{f"{k.__name__}, two layers": (lambda k=k: Sequence(k, num_layers=2, dropout=0.5)) for k in LAYERS},
    **{f"{k.__name__}, both ways": (lambda k=k: Sequence(k, bidirectional=True)) for k in LAYERS},
    **{
        f"{k.__name__}, both ways, two layers, no bias": (
            lambda k=k: Sequence(k, bidirectional=True, num_layers=2, bias=False)
        )
        for k in LAYERS
    },
    **{f"{k.__name__}, state": (lambda k=k: Sequence(k, "state", bidirectional=True)) for k in LAYERS},
    **{f"{k.__name__}, packed": (lambda k=k: Sequence(k, "packed")) for k in LAYERS},
    **{f"{k.__name__}, decoder": (lambda k=k: Decoder(k)) for k in LAYERS},
    **{k.__name__: (lambda k=k: Steps(k)) for k in CELLS},
    "LSTM with projections": lambda: Sequence(nn.LSTM, proj_size=4, bidirectional=True, num_layers=2),
    "RNN with relu": lambda: Sequence(nn.RNN, nonlinearity="relu"),
    "gates by hand": OwnGates,
    "filled tensors": Filled,
}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.by_day(14)
def test_a_cut_computes_what_its_mask_does_and_hidden_units_are_lost(name):
    torch.manual_seed(0)
    model, example = NETWORKS[name]().eval(), torch.randn(2, 4, 5)
    done = topiarist.prune(model, example, topiarist.methods.make("random"), Budget(ratio=0.5))
    assert done.proof.ok
    before, after = dict(model.named_parameters()), dict(done.model.named_parameters())
    lost = {key for key, tensor in after.items() if key.startswith("cell.") and tensor.shape != before[key].shape}
    assert lost == {key for key in before if key.startswith("cell.")}
    masked, small = topiarist.mask(model, done.graph, done.keep).double(), done.model.double()
    longer = torch.randn(3, 7, 5, dtype=torch.float64)
    assert torch.allclose(small(longer), masked(longer), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_cut_layer_describes_itself_and_is_copied_stored_trained_and_rebuilt(kind):
    torch.manual_seed(0)
    model, example = Sequence(kind, num_layers=2, bidirectional=True).eval(), torch.randn(2, 4, 5)
    done = topiarist.prune(model, example, "l1", Budget(ratios={"features": 0.5, "cell": 0.25}))
    small = done.model
    assert (small.cell.input_size, small.cell.hidden_size) == (3, 2)
    assert repr(small.cell) == repr(kind(3, 2, num_layers=2, batch_first=True, bidirectional=True))
    expected = small(example)
    stored = io.BytesIO()
    torch.save(small.state_dict(), stored)
    rebuilt = Architecture.of(done.graph, done.keep).build(lambda: Sequence(kind, num_layers=2, bidirectional=True))
    rebuilt.load_state_dict(torch.load(io.BytesIO(stored.getvalue()), weights_only=True))
    for other in (copy.deepcopy(small), rebuilt.eval()):
        assert torch.equal(other(example), expected)
    loss = F.mse_loss(small.train()(example), torch.zeros_like(expected))
    loss.backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())


def test_multiply_accumulates_count_every_gate_and_step():
    model, steps = Sequence(nn.LSTM), 4
    graph = topiarist.trace(model, torch.randn(1, steps, 5))
    assert topiarist.cost(graph).macs == steps * (5 * 6 + 4 * 8 * (6 + 8) + 8 * 3)


def test_a_state_from_outside_pins_the_hidden_units():
    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.cell, self.head = nn.Linear(5, 6), nn.GRU(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return self.head(self.cell(self.features(x), h)[0])

    graph = topiarist.trace(Given(), (torch.randn(4, 2, 5), torch.zeros(1, 2, 8)))
    assert [group.name for group in graph.groups] == ["features"]
    assert "reads an input of fixed size" in graph.why("cell.weight_hh_l0", 1)
