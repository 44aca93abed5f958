"""Recurrent layers: fused ones, and the packing of sequences. All that torch does not fuse is seen step by step."""

from __future__ import annotations

from torch import Tensor

from topiarist.graph.labels import Vector, labelled
from topiarist.graph.rules.contract import summed
from topiarist.graph.rules.registry import Call, rule_for
from topiarist.graph.tracer import Tracer

SEQUENCE = "the sequence of a recurrent layer"


@rule_for("mkldnn_rnn_layer")
def lstm_layer(t: Tracer, c: Call) -> None:
    """One direction of one layer: i, f, g, o = W_ih x + b_ih + W_hh h + b_hh; c' = f c + i g; h' = o tanh(c').

    Shapes: x ``(steps, batch, inputs)``; W_ih ``(4 units, inputs)``; W_hh ``(4 units, units)``; h, c
    ``(batch, units)``. A unit is one position of h and c, and of each gate.
    """
    x, hidden, cell = c["input"], c["hx_"], c["cx_"]
    inner, recurrent = c["weight0"], c["weight1"]
    t.algebra.pin_all(t.vectors_of(x)[:-1], SEQUENCE)
    summed(t, t.vectors_of(x)[-1], t.vectors_of(inner)[1], x, inner)
    units = summed(t, t.vectors_of(hidden)[-1], t.vectors_of(recurrent)[1], hidden, recurrent)
    units = t.algebra.unify(t.vectors_of(cell)[-1], units)
    biases = (c["weight2"], c["weight3"]) if c["has_biases"] else ()
    for stacked in (t.vectors_of(tensor)[0] for tensor in (inner, recurrent, *biases)):
        _tie_gates(t, stacked, units, c["hidden_size"])
    for weight in (inner, recurrent):
        t.mark(t.vectors_of(weight)[1], "input")
        t.mark(t.vectors_of(weight)[0], "output", str(x.shape[0]))
    steps, width = x.shape[0] * x.shape[1], (x.shape[2], t.vectors_of(inner)[1])
    outputs = t.vectors_of(recurrent)[0]
    t.note_product(steps, (inner.shape[0], outputs), width, weight=t.of(inner).source)
    t.note_product(steps, (inner.shape[0], outputs), (c["hidden_size"], units), weight=t.of(recurrent).source)
    zero = t.of(cell).zero and t.of(inner).zero and t.of(recurrent).zero
    for out in c.outputs:
        t.put(out, [*[None] * (out.ndim - 1), units] if out.shape[-1] == c["hidden_size"] else [None] * out.ndim, zero)


def _tie_gates(t: Tracer, stacked: Vector, units: Vector, size: int) -> None:
    """Unites each gate's rows with the units."""
    if not labelled(stacked):
        t.algebra.pin(units, "gates of a recurrent layer that must stay")
        return
    for gate in stacked.reshape(-1, size):
        t.algebra.unify(gate, units)


@rule_for("_pack_padded_sequence")
def pack(t: Tracer, c: Call) -> None:
    """``(batch, steps, …)`` or ``(steps, batch, …)`` → ``(entries, …)``, and how many sequences have each step."""
    t.algebra.pin_all(c.vectors[:2], SEQUENCE)
    data, counts = c.outputs
    t.put(data, [None, *c.vectors[2:]], c.traced.zero)
    t.put(counts, [None])


@rule_for("_pad_packed_sequence")
def unpack(t: Tracer, c: Call) -> None:
    """Does the inverse."""
    t.algebra.pin(c.vectors[0], SEQUENCE)
    padded: Tensor = c.outputs[0]
    t.put(padded, [None, None, *c.vectors[1:]], c.traced.zero and c["padding_value"] == 0)
