"""The paths: cut ≡ mask on ways through real networks that the example did not take.

    python benchmarks/paths.py [NETWORK …] [--out benchmarks/paths]

Each network is traced on one example. Then a cut is compared with `topiarist.mask`, in float64, on other paths: other
lengths, sizes and batches, optional arguments, generation token by token with a cache, training mode, a detector's
whole output, a TorchScript trace. Two cuts each: every group keeps 50 % of its units, and every group keeps a share of
its own between 25 and 75 %, both at random. ONNX files run in float32. The networks are small, of random weights.
Writes one JSON line a path, and a Markdown table. Needs transformers, timm, torchvision; for ONNX onnxruntime.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from proof_table import keep_share
from torch import Tensor, nn

import topiarist
from topiarist.budget import cost
from topiarist.files import one_line
from topiarist.graph import call_model, fast_path_off
from topiarist.models import import_torchvision
from topiarist.surgery import Answer, copied, decisions, difference, non_degenerate, paths

TOLERANCE = 1e-10
SINGLE = 1e-4
"""Tolerance of what runs in float32."""
NEW_TOKENS = 12
UNTAKEN = "no example took the branch"
"""What a cut network says in code that no example took."""
PACKAGES = ("torch", "torchvision", "timm", "transformers", "onnx", "onnxruntime")

Run = Callable[[nn.Module], Any]
"""Runs a network on a path, and returns what it computes."""


@dataclass(frozen=True)
class Way:
    """How the cut network is run on a path, and how the masked one, where that is not alike."""

    run: Run
    reference: Run | None = None


@dataclass
class Case:
    """A network, the examples it is traced on, the ways that it is run, and whether it selects by data."""

    model: nn.Module
    example: Any
    ways: dict[str, Way]
    more: list[Any] = field(default_factory=list)
    selects: bool = False


def on(inputs: Any) -> Way:
    """Calls the network."""
    return Way(lambda model: call_model(model, inputs))


def trained(inputs: Any) -> Way:
    """Calls the network in training mode: the seed drops the same samples, dropout is off."""

    def run(model: nn.Module) -> Any:
        with paths.Path("", inputs, training=True).entered(model):
            torch.manual_seed(0)
            return call_model(model, inputs)

    return Way(run)


def scripted(inputs: Any) -> Way:
    """Runs what torch.jit.trace makes of the network, which traces the code but not what a mask does beside it."""
    return Way(lambda model: torch.jit.trace(model, inputs, check_trace=False)(inputs), on(inputs).run)


def symbolic(inputs: Any) -> Way:
    return Way(lambda model: torch.fx.symbolic_trace(model)(inputs), on(inputs).run)


def program(inputs: Any, *, strict: bool) -> Way:
    """Runs what torch.export makes of the network."""
    return Way(lambda model: torch.export.export(model, (inputs,), strict=strict).module()(inputs), on(inputs).run)


def compiled(inputs: Any) -> Way:
    """Runs the graph that torch.compile finds, without a compiler for it."""

    def run(model: nn.Module) -> Any:
        torch.compiler.reset()
        return torch.compile(model, backend="aot_eager", fullgraph=True)(inputs)

    return Way(run, on(inputs).run)


def generated(ids: Tensor, **options: Any) -> Way:
    """Generates tokens; returns them, and the logits of each step, taken before they are rounded to float32."""

    def run(model: nn.Module) -> Any:
        logits: list[Tensor] = []
        hook = model.get_output_embeddings().register_forward_hook(lambda *call: logits.append(call[-1][:, -1]))
        lengths = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
        try:
            tokens = model.generate(ids, do_sample=False, **lengths, **options)
        finally:
            hook.remove()
        return tokens, logits

    return Way(run)


def exported(example: Tensor, *, dynamo: bool) -> Way:
    """Runs the ONNX file of the network, in float32."""

    def run(model: nn.Module) -> Any:
        import onnxruntime

        model = copied(model).float()
        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder, "model.onnx"))
            torch.onnx.export(model, (example.float(),), file, dynamo=dynamo, verbose=False)
            session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
            outputs = session.run(None, {session.get_inputs()[0].name: example.float().numpy()})
        return [torch.from_numpy(output) for output in outputs]

    return Way(run, on(example).run)


# ------------------------------------------------------------------------------------------------------------ networks


def tokens(*shape: int, start: int = 3) -> Tensor:
    return torch.randint(start, 99, shape)


def t5(attention: str, **options: Any) -> Case:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"vocab_size": 100, "d_model": 64, "num_heads": 4, "d_kv": 16, "d_ff": 128, "num_layers": 2}
    config = T5Config(**sizes, decoder_start_token_id=0, attn_implementation=attention, **options)
    pair = {"input_ids": tokens(2, 7), "decoder_input_ids": tokens(2, 5)}
    other = {"input_ids": tokens(3, 11), "decoder_input_ids": tokens(3, 8)}
    padded = {**other, "attention_mask": (torch.arange(11) < torch.tensor([[11], [6], [3]])).long()}
    ways = {
        "forward": on(pair),
        "other lengths and batch": on(other),
        "with an attention mask": on(padded),
        "labels instead of decoder ids": on({"input_ids": tokens(2, 9), "labels": tokens(2, 6)}),
        "generate with cache": generated(tokens(2, 7), use_cache=True),
        "generate with cache, other length and batch": generated(tokens(3, 12), use_cache=True),
        "generate with a static cache": generated(tokens(2, 7), cache_implementation="static", disable_compile=True),
        "generate without cache": generated(tokens(2, 7), use_cache=False),
        "beam search with cache": generated(tokens(2, 7), num_beams=3),
    }
    return Case(T5ForConditionalGeneration(config), pair, ways)


def causal(name: str, attention: str, *, padded: bool = False, **options: Any) -> Case:
    """A decoder; perhaps traced on a padded batch, and on single tokens, as well."""
    import transformers

    sizes = {"vocab_size": 100, "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = getattr(transformers, f"{name}Config")(**sizes, attn_implementation=attention, **options)
    model = getattr(transformers, {"GPT2": "GPT2LMHeadModel"}.get(name, f"{name}ForCausalLM"))(config)
    example = {"input_ids": tokens(2, 16), "use_cache": False}
    masks = [torch.tensor([[0] * (length - 1) + [1], [1] * length]) for length in (16, 1)]
    masked = [{"input_ids": tokens(2, m.shape[1]), "attention_mask": m, "use_cache": False} for m in masks]
    ways = {
        "forward, shorter, other batch": on({"input_ids": tokens(3, 9), "use_cache": False}),
        "forward, longer": on({"input_ids": tokens(2, 40), "use_cache": False}),
        "forward with cache": on({"input_ids": tokens(2, 16)}),
        "generate with cache": generated(tokens(2, 8), use_cache=True),
        "generate without cache": generated(tokens(3, 3), use_cache=False),
    }
    return Case(model, example, ways, masked if padded else [])


def bert(kind: str, attention: str, *, masked: bool = False, embedded: bool = False) -> Case:
    import transformers

    sizes = {"vocab_size": 100, "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = transformers.BertConfig(**sizes, intermediate_size=128, attn_implementation=attention)
    ids, ones = tokens(2, 12), torch.ones(2, 12, dtype=torch.long)
    holes = (torch.arange(12) < torch.tensor([[12], [7]])).long()
    short = (torch.arange(6) < torch.tensor([[6], [2], [4]])).long()
    ways = {
        "without mask": on({"input_ids": ids}),
        "mask of ones": on({"input_ids": ids, "attention_mask": ones}),
        "mask with padding": on({"input_ids": ids, "attention_mask": holes}),
        "shorter, other batch, without mask": on({"input_ids": tokens(3, 6)}),
        "shorter, other batch, with mask": on({"input_ids": tokens(3, 6), "attention_mask": short}),
        "longer": on({"input_ids": tokens(2, 40)}),
        "token types": on({"input_ids": ids, "token_type_ids": ones}),
        "training": trained({"input_ids": ids}),
    }
    example = {"input_ids": tokens(2, 12), **({"attention_mask": holes} if masked else {})}
    if not embedded:
        return Case(getattr(transformers, kind)(config), example, ways)
    vectors = {"inputs_embeds": torch.randn(2, 12, 64, dtype=torch.float64)}
    return Case(
        getattr(transformers, kind)(config), example, {**ways, "embeddings instead of ids": on(vectors)}, [vectors]
    )


def pair_of_towers(name: str, attention: str) -> Case:
    import transformers

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2}
    text = {**sizes, "vocab_size": 100, "max_position_embeddings": 20, "eos_token_id": 99, "bos_token_id": 98}
    config = getattr(transformers, f"{name}Config")(
        text_config={**text, "attn_implementation": attention},
        vision_config={**sizes, "image_size": 32, "patch_size": 8, "attn_implementation": attention},
        attn_implementation=attention,
    )
    if name == "CLIP":
        config.projection_dim = 48

    def inputs(images: int, texts: int, length: int, side: int = 32, **more: Any) -> dict[str, Any]:
        image = torch.randn(images, 3, side, side, dtype=torch.float64)
        return {"input_ids": tokens(texts, length), "pixel_values": image, **more}

    padded = torch.ones(3, 9, dtype=torch.long)
    padded[1, 5:] = 0
    ways = {
        "shorter text": on(inputs(2, 2, 5)),
        "shorter text, other batch": on(inputs(1, 3, 8)),
        "with an attention mask": on(inputs(2, 3, 9, attention_mask=padded)),
        "larger image": on(inputs(2, 2, 12, side=48, interpolate_pos_encoding=True)),
        "with loss": on(inputs(2, 2, 12, return_loss=True)),
    }
    return Case(getattr(transformers, f"{name}Model")(config), inputs(2, 2, 20), ways)


def image(*sides: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, *sides, dtype=torch.float64)


def swin(name: str, *more: int) -> Case:
    """A network traced on 224 × 224, and perhaps on further sizes."""
    model = topiarist.load_model(f"torchvision:{name}")
    ways = {f"{side} × {side}": on(image(side, side)) for side in (192, 256, 150)}
    ways |= {"168 × 250, batch of 2": on(image(168, 250, batch=2)), "training": trained(image(192, 192, batch=2))}
    return Case(model, image(224, 224), ways, [image(side, side) for side in more])


def swin3d(*traced: int) -> Case:
    """A small network, traced on some of these sizes and run on all."""
    from torchvision.models.video.swin_transformer import SwinTransformer3d

    window = {"patch_size": [2, 4, 4], "window_size": [8, 7, 7]}
    model = SwinTransformer3d(embed_dim=24, depths=[2, 2, 2], num_heads=[2, 4, 8], num_classes=10, **window)
    sizes = [(16, 112, 112), (8, 96, 96), (7, 75, 61), (18, 128, 96), (4, 28, 28)]
    ways = {" × ".join(map(str, size)): on(image(*size)) for size in sizes}
    return Case(
        model,
        image(*sizes[traced[0]]),
        ways | {"training": trained(image(8, 64, 64, batch=2))},
        [image(*sizes[k]) for k in traced[1:]],
    )


def dropping(name: str, **options: Any) -> Case:
    """A network of timm in training mode with drop path."""
    import timm

    model = timm.create_model(name, **options)
    side = 224 if "224" in name else 96
    ways = {
        "training, batch of 2": trained(image(side, side, batch=2)),
        "training, batch of 5": trained(image(side, side, batch=5)),
    }
    return Case(model, image(side, side), ways)


def retinanet() -> Case:
    model = topiarist.load_model(
        "torchvision:detection.retinanet_resnet50_fpn", num_classes=5, min_size=96, max_size=128
    )
    nn.init.normal_(model.head.classification_head.cls_logits.weight, std=0.3)
    picture = [torch.rand(3, 96, 128, dtype=torch.float64)]
    two = [torch.rand(3, 96, 128, dtype=torch.float64), torch.rand(3, 80, 60, dtype=torch.float64)]
    ways = {"all outputs": on((picture,)), "all outputs, two images of other sizes": on((two,))}
    return Case(model, (picture,), ways, selects=True)


def to_file(name: str, side: int = 224, kind: str = "timm", fx: bool = False, **options: Any) -> Case:
    model = topiarist.load_model(f"{kind}:{name}", **options)
    example = image(side, side)
    ways = {"ONNX, TorchScript": exported(example, dynamo=False), "ONNX, torch.export": exported(example, dynamo=True)}
    ways |= {"torch.jit.trace": scripted(example), "torch.compile": compiled(example)}
    ways |= {"torch.export": program(example, strict=False), "torch.export, strict": program(example, strict=True)}
    if fx:
        ways["torch.fx"] = symbolic(example)
    return Case(model, example, ways)


CASES: dict[str, Callable[[], Case]] = {
    "T5, eager": partial(t5, "eager"),
    "T5, sdpa": partial(t5, "sdpa"),
    "T5 v1.1 (gated, untied)": partial(t5, "sdpa", feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "GPT-2, sdpa": partial(causal, "GPT2", "sdpa"),
    "GPT-2, eager": partial(causal, "GPT2", "eager"),
    "Llama (grouped queries), sdpa": partial(causal, "Llama", "sdpa", num_key_value_heads=2, intermediate_size=96),
    "Llama (grouped queries), sdpa, traced on a padded batch and single tokens too": partial(
        causal, "Llama", "sdpa", padded=True, num_key_value_heads=2, intermediate_size=96
    ),
    "Llama (grouped queries), eager": partial(causal, "Llama", "eager", num_key_value_heads=2, intermediate_size=96),
    **{
        f"{kind}, {attention}, traced {'with' if masked else 'without'} mask": partial(
            bert, kind, attention, masked=masked
        )
        for kind in ("BertModel", "BertForSequenceClassification")
        for attention in ("eager", "sdpa")
        for masked in (False, True)
    },
    "BertForSequenceClassification, sdpa, traced with embeddings too": partial(
        bert, "BertForSequenceClassification", "sdpa", embedded=True
    ),
    **{
        f"{name}Model, {attention}": partial(pair_of_towers, name, attention)
        for name in ("CLIP", "Siglip")
        for attention in ("eager", "sdpa")
    },
    "torchvision swin_t": partial(swin, "swin_t"),
    "torchvision swin_t, traced on 256 × 256 too": partial(swin, "swin_t", 256),
    "torchvision swin_v2_t": partial(swin, "swin_v2_t"),
    "torchvision swin3d, small": partial(swin3d, 0),
    "torchvision swin3d, small, traced on 18 × 128 × 96 too": partial(swin3d, 0, 3),
    "torchvision swin3d, small, traced on 4 × 28 × 28": partial(swin3d, 4),
    "torchvision swin3d, small, traced on 4 × 28 × 28 and 18 × 128 × 96": partial(swin3d, 4, 3),
    "timm swin_tiny, drop path": partial(dropping, "swin_tiny_patch4_window7_224", drop_path_rate=0.3),
    "timm convnext_atto, drop path": partial(dropping, "convnext_atto", drop_path_rate=0.3),
    "timm deit_tiny, drop path": partial(dropping, "deit_tiny_patch16_224", drop_path_rate=0.3),
    "torchvision RetinaNet": retinanet,
    "timm coat_lite_tiny, files": partial(to_file, "coat_lite_tiny"),
    "timm deit_tiny, files": partial(to_file, "deit_tiny_patch16_224"),
    "timm swin_tiny, files": partial(to_file, "swin_tiny_patch4_window7_224"),
    "torchvision swin_t, files": partial(to_file, "swin_t", kind="torchvision", fx=True),
}


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression, in place of torchvision's compiled operator."""
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    kept, left = [], scores.argsort(descending=True, stable=True)
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        low, high = boxes[best, :2].maximum(boxes[left, :2]), boxes[best, 2:].minimum(boxes[left, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        left = left[shared / (area[best] + area[left] - shared) <= threshold]
    return torch.stack(kept) if kept else scores.new_empty(0, dtype=torch.long)


def give_torchvision_its_nms() -> None:
    """Defines the operator where torchvision's compiled part is missing."""
    from torchvision import extension
    from torchvision.ops import boxes

    if not extension._has_ops():
        torch.library.impl("torchvision::nms", "cpu")(nms)
        boxes._assert_has_ops = lambda: None


# ---------------------------------------------------------------------------------------------------------- comparison


def uneven(graph: topiarist.Graph, seed: int) -> dict[str, Tensor]:
    """Every group keeps a share of its own, so that sizes that are equal by chance are not."""
    random = np.random.default_rng(seed)
    keep = {}
    for group in graph.groups:
        count = max(1, round(float(random.uniform(0.25, 0.75)) * group.units))
        keep[group.name] = torch.zeros(group.units, dtype=torch.bool)
        keep[group.name][torch.from_numpy(random.permutation(group.units)[:count])] = True
    return keep


def answered(run: Run, model: nn.Module, beside: Answer | None = None, *, selects: bool) -> Answer:
    """Runs a network on a path; one that selects by data takes the selection of another one where both tie."""
    with torch.no_grad(), fast_path_off():
        return decisions.answer(_OnPath(run, model), (), beside) if selects else Answer(run(model))


class _OnPath(nn.Module):
    """A network whose call is a path."""

    def __init__(self, run: Run, model: nn.Module) -> None:
        super().__init__()
        self.run, self.model = run, model

    def forward(self) -> Any:
        return self.run(self.model)


def compared(case: Case, way: Way, pairs: list[tuple[nn.Module, nn.Module]]) -> dict[str, Any]:
    """Compares cuts and masked networks on a path."""
    worst, change, followed, reference = 0.0, math.inf, False, way.reference or way.run
    for small, masked in pairs:
        expected = answered(reference, masked, selects=case.selects)
        found = answered(way.run, small, expected, selects=case.selects)
        before = decisions.difference_before_decisions(found, expected)
        worst = max(worst, before, difference(found.outputs, expected.outputs))
        followed |= found.followed
        original = answered(reference, case.model, selects=case.selects)
        change = min(change, difference(expected.outputs, original.outputs))
    return {"difference": worst, "change": change, "followed": followed}


def rows(name: str, *, only: str = "") -> Iterator[dict[str, Any]]:
    """Yields what is found on each path of a network."""
    torch.manual_seed(0)
    case = CASES[name]()
    case.model = non_degenerate(case.model.eval()).double().requires_grad_(False)
    graph = topiarist.trace(case.model, case.example, more_inputs=case.more)
    keeps = [keep_share(graph, 0.5), uneven(graph, seed=1)]
    pairs = [(topiarist.cut(case.model, graph, keep), topiarist.mask(case.model, graph, keep)) for keep in keeps]
    facts = {
        "network": name,
        "macs": cost(graph, keeps[0]).macs / cost(graph).macs,
        "corrections": [len(graph.solution.corrections(graph.dead(keep))) for keep in keeps],
    }
    for path, way in case.ways.items():
        if only not in path:
            continue
        found = {**facts, "path": path}
        begin = time.perf_counter()
        try:
            found |= compared(case, way, pairs)
        except Exception as error:  # a failing path is a row of the table
            found["error"] = f"{type(error).__name__}: {one_line(error)[:300]}"
        yield {**found, "wall_s": round(time.perf_counter() - begin, 1)}


def verdict(found: dict[str, Any]) -> str:
    """Whether cut and mask are equal on a path; else what is wrong."""
    if UNTAKEN in found.get("error", ""):
        return "refused: no example took it"
    if "error" in found:
        return found["error"][:80]
    if not found["difference"] <= (SINGLE if "ONNX" in found["path"] else TOLERANCE):
        return "differs"
    if not found["change"] > 1e-4:
        return "blind"
    return "equal; ties follow the mask" if found["followed"] else "equal"


def markdown(found: list[dict[str, Any]]) -> str:
    equal = sum(verdict(row).startswith("equal") for row in found)
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES)
    lines = [
        "# The paths",
        "",
        f"Cut and mask are equal on {equal} of {len(found)} paths, {len({row['network'] for row in found})} networks: "
        f"in float64 to {TOLERANCE:.0e}, ONNX files in float32 to {SINGLE:.0e}. Two cuts each, at random: every group "
        "keeps 50 % of its units, and every group a share of its own between 25 and 75 %. The difference is the larger "
        "one of both, relative to the largest output; MACs are those of the first; corrections are the modules "
        f"whose code was corrected or guarded, by cut. One thread of {platform.machine()}, {versions}, topiarist "
        f"{topiarist.__version__}; random weights of seed 0, cuts of seeds 0 and 1. "
        "Rerun: `python benchmarks/paths.py --out benchmarks/paths`.",
        "",
        "| network | path | difference | MACs kept | corrections | verdict |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *map(line, found)]) + "\n"


def line(row: dict[str, Any]) -> str:
    return (
        f"| {row['network']} | {row['path']} | {row.get('difference', math.nan):.0e} | {row['macs']:.2f} "
        f"| {' / '.join(map(str, row['corrections']))} | {verdict(row)} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="networks, or how their names begin; all without")
    parser.add_argument("--path", default="", help="only paths whose name holds this")
    parser.add_argument("--out", type=Path, help="FILE.jsonl, which is resumed, and FILE.md")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    import_torchvision()
    import transformers

    transformers.logging.set_verbosity_error()
    give_torchvision_its_nms()
    names = [name for name in CASES if not options.names or name.startswith(tuple(options.names))]
    file = options.out and options.out.with_suffix(".jsonl")
    found = [json.loads(line) for line in file.read_text().splitlines()] if file and file.exists() else []
    for name in names:
        if any(row["network"] == name for row in found):
            continue
        try:
            new = list(rows(name, only=options.path))
        except Exception as error:  # a failing network is a row of the table
            facts = {"network": name, "path": "trace and cut", "macs": math.nan, "corrections": []}
            new = [{**facts, "error": f"{type(error).__name__}: {one_line(error)[:300]}"}]
        found += new
        for row in new:
            print(
                f"{name} | {row['path']} | {row.get('difference')} | {row['corrections']} | {verdict(row)}", flush=True
            )
        if file:
            with file.open("a") as log:
                log.writelines(json.dumps(row) + "\n" for row in new)
    if options.out:
        options.out.with_suffix(".md").write_text(markdown(found))


if __name__ == "__main__":
    main()
