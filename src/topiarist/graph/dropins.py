"""What is known of particular layers, and all of it: a table of attributes, and a drop-in for one layer of torch.

All else about modules is seen by running them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topiarist.graph.inputs import modules_of

DESCRIPTIVE: tuple[tuple[str, str, int], ...] = (
    ("in_features", "weight", 1),
    ("out_features", "weight", 0),
    ("num_features", "weight", 0),
    ("num_features", "running_mean", 0),
    ("num_channels", "weight", 0),
    ("embedding_dim", "weight", 1),
    ("embed_dim", "in_proj_weight", 1),
    ("num_parameters", "weight", 0),
    ("input_size", "weight_ih", 1),
    ("input_size", "weight_ih_l0", 1),
    ("hidden_size", "weight_hh", 1),
    ("hidden_size", "weight_hh_l0", 1),
    ("hidden_size", "weight_hr_l0", 1),  # of an LSTM with projections
    ("proj_size", "weight_hr_l0", 0),
)
"""(attribute, tensor, axis): attributes that describe a layer and compute nothing; a cut keeps them true."""

DESCRIBED: dict[str, list[tuple[str, int]]] = {"out_channels": [("weight", 0)], "in_channels": [("weight", 1)]}
"""Attribute → the (tensor, axis) that it may describe."""
for _attribute, _tensor, _axis in DESCRIPTIVE:
    DESCRIBED.setdefault(_attribute, []).append((_tensor, _axis))


def update_descriptions(model: nn.Module) -> None:
    """Brings the descriptive attributes of a cut model in line with its tensors."""
    for module in modules_of(model).values():
        for attribute, name, axis in DESCRIPTIVE:
            tensor = getattr(module, name, None) if attribute in module.__dict__ else None
            if isinstance(tensor, Tensor) and tensor.ndim > axis:
                module.__dict__[attribute] = tensor.shape[axis]
        if isinstance(module, nn.modules.conv._ConvNd):
            inner, outer = module.weight.shape[1], module.weight.shape[0]
            if module.transposed:
                module.in_channels, module.out_channels = outer, inner * module.groups
            else:
                module.in_channels, module.out_channels = inner * module.groups, outer


class MultiheadAttention(nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` with its widths and its scale as attributes instead of ``embed_dim // num_heads``.

    Same parameters, arguments and results; it can lose heads, widths within heads, and input features, and keeps the
    scale ``1/√(width of a head)`` that it was trained with.
    """

    value_dim: int
    scale: float

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        """Returns whether a module is one that this class can stand in for."""
        return type(module) is nn.MultiheadAttention and module.bias_k is None and not module.add_zero_attn

    @classmethod
    def adopt(cls, module: nn.Module) -> None:
        """Turns a `torch.nn.MultiheadAttention` into this class, in place."""
        assert isinstance(module, nn.MultiheadAttention)
        module.__class__ = cls
        module.__dict__["value_dim"] = module.head_dim
        module.__dict__["scale"] = module.head_dim**-0.5
        module.__dict__["_qkv_same_embed_dim"] = False  # keeps torch's fused encoder from bypassing forward()

    @classmethod
    def release(cls, module: nn.Module) -> None:
        """Turns it back."""
        module.__class__ = nn.MultiheadAttention
        module.__dict__["_qkv_same_embed_dim"] = module.in_proj_weight is not None
        del module.__dict__["value_dim"], module.__dict__["scale"]

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Computes what `torch.nn.MultiheadAttention.forward` does."""
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._project(query, key, value)
        batch, length = query.shape[:2]
        q = q.view(batch, length, self.num_heads, self.head_dim).transpose(1, 2)
        k = k.view(batch, key.shape[1], self.num_heads, self.head_dim).transpose(1, 2)
        v = v.view(batch, key.shape[1], self.num_heads, self.value_dim).transpose(1, 2)
        bias = self._bias(attn_mask, key_padding_mask, query)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            logits = (q * self.scale) @ k.transpose(-2, -1)
            weights = F.softmax(logits if bias is None else logits + bias, dim=-1)
            out = F.dropout(weights, dropout, self.training) @ v
            weights = weights.mean(dim=1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        else:
            out = F.scaled_dot_product_attention(q, k, v, bias, dropout, scale=self.scale)
        out = self.out_proj(out.transpose(1, 2).reshape(batch, length, -1))
        if not batched:
            return out.squeeze(0), weights
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keys, values = self.num_heads * self.head_dim, self.num_heads * self.value_dim
        matrices: Any = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        if self.in_proj_weight is not None:
            matrices = self.in_proj_weight.split([keys, keys, values])
        biases: Any = (None, None, None)
        if self.in_proj_bias is not None:
            biases = self.in_proj_bias.split([keys, keys, values])
        q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), matrices, biases, strict=True))
        return q, k, v

    def _bias(self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, query: Tensor) -> Tensor | None:
        """Returns both masks as one that is added to the logits, broadcastable to (batch, heads, queries, keys)."""
        bias = None
        if attn_mask is not None:
            bias = _additive(attn_mask, query.dtype)
            if bias.dim() == 3:
                bias = bias.view(query.shape[0], -1, *bias.shape[1:])
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask, query.dtype).view(query.shape[0], 1, 1, -1)
            bias = padding if bias is None else bias + padding
        return bias


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, float("-inf"))


def use_dropins(model: nn.Module) -> list[nn.Module]:
    """Puts the drop-ins into a model; returns the modules that changed."""
    adopted = [module for module in modules_of(model).values() if MultiheadAttention.fits(module)]
    for module in adopted:
        MultiheadAttention.adopt(module)
    return adopted


@contextmanager
def with_dropins(model: nn.Module) -> Iterator[None]:
    """Puts the drop-ins into a model for as long as the context lasts."""
    adopted = use_dropins(model)
    try:
        yield
    finally:
        for module in adopted:
            MultiheadAttention.release(module)
