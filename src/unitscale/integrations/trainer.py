"""The Trainer of transformers: pass it a scaled model, and `KeepUnits()` as a callback."""

import json
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from unitscale.integrations.kept import find, give, keep, share

try:
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState
except ModuleNotFoundError:
    raise ModuleNotFoundError(
        "KeepUnits needs transformers; run: pip install 'unitscale[hf]'"
    ) from None

__all__ = ["KeepUnits"]

CALLER = "KeepUnits"


class KeepUnits(TrainerCallback, ExportableState):
    """Keeps the units of a scaled model in every checkpoint, and restores them on resuming.

    They are a part of `trainer_state.json`, so they are found wherever a run resumes from. A run
    that resumes with `resume_from_checkpoint` goes on as if never stopped; without the units it
    would measure again, which is correct, with other roundings. With `load_best_model_at_end` the
    units of the best checkpoint come with its weights.

    Raises:
        ValueError: when training begins: no module of the model is scaled; the checkpoint's units
            are of another model.
    Source: stateful callbacks of transformers 5 (`ExportableState`).
    """

    def __init__(self) -> None:
        self.model: nn.Module | None = None

    def state(self) -> dict[str, Any]:
        """What the Trainer writes into a checkpoint."""
        return {"args": {}, "attributes": {}, "units": keep(self.model) if self.model else {}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **other: Any) -> None:
        """The Trainer is about to start, with the state of a checkpoint if it resumes."""
        model = other["model"]
        find(model, CALLER)
        self.model = model
        if state.global_step:  # the checkpoint's: training resumes
            self.restore(state.stateful_callbacks)
        # A checkpoint of a run without this callback has no such entry, and the Trainer needs it.
        state.stateful_callbacks[CALLER] = self.state()

    def on_step_end(self, args: Any, state: Any, control: Any, **other: Any) -> None:
        """Of several processes each has measured its own share, and one writes for all."""
        if control.should_save and self.model is not None:
            share(self.model)

    def on_evaluate(self, args: Any, state: Any, control: Any, **other: Any) -> None:
        """With `save_strategy="best"` it is known only now whether a checkpoint follows."""
        if args.save_strategy == "best" and self.model is not None:
            share(self.model)

    def on_train_end(self, args: Any, state: Any, control: Any, **other: Any) -> None:
        """The Trainer has loaded the best weights, if it was told to."""
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            path = Path(state.best_model_checkpoint) / "trainer_state.json"
            try:
                saved = json.loads(path.read_text()).get("stateful_callbacks", {})
            except (OSError, ValueError) as error:  # deleted since, as by save_total_limit
                warnings.warn(
                    f"{CALLER}: the units of the best checkpoint cannot be read "
                    f"({type(error).__name__}: {error}); those of the last step stay.",
                    stacklevel=2,
                )
                return
            self.restore(saved)

    def restore(self, callbacks: dict[str, Any]) -> None:
        """Take the units from the states of the callbacks in a checkpoint."""
        assert self.model is not None
        entry = callbacks.get(CALLER)
        entry = entry[0] if isinstance(entry, list) else entry
        units = entry.get("units") if isinstance(entry, dict) else None
        if not units:
            warnings.warn(
                f"{CALLER}: the checkpoint was written without units; they are measured anew, "
                "which is correct, with other roundings than those of a run that was not stopped.",
                stacklevel=2,
            )
            return
        give(self.model, units, CALLER)
