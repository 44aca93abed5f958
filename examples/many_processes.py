"""Prunes one network by many processes: each measures its share of the batches, the sums are added, and all cut alike.

Run it with ``torchrun --nproc-per-node 2 examples/many_processes.py``. Without torchrun it runs as one process.
"""

import os

import torch
from torch import distributed

import topiarist

together = "WORLD_SIZE" in os.environ  # torchrun sets it
if together:
    distributed.init_process_group("gloo")

torch.manual_seed(0)
data = topiarist.load_data("digits")
model = topiarist.load_model("zoo:digitsnet")  # each process trains the same network
topiarist.fit(model, data, topiarist.Recipe(epochs=2), seed=0)

result = topiarist.prune(model, data.example(), "taylor", topiarist.Budget(macs=0.5), data=data, distributed=together)
kept = " ".join(str(units) for units, _ in result.architecture.widths.values())
where = f"process {distributed.get_rank()} of {distributed.get_world_size()}" if together else "alone"
print(f"{where}: {result.after.macs:,} of {result.before.macs:,} MACs, units kept: {kept}")

if together:
    distributed.destroy_process_group()
