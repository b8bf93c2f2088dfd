"""Accelerate: one line scales the model and has Accelerate prepare it, and keep its units."""

import torch
from accelerate import Accelerator
from tiny import llama, loader

from unitscale.integrations import prepare

accelerator = Accelerator(cpu=True)
model = llama()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
model, optimizer, batches = prepare(
    accelerator, model, optimizer, loader(steps=20), recipe="fp8", inner="eager"
)

losses = []
for batch in batches:
    loss = model(**batch).loss
    optimizer.zero_grad()
    accelerator.backward(loss)
    optimizer.step()
    losses.append(loss.item())
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
