"""Prunes in Lightning's trainer: half of the MACs are cut in three steps while the network trains.

The optimiser keeps its momenta, the schedule its place; a checkpoint continues in the middle of it. Needs
``pip install 'topiarist[lightning]'``. Run it with ``python examples/lightning_loop.py``; it takes a few seconds.
"""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import topiarist
from topiarist.integrations.lightning import PruningCallback


def block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class Classifier(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        tail = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
        self.model = nn.Sequential(block(1, 16), nn.MaxPool2d(2), block(16, 32), tail)

    def training_step(self, batch: Any, at: int) -> torch.Tensor:
        return cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)]


pl.seed_everything(0)
data = topiarist.load_data("digits")
pruning = PruningCallback("l1", 0.5, at=[2, 3, 4], example_inputs=data.example())
trainer = pl.Trainer(max_epochs=6, accelerator="cpu", devices=1, callbacks=[pruning], logger=False)
module = Classifier()
images, labels = next(iter(data.batches("train", len(data.train_y))))
trainer.fit(module, DataLoader(TensorDataset(images, labels), batch_size=64, shuffle=True))

before, after = pruning.pruning.cuts.costs
print(f"{before.macs:,} MACs became {after.macs:,}")
print(f"{topiarist.evaluate(module.model, data):.1f} % of the test images")
