"""Prunes in the middle of a training of one's own: AdamW, bfloat16, a schedule and an average of the weights.

The optimiser keeps its momenta, the schedule its place and the average its values. Run it with
``python examples/own_loop.py``; it takes about ten seconds.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import topiarist

EPOCHS, CUTS = 6, (2, 3, 4)  # each cut keeps 80 % of the MACs: half of them after three


def block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


torch.manual_seed(0)
data = topiarist.load_data("digits")
model: nn.Module = nn.Sequential(
    block(1, 16),
    nn.MaxPool2d(2),
    block(16, 32),
    block(32, 32),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(32, 10),
)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.05)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.95), use_buffers=True)
shuffle = torch.Generator().manual_seed(0)

for epoch in range(EPOCHS):
    if epoch in CUTS:
        result = topiarist.prune(model, data.example(), "l1", topiarist.Budget(macs=0.8))
        model = result.carry_over(model, optimizer, ema)
        print(f"epoch {epoch}: {result.before.macs:,} MACs became {result.after.macs:,}")
    for x, y in data.batches("train", 64, shuffle):
        with torch.autocast("cpu", torch.bfloat16):
            loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update_parameters(model)
    scheduler.step()

print(f"the model: {topiarist.evaluate(model, data):.1f} % of the test images, rate {scheduler.get_last_lr()[0]:g}")
print(f"its average: {topiarist.evaluate(ema, data):.1f} %")
