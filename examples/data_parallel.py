"""DistributedDataParallel or FSDP2 over processes: torchrun --nproc-per-node 2 data_parallel.py.

Scale first, then wrap. Every process measures at the same steps, on its own share of the batch, and
before the next step they agree on units by what all of them measured.
"""

import argparse

import torch
import torch.distributed as dist
from tiny import llama, loader
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import unitscale as us

parser = argparse.ArgumentParser()
parser.add_argument("--recipe", default="fp8")
parser.add_argument("--fsdp", action="store_true", help="shard the parameters, with FSDP2")
parser.add_argument("--steps", type=int, default=12)
options = parser.parse_args()

dist.init_process_group("gloo")
rank, processes = dist.get_rank(), dist.get_world_size()

model = us.unit_scale(llama(), options.recipe, inner="eager")
wrapped = fully_shard(model) if options.fsdp else DistributedDataParallel(model)
optimizer = torch.optim.AdamW(wrapped.parameters(), lr=3e-3)

losses = []
for batch in loader(options.steps):
    share = {name: value.chunk(processes)[rank] for name, value in batch.items()}
    loss = wrapped(**share).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    mean = loss.detach() / processes
    dist.all_reduce(mean)
    losses.append(mean.item())
if rank == 0:
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    print("losses", *losses)
dist.destroy_process_group()
