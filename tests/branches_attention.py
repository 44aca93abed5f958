"""Attention over tokens for the random networks with branches: heads, scales, masks and caches in many spellings."""

from __future__ import annotations

from collections.abc import Callable

from branches_tokens import sizes
from branches_writer import Writer, indented, statement


def per_head(w: Writer, heads: int, width: int) -> Callable[[str], str]:
    """An expression that parts the last axis of a tensor into heads."""
    h, d = w.either(heads), w.either(width)
    h, d = w.pick((h, d), (h, d), (h, "-1"), ("-1", d), (h, f"{{t}}.shape[-1] // {h}"))
    spelled = w.pick(
        "{t}.view(*{t}.shape[:2], {h}, {d}).transpose(1, 2)",
        "{t}.reshape({t}.shape[0], {t}.shape[1], {h}, {d}).permute(0, 2, 1, 3)",
        "{t}.unflatten(-1, ({h}, {d})).transpose(1, 2)",
        "{t}.unflatten(2, [{h}, {d}]).movedim(2, 1)",
        "torch.reshape({t}, ({t}.size(0), {t}.size(1), {h}, {d})).transpose(-2, -3)",
        "{t}.view({t}.shape[:-1] + ({h}, {d})).transpose(1, 2)",
        "{t}.reshape(len({t}), {t}.size(1), {h}, {d}).swapaxes(1, 2)",
    )
    return lambda t: spelled.format(t=t, h=h, d=d.format(t=t))


def scale(w: Writer, width: int) -> tuple[str, str]:
    """(operator, number) by which scores are scaled."""
    return w.pick(
        ("*", "q.shape[-1] ** -0.5"),
        ("*", "q.size(-1) ** -0.5"),
        ("/", "math.sqrt(q.shape[-1])"),
        ("/", "q.shape[-1] ** 0.5"),
        ("/", "k.size(-1) ** 0.5"),
        ("*", f"{w.number(width)} ** -0.5"),
        ("/", f"math.sqrt({w.number(width)})"),
        ("*", w.number(f"{width} ** -0.5")),
        ("*", "0.4"),
        ("*", "(1.0 / math.sqrt(k.shape[-1]))"),
        ("/", "(q.shape[-1] ** 0.25) / (k.shape[-1] ** 0.25)"),
        ("*", "float(q.shape[-1]) ** -0.5"),
        ("*", "pow(q.shape[-1], -0.5)"),
        ("*", "q.new_tensor(0.5)"),
    )


def weights(w: Writer, width: int, masked: bool) -> list[str]:
    """Lines from q, k, v of each head to `y`."""
    operator, number = scale(w, width)
    if w.often(0.3):
        given = w.pick("", f", scale={number}" if operator == "*" else f", scale=1 / ({number})")
        given += ", attn_mask=~mask[:, None, None]" if masked and w.often(0.5) else ""
        attended = [f"y = F.scaled_dot_product_attention(q, k, v{given})"]
        if "mask" not in given or not masked:
            return attended
        plain = given.split(", attn_mask")[0]
        return [
            f"if {w.option('mask')} is not None and other is None:",
            *indented(attended),
            "else:",
            f"    y = F.scaled_dot_product_attention(q, k, v{plain})",
        ]
    turned = w.pick("k.transpose(-2, -1)", "k.mT", "k.permute(0, 1, 3, 2)", "k.swapaxes(2, 3)")
    lines = w.pick(
        [f"s = (q @ {turned}) {operator} {number}"],
        [f"q = q {operator} {number}", f"s = torch.matmul(q, {turned})"],
        [f"s = torch.einsum('bhid,bhjd->bhij', q, k) {operator} {number}"],
        [f"s = q @ {turned}", f"s {operator}= {number}"],
    )
    if masked:
        filled = w.pick("s.masked_fill(mask[:, None, None], -1e9)", "s - 50.0 * mask[:, None, None].to(s.dtype)")
        lines = [*lines, f"if {w.option('mask')} is not None and other is None:", f"    s = {filled}"]
    if w.often(0.3):
        lines = [*lines, "if self.training:", w.pick("    s = s * 0.9", "    v = v * 0.5")]
    return [
        *lines,
        w.pick(
            "y = s.softmax(-1) @ v",
            "y = torch.matmul(torch.softmax(s, dim=-1), v)",
            "y = torch.einsum('bhij,bhjd->bhid', s.softmax(-1), v)",
        ),
    ]


@statement("tokens", 5)
def attention(w: Writer) -> list[str]:
    C, heads = w.width, w.pick(2, 4)
    width, lines = C // heads, []
    b, n, c = sizes(w, lines)
    fused = w.often(0.5)
    names = ["q", "k", "v"]
    expression = per_head(w, heads, width)
    if fused:
        qkv = w.module(f"nn.Linear({C}, {3 * C})", "qkv")
        h, d = w.either(heads), w.either(width)
        packed = w.pick(
            "",
            "",
            f"{qkv}(x).reshape({b}, {n}, 3, {h}, {d})",
            f"{qkv}(x).view({b}, {n}, 3, {h}, {c} // {h})",
            f"{qkv}(x).unflatten(-1, (3, {h}, {d}))",
            f"{qkv}(x).view({b}, {n}, 3, {h}, -1)",
        )
        if packed:
            turned = w.pick(".permute(2, 0, 3, 1, 4)", ".movedim(2, 0).transpose(2, 3)")
            how = w.pick("q, k, v = r.unbind(0)", "q, k, v = r[0], r[1], r[2]", "q, k, v = r")
            lines += [f"r = {packed}{turned}", how]
        else:
            parted = w.pick(
                ".chunk(3, -1)",
                f".split({w.either(C)}, -1)",
                ".chunk(3, dim=2)",
                f".split([{C}, {C}, {C}], dim=-1)",
            )
            lines += [f"q, k, v = {qkv}(x){parted}", *w.applied(names, expression)]
    else:
        source = "x"
        if w.often(0.3):
            source = "source"
            lines += [f"source = x if {w.option('other')} is None else other"]
        q, k, v = (w.module(f"nn.Linear({C}, {C})", role) for role in names)
        lines += [f"q, k, v = {q}(x), {k}({source}), {v}({source})", *w.applied(names, expression)]
    lines += weights(w, width, masked=w.often(0.3))
    merged = w.pick(
        f"y.transpose(1, 2).reshape({b}, {n}, {c})",
        "y.transpose(1, 2).flatten(2)",
        f"y.transpose(1, 2).contiguous().view({b}, {n}, -1)",
        f"y.permute(0, 2, 1, 3).reshape({b}, -1, {w.either(C)})",
        f"y.movedim(1, 2).reshape({b}, {n}, {w.either(heads)} * {w.either(width)})",
        "y.swapaxes(1, 2).flatten(-2)",
        "torch.cat(y.unbind(1), -1)",
        f"y.transpose(1, 2).reshape(*x.shape[:2], {w.either(C)})",
        "y.transpose(1, 2).reshape(x.shape)",
    )
    proj = w.module(f"nn.Linear({C}, {C})", "proj")
    return [*lines, f"y = {merged}", w.pick(f"x = x + {proj}(y)", f"x = {proj}(y)")]


@statement("tokens")
def remembered(w: Writer) -> list[str]:
    """A sequence that is read token by token, with a cache of keys and values."""
    C, heads = w.width, 2
    q, k, v = (w.module(f"nn.Linear({C}, {C})", role) for role in "qkv")
    proj = w.module(f"nn.Linear({C}, {C})", "proj")
    expression = per_head(w, heads, C // heads)
    operator, number = scale(w, C // heads)
    body = [
        "now = x[:, t : t + 1]",
        f"q, k, v = {q}(now), {k}(now), {v}(now)",
        *w.applied(["q", "k", "v"], expression),
        *w.pick(
            ["if past is not None:", "    k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)"],
            [
                "k = k if past is None else torch.cat([past[0], k], dim=-2)",
                "v = v if past is None else torch.cat([past[1], v], dim=-2)",
            ],
        ),
        "past = (k, v)",
        f"y = ((q @ k.mT) {operator} {number}).softmax(-1) @ v",
        "seen.append(y.transpose(1, 2).flatten(2))",
    ]
    return [
        "past, seen = None, []",
        "for t in range(x.shape[1]):",
        *indented(body),
        f"x = x + {proj}(torch.cat(seen, 1))",
    ]
