"""A model of transformers in FP8, in a loop of plain torch; the checkpoint is an ordinary one."""

import tempfile

import torch
from tiny import llama, loader
from transformers import LlamaForCausalLM

import unitscale as us

model = llama()
# "inductor", the default, makes faster steps and compiles for half a minute first.
us.unit_scale(model, "fp8", inner="eager")
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

losses = []
for batch in loader(steps=20):
    loss = model(**batch).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
print(f"{sum(row.reason is None for row in us.unit_rows(model))} tensors have a unit")

with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    reloaded = LlamaForCausalLM.from_pretrained(folder)  # knows nothing of unitscale

ids = next(iter(loader(steps=1)))["input_ids"]
plain = llama()
plain.load_state_dict(model.state_dict())
with torch.no_grad():
    print("reloaded equal:", torch.equal(reloaded(ids).logits, plain.eval()(ids).logits))
