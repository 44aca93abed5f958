"""Statements on images (batch, channels, height, width) for the random networks with branches."""

from __future__ import annotations

from branches_writer import UnfitError, Writer, indented, statement


def sizes(w: Writer, lines: list[str]) -> tuple[str, str, str, str]:
    """Batch, channels, height and width as a person may spell them."""
    how = w.pick("unpacked", "unpacked", "shape", "size")
    if how == "unpacked":
        lines.append("b, c, h, v = x.shape")
        return "b", "c", "h", "v"
    spelled = "x.shape[{}]" if how == "shape" else "x.size({})"
    return tuple(spelled.format(k) for k in (0, 1, 2, 3))  # type: ignore[return-value]


@statement("images", 3)
def convolved(w: Writer) -> list[str]:
    C = w.width
    if w.often(0.5):
        layer = w.module(
            w.pick(
                f"nn.Conv2d({C}, {C}, 3, padding=1)",
                f"nn.Conv2d({C}, {C}, 3, padding=1, groups={C})",
                f"nn.Conv2d({C}, {C}, 1, groups=2)",
            )
        )
        return [w.pick(f"x = {layer}(x)", f"x = x + {layer}(x).relu()")]
    inner = w.pick(6, 10)
    up, down = w.module(f"nn.Conv2d({C}, {inner}, 1)"), w.module(f"nn.Conv2d({inner}, {C}, 1)")
    lines = [f"y = {up}(x).relu()"]
    if w.often(0.4):
        lines += [
            f"if {w.condition()}:",
            w.pick(
                "    y = y * 0.5",
                "    y = y - y.mean(1, keepdim=True)",
                "    y = F.group_norm(y, 1)",
                "    y = y + y.amax((2, 3), keepdim=True)",
            ),
        ]
    return [*lines, f"x = x + {down}(y)"]


@statement("images", 2)
def norm(w: Writer) -> list[str]:
    C, groups = w.width, w.pick(2, 4)
    lines: list[str] = []
    b, c, h, v = sizes(w, lines)
    g = w.either(groups)
    layers = [] if w.inside else [w.module(f"nn.{kind}") for kind in (f"BatchNorm2d({C})", f"GroupNorm(2, {C})")]
    return w.pick(
        *[[f"x = {layer}(x)"] for layer in layers],
        [f"x = F.group_norm(x, {g})"],
        ["x = F.instance_norm(x)"],
        ["x = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2]).permute(0, 3, 1, 2)"],
        [f"x = F.layer_norm(x.movedim(1, -1), [{w.either(C)}]).movedim(-1, 1)"],
        ["x = F.normalize(x, dim=1)"],
        [
            *lines,
            f"y = x.view({b}, {g}, {w.pick('-1', f'{c} // {g}')}, {h}, {v})",
            "y = y - y.mean(2, keepdim=True)",
            f"x = y.reshape({b}, {w.pick(c, '-1', w.either(C))}, {h}, {v})",
        ],
    )


@statement("images", 2)
def gated(w: Writer) -> list[str]:
    """Squeeze and excitation."""
    C = w.width
    linear = w.often(0.5)
    kind = "Linear({}, {})" if linear else "Conv2d({}, {}, 1)"
    down, up = w.module(f"nn.{kind.format(C, 4)}"), w.module(f"nn.{kind.format(4, C)}")
    lines: list[str] = []
    b, c, _, _ = sizes(w, lines)
    if not linear:
        pooled = w.pick("x.mean((2, 3), keepdim=True)", "F.adaptive_avg_pool2d(x, 1)", "x.amax((2, 3), keepdim=True)")
        return [f"g = {pooled}", f"x = x * {up}({down}(g).relu()).sigmoid()"]
    pooled = w.pick(
        "x.mean((2, 3))",
        "F.adaptive_avg_pool2d(x, 1).flatten(1)",
        "F.adaptive_avg_pool2d(x, 1).squeeze()",
        f"F.adaptive_avg_pool2d(x, 1).view({b}, {c})",
        "x.flatten(2).mean(-1)",
        f"F.adaptive_max_pool2d(x, 1).view({b}, -1)",
        f"F.adaptive_avg_pool2d(x, 1).reshape({b}, {w.either(C)})",
        "x.mean(3).mean(2)",
    )
    back = w.pick(
        "g[:, :, None, None]",
        f"g.view({b}, {c}, 1, 1)",
        f"g.view({b}, {w.either(C)}, 1, 1)",
        "g[..., None, None]",
        f"g.view({b}, {c}, 1, 1).expand_as(x)",
        "g.unsqueeze(-1).unsqueeze(-1)",
        f"g.reshape({b}, -1, 1, 1)",
    )
    return [*lines, f"g = {pooled}", f"g = {up}({down}(g).relu()).sigmoid()", f"x = x * {back}"]


@statement("images", 2)
def shuffled(w: Writer) -> list[str]:
    C, groups = w.width, w.pick(2, 4)
    lines: list[str] = []
    b, c, h, v = sizes(w, lines)
    g, d = w.either(groups), w.either(C // groups)
    view = w.pick(
        f"x.view({b}, {g}, {w.pick(d, '-1', f'{c} // {g}')}, {h}, {v})",
        f"x.unflatten(1, ({g}, {w.pick(d, '-1')}))",
        f"x.reshape({b}, -1, {d}, {h}, {v})",
    )
    change = w.pick(".transpose(1, 2)", ".flip(1)", ".tanh()", ".softmax(1)")
    back = w.pick(
        f".reshape({b}, {c}, {h}, {v})",
        ".flatten(1, 2)",
        ".reshape(x.shape)",
        f".reshape({b}, {w.either(C)}, {h}, {v})",
        f".reshape({b}, -1, {h}, {v})",
        ".contiguous().view_as(x)",
    )
    return [*lines, f"x = {view}{change}{back}"]


@statement("images")
def resized(w: Writer) -> list[str]:
    C = w.width
    odd = w.pick(
        "x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))", "x = F.pad(x, (0, 1, 0, 1)) if x.shape[2] % 2 else x"
    )
    small = w.pick(
        "F.avg_pool2d(x, 2)", "F.max_pool2d(x, 2)", "x[:, :, ::2, ::2]", "F.interpolate(x, scale_factor=0.5)"
    )
    merged = [
        "b, c, h, v = x.shape",
        odd,
        "y = F.pixel_unshuffle(x, 2)",
        f"y = y.view(b, {w.pick('c', w.either(C))}, 4, *y.shape[2:])",
        "x = F.interpolate(y.mean(2), scale_factor=2)[:, :, :h, :v]",
    ]
    plain = [
        "h, v = x.shape[2:]",
        odd,
        f"y = {small}",
        "x = x + F.interpolate(y, scale_factor=2)",
        "x = x[:, :, :h, :v]",
    ]
    return w.pick(merged, plain, plain)


@statement("images", 2)
def windows(w: Writer) -> list[str]:
    C, size = w.width, w.pick(2, 4)
    s = w.either(size)
    wide = w.pick("c", "c", w.either(C))
    lines = ["b, c, h, v = x.shape", f"x = F.pad(x, (0, -v % {s}, 0, -h % {s}))", "height, width = x.shape[2:]"]
    if w.often(0.4):
        lines = [
            "b, c, h, v = x.shape",
            f"if h % {s} or v % {s}:",
            f"    x = F.pad(x, (0, -v % {s}, 0, -h % {s}))",
            "height, width = x.shape[2:]",
        ]
    part = f"y = x.view(b, {wide}, height // {s}, {s}, width // {s}, {s}).permute(0, 2, 4, 3, 5, 1)"
    rows = w.pick(
        f"y = y.reshape(-1, {s} * {s}, {w.pick('c', w.either(C))})",
        f"y = y.reshape(-1, {s} ** 2, c)",
        "y = y.flatten(0, 2).flatten(1, 2)",
    )
    mixed = w.pick(
        "y = (y @ y.mT * y.shape[-1] ** -0.5).softmax(-1) @ y",
        "y = y + y.mean(1, keepdim=True)",
        "y = F.scaled_dot_product_attention(y, y, y)",
        "y = y.tanh()",
        "y = (y @ y.mT / math.sqrt(c)).softmax(-1) @ y",
    )
    back = [
        f"y = y.view(b, height // {s}, width // {s}, {s}, {s}, {w.pick('c', '-1', w.either(C))})",
        w.pick(
            "x = y.permute(0, 5, 1, 3, 2, 4).reshape(b, c, height, width)",
            f"x = y.permute(0, 5, 1, 3, 2, 4).reshape(b, {w.either(C)}, height, width)",
        ),
        "x = x[:, :, :h, :v]",
    ]
    return [*lines, part, rows, mixed, *back]


@statement("images", 2)
def attended(w: Writer) -> list[str]:
    """Attention over the pixels, or over the channels."""
    C, heads = w.width, 2
    lines: list[str] = []
    b, c, h, v = sizes(w, lines)
    if w.often(0.4):
        flat = w.pick(f"y = x.view({b}, {c}, -1)", "y = x.flatten(2)", f"y = x.reshape({b}, {w.either(C)}, {h} * {v})")
        scale = w.pick("y.shape[-1] ** -0.5", f"({h} * {v}) ** -0.5", "0.3")
        back = w.pick(f"y.view({b}, {c}, {h}, {v})", "y.view(x.shape)", f"y.view({b}, -1, {h}, {v})", "y.view_as(x)")
        return [*lines, flat, f"y = (y @ y.mT * {scale}).softmax(-1) @ y", f"x = x + {back}"]
    qkv, proj = w.module(f"nn.Conv2d({C}, {3 * C}, 1)"), w.module(f"nn.Conv2d({C}, {C}, 1)")
    k, d = w.either(heads), w.either(C // heads)
    parted = w.pick(
        f"r = {qkv}(x).reshape({b}, 3, {k}, {w.pick(d, '-1', f'{c} // {k}')}, {h} * {v})",
        f"r = {qkv}(x).flatten(2).unflatten(1, (3, {k}, {d}))",
    )
    scale = w.pick(
        "* q.shape[-2] ** -0.5",
        "/ math.sqrt(q.size(2))",
        f"* {w.number(C // heads)} ** -0.5",
        f"* ({c} // {k}) ** -0.5",
    )
    back = w.pick(
        f"y.reshape({b}, {c}, {h}, {v})",
        "y.reshape(x.shape)",
        f"y.reshape({b}, -1, {h}, {v})",
        f"y.flatten(1, 2).unflatten(-1, ({h}, {v}))",
    )
    return [
        *lines,
        parted,
        "q, k, u = r.unbind(1)",
        f"y = u @ ((q.mT @ k) {scale}).softmax(-1).mT",
        f"x = x + {proj}({back})",
    ]


@statement("images")
def parted(w: Writer) -> list[str]:
    C = w.width
    k = w.pick(2, C // 2, C - 3)
    entries = w.number(f"[{k}, {C - k}]")
    lines = w.pick(
        [f"a, z = x.split([{k}, {C - k}], 1)"],
        [f"a, z = x.split({entries}, 1)"],
        [f"a, z = x[:, :{k}], x[:, {k}:]"],
        ["a, z = x.chunk(2, 1)"],
        ["a, z = x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]"],
    )
    return [
        *lines,
        w.pick("x = torch.cat([a.tanh(), z], 1)", "x = torch.cat((z, a), dim=1)", "x = torch.cat([a, z * 2], 1)"),
    ]


@statement("images")
def scaled(w: Writer) -> list[str]:
    number = w.number(w.width)
    return [
        w.pick(
            "x = x * x.shape[1] ** -0.5",
            "x = x / math.sqrt(x.size(1))",
            f"x = x * {number} ** -0.5",
            "x = x / x[0, 0].numel()",
            "x = x / (x.shape[2] * x.shape[3])",
            "x = x / x.shape[1]",
            "x = x * (1 / x.shape[1] ** 0.5)",
        )
    ]


@statement("images")
def joined_with_other(w: Writer) -> list[str]:
    if w.inside:
        raise UnfitError
    w.option("other")
    mix = w.module(f"nn.Conv2d({2 * w.width}, {w.width}, 1)") if w.often(0.4) else ""
    joined = [f"x = {mix}(torch.cat([x, other], 1))"] if mix else ["x = x + other.mean((2, 3), keepdim=True)"]
    absent = ["else:", f"    x = {mix}(torch.cat([x, x], 1))"] if mix else []
    return [
        "if other is not None:",
        *indented(w.pick(joined, joined, ["x = x + other"], ["x = x * (x * other).sum(1, True).sigmoid()"])),
        *absent,
    ]
