"""Accelerate: scale the model, then let Accelerate prepare it."""

import torch
from accelerate import Accelerator
from tiny import llama, loader

import unitscale as us

accelerator = Accelerator(cpu=True)
model = us.unit_scale(llama(), "fp8", inner="eager")
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
model, optimizer, batches = accelerator.prepare(model, optimizer, loader(steps=20))

losses = []
for batch in batches:
    loss = model(**batch).loss
    optimizer.zero_grad()
    accelerator.backward(loss)
    optimizer.step()
    losses.append(loss.item())
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
