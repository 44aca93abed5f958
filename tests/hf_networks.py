"""Small models of transformers with the true structure, each cut in half and cut unevenly, and saved both times."""

from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import topiarist
from topiarist.integrations import huggingface

SIZES = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


class Network(NamedTuple):
    """A model of the true structure, its example inputs, and what its configuration states when it is cut in half."""

    kind: str
    options: dict[str, Any]
    inputs: dict[str, Any]
    halved: dict[str, int]


def ids(length: int) -> Tensor:
    return 3 + torch.arange(length)[None] % 90


NETWORKS = {
    "vit": Network(
        "ViTForImageClassification",
        {**SIZES, "hidden_size": 48, "num_attention_heads": 4, "image_size": 32, "patch_size": 8},
        {"pixel_values": torch.linspace(-1, 1, 3 * 32 * 32).sin().view(1, 3, 32, 32)},
        {"hidden_size": 24, "intermediate_size": 48, "num_attention_heads": 2},
    ),
    "bert": Network(
        "BertForSequenceClassification",
        {**SIZES, **TOKENS},
        {"input_ids": ids(12)},
        {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4},
    ),
    "llama": Network(
        "LlamaForCausalLM",
        {**SIZES, **TOKENS, "num_key_value_heads": 2},
        {"input_ids": ids(12), "use_cache": False},
        {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 1},
    ),
    "t5": Network(
        "T5ForConditionalGeneration",
        {"vocab_size": 100, "d_model": 64, "d_kv": 8, "d_ff": 96, "num_layers": 1, "num_heads": 8}
        | {"decoder_start_token_id": 0},
        {"input_ids": ids(12), "decoder_input_ids": ids(7)},
        {"num_heads": 4, "d_ff": 48},
    ),
}


GENERATE = ("llama", "t5")
"""Those that write tokens."""


class Cut(NamedTuple):
    """A network that was cut, and where it is saved."""

    model: Any
    architecture: topiarist.Architecture
    saved: huggingface.Saved


class Case(NamedTuple):
    """A network with its graph, cut in half, and cut to widths that no configuration states."""

    model: Any
    graph: topiarist.Graph
    plain: Cut
    shaped: Cut
    folders: Path


def made(transformers: ModuleType, name: str, folders: Path) -> Case:
    network, model = NETWORKS[name], built(transformers, name)
    graph = topiarist.trace(model, network.inputs)
    whole = huggingface.whole_heads(graph)
    halves = {group.name: torch.arange(group.units) < group.units // 2 for group in graph.groups}
    halved = {group: keep for group, keep in halves.items() if group not in whole}
    ragged = dict(list(halved.items())[: (len(halved) + 1) // 2])  # the first layer's, not the last one's

    def cut(kind: str, keep: dict[str, Tensor]) -> Cut:
        smaller, shape = topiarist.cut(model, graph, keep).eval(), topiarist.Architecture.of(graph, keep)
        saved = huggingface.save_pretrained(smaller, folders / kind, architecture=shape, inputs=network.inputs)
        return Cut(smaller, shape, saved)

    return Case(model, graph, cut("plain", halved), cut("shaped", ragged), folders)


def built(transformers: ModuleType, name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    kind = getattr(transformers, NETWORKS[name].kind)
    model = kind(kind.config_class(**NETWORKS[name].options, **options)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))  # as trained ones, so that every number matters
    return model


def outputs(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def generated(model: Any) -> Tensor:
    with torch.no_grad():
        return model.generate(torch.cat([ids(7), ids(14)[:, 7:]]), max_new_tokens=8, min_new_tokens=5, do_sample=False)
