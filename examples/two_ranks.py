"""Prunes in the middle of a training that is sharded over processes (FSDP2): gather, prune, shard again.

The optimiser keeps its moments, the schedule its place. Run it with ``torchrun --nproc-per-node 2
examples/two_ranks.py``. Without torchrun it runs as one process, to the same losses.
"""

import torch
from torch import distributed, nn
from torch.distributed.checkpoint import state_dict as states
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy

import topiarist

FULL = states.StateDictOptions(full_state_dict=True)
alone = {"store": distributed.HashStore(), "rank": 0, "world_size": 1}
distributed.init_process_group("gloo", **({} if distributed.is_torchelastic_launched() else alone))
rank, processes = distributed.get_rank(), distributed.get_world_size()


def make_model() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def make_training(model: nn.Module, state: dict | None = None, place: dict | None = None) -> tuple:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)  # first: it adds a key to the state
    if state:
        scheduler.load_state_dict(place)
        states.set_optimizer_state_dict(model, optimizer, state, options=FULL)
    return optimizer, scheduler


torch.manual_seed(0)  # each process makes the same model and draws the same batches
data, shuffle = topiarist.load_data("digits").subset(1280), torch.Generator().manual_seed(0)
model = fully_shard(make_model())
optimizer, scheduler = make_training(model)
for epoch in range(6):
    if epoch == 3:
        state, place = states.get_optimizer_state_dict(model, optimizer, options=FULL), scheduler.state_dict()
        whole = make_model()
        whole.load_state_dict(states.get_model_state_dict(model, options=FULL))
        optimizer, _ = make_training(whole, state, place)
        share = topiarist.Run(distributed=True)  # each process measures its share, and all cut alike
        result = topiarist.prune(whole, data.example(), "taylor", topiarist.Budget(macs=0.5), data, run=share)
        smaller = result.carry_over(whole, optimizer)
        state = states.get_optimizer_state_dict(smaller, optimizer, options=FULL)
        model = fully_shard(smaller)
        optimizer, scheduler = make_training(model, state, place)
    for x, y in data.batches("train", 64, shuffle):
        loss = cross_entropy(model(x[rank::processes]), y[rank::processes])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    scheduler.step()
    distributed.all_reduce(mean := loss.detach() / processes)
    if rank == 0:
        print(f"{sum(p.numel() for p in model.parameters()):,} parameters, epoch {epoch}: loss {mean:.4f}")
distributed.destroy_process_group()
