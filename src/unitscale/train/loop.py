"""The training loop: plain torch, one process, and a run folder that is usable at any moment."""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unitscale import optim
from unitscale.data import Corpus, fixed_windows, sample_windows
from unitscale.formats import E4M3FN, E5M2
from unitscale.models import CharLM
from unitscale.models.next_byte import build
from unitscale.optim.rules import Kind
from unitscale.record import Recorder, record
from unitscale.report.verdict import latest_state
from unitscale.train.checkpoint import (
    TrainState,
    load_checkpoint,
    save_checkpoint,
)
from unitscale.train.config import TrainConfig
from unitscale.train.divergence import final_loss, has_diverged, has_exploded
from unitscale.train.interrupt import deferred_interrupt
from unitscale.train.loss_scale import LossScale
from unitscale.train.measure import first_look, saved_for_backward
from unitscale.train.run_folder import (
    CheckpointError,
    Record,
    RunLog,
    claim_folder,
    read_json,
    write_json,
)
from unitscale.train.tensorboard import Board
from unitscale.train.units import apply_numerics, is_measuring, take_measurement

OnRecord = Callable[[Record], None]

# What u-muP's rules leave open: a byte's embedding learns at every step, a word's rarely. 700 steps
# of 8 windows, fp32-units, seeds 0 to 2: 1.849 with 1 and 1, 1.833 with these; standard 1.824.
UNIT_SCALED_RATES: Mapping[Kind, float] = {"input": 0.1, "output": 2.0}


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a finished run was: the row that a comparison shows. Losses are in nats a byte."""

    recipe: str
    seed: int
    final_train_loss: float | None
    valid_loss: float | None
    diverged: bool
    steps_done: int
    tokens_per_s: float
    peak_bytes_saved_for_backward: int
    share_in_range: dict[str, float | None]


def train(
    config: TrainConfig,
    corpus: Corpus,
    folder: Path,
    *,
    resume: bool = False,
    on_record: OnRecord = lambda record: None,
    tensorboard: bool = False,
) -> RunResult:
    """Train one model and leave its run folder behind.

    With `resume`, a run that this folder holds goes on from its checkpoint, and its parameters end
    bit-equal to those of a run that was never stopped; a finished one only has its result read. A
    loss that is not finite, or explodes, ends the run early as diverged.

    Args:
        on_record: called with every record that is added to the log.
        tensorboard: write event files as well, see `tensorboard.Board`.

    Raises:
        ValueError: text shorter than a batch, a folder of another run, no package tensorboard.
        FileExistsError: the folder holds a run, and `resume` is off.
        CheckpointError: the checkpoint cannot be read.
        KeyboardInterrupt: stopped by a signal, the last finished step in the checkpoint.
    """
    corpus.require(batch_size=config.batch_size, length=config.sequence_length + 1)
    claim_folder(folder, config, corpus, resume=resume)
    if (folder / "result.json").exists():
        return RunResult(**read_json(folder / "result.json"))
    state = initial_state(config)
    if (folder / "checkpoint.safetensors").exists():
        load_checkpoint(state, folder / "checkpoint.safetensors")
    board = Board(folder, first_step=state.step + 1) if tensorboard else None
    log = RunLog(folder / "log.jsonl", through_step=state.step)
    try:
        run = Run(config, corpus, folder, state, log, on_record, board)
        run.to_end()
        result = run.result()
    finally:
        log.close()
        if board is not None:
            board.close()
    write_json(folder / "result.json", asdict(result))
    return result


def initial_state(config: TrainConfig) -> TrainState:
    """Model, optimizer and loss scale before the first step; seeds torch's generator."""
    # Dynamo compiles one function eight times at most, and from then on runs it as it is: without
    # this, the later runs of a process would train with no recipe at all, and not say so.
    torch.compiler.reset()
    torch.manual_seed(config.seed)
    if config.existing is None:
        model: torch.nn.Module = CharLM(config.model_config)
    else:
        model = build(config.existing, config.model_options)
    return TrainState(
        model, build_optimizer(config, model), LossScale.of(config.numerics.loss_scale)
    )


def build_optimizer(config: TrainConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW: torch's own, or with the u-muP rules for a model written unit-scaled."""
    options: dict[str, Any] = {"betas": config.betas, "weight_decay": config.weight_decay}
    if config.is_written_unit_scaled:
        return optim.AdamW(model, config.peak_lr, rates=UNIT_SCALED_RATES, **options)
    return torch.optim.AdamW(model.parameters(), config.peak_lr, **options)


class Run:
    """One run in progress: its state, its text and its log."""

    def __init__(
        self,
        config: TrainConfig,
        corpus: Corpus,
        folder: Path,
        state: TrainState,
        log: RunLog,
        on_record: OnRecord,
        board: Board | None,
    ) -> None:
        self.board = board
        self.config, self.corpus, self.folder = config, corpus, folder
        self.state, self.log, self.on_record = state, log, on_record
        self.recorder: Recorder | None = None
        self.losses = log.losses()
        if len(self.losses) != state.step:
            raise CheckpointError(
                f"{folder / 'log.jsonl'} has {len(self.losses)} of the {state.step} steps of its "
                "checkpoint; restore the file, or delete the checkpoint to train from the start"
            )

    def to_end(self) -> None:
        """Make the remaining steps, or stop where the run explodes; then validate."""
        config, state = self.config, self.state
        if state.step == 0:
            self.record({"step": 0} | first_look(config, state.model, self.batch(0)))
        apply_numerics(config, state.model, state.units)
        with deferred_interrupt() as stop, self.recording() as self.recorder:
            while state.step < config.steps and not self.has_exploded():
                self.step()
                if config.eval_every and state.step % config.eval_every == 0:
                    self.validate()
                is_last = state.step == config.steps
                if is_last or stop.is_made or state.step % config.checkpoint_every == 0:
                    self.log.sync()
                    save_checkpoint(state, self.folder / "checkpoint.safetensors")
                if stop.is_made:
                    raise KeyboardInterrupt(f"stopped after step {state.step} of {config.steps}")
        if not self.has_exploded() and self.valid_loss() is None:
            self.validate()

    def step(self) -> None:
        """One optimizer step, and its record; a loss that is not finite updates nothing."""
        config, state = self.config, self.state
        begin = time.perf_counter()
        lr = config.lr_at(state.step)
        ids, targets = self.batch(state.step)
        if self.recorder and state.step == 1:  # the first step is left to others who measure it
            self.recorder.request()
        watches = state.step == 0 and not config.gives_units  # else `first_look` has
        with saved_for_backward(state.model) if watches else nullcontext() as saved:
            loss = state.model(ids, targets)
        record = {"step": state.step + 1, "loss": loss.item(), "lr": lr}
        if saved:
            record["peak_bytes_saved_for_backward"] = saved.bytes
        measures = is_measuring(state.model)
        if math.isfinite(record["loss"]):
            self.update(loss, lr)
            if measures:
                record["measured"] = True
                if lost := take_measurement(state.model):
                    record["lost"] = lost
        if self.recorder and (rows := self.recorder.collect()):
            record["numerics"] = latest_state(rows, [fmt.name for fmt in self.recorder.formats])
            if self.board:
                self.board.histograms(rows)
        if config.numerics.loss_scale is not None:
            record["loss_scale"] = state.loss_scale.scale
        record["tokens_per_s"] = ids.numel() / (time.perf_counter() - begin)
        state.step += 1
        self.losses.append(record["loss"])
        self.record(record)

    def update(self, loss: Tensor, lr: float) -> None:
        """Backward, and the optimizer's step unless a dynamic loss scale skips it."""
        state, clip_norm = self.state, self.config.clip_norm
        parameters = list(state.model.parameters())
        state.optimizer.zero_grad()
        (loss * state.loss_scale.scale).backward()
        is_finite = state.loss_scale.unscale_(parameters)
        if is_finite:
            if clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
            for group in state.optimizer.param_groups:
                group["lr"] = lr * group.get("lr_factor", 1.0)
            state.optimizer.step()
        state.loss_scale.update(is_finite=is_finite)

    def recording(self) -> AbstractContextManager[Recorder | None]:
        """Record every tensor in the formats of the recipe, if the configuration says so."""
        config, state = self.config, self.state
        if config.record_every is None:
            return nullcontext()
        return record(
            state.model,
            (config.numerics.forward or E4M3FN, config.numerics.backward or E5M2),
            every=config.record_every,
            path=self.folder / "numerics.jsonl",
            optimizer=state.optimizer,
            first_step=state.step + 1,
        )

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of one step, a pure function of the seed and the step."""
        config = self.config
        windows = sample_windows(
            self.corpus.train,
            seed=config.seed,
            step=step,
            batch_size=config.batch_size,
            length=config.sequence_length + 1,
        )
        return to_inputs(windows)

    @torch.no_grad()
    def validate(self) -> None:
        """Record the mean loss over the fixed validation windows."""
        config, model = self.config, self.state.model
        windows = fixed_windows(
            self.corpus.valid, count=config.eval_windows, length=config.sequence_length + 1
        )
        ids, targets = to_inputs(windows)
        model.eval()
        total = sum(
            model(i, t).item() * len(i)
            for i, t in zip(
                ids.split(config.batch_size), targets.split(config.batch_size), strict=True
            )
        )
        model.train()
        self.record({"step": self.state.step, "valid_loss": total / len(ids)})

    def record(self, record: Record) -> None:
        """Log a record and pass it on."""
        self.log.append(record)
        if self.board:
            self.board.scalars(record)
        self.on_record(record)

    def has_exploded(self) -> bool:
        """Whether there is no point in another step."""
        return bool(self.losses) and has_exploded(self.losses)

    def logged(self, key: str) -> list[Any]:
        """All values of a key in the log, in order."""
        return [record[key] for record in self.log.records if key in record]

    def valid_loss(self) -> float | None:
        """The validation loss after the last step; None if there is none, or it is not finite."""
        last = self.log.records[-1]
        return finite(last.get("valid_loss")) if last["step"] == self.state.step else None

    def result(self) -> RunResult:
        """The row of this run, from its log: the same whether or not it was ever resumed."""
        return RunResult(
            recipe=self.config.recipe,
            seed=self.config.seed,
            final_train_loss=finite(final_loss(self.losses)),
            valid_loss=self.valid_loss(),
            diverged=has_diverged(self.losses),
            steps_done=self.state.step,
            tokens_per_s=median(self.logged("tokens_per_s")),
            peak_bytes_saved_for_backward=self.logged("peak_bytes_saved_for_backward")[0],
            share_in_range=self.logged("share_in_range")[0],
        )


def to_inputs(windows: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """The bytes of each window but its last, and the bytes that follow them."""
    tokens = torch.from_numpy(windows.astype(np.int64))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def finite(value: float | None) -> float | None:
    """The value, or None if it is not a finite number."""
    return value if value is not None and math.isfinite(value) else None
