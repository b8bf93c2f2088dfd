"""One run in progress: its steps, validations and checkpoints, on one rank."""

import math
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unitscale.data import Corpus, fixed_batches, sample_windows
from unitscale.record import Recorder, record
from unitscale.record.taken import formats_of
from unitscale.report.verdict import latest_state
from unitscale.train.checkpoint import TrainState, save_checkpoint
from unitscale.train.config import TrainConfig
from unitscale.train.device import find_device
from unitscale.train.divergence import has_exploded
from unitscale.train.initial import build_optimizer
from unitscale.train.interrupt import StopRequest, deferred_interrupt
from unitscale.train.measure import first_look, saved_for_backward
from unitscale.train.ranks import gathered
from unitscale.train.replica import copied, shard_, synchronizing
from unitscale.train.result import valid_loss
from unitscale.train.run_folder import CHECKPOINT, CHECKPOINTS, RECORDING, Record
from unitscale.train.run_log import HeardLog, RunLog, losses
from unitscale.train.spread import WHOLE, Spread
from unitscale.train.tensorboard import Board
from unitscale.train.throughout import hold_, rounding
from unitscale.train.units import (
    apply_numerics,
    coverage_of,
    full_precision_of,
    is_measuring,
    share_measurements,
    take_measurement,
)

OnRecord = Callable[[Record], None]


def shard(config: TrainConfig, state: TrainState, spread: Spread) -> None:
    """Cut the parameters of a state that is at its beginning, and make its optimizer anew."""
    shard_(state.model, spread, find_device(config.device))
    state.optimizer = build_optimizer(config, state.model)


class Run:
    """One run in progress: its state, its text and its log."""

    def __init__(
        self,
        config: TrainConfig,
        corpus: Corpus,
        folder: Path,
        state: TrainState,
        log: RunLog | HeardLog,
        on_record: OnRecord,
        board: Board | None,
        spread: Spread = WHOLE,
    ) -> None:
        self.board, self.spread = board, spread
        self.config, self.corpus, self.folder = config, corpus, folder
        self.state, self.log, self.on_record = state, log, on_record
        self.recorder: Recorder | None = None
        self.losses = losses(log.records)
        self.device = find_device(config.device)
        self.model = state.model
        self.stop, self.stops = StopRequest(), False  # of this rank, and of any
        self.news: Record = dict(spread.described())
        """For the record of the next step: what has changed since the one before."""

    def to_end(self) -> None:
        """Make the remaining steps, or stop where the run explodes; then validate."""
        config, state = self.config, self.state
        if state.step == 0:
            first = first_look(config, state.model, self.inputs(self.windows(0), 0))
            groups = state.optimizer.param_groups
            if config.existing is not None and any("kind" in group for group in groups):
                first["rates"] = "u-mup"  # each parameter's rate follows from its kind
            self.record({"step": 0} | first)
            if self.spread.is_sharded:
                shard(config, state, self.spread)
        apply_numerics(config, state.model, state.units)
        self.model = state.model
        if not (self.spread.is_alone or self.spread.is_sharded):
            self.model = copied(state.model)
        with deferred_interrupt() as self.stop, self.recording() as self.recorder:
            while state.step < config.steps and not self.has_exploded():
                self.step()
                stops = self.stop.is_made if self.spread.is_alone else self.stops
                if config.eval_every and state.step % config.eval_every == 0:
                    self.validate()
                is_last = state.step == config.steps
                if is_last or stops or state.step % config.checkpoint_every == 0:
                    self.save()
                if stops:
                    raise KeyboardInterrupt(f"stopped after step {state.step} of {config.steps}")
        if not self.has_exploded() and valid_loss(self.log.records) is None:
            self.validate()

    def save(self) -> None:
        """Write a checkpoint that knows all of the log up to here."""
        self.log.sync()
        self.state.log = self.log.mark
        if self.spread.is_alone:
            save_checkpoint(self.state, self.folder / CHECKPOINT)
            shutil.rmtree(self.folder / CHECKPOINTS, ignore_errors=True)  # of fewer steps
        else:
            from unitscale.train.sharded import save_sharded  # slow to import, so only for ranks

            share_measurements(self.model)
            save_sharded(self.state, self.folder, self.spread)

    def step(self) -> None:
        """One optimizer step, and its record; a loss that is not finite updates nothing."""
        config, state, spread = self.config, self.state, self.spread
        begin = time.perf_counter()
        lr = config.lr_at(state.step)
        windows = self.windows(state.step)
        if self.recorder and state.step == 1:  # the first step is left to others who measure it
            self.recorder.request()
        record: Record = {"step": state.step + 1, "loss": 0.0, "lr": lr}
        total = 0.0
        lost: list[str] | None = None
        for micro in range(spread.micro_batches):
            if lost is not None:
                lost += take_measurement(state.model)
            value, saved = self.forward_and_backward(windows, micro)
            total += value
            if saved is not None:
                record["peak_bytes_saved_for_backward"] = saved
            if is_measuring(state.model):
                lost = lost or []
            if spread.is_alone and not math.isfinite(value):
                break
        mean = total / spread.micro_batches
        each = gathered(spread, [mean, self.stop.is_made, lost is not None])
        record["loss"] = math.fsum(loss for loss, _, _ in each) / spread.ranks
        self.stops = any(made for _, made, _ in each)
        if math.isfinite(record["loss"]):
            self.update(lr)
            if lost is not None:
                record["measured"] = True
                if lost := lost + take_measurement(state.model):
                    record["lost"] = lost
            if not spread.is_alone and any(measured for _, _, measured in each):
                share_measurements(self.model)  # now, so that validation has the same units
        elif not spread.is_alone:
            record["not_finite_on"] = [r for r, (x, *_) in enumerate(each) if not math.isfinite(x)]
        if state.step == 0 and config.numerics.throughout is not None:
            record["coverage"], record["full_precision"] = 1.0, {}
        elif state.step == 0 and config.numerics.rounds:
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
        tokens = config.batch_size * config.sequence_length
        record["tokens_per_s"] = tokens / (time.perf_counter() - begin)
        state.step += 1
        self.losses.append(record["loss"])
        self.record(record | self.news)
        self.news = {}

    def forward_and_backward(
        self, windows: NDArray[np.uint8], micro: int
    ) -> tuple[float, int | None]:
        """The loss of one share, and what its forward pass saved, if this is the first of a run.

        In one process the backward pass of a loss that is not finite is left out. Several ranks
        make it: the others wait for it.
        """
        config, state, spread = self.config, self.state, self.spread
        is_unit_scaled = config.is_written_unit_scaled
        ids, targets = self.inputs(windows, micro)
        if spread.shares > 1:
            torch.manual_seed(spread.seed(config.seed, state.step, micro))
        watches = state.step == 0 and micro == 0 and not config.gives_units  # else `first_look` has
        how, seed = config.numerics.throughout, (config.seed, state.step, micro)
        with synchronizing(self.model, is_last=micro + 1 == spread.micro_batches):
            watching = saved_for_backward(state.model) if watches else nullcontext()
            with rounding(how, *seed, 0), watching as saved:
                loss = self.model(ids, targets)
            value, saved_bytes = loss.item(), saved.bytes if saved else None
            del saved
            if math.isfinite(value) or not spread.is_alone:
                if micro == 0:
                    state.optimizer.zero_grad()
                factor = spread.loss_factor(is_unit_scaled=is_unit_scaled)
                factor *= state.loss_scale.scale
                if how is None:
                    (loss * factor).backward()
                else:  # the product would be rounded, and so would its derivative, the factor
                    with rounding(how, *seed, 1):
                        loss.backward(torch.full_like(loss, factor))
        return value, saved_bytes

    def update(self, lr: float) -> None:
        """The optimizer's step, unless a dynamic loss scale skips it."""
        state, spread, clip_norm = self.state, self.spread, self.config.clip_norm
        parameters = list(state.model.parameters())
        factor = spread.gradient_factor(is_unit_scaled=self.config.is_written_unit_scaled)
        is_finite = state.loss_scale.unscale_(parameters, factor)
        if state.loss_scale.is_dynamic and spread.is_sharded:
            is_finite = all(finite for (finite,) in gathered(spread, [is_finite]))
        if is_finite:
            if clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
            for group in state.optimizer.param_groups:
                group["lr"] = lr * group.get("lr_factor", 1.0)
            state.optimizer.step()
            if (how := self.config.numerics.throughout) is not None:
                hold_(
                    state.optimizer,
                    how,
                    loss_scale=state.loss_scale.scale,
                    seed=self.config.seed,
                    step=state.step + 1,
                )
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

    def windows(self, step: int) -> NDArray[np.uint8]:
        """The text of one step, a pure function of the seed and the step."""
        config = self.config
        return sample_windows(
            self.corpus.train,
            seed=config.seed,
            step=step,
            batch_size=config.batch_size,
            length=config.sequence_length + 1,
        )

    def inputs(self, windows: NDArray[np.uint8], micro: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of one of this process's shares."""
        return to_inputs(windows[self.spread.rows(len(windows), micro)], self.device)

    @torch.no_grad()
    def validate(self) -> None:
        """Record the mean loss over the fixed validation windows."""
        config, spread, model = self.config, self.spread, self.model
        batches = list(
            fixed_batches(
                self.corpus.valid,
                count=config.eval_windows,
                length=config.sequence_length + 1,
                batch_size=config.batch_size // spread.shares,
            )
        )
        model.eval()
        total = 0.0
        # Ranks take turns, and make as many calls as each other: those of FSDP2 need all of them.
        for first in range(0, len(batches), spread.ranks):
            own = first + spread.rank
            windows = batches[min(own, len(batches) - 1)]
            with rounding(config.numerics.throughout, config.seed, first):
                loss = model(*to_inputs(windows, self.device)).item() * len(windows)
            total += loss if own < len(batches) else 0.0
        model.train()
        total = math.fsum(part for (part,) in gathered(spread, [total]))
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
