"""The picture of the page on LASSO: ``python docs/lasso_picture.py FOLDER``, FOLDER as for benchmarks/mnist.py.

A quarter-width VGG-11 trains for 3 epochs on 10,000 images of fashion_mnist. Drawn are the coefficients of the 32
channels that its third convolution reads, along the path of lambda, and how many of them are left.
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

import topiarist
from topiarist.methods._reconstruction import readers
from topiarist.methods.lasso import Lasso
from topiarist.methods.lasso import Path as Coefficients

GROUP, KEPT = "features.4", 16
STAYS, GOES = "#2e7d32", "#ef6c00"


def path(folder: Path) -> Coefficients:
    """The regression of one group of a trained network."""
    data = topiarist.load_data(f"npz:{folder / 'fashion_mnist.npz'}?train=10000")
    torch.manual_seed(0)
    model = topiarist.load_model("zoo:vgg11?width=0.25&in_channels=1&input_size=28")
    topiarist.fit(model, data, topiarist.Recipe(epochs=3, lr=0.05, batch_size=64), seed=0)
    graph = topiarist.trace(model.eval(), data.example())
    stats = topiarist.collect(model, graph, list(islice(data.batches("train", 100), 10)))
    return Coefficients(*Lasso().regression(model, stats, readers(graph, model)[GROUP]))


def draw(found: Coefficients) -> Figure:
    """Above the coefficients, below how many are left; the dashed line is where the wanted number is reached."""
    shares = np.geomspace(3e-3, 1, 300)
    betas = np.stack([found.at(share * found.top) for share in shares])
    counts, stays = np.count_nonzero(betas, axis=1), found.support(KEPT).numpy()
    reached = shares[np.flatnonzero(counts <= KEPT)[0]]
    figure = Figure(figsize=(8, 4.6), dpi=110, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for chosen, colour in ((False, GOES), (True, STAYS)):
        above.plot(shares, betas[:, stays == chosen], color=colour, lw=1.1)
        above.plot([], [], color=colour, label=f"{(stays == chosen).sum()} channels that {'stay' if chosen else 'go'}")
    above.set_ylabel("coefficient β of a channel")
    above.legend(frameon=False, loc="lower left")
    below.plot(shares, counts, color="#455a64", drawstyle="steps-post")
    below.axhline(KEPT, color="#9e9e9e", lw=0.8, ls=":")
    below.set_ylabel("channels left")
    below.set_xlabel("λ, as a fraction of the least λ at which no channel is left")
    for axes in (above, below):
        axes.axvline(reached, color="#9e9e9e", lw=1, ls="--")
        axes.set_xscale("log")
        axes.grid(lw=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    draw(path(Path(sys.argv[1]))).savefig(Path(__file__).parent / "images" / "lasso_path.png")
