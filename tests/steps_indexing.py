"""Steps of random networks that read and write places by number, or by a mask (see `steps.py`)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

from steps import Step


class Gate(Step):
    """A gated linear unit of channels."""

    def build(self, c):
        self.conv = nn.Conv2d(c, 2 * c, 1)

    def forward(self, x):
        return F.glu(self.conv(x), 1)

    @staticmethod
    def draw(draw, c, size):
        return () if c <= 6 else None


class Places(Step):
    """Picks, moves or overwrites places of the flattened map, by an index or a mask."""

    def build(self, c, how):
        self.how = how
        places = self.size**2
        self.register_buffer("order", torch.arange(places).flip(0), persistent=False)
        self.chosen = [k % 2 == 0 for k in range(places)]

    def forward(self, x):
        y = x.flatten(2)
        index = y.mean(1, keepdim=True).argsort(-1).expand(-1, y.shape[1], -1)
        chosen = torch.tensor(self.chosen)
        if self.how == "gather":
            y = y.gather(2, index)
        elif self.how == "scatter":
            y = torch.zeros_like(y).scatter_add(2, index, y)
        elif self.how == "scatter what is not zero":
            y = y.scatter(2, index, y.sigmoid())
        elif self.how == "add":
            y = y.index_add(2, torch.tensor([0, 0]), y[:, :, :2].exp()) if self.size > 1 else y
        elif self.how == "mask":
            y = y[:, :, chosen].mean(-1, keepdim=True) + y
        else:
            y = y.clone()
            y[:, :, chosen] = 0.5
        return y.view(x.shape)

    @staticmethod
    def draw(draw, c, size):
        styles = ["gather", "scatter", "scatter what is not zero", "add", "mask", "write"]
        return (draw(st.sampled_from(styles)),)
