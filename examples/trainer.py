"""The Trainer of transformers: pass it the scaled model, and a callback that keeps its units."""

import tempfile

from tiny import Windows, llama
from transformers import Trainer, TrainingArguments

import unitscale as us
from unitscale.integrations import KeepUnits


def train(folder, resume_from=None):
    """The loss of each of the last logged steps; 20 steps in all."""
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=20,
        per_device_train_batch_size=8,
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_steps=10,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    model = us.unit_scale(llama(), "fp8", inner="eager")
    trainer = Trainer(
        model=model, args=arguments, train_dataset=Windows(160), callbacks=[KeepUnits()]
    )
    trainer.train(resume_from_checkpoint=resume_from)
    return [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]


with tempfile.TemporaryDirectory() as folder:
    losses = train(folder)
    resumed = train(folder, resume_from=f"{folder}/checkpoint-10")

print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
print(f"resumed equal: {resumed == losses}")
