"""The Trainer of transformers: pass it the scaled model."""

import tempfile

from tiny import Windows, llama
from transformers import Trainer, TrainingArguments

import unitscale as us

model = us.unit_scale(llama(), "fp8", inner="eager")

with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=20,
        per_device_train_batch_size=8,
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=Windows(160))
    trainer.train()

losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
print(f"loss {float(losses[0]):.3f} -> {float(losses[-1]):.3f}")
