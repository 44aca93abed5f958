"""Operators of torchvision, which have rules whether or not it is installed."""

from __future__ import annotations

from topiarist.graph.rules.contract import INPUT
from topiarist.graph.rules.registry import Call, rule_for
from topiarist.graph.tracer import Tracer


@rule_for("torchvision::deform_conv2d")
def deform_conv2d(t: Tracer, c: Call) -> None:
    """Passes channels as a convolution does, and pins the offsets and weights of its places."""
    x, weight, bias, mask = c["input"], c["weight"], c["bias"], c["mask"]
    batch, channels, *inner = t.vectors_of(x)
    out, reads, *kernel = t.vectors_of(weight)
    beside = [c["offset"], *([mask] if c["use_mask"] else [])]
    t.algebra.pin_all((*inner, *kernel), "a kernel's or a feature map's own axis")
    t.algebra.pin_all([v for places in beside for v in t.vectors_of(places)[1:]], "where a convolution reads")
    if c["groups"] > 1 or c["offset_groups"] > 1:
        t.algebra.pin_all((channels, reads), "channels in groups of a deformable convolution")
    if c["groups"] > 1:
        t.algebra.pin(out, "channels in groups of a deformable convolution")
    reads = t.algebra.unify(channels, reads, INPUT)
    if not (t.of(x).zero or t.of(weight).zero):
        t.algebra.pin(reads, "summed over where dead positions are not zero")
    for places in beside:
        batch = t.algebra.unify(batch, t.vectors_of(places)[0], INPUT)
    stage = "x".join(map(str, c.out.shape[2:]))
    t.mark(reads, "input")
    t.mark(out, "output", stage)
    t.mark(t.vectors_of(bias)[0], "bias")
    out = t.algebra.unify(out, t.vectors_of(bias)[0])
    factors = zip(weight.shape, t.vectors_of(weight), strict=True)
    places = c.out.shape[2] * c.out.shape[3]
    t.note_product((x.shape[0], batch), places, *factors, weight=t.of(weight).source, stage=stage)
    t.put(c.out, [batch, out, None, None], t.of(weight).zero and t.of(bias).zero)


@rule_for("torchvision::roi_align", "torchvision::roi_pool")
def roi_align(t: Tracer, c: Call) -> None:
    """Passes the channels of regions that are cut out of a feature map."""
    batch, channels, *inner = c.vectors
    t.algebra.pin_all([batch, *inner, *t.vectors_of(c["rois"])], "regions of a feature map")
    for out in c.outputs:
        t.put(out, [None, channels, None, None], c.traced.zero and out.is_floating_point())
