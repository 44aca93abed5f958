"""Statements on tokens (batch, length, width) for the random networks with branches."""

from __future__ import annotations

from branches_writer import UnfitError, Writer, indented, statement


def sizes(w: Writer, lines: list[str], t: str = "x") -> tuple[str, str, str]:
    """Batch, length and width as a person may spell them."""
    how = w.pick("unpacked", "unpacked", "shape", "size", "len")
    if how == "unpacked":
        lines.append(f"b, n, c = {t}.shape")
        return "b", "n", "c"
    if how == "len":
        return f"len({t})", f"{t}.shape[-2]", f"{t}.shape[2]"
    return (
        (f"{t}.shape[0]", f"{t}.shape[1]", f"{t}.shape[-1]")
        if how == "shape"
        else tuple(f"{t}.size({k})" for k in (0, 1, -1))
    )  # type: ignore[return-value]


@statement("tokens", 2)
def perceptron(w: Writer) -> list[str]:
    C, inner = w.width, w.pick(6, 10)
    if w.often(0.5):
        up, down = w.module(f"nn.Linear({C}, {inner})"), w.module(f"nn.Linear({inner}, {C})")
        act = w.pick("F.gelu({})", "{}.relu()", "torch.tanh({})", "{} * {}.sigmoid()")
        lines = [f"y = {up}(x)", f"y = {act.replace('{}', 'y')}"]
    else:
        up, down = w.module(f"nn.Linear({C}, {2 * inner})"), w.module(f"nn.Linear({inner}, {C})")
        parted = w.pick(
            f"a, g = {up}(x).chunk(2, -1)",
            f"a, g = {up}(x).split({w.either(inner)}, dim=-1)",
            f"y = {up}(x); a, g = y[..., :{inner}], y[..., {inner}:]",
            f"a, g = {up}(x).unflatten(-1, (2, {w.pick(w.either(inner), '-1')})).unbind(-2)",
            f"y = {up}(x); a, g = y[..., : y.shape[-1] // 2], y[..., y.shape[-1] // 2 :]",
        )
        lines = [*parted.split("; "), "y = a * g.sigmoid()"]
    if w.often(0.3):
        lines += [
            f"if {w.condition()}:",
            w.pick(
                "    y = y * 0.5",
                "    y = F.normalize(y, dim=-1)",
                "    y = y.relu()",
                "    y = F.layer_norm(y, y.shape[-1:])",
                "    y = y - y.mean(-1, True)",
            ),
        ]
    return [*lines, w.pick(f"x = x + {down}(y)", f"x = {down}(y)")]


@statement("tokens", 2)
def norm(w: Writer) -> list[str]:
    C, groups = w.width, w.pick(2, 4)
    lines: list[str] = []
    b, n, c = sizes(w, lines)
    affine = w.module(f"nn.LayerNorm({C})") if not w.inside or w.often(0.3) else ""
    g = w.either(groups)
    return w.pick(
        *([[f"x = {affine}(x)"]] * 2 if affine else []),
        ["x = F.layer_norm(x, x.shape[-1:])"],
        [f"x = F.layer_norm(x, ({w.either(C)},))"],
        ["m = x.mean(-1, keepdim=True)", "x = (x - m) / ((x - m) ** 2).mean(-1, keepdim=True).add(1e-5).sqrt()"],
        ["x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)"],
        ["x = F.normalize(x, dim=-1)"],
        ["x = x / (x.norm(dim=-1, keepdim=True) * x.shape[-1] ** -0.5 + 1e-6)"],
        [
            *lines,
            f"y = x.view({b}, {n}, {g}, {w.pick(str(C // groups), '-1', f'{c} // {g}')})",
            "y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True) + 1).sqrt()",
            "x = y.flatten(-2)",
        ],
        [f"x = F.group_norm(x.transpose(1, 2), {g}).transpose(1, 2)"],
    )


@statement("tokens")
def scaled(w: Writer) -> list[str]:
    C, number = w.width, w.number(w.width)
    return [
        w.pick(
            "x = x * x.shape[-1] ** -0.5",
            "x = x / math.sqrt(x.shape[-1])",
            "x = x / x.size(-1) ** 0.5",
            f"x = x * {number} ** -0.5",
            f"x = x * math.sqrt({number})",
            "x = x / x.shape[1]",
            "x = x * (x.shape[-1] // 2) ** -0.5",
            f"x = x * {C} ** -0.5",
            "x = x * (1.0 / x.shape[-1])",
            "x = x * (x.numel() // len(x)) ** -0.5",
            "x = x.div(math.sqrt(x.size(2)))",
            "x = x.mul(x.shape[2] ** -0.25)",
        )
    ]


@statement("tokens", 2)
def regrouped(w: Writer) -> list[str]:
    C, groups = w.width, w.pick(2, 4)
    lines: list[str] = []
    b, n, c = sizes(w, lines)
    g, d = w.either(groups), w.either(C // groups)
    wide = w.pick(d, "-1", f"{c} // {g}")
    parted = w.pick(
        f"x.view({b}, {n}, {g}, {wide})",
        f"x.unflatten(-1, ({g}, {w.pick(d, '-1')}))",
        f"x.reshape({b}, {n}, -1, {d})",
        f"torch.reshape(x, ({b}, {n}, {g}, {wide}))",
    )
    change = w.pick(
        "y = y.tanh()",
        "y = y * 0.5",
        "y = y.softmax(2)",
        "y = y + y.mean(2, keepdim=True)",
        "y = y.flip(2)",
        "y = y.transpose(2, 3).transpose(3, 2)",
        "y = y * y.amax(-1, keepdim=True).sigmoid()",
    )
    joined = w.pick(
        "y.flatten(2)",
        f"y.reshape({b}, {n}, {c})",
        f"y.reshape({b}, {n}, -1)",
        "y.flatten(-2, -1)",
        f"y.reshape({b}, {n}, {w.either(C)})",
        "y.reshape(x.shape)",
        "y.reshape_as(x)",
    )
    return [*lines, f"y = {parted}", change, f"x = {joined}"]


@statement("tokens", 2)
def reduced(w: Writer) -> list[str]:
    lines: list[str] = []
    b, n, c = sizes(w, lines)
    pooled = w.pick(
        ["g = x.mean(1)", "g = x.amax(1)", "g = x.sum(1) / x.shape[1]"],
        [
            "g = F.adaptive_avg_pool1d(x.transpose(1, 2), 1).squeeze()",
            "g = x.mean(1, keepdim=True).squeeze(1)",
            "g = F.adaptive_avg_pool1d(x.transpose(1, 2), 1).squeeze(-1)",
            "g = x.amax(1, keepdim=True).squeeze()",
        ],
    )
    own = w.pick(
        ["x = x + x.mean(1, keepdim=True)"],
        ["x = x * x.amax(-1, keepdim=True).sigmoid()"],
        ["x = x - x.mean(-1, keepdim=True)"],
        ["x = x * x.std(-1, keepdim=True)"],
        ["x = x / (x.abs().sum(-1, keepdim=True) / x.shape[-1] + 1)"],
        ["x = x.softmax(-1)"],
        ["x = x.softmax(1)"],
    )
    back = w.pick(
        ["x = x + g[:, None]"],
        ["x = x * g.unsqueeze(1).sigmoid()"],
        [*lines, f"x = x + g.view({b}, 1, {w.pick(c, '-1', w.either(w.width))})"],
        ["x = torch.cat([x, g[:, None].expand(-1, 1, -1)], 1)[:, 1:]"],
    )
    return w.pick(own, [w.pick(*pooled), *back])


@statement("tokens", 2)
def windows(w: Writer) -> list[str]:
    """Windows of the sequence: padded where it does not divide, partitioned, changed, put back."""
    C, size = w.width, w.pick(2, 4)
    s = w.either(size)
    wide = w.pick("c", "c", w.either(C), "-1")
    pad = w.pick(
        f"x = F.pad(x, (0, 0, 0, {s} - n % {s}))",
        f"x = torch.cat([x, x.new_zeros(b, {s} - n % {s}, c)], 1)",
        f"x = F.pad(x, (0, 0, 0, (-n) % {s}))",
    )
    lines = ["b, n, c = x.shape", f"if n % {s}:", f"    {pad}"]
    part = w.pick(
        f"y = x.view(b, -1, {s}, {'c' if wide == '-1' else wide})",
        f"y = x.view(b, x.shape[1] // {s}, {s}, {wide})",
        f"y = x.unflatten(1, (-1, {s}))",
    )
    change = w.pick(
        ["y = y + y.mean(2, keepdim=True)"],
        ["y = y * y.amax(2, keepdim=True)"],
        ["z = y.flatten(0, 1)", "z = (z @ z.mT * z.shape[-1] ** -0.5).softmax(-1) @ z", "y = z.view(y.shape)"],
        ["y = y.tanh()"],
    )
    back = w.pick(
        "x = y.flatten(1, 2)[:, :n]",
        "x = y.reshape(b, -1, c)[:, :n]",
        f"x = y.reshape(b, x.shape[1], {w.either(C)})[:, :n]",
        "x = y.view(x.shape)[:, :n].contiguous()",
    )
    return [*lines, part, *change, back]


@statement("tokens")
def folded(w: Writer) -> list[str]:
    C = w.width
    layer = w.pick("y.tanh()", f"{w.module(f'nn.Linear({C}, {C})', 'proj')}(y)", "F.normalize(y, dim=-1)")
    lines: list[str] = []
    b, n, c = sizes(w, lines)
    flat = w.pick(
        f"y = x.reshape({b} * {n}, {c})",
        f"y = x.reshape(-1, {w.pick(c, w.either(C))})",
        "y = x.flatten(0, 1)",
        f"y = x.reshape({b} * {n}, -1)",
    )
    back = w.pick(
        f"x = y.view({b}, {n}, {c})",
        f"x = y.view({b}, {n}, -1)",
        f"x = y.view({b}, -1, {w.either(C)})",
        f"x = y.unflatten(0, ({b}, {n}))",
        "x = y.view_as(x)",
    )
    return [*lines, flat, f"y = {layer}", back]


@statement("tokens")
def convolved(w: Writer) -> list[str]:
    C = w.width
    layer = w.module(
        w.pick(
            f"nn.Conv1d({C}, {C}, 3, padding=1)",
            f"nn.Conv1d({C}, {C}, 3, padding=1, groups={C})",
            f"nn.Conv1d({C}, {C}, 1, groups=2)",
        )
    )
    turned = w.pick("x.transpose(1, 2)", "x.mT", "x.permute(0, 2, 1)")
    return [f"x = x + {layer}({turned}).transpose(1, 2)"]


@statement("tokens", 2)
def parted(w: Writer) -> list[str]:
    C = w.width
    k = w.pick(2, C // 2, C - 3)
    entries = w.number(f"({k}, {C - k})")
    lines = w.pick(
        [f"a, z = x.split([{k}, {C - k}], -1)"],
        [f"a, z = x.split({entries}, dim=2)"],
        [f"a, z = x[..., :{k}], x[..., {k}:]"],
        [f"a, z = x.narrow(-1, 0, {k}), x.narrow(-1, {k}, {C - k})"],
        ["a, z = x.chunk(2, -1)"],
        ["half = x.shape[-1] // 2", "a, z = x[..., :half], x[..., half:]"],
        ["a, z = torch.split(x, x.shape[-1] // 2, -1)"],
    )
    return [
        *lines,
        w.pick("x = torch.cat([a.tanh(), z], -1)", "x = torch.cat((z, a), dim=2)", "x = torch.cat([a, z * 2], -1)"),
    ]


@statement("tokens", 2)
def expanded(w: Writer) -> list[str]:
    C = w.width
    lines: list[str] = []
    b, n, c = sizes(w, lines)
    token = w.module(f"nn.Parameter(torch.randn(1, 1, {C}))", "token")
    wide = w.pick(c, "-1", w.either(C))
    made = w.pick(
        f"{token}.expand({b}, {n}, {wide})",
        f"{token}.repeat({b}, {n}, 1)",
        f"{token}.expand_as(x)",
        f"{token}.expand(x.shape)",
        f"{token}.view(1, {w.pick('-1', w.either(C))})",
    )
    first = w.pick(
        f"{token}.expand({b}, 1, {wide})",
        f"{token}.expand({b}, -1, -1)",
        f"x.new_zeros({b}, 1, {w.pick(c, w.either(C))})",
        f"torch.zeros({b}, 1, {c}, dtype=x.dtype)",
        f"{token}.repeat({b}, 1, 1)",
    )
    return [
        *lines,
        *w.pick(
            [f"x = x + {made}"], [f"x = x * {made}"], [f"x = torch.cat([{first}, x], 1)", "x = x[:, 1:] + x[:, :1]"]
        ),
    ]


@statement("tokens")
def joined_with_other(w: Writer) -> list[str]:
    if w.inside:
        raise UnfitError
    w.option("other")
    return [
        "if other is not None:",
        *indented(
            w.pick(
                ["x = torch.cat([x, other], 1)[:, : x.shape[1]]"],
                ["x = x + other.mean(1, keepdim=True)"],
                ["x = x + other[:, : x.shape[1]]"],
                ["x = torch.stack([x, other], 1).mean(1)"],
                ["x = x * (x * other).sum(-1, keepdim=True).sigmoid()"],
            )
        ),
    ]
