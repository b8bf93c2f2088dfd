"""The training loop: plain torch, one process, and a run folder that is usable at any moment."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unitscale.data import Corpus, fixed_batches, sample_windows
from unitscale.record import Recorder, record
from unitscale.record.taken import formats_of
from unitscale.report.verdict import latest_state
from unitscale.train.checkpoint import (
    TrainState,
    load_checkpoint,
    save_checkpoint,
)
from unitscale.train.config import TrainConfig
from unitscale.train.device import find_device
from unitscale.train.divergence import has_exploded
from unitscale.train.initial import check_output, initial_state
from unitscale.train.interrupt import deferred_interrupt
from unitscale.train.measure import first_look, saved_for_backward
from unitscale.train.result import RunResult, finished, result_of, valid_loss
from unitscale.train.run_folder import (
    CHECKPOINT,
    LOG,
    RECORDING,
    RESULT,
    Record,
    claimed,
    identity,
    write_json,
)
from unitscale.train.run_log import RunLog, check_recording, losses
from unitscale.train.tensorboard import Board
from unitscale.train.units import (
    apply_numerics,
    coverage_of,
    full_precision_of,
    is_measuring,
    take_measurement,
)

OnRecord = Callable[[Record], None]


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
        ValueError: text shorter than a batch, a folder of another run, no package tensorboard, no
            such device.
        FileExistsError: the folder holds a run, and `resume` is off.
        InUseError: another process is writing to the folder.
        CheckpointError: the checkpoint, the log or the result cannot be trusted.
        ModelError: the factory of the model failed, or its model does not give a loss.
        KeyboardInterrupt: stopped by a signal, the last finished step in the checkpoint.
    """
    corpus.require(batch_size=config.batch_size, length=config.sequence_length + 1)
    with claimed(folder, config, corpus, resume=resume):
        return run_claimed(config, corpus, folder, on_record=on_record, tensorboard=tensorboard)


def run_claimed(
    config: TrainConfig,
    corpus: Corpus,
    folder: Path,
    *,
    on_record: OnRecord = lambda record: None,
    tensorboard: bool = False,
) -> RunResult:
    """`train` in a folder that the caller holds (`run_folder.claimed`): begin, go on, or read.

    Every file is checked before any is changed.
    """
    if (folder / RESULT).exists():
        return finished(config, folder)
    state = initial_state(config)
    state.run = identity(config, corpus)
    if (folder / CHECKPOINT).exists():
        load_checkpoint(state, folder / CHECKPOINT)
    else:
        check_output(config, state.model)
    log = RunLog(folder / LOG, state.log)
    if config.record_every is not None:
        check_recording(folder / RECORDING)
    board = Board(folder, first_step=state.step + 1) if tensorboard else None
    try:
        with log:
            run = Run(config, corpus, folder, state, log, on_record, board)
            run.to_end()
            log.sync()
    finally:
        if board is not None:
            board.close()
    result = result_of(config, log.records)
    write_json(folder / RESULT, asdict(result))
    return result


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
        self.losses = losses(log.records)
        self.device = find_device(config.device)

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
                    self.save()
                if stop.is_made:
                    raise KeyboardInterrupt(f"stopped after step {state.step} of {config.steps}")
        if not self.has_exploded() and valid_loss(self.log.records) is None:
            self.validate()

    def save(self) -> None:
        """Write a checkpoint that knows all of the log up to here."""
        self.log.sync()
        self.state.log = self.log.mark
        save_checkpoint(self.state, self.folder / CHECKPOINT)

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
        if state.step == 0 and config.numerics.rounds:
            record["coverage"] = round(coverage_of(state.model), 4)
            record["full_precision"] = full_precision_of(state.model)
        if self.recorder and (rows := self.recorder.collect()):
            names = [fmt.name for fmt in self.recorder.formats]
            if state_now := latest_state(rows, names, config.numerics):
                record["numerics"] = state_now
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
            formats_of(config.numerics),
            every=config.record_every,
            path=self.folder / RECORDING,
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
        return to_inputs(windows, self.device)

    @torch.no_grad()
    def validate(self) -> None:
        """Record the mean loss over the fixed validation windows."""
        config, model = self.config, self.state.model
        batches = fixed_batches(
            self.corpus.valid,
            count=config.eval_windows,
            length=config.sequence_length + 1,
            batch_size=config.batch_size,
        )
        model.eval()
        total = sum(
            model(*to_inputs(windows, self.device)).item() * len(windows) for windows in batches
        )
        model.train()
        self.record({"step": self.state.step, "valid_loss": total / config.eval_windows})

    def record(self, record: Record) -> None:
        """Log a record and pass it on."""
        self.log.append(record)
        if self.board:
            self.board.scalars(record)
        self.on_record(record)

    def has_exploded(self) -> bool:
        """Whether there is no point in another step."""
        return bool(self.losses) and has_exploded(self.losses)


def to_inputs(
    windows: NDArray[np.uint8], device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """The bytes of each window but its last, and the bytes that follow them."""
    tokens = torch.from_numpy(windows.astype(np.int64)).to(device)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
