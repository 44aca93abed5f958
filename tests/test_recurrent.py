"""Recurrent layers lose hidden units, all gates together, and tensors made of a size follow the axes they meet."""

from __future__ import annotations

import copy
import io
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import topiarist
from topiarist import Architecture, Budget, TopiaristError

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


# methods that do not score hidden units

ROOT = Path(__file__).parent.parent
BATCHES = [(torch.randn(12, 4, 5), torch.arange(12) % 3)]


class Classifier(Sequence):
    """A class for each sequence."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean(1)


def stated(page: str) -> list[str]:
    """Returns the methods that a page says to score hidden units."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    (sentence,) = re.findall(r"^Hidden units of `nn.LSTM`.*? are scored by\s(.*?)\.$", text, re.MULTILINE | re.DOTALL)
    return re.findall(r"`(\w+)`", sentence)


def scores_hidden_units(name: str) -> bool:
    fields = {"structure": "channel"} if name == "sss" else {}
    trained = {"epochs": 1, "lr": 0.01} if name in ("l0", "sss", "vardrop") else None
    request = topiarist.Pruning.of({"name": name, **fields}, {"ratio": 0.5}, sparse_training=trained)
    torch.manual_seed(0)
    try:
        done = topiarist.prune(Classifier(nn.LSTM).eval(), BATCHES[0][0][:2], request, data=BATCHES)
    except TopiaristError as error:
        if not re.search("found no|has none", str(error)):  # nothing here is for the method
            raise
        return False
    kept = [bool(kept.all()) for group, kept in done.keep.items() if group.startswith("cell")]
    assert kept
    return not any(kept)


@pytest.mark.filterwarnings("ignore:.* prunes nothing in:UserWarning")
@pytest.mark.parametrize("name", topiarist.methods.names())
def test_the_pages_say_which_methods_score_hidden_units(name):
    assert stated("coming_from.md") == stated("methods.md")
    assert scores_hidden_units(name) == (name in stated("methods.md"))


@pytest.mark.parametrize("amount", ["macs", "params"])
def test_a_budget_out_of_reach_names_what_the_method_does_not_score(amount):
    model, example = Classifier(nn.LSTM).eval(), BATCHES[0][0][:2]
    lacking = r"taylor gives no score for cell, so that at least 0\.\d+ is kept: use fpgm, l1 or random, or ask for"
    with pytest.raises(TopiaristError, match=lacking) as refused:
        topiarist.prune(model, example, "taylor", {amount: 0.1}, BATCHES)
    least = float(re.search(r"at least (0\.\d+)", str(refused.value))[1])
    after = topiarist.prune(model, example, "taylor", {amount: least}, BATCHES)
    assert after.keep["cell"].all()
    topiarist.prune(model, example, "l1", {amount: 0.3})  # as the message advises
    with pytest.raises(TopiaristError, match="floor, multiple, exclusions"):
        topiarist.prune(model, example, "taylor", {amount: 0.01, "exclude": "cell"}, BATCHES)


def test_a_ratio_that_counts_only_a_part_of_the_network_warns():
    model, example = Classifier(nn.LSTM).eval(), BATCHES[0][0][:2]
    with pytest.warns(UserWarning, match=r"wanda prunes nothing in cell\.weight_ih_l0, .*: use magnitude, or name"):
        done = topiarist.prune(model, example, "wanda", 0.5, BATCHES)
    share = sum(int(kept.sum()) for kept in done.keep.values()) / sum(map(len, done.keep.values()))
    with pytest.warns(UserWarning, match=f"the ratio of 0.5 does not count, so that {share:.1%} of all units are kept"):
        topiarist.prune(model, example, "wanda", 0.5, BATCHES)
    budget = Budget(ratio=0.5, exclude=("cell.weight*",))  # what the warning advises makes it silent
    quiet = topiarist.prune(model, example, "wanda", budget, BATCHES)
    assert all(torch.equal(quiet.keep[name], kept) for name, kept in done.keep.items())
