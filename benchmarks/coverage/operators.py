"""Stand-ins for torchvision's compiled operators, of the same names and schemas, where these cannot be loaded.

A tracer sees the operator as it sees the compiled one: by its name. So the table says what users of a matching build
get; only the speed of detectors differs.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from topiarist.models import import_torchvision

sys.path.append(str(Path(__file__).resolve().parents[1]))
from paths import nms

SCHEMAS = (
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor",
    "deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, "
    "SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, "
    "SymInt offset_groups, bool use_mask) -> Tensor",
)
_libraries: list[torch.library.Library] = []


def load_torchvision() -> bool:
    """Imports torchvision; returns whether stand-ins had to be registered."""
    import_torchvision()
    from torchvision import extension

    boxes, deform_conv, roi_align = (  # torchvision.ops has functions of the same names
        importlib.import_module(f"torchvision.ops.{name}") for name in ("boxes", "deform_conv", "roi_align")
    )
    if extension._has_ops():
        return False
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in SCHEMAS:
        library.define(schema)
    for name, function in (("nms", nms), ("roi_align", _roi_align), ("deform_conv2d", _deform_conv2d)):
        library.impl(name, function, "CPU")
    _libraries.append(library)
    for module in (boxes, deform_conv, roi_align):
        module._assert_has_ops = lambda: None
    roi_align._has_ops = lambda: True
    return True


def _sampled(x: Tensor, at_y: Tensor, at_x: Tensor) -> Tensor:
    """Returns ``x`` (N, C, H, W) at places (N, …), bilinearly, and 0 outside: (N, C, …)."""
    height, width = x.shape[-2:]
    grid = torch.stack([2 * at_x / max(width - 1, 1) - 1, 2 * at_y / max(height - 1, 1) - 1], -1)
    flat = F.grid_sample(x, grid.flatten(1, -2)[:, :, None], align_corners=True)
    return flat.view(len(x), x.shape[1], *at_y.shape[1:])


def _roi_align(
    x: Tensor, rois: Tensor, scale: float, height: int, width: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    ratio = sampling_ratio if sampling_ratio > 0 else 2
    if len(rois) == 0:
        return x.new_zeros(0, x.shape[1], height, width)
    corners = rois[:, 1:] * scale - (0.5 if aligned else 0.0)
    size = corners[:, 2:] - corners[:, :2]
    size = size if aligned else size.clamp(min=1.0)
    steps = [(torch.arange(n * ratio).to(x) + 0.5) / (n * ratio) for n in (width, height)]
    at_x, at_y = (corners[:, k, None] + size[:, k, None] * steps[k] for k in (0, 1))
    at_x, at_y = at_x.clamp(0, x.shape[-1] - 1), at_y.clamp(0, x.shape[-2] - 1)
    shape = (len(rois), height * ratio, width * ratio)
    sampled = _sampled(x[rois[:, 0].long()], at_y[:, :, None].expand(shape), at_x[:, None].expand(shape))
    return F.avg_pool2d(sampled, ratio)


def _deform_conv2d(
    x: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, stride_h: int, stride_w: int, pad_h: int,
    pad_w: int, dilation_h: int, dilation_w: int, groups: int, offset_groups: int, use_mask: bool,
) -> Tensor:  # fmt: skip
    rows, columns = weight.shape[-2:]
    batch, channels = x.shape[:2]
    height, width = offset.shape[-2:]
    shift = offset.view(batch * offset_groups, rows, columns, 2, height, width)
    base_y = (torch.arange(height) * stride_h - pad_h)[:, None] + (torch.arange(rows) * dilation_h)[:, None, None, None]
    base_x = (torch.arange(width) * stride_w - pad_w) + (torch.arange(columns) * dilation_w)[:, None, None]
    at_y, at_x = shift[:, :, :, 0] + base_y.to(x), shift[:, :, :, 1] + base_x.to(x)
    sampled = _sampled(x.reshape(batch * offset_groups, -1, *x.shape[-2:]), at_y, at_x)
    if use_mask:
        sampled = sampled * mask.view(batch * offset_groups, 1, rows, columns, height, width)
    sampled = sampled.reshape(batch, groups, channels // groups, rows, columns, height, width)
    kernels = weight.view(groups, -1, *weight.shape[1:])
    return torch.einsum("bgcijhw,gocij->bgohw", sampled, kernels).flatten(1, 2) + bias[:, None, None]
